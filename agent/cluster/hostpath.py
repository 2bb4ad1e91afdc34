"""Where a pod's volume lies on this node: Velero's algorithm (velero.md section 4), made strict.

First pure decisions (what has to be fetched, what the directory is called), then one look at
the host. The agent is root and the names come from objects that tenants may write, so each
component is checked before it joins a path, nothing is globbed, and the directories above the
volume's content, which belong to the kubelet, must be real directories. Stricter than Velero:
the live pod must be the one that was meant (its uid), and claim and volume must be bound to
each other. Wider than Velero: generic ephemeral volumes and static pods.
"""

import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agent.cluster import objects
from agent.cluster.paths import checked
from agent.errors import ClusterError

MIRROR = "kubernetes.io/config.mirror"
"""A static pod's directory is named by this annotation, not by the uid."""

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
MIGRATED_TO = "pv.kubernetes.io/migrated-to"

_COMPONENT = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Plain:
    """A volume without a claim: its directory follows from the pod alone."""

    directory: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A volume behind a PersistentVolumeClaim, which has to be fetched.

    ``owner_uid`` is the pod that the claim must belong to, for a generic ephemeral volume.
    """

    claim: str
    owner_uid: str = ""


def check_pod(pod: objects.Pod, uid: str, node: str, noun: str) -> None:
    """Make sure that this is the pod that was meant, and here; raises ``ClusterError``."""
    name = f"pod {pod.metadata.namespace}/{pod.metadata.name}"
    if pod.metadata.uid != uid:
        raise ClusterError(
            f"{name} has been replaced: the {noun} is for uid {uid!r}, the pod that runs now has "
            f"{pod.metadata.uid!r}; run the {noun} again"
        )
    if pod.spec.node_name != node:
        raise ClusterError(f"{name} runs on node {pod.spec.node_name!r}, not on {node!r}")


def source(pod: objects.Pod, volume: str) -> Plain | Claimed:
    """Return what the volume is; raises ``ClusterError`` if the pod has no such volume."""
    where = f"pod {pod.metadata.namespace}/{pod.metadata.name}"
    for found in pod.spec.volumes or ():
        if found.name == volume:
            break
    else:
        raise ClusterError(f"{where} has no volume {volume!r}: check spec.volume")
    if found.persistent_volume_claim is not None:
        return Claimed(found.persistent_volume_claim.claim_name)
    if found.ephemeral is not None:
        return Claimed(f"{pod.metadata.name}-{volume}", pod.metadata.uid)
    if found.host_path is not None:
        raise ClusterError(
            f"volume {volume!r} of {where} is a hostPath volume, which is not moved: exclude "
            "it with the annotation backup.velero.io/backup-volumes-excludes"
        )
    component = _component(volume, "volume")
    return Plain(f"{component}/mount" if found.csi is not None else component)


def check_claim(claim: objects.Claim, wanted: Claimed) -> str:
    """Return the name of the claim's PersistentVolume; raises ``ClusterError``."""
    name = f"PersistentVolumeClaim {claim.metadata.namespace}/{claim.metadata.name}"
    if wanted.owner_uid:
        owners = {owner.uid for owner in claim.metadata.owner_references or ()}
        if wanted.owner_uid not in owners:
            raise ClusterError(
                f"{name} does not belong to the pod whose ephemeral volume it should be: "
                "remove the claim of the same name and start the pod again"
            )
    if not claim.spec.volume_name:
        raise ClusterError(f"{name} is not bound to a volume yet: wait until it is")
    return checked(claim.spec.volume_name, "PersistentVolume")


def csi_driver_names(volume: objects.PersistentVolume) -> frozenset[str]:
    """Return the drivers that may have taken over a volume: not empty means "list them"."""
    if volume.spec.csi is not None:
        return frozenset()
    notes = volume.metadata.annotations or {}
    return frozenset(notes[key] for key in (PROVISIONED_BY, MIGRATED_TO) if notes.get(key))


def claimed_directory(
    volume: objects.PersistentVolume, claim: objects.Claim, drivers: Collection[str]
) -> str:
    """Return the directory of a bound volume; ``drivers`` are the CSIDrivers that exist.

    Raises ``ClusterError`` for a block volume and for one that is bound elsewhere.
    """
    name = volume.metadata.name
    bound = volume.spec.claim_ref
    if bound is not None and bound.uid and bound.uid != claim.metadata.uid:
        raise ClusterError(
            f"PersistentVolume {name} is bound to another claim than "
            f"{claim.metadata.namespace}/{claim.metadata.name}: repair the binding"
        )
    if volume.spec.volume_mode == "Block":
        raise ClusterError(
            f"PersistentVolume {name} is a block device (volumeMode: Block), and only file "
            "systems can be moved: use a snapshot for it"
        )
    component = _component(name, "PersistentVolume")
    csi = volume.spec.csi is not None or bool(csi_driver_names(volume) & set(drivers))
    return f"{component}/mount" if csi else component


def pod_directory(pod: objects.Pod) -> str:
    """Return the name of the pod's directory under the kubelet's pods directory."""
    mirror = (pod.metadata.annotations or {}).get(MIRROR, "")
    return _component(mirror or pod.metadata.uid, "pod uid")


def find(host_pods: Path, pod: str, directory: str) -> Path:
    """Return ``host_pods/pod/volumes/*/directory``, which must exist exactly once.

    Blocks; raises ``ClusterError``.
    """
    volumes = host_pods / pod / "volumes"
    pattern = f"{volumes}/*/{directory}"
    if not _is_directory(host_pods):
        raise ClusterError(
            f"{host_pods} is not there: mount the kubelet's pods directory "
            "(/var/lib/kubelet/pods) at it, with mountPropagation HostToContainer"
        )
    try:
        with os.scandir(volumes) as entries:
            plugins = sorted(entry.name for entry in entries if _plain(entry))
    except (FileNotFoundError, NotADirectoryError):
        plugins = []
    except OSError as error:
        raise ClusterError(f"{volumes} cannot be read: {error.strerror}; run as root") from error
    found = [path for plugin in plugins if _is_below(path := volumes / plugin / directory)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ClusterError(
            f"no directory {pattern}: the volume is not mounted on this node, or the agent does "
            "not see the mount (mountPropagation HostToContainer)"
        )
    names = ", ".join(str(path) for path in found[:4])
    raise ClusterError(f"expected one directory {pattern}, but there are {len(found)}: {names}")


def _plain(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_below(path: Path) -> bool:
    """Tell whether the directory is there; of ``name/mount`` no part may be a symlink."""
    return _is_directory(path) and _is_directory(path.parent)


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ClusterError(f"{path} cannot be looked at: {error.strerror}") from error


def _component(name: str, what: str) -> str:
    if not _COMPONENT.fullmatch(name) or ".." in name:
        raise ClusterError(f"{what} {name[:80]!r} cannot be a directory's name: correct the object")
    return name
