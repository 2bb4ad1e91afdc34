"""Objects for the conformance suite."""

from typing import Any

from tests.support.apihandle import ApiServer, Json


def backup(name: str = "gold", **metadata: Any) -> Json:
    """Return a PodVolumeBackup as Velero's server makes one."""
    named = {"name": name} if name else {}
    return {
        "apiVersion": "velero.io/v1",
        "kind": "PodVolumeBackup",
        "metadata": named | metadata,
        "spec": {
            "backupStorageLocation": "default",
            "node": "n1",
            "pod": {"kind": "Pod", "name": "p", "namespace": "app", "uid": "u"},
            "repoIdentifier": "r",
            "uploaderType": "restic",
            "volume": "data",
        },
    }


def pod(name: str = "web", node: str = "n1", **metadata: Any) -> Json:
    """Return a pod with one volume."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name} | metadata,
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "none"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }


def event(name: str = "seen", **changes: Any) -> Json:
    """Return an event that an agent would post; a change to None leaves the field out."""
    whole = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name},
        "eventTime": "2026-01-02T03:04:05.000006Z",
        "action": "Backup",
        "reason": "Started",
        "type": "Normal",
        "reportingController": "podlift.example/agent",
        "reportingInstance": "n1",
        "note": "hello",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "web"},
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def add_backup(server: ApiServer, name: str = "gold", **metadata: Any) -> Json:
    """Create a PodVolumeBackup in the server's namespace."""
    return server.create(server.path("podvolumebackups"), backup(name, **metadata))
