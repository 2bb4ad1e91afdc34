"""A stage for whole agents: a node with one pod and its volume, a location and its secrets."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.cluster.order import FINAL_PHASES, FINALIZER, RUNNING_PHASE
from agent.config import AgentSettings, ClusterAccess
from tests.cluster.scene import NODE, create_pvb, pvr_object, until
from tests.support.apihandle import ApiServer, Json

OUR_PHASES = (FINAL_PHASES - {"Canceled"}) | {RUNNING_PHASE}
"""All that the agent writes. Canceled it never does: before 1.17 that is refused, and a server of 1.17 or
1.18 then waits for the backup until its time is over (velero.md section 2.3)."""

RUNNING: Json = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
VELERO = "v1.17.2"  # the first with spec.cancel


class Stage:
    """A node with one pod and its volume, a location and its secrets."""

    def __init__(self, server: ApiServer, directory: Path, velero: str = VELERO) -> None:
        self.server = server
        self.host_pods = directory / "pods"
        self.cache = directory / "cache"
        server.apply_velero_crds(velero)
        self.pod, self.volume = self.pod_on(NODE, "db-0")
        self.location("default")
        self.secret("cloud", "file", b"[default]\naws_access_key_id = a\n")
        self.secret("velero-repo-credentials", "repository-password", b" pass \n")

    def pod_on(self, node: str, name: str = "") -> tuple[Json, Path]:
        """Create a pod with one volume on a node; return it with the volume's directory."""
        pod = {
            "metadata": {"name": name or f"db-of-{node}"},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        }
        made = self.server.create(self.server.path("pods"), pod)
        volume = self.host_pods / made["metadata"]["uid"] / "volumes/kubernetes.io~empty-dir/data"
        volume.mkdir(parents=True)
        return made, volume

    def location(self, name: str, storage: Json | None = None, **changes: Any) -> None:
        """Create a BackupStorageLocation; ``changes`` are fields of its spec, or its status."""
        status = changes.pop("status", {})
        spec = {
            "provider": "aws",
            "objectStorage": {"bucket": "bucket", "prefix": "velero", **(storage or {})},
            "config": {"s3Url": "https://s3.example.org", "region": "r"},
            "credential": {"name": "cloud", "key": "file"},
            **changes,
        }
        about = {"apiVersion": "velero.io/v1", "kind": "BackupStorageLocation"}
        body = {**about, "metadata": {"name": name}, "spec": spec, "status": status}
        self.server.create(self.server.path("backupstoragelocations"), body)

    def secret(self, name: str, key: str, value: bytes) -> None:
        data = {key: base64.b64encode(value).decode()}
        self.server.create(self.server.path("secrets"), {"metadata": {"name": name}, "data": data})

    def settings(self, **changes: Any) -> AgentSettings:
        defaults: dict[str, Any] = {
            "node_name": NODE,
            "namespace": self.server.namespace,
            "access": ClusterAccess(kubeconfig=Path(self.server.kubeconfig)),
            "host_pods": self.host_pods,
            "cache_dir": self.cache,
            "metrics_address": ("127.0.0.1", 0),
        }
        return AgentSettings(**(defaults | changes))

    def left_by_the_dead(
        self, name: str, *, began: str = "2026-01-01T00:00:00Z", earlier: Sequence[str] = ()
    ) -> None:
        """Make an object one that a process that is gone was working on."""
        mark = {
            "node": NODE, "pod": "agent-x", "podUid": "gone", "attempt": "old", "since": began,
            "earlier": list(earlier),
        }  # fmt: skip
        path = self.path_of(name)
        annotations = {"podlift.io/owner": json.dumps(mark)}
        self.server.patch(path, {"metadata": {"annotations": annotations}})
        self.server.patch_status(path, {"phase": "InProgress", "startTimestamp": began})

    def pvb(self, name: str, **changes: Any) -> Json:
        metadata = self.pod["metadata"]
        reference = {key: metadata[key] for key in ("name", "namespace", "uid")}
        return create_pvb(self.server, name, **({"pod": reference} | changes))

    def path_of(self, name: str) -> str:
        return self.server.path("podvolumebackups", name)

    def object(self, name: str) -> Json:
        return self.server.get(self.path_of(name))

    def status(self, name: str) -> Json:
        found: Json = self.object(name).get("status") or {}
        return found

    async def phase(self, name: str, phase: str) -> Json:
        def reached() -> Json | None:
            status = self.status(name)
            return status if status.get("phase") == phase else None

        found: Json = await until(reached, f"{name} to be {phase}")
        return found

    async def ended(self, name: str) -> Json:
        found: Json = await until(
            lambda: "completionTimestamp" in (status := self.status(name)) and status,
            f"the end of {name}",
        )
        return found


