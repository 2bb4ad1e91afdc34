"""Restores as Velero's server asks for them, and its helper, which waits in the pod."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.scene import PVC_UID, RESTORE_UID, RESTORED, Scene, Volume
from tests.support.apihandle import Json

HELPER = "restore-wait"
WAITING: Json = {"waiting": {"reason": "PodInitializing"}}
RUNNING: Json = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}

_POLL = """
umask 077
while :; do
    all=1
    for volume in "$1"/*; do
        [ -f "$volume/.velero/$2" ] || all=0
    done
    [ $all = 1 ] && break
    sleep 0.1
done
for volume in "$1"/*; do
    cat "$volume/.velero/$2" && ls "$volume/.velero" >/dev/null || exit 3
    rm -rf "$volume/.velero" 2>/dev/null
done
exit 0
"""
"""Velero's helper in a few words: poll every directory, then remove ``.velero`` if that is allowed."""


def ended(code: int) -> Json:
    return {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z"}}


def helper_is(scene: Scene, where: Volume, state: Json, *, phase: str = "Pending") -> None:
    """Report the state of the pod's init container as a kubelet does."""
    (helper,) = where.pod["spec"]["initContainers"]
    status = {"name": helper["name"], "image": "i", "imageID": "", "ready": False}
    statuses = [{**status, "restartCount": 0, "state": state}]
    path = scene.server.path("pods", where.pod["metadata"]["name"])
    scene.server.patch_status(path, {"phase": phase, "initContainerStatuses": statuses})


def waiting_pod(scene: Scene, kind: str = "csi", *, node: str = "", name: str = HELPER) -> Volume:
    """Create a pod whose helper is running already."""
    where = scene.volume(kind, node=node, helper=name)
    helper_is(scene, where, RUNNING)
    return where


def ask(scene: Scene, where: Volume, snapshot: str, **changes: Any) -> str:
    """Create a PodVolumeRestore as Velero's server does, and return its name."""
    labels = {
        "velero.io/restore-name": "back",
        "velero.io/restore-uid": RESTORE_UID,
        "velero.io/pod-uid": where.reference["uid"],
    }
    if where.claim_uid:
        labels[PVC_UID] = where.claim_uid
    owner = {"apiVersion": "velero.io/v1", "kind": "Restore", "name": "back", "uid": RESTORE_UID}
    body = {
        "apiVersion": "velero.io/v1",
        "kind": "PodVolumeRestore",
        "metadata": {
            "generateName": RESTORED,
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": {
            "pod": where.reference,
            "volume": where.name,
            "backupStorageLocation": "default",
            "repoIdentifier": scene.identifier,
            "uploaderType": "restic",
            "snapshotID": snapshot,
            "sourceNamespace": scene.server.namespace,
            **changes,
        },
    }
    made = scene.server.create(scene.server.path("podvolumerestores"), body)
    return str(made["metadata"]["name"])


@contextlib.contextmanager
def helper(scene: Scene, volumes: Sequence[Volume]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the helper of a pod over its volumes, as user 1000 where that is possible."""
    restores = Path(scene.directory, f"restores-{os.urandom(4).hex()}")
    restores.mkdir(mode=0o755)
    for number, volume in enumerate(volumes):
        (restores / f"data-{number}").symlink_to(volume.path)
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": 1000, "group": 1000, "extra_groups": []}
    command = ["/bin/sh", "-c", _POLL, "helper", str(restores), RESTORE_UID]
    with subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, **identity) as process:
        try:
            yield process
        finally:
            process.kill()
