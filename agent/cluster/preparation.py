"""From a claimed PodVolumeBackup to an assignment: fetch, decide, look at the host.

A thin shell: every decision is made by ``hostpath`` and ``location``; here they are only given
what they ask for.
"""

import asyncio
from pathlib import Path
from typing import Protocol

import msgspec

from agent.cluster import hostpath, location, objects, paths
from agent.cluster.assignment import Assignment
from agent.cluster.client import decode
from agent.cluster.places import Places, read_object
from agent.cluster.pvb import Pvb
from agent.cluster.secrets import Getter, PrivateFiles, repository_password
from agent.cluster.watch import Source
from agent.config import AgentSettings
from agent.errors import ApiError, ClusterError


class Reader(Source, Getter, Protocol):
    """What preparation needs of the API server: single objects, and lists."""


class Preparation:
    """Makes assignments for one agent."""

    def __init__(self, api: Reader, settings: AgentSettings, files: PrivateFiles) -> None:
        self._api = api
        self._settings = settings
        self._places = Places(api, settings.namespace, settings.credentials_file, files)

    async def assignment(self, pvb: Pvb) -> Assignment:
        """Return all that is needed to back the volume up; raises ``ClusterError``."""
        path, pvc_uid = await self._volume(pvb)
        place = await self._places.location(pvb.location)
        prefix = location.repository_prefix(place, pvb.repo_identifier, pvb.pod_namespace)
        files = await self._places.files(place)
        workers = self._settings.upload_workers
        storage = location.s3_settings(place, prefix, files, workers)
        return Assignment(
            name=pvb.name,
            namespace=pvb.namespace,
            uid=pvb.uid,
            volume_path=path,
            storage=storage,
            repository=str(storage.address),
            password=await repository_password(self._api, self._settings.namespace),
            tags=dict(pvb.tags),
            pvc_uid=pvc_uid or pvb.pvc_uid or None,
            pod_namespace=pvb.pod_namespace,
            pod_name=pvb.pod_name,
            volume=pvb.volume,
            reported_path=str(path),
        )

    async def _volume(self, pvb: Pvb) -> tuple[Path, str]:
        """Return the volume's directory, and the uid of its claim ("" without one)."""
        what = f"pod {pvb.pod_namespace}/{pvb.pod_name}"
        pod_path = paths.core(pvb.pod_namespace, "pods", paths.checked(pvb.pod_name, "pod"))
        pod = await read_object(self._api, pod_path, objects.Pod, what)
        hostpath.check_pod(pod, pvb.pod_uid, self._settings.node_name)
        source = hostpath.source(pod, pvb.volume)
        pvc_uid = ""
        if isinstance(source, hostpath.Claimed):
            directory, pvc_uid = await self._claimed(pvb.pod_namespace, source)
        else:
            directory = source.directory
        pod_directory = hostpath.pod_directory(pod)
        host_pods = self._settings.host_pods
        path = await asyncio.to_thread(hostpath.find, host_pods, pod_directory, directory)
        return path, pvc_uid

    async def _claimed(self, namespace: str, source: hostpath.Claimed) -> tuple[str, str]:
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
        return hostpath.claimed_directory(volume, claim, drivers), claim.metadata.uid


async def pod_alive(api: Reader, namespace: str, name: str, uid: str) -> bool:
    """Tell whether this very pod still runs (or may); raises ``ApiError``."""
    try:
        path = paths.core(namespace, "pods", paths.checked(name, "pod"))
        pod = decode(await api.get(path), objects.Pod, f"pod {namespace}/{name}")
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    except (ClusterError, msgspec.MsgspecError):
        return False
    return pod.metadata.uid == uid and pod.status.phase not in ("Succeeded", "Failed")