class RestoreStage(Stage):
    """The stage with a pod that waits to be restored; names of restores begin with ``r-``."""

    def __init__(self, server: ApiServer, directory: Path, velero: str = VELERO) -> None:
        super().__init__(server, directory, velero)
        self.waiting, self.target = self.waiting_pod("db-1")

    def waiting_pod(self, name: str, node: str = NODE) -> tuple[Json, Path]:
        spec = {
            "nodeName": node,
            "initContainers": [{"name": "restore-wait", "image": "i"}],
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        }
        body = {"metadata": {"name": name}, "spec": spec}
        made = self.server.create(self.server.path("pods"), body)
        volumes = self.host_pods / made["metadata"]["uid"] / "volumes"
        target = volumes / "kubernetes.io~empty-dir/data"
        target.mkdir(parents=True)
        return made, target

    def helper_is(self, state: Json, phase: str = "Pending", pod: str = "db-1") -> None:
        status = {"name": "restore-wait", "image": "i", "imageID": "", "ready": False}
        statuses = [{**status, "restartCount": 0, "state": state}]
        path = self.server.path("pods", pod)
        self.server.patch_status(path, {"phase": phase, "initContainerStatuses": statuses})

    def pvr(self, name: str, **changes: Any) -> Json:
        metadata = self.waiting["metadata"]
        pod = {key: metadata[key] for key in ("name", "namespace", "uid")}
        body = pvr_object(name, **({"pod": pod, "repoIdentifier": "x"} | changes))
        if "repoIdentifier" not in changes:
            body["spec"]["repoIdentifier"] = "s3:https://s3.example.org/bucket/velero/restic/app"
        return self.server.create(self.server.path("podvolumerestores"), body)

    def path_of(self, name: str) -> str:
        plural = "podvolumerestores" if name.startswith("r-") else "podvolumebackups"
        return self.server.path(plural, name)

    def order(self, name: str, **changes: Any) -> str:
        """Create a backup or a restore, by its name, and return its path."""
        (self.pvr if name.startswith("r-") else self.pvb)(name, **changes)
        return self.path_of(name)

    def held(self, name: str, *finalizers: str, **changes: Any) -> str:
        """Create one with finalizers, as Velero 1.17 leaves them, and return its path."""
        path = self.order(name, **changes)
        self.server.patch(path, {"metadata": {"finalizers": list(finalizers or (FINALIZER,))}})
        return path

    def gone(self, path: str) -> bool:
        return self.server.request("GET", path).status == 404

    def statuses_until_gone(self, path: str) -> list[Json]:
        """Delete an object and return every status of it from now on to its end."""
        collection, _, name = path.rpartition("/")
        seen: list[Json] = []
        with self.server.watch(collection, timeout_seconds=30.0) as watch:
            self.server.delete(path)
            while event := watch.event():
                if event["object"]["metadata"]["name"] == name:
                    seen.append(event["object"].get("status") or {})
                    if event["type"] == "DELETED":
                        break
        return seen


def check_private(file: Path) -> None:
    assert file.read_bytes() == b"[default]\naws_access_key_id = a\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
