"""From a claimed order to an assignment: fetch, decide, look at the host.

A thin shell: every decision is made by ``hostpath``, ``site`` and ``location``; here they are
only given what they ask for. What a watch has shown may be old, so a restore's pod is looked at
again: nothing is written into a volume whose pod has gone on.
"""

import asyncio
import datetime
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.cluster import hostpath, location, objects, paths
from agent.cluster.assignment import Assignment, BackupAssignment, RestoreAssignment
from agent.cluster.claim import elsewhere
from agent.cluster.client import decode
from agent.cluster.location import Location
from agent.cluster.order import Order, OrderKind
from agent.cluster.places import Places, read_object
from agent.cluster.secrets import Getter, PrivateFiles, repository_password
from agent.cluster.site import Site, Where, site_of
from agent.cluster.watch import Source
from agent.cluster.wishes import Annotated, read_wishes
from agent.config import AgentSettings
from agent.errors import ApiError, ClusterError

LOG = logging.getLogger(__name__)


class Reader(Source, Getter, Protocol):
    """What preparation needs of the API server: single objects, and lists."""


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume's directory, the uid of its claim ("" without one), and what bears annotations for it."""

    path: Path
    pvc_uid: str
    annotated: tuple[Annotated, ...]


class Preparation:
    """Makes assignments for one agent."""

    def __init__(self, api: Reader, settings: AgentSettings, files: PrivateFiles) -> None:
        self._api = api
        self._settings = settings
        self._places = Places(api, settings.namespace, settings.credentials_file, files)

    async def assignment(self, order: Order) -> Assignment:
        """Return all that is needed to move the volume; raises ``ClusterError``."""
        volume = await self._volume(order)
        place = await self._places.location(order.location)
        namespace, make = _kind_of_assignment(order, place, volume, self._settings)
        prefix = location.repository_prefix(place, order.repo_identifier, namespace)
        fetched = await self._places.fetch(place)
        storage = location.s3_settings(place, prefix, fetched, self._settings.upload_workers)
        return make(
            name=order.name,
            namespace=order.namespace,
            uid=order.uid,
            volume_path=volume.path,
            location=place.name,
            storage=storage,
            repository=str(storage.address),
            password=await repository_password(self._api, self._settings.namespace),
            pvc_uid=volume.pvc_uid or order.pvc_uid or None,
            pod_namespace=order.pod_namespace,
            pod_name=order.pod_name,
            volume=order.volume,
        )

    async def refresh(self, assignment: Assignment) -> None:
        """Bring newer credentials to the one who works on ``assignment``; raises ``ClusterError``."""
        await self._places.refresh(assignment.location)

    async def site(self, order: Order) -> Site:
        """Look up the pod of a restore; raises ``ApiError`` if that cannot be done."""
        try:
            return site_of(await self._pod(order), order.pod_uid, self._settings.node_name)
        except ApiError:
            raise
        except ClusterError as error:
            return Site(Where.LOST, str(error))

    async def _pod(self, order: Order) -> objects.Pod:
        path = paths.core(order.pod_namespace, "pods", paths.checked(order.pod_name, "pod"))
        return await read_object(self._api, path, objects.Pod, order.pod)

    async def _volume(self, order: Order) -> _Volume:
        pod = await self._pod(order)
        node = self._settings.node_name
        hostpath.check_pod(pod, order.pod_uid, node, order.kind.noun)
        if order.kind is OrderKind.RESTORE:
            site = site_of(pod, order.pod_uid, node)
            if site.where is not Where.HERE:
                raise ClusterError(f"{site.reason}; restore it again")
        source = hostpath.source(pod, order.volume)
        pvc_uid, annotated = "", [Annotated(order.pod, pod.metadata.annotations or {})]
        if isinstance(source, hostpath.Claimed):
            directory, claim = await self._claimed(order.pod_namespace, source)
            pvc_uid = claim.metadata.uid
            words = f"PersistentVolumeClaim {order.pod_namespace}/{source.claim}"
            annotated.insert(0, Annotated(words, claim.metadata.annotations or {}))
        else:
            directory = source.directory
        pod_directory = hostpath.pod_directory(pod)
        host_pods = self._settings.host_pods
        path = await asyncio.to_thread(hostpath.find, host_pods, pod_directory, directory)
        return _Volume(path, pvc_uid, tuple(annotated))

    async def _claimed(self, namespace: str, source: hostpath.Claimed) -> tuple[str, objects.Claim]:
        what = f"PersistentVolumeClaim {namespace}/{source.claim}"
        name = paths.checked(source.claim, "PersistentVolumeClaim")
        path = paths.core(namespace, "persistentvolumeclaims", name)
        claim = await read_object(self._api, path, objects.Claim, what)
        volume_name = hostpath.check_claim(claim, source)
        volume = await read_object(
            self._api,
            paths.persistent_volume(volume_name),
            objects.PersistentVolume,
            f"PersistentVolume {volume_name}",
        )
        drivers: set[str] = set()
        if hostpath.csi_driver_names(volume):
            page = await self._api.list(paths.CSI_DRIVERS)
            drivers = {
                decode(item, objects.Named, "a CSIDriver").metadata.name for item in page.items
            }
        return hostpath.claimed_directory(volume, claim, drivers), claim


def _kind_of_assignment(
    order: Order, place: Location, volume: _Volume, settings: AgentSettings
) -> tuple[str, Callable[..., Assignment]]:
    """Return the namespace whose repository is meant, and what only this kind needs to know."""
    if order.kind is OrderKind.BACKUP:
        wishes = read_wishes(order, volume.annotated)
        for warning in wishes.warnings:
            LOG.warning("%s: %s", order.name, warning)
        location.require_writable(place)
        if not order.resumed:  # what is under way goes on through a bad moment
            location.require_available(place, datetime.datetime.now(datetime.UTC))
        return order.pod_namespace, functools.partial(
            BackupAssignment,
            tags=dict(order.tags),
            reported_path=str(volume.path),
            compression=wishes.compression or settings.compression,
            verify_stored=settings.verify_stored,
            excludes=wishes.excludes,
            on_read_error=wishes.on_read_error or "warn",
            files_at_once=wishes.files_at_once,
            parent=order.parent_snapshot,
            warning="; ".join(wishes.warnings),
        )
    return order.source_namespace, functools.partial(
        RestoreAssignment,
        snapshot_id=order.wanted_snapshot,
        done_name=order.restore_uid,
        read_only=place.read_only,
        elsewhere=elsewhere(order),
        resumed=order.resumed,
        reported_bytes=order.total_bytes,
    )


async def pod_alive(api: Reader, namespace: str, name: str, uid: str) -> bool:
    """Tell whether this very pod still runs (or may); raises ``ApiError``."""
    try:
        path = paths.core(namespace, "pods", paths.checked(name, "pod"))
        pod = decode(await api.get(path), objects.Pod, f"pod {namespace}/{name}")
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    except ClusterError:
        return False
    return pod.metadata.uid == uid and pod.status.phase not in ("Succeeded", "Failed")
