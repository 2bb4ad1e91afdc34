"""A node with volumes, a location in a real S3 server, and the agent as a process of its own.

Objects are what Velero's server and an ordinary cluster leave behind; nothing of ours is called
but the command ``python -m agent agent``.
"""

import base64
import contextlib
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent.repository.opening import create_repository
from agent.repository.scrypt import ScryptCost
from agent.storage.opening import open_s3
from agent.storage.settings import S3Settings
from tests.support.apihandle import ApiServer, Json
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

DEADLINE_SECONDS = 60.0
PASSWORD = "a password, with spaces"
CHEAP = ScryptCost(n=16, r=1, p=1)
FINAL = ("Completed", "Failed")
PVC_UID = "velero.io/pvc-uid"
KEY = "cloud"  # of the Secrets with credentials, as velero install makes them
HERE = "127.0.0.1:0"
_numbers = itertools.count(1)

WITHOUT_OVERRIDE = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)
"""Makes root respect the modes of files, as an agent of least rights does."""

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, *, alive: "Agent | None" = None) -> T:
    """Wait for what another process brings about."""
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        if found := look():
            return found
        if alive is not None:
            assert alive.process.poll() is None, f"the agent ended:\n{alive.log_text}"
        assert time.monotonic() < end, f"waited in vain for {what}\n{alive and alive.log_text}"
        time.sleep(0.03)


@dataclasses.dataclass(frozen=True)
class Agent:
    """A running agent."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A pod's volume: its directory on the host, and the objects that lead to it."""

    path: Path
    pod: Json
    name: str
    claim_uid: str = ""

    @property
    def reference(self) -> Json:
        """What Velero's server puts into ``spec.pod``."""
        about = self.pod["metadata"]
        return {"kind": "Pod", **{key: about[key] for key in ("namespace", "name", "uid")}}

    def fill(self, **files: bytes) -> "Volume":
        for name, content in files.items():
            (self.path / name).write_bytes(content)
        return self


class Scene:
    """One node of one cluster, with one location."""

    def __init__(self, server: ApiServer, s3: S3Server, directory: Path, proxy: Any = None) -> None:
        self.server = server
        self.s3 = s3
        self.directory = directory
        self.node = f"node-{server.namespace}"
        self.host_pods = directory / "pods"
        self.host_pods.mkdir(parents=True)
        self.bucket = s3.make_bucket()
        front = proxy or s3
        self.s3_url, self._ca = front.endpoint_url, Path(front.ca)
        keys = f"aws_access_key_id={s3.access_key}\naws_secret_access_key={s3.secret_key}\n"
        self.secret("cloud-credentials", KEY, f"[default]\n{keys}")
        self.secret("velero-repo-credentials", "repository-password", PASSWORD)
        self.location("default")

    def with_repository(self, prefix: str = "", password: str = PASSWORD) -> "Scene":
        """Make a repository at a prefix whose key costs next to nothing to open; return the scene.

        One that the agent makes itself takes half a second of work from each program that opens
        it, the judges included.
        """
        with contextlib.closing(open_s3(self.settings(prefix or self.prefix))) as storage:
            create_repository(storage, password, cost=CHEAP)
        return self

    def secret(self, name: str, key: str, value: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode()}
        self.server.create(self.server.path("secrets"), {"metadata": {"name": name}, "data": data})

    def location(self, name: str, *, ca: Path | None = None, **changes: Any) -> None:
        """Create a BackupStorageLocation; ``changes`` are bucket, s3Url and the Secret's name."""
        storage = {"bucket": changes.get("bucket", self.bucket), "prefix": "velero/one"}
        pem = (ca or self._ca).read_bytes()
        spec = {
            "provider": "aws",
            "objectStorage": {**storage, "caCert": base64.b64encode(pem).decode()},
            "config": {
                "region": "us-east-1",
                "s3Url": changes.get("s3Url", self.s3_url),
                "s3ForcePathStyle": "true",
            },
            "credential": {"name": changes.get("secret", "cloud-credentials"), "key": KEY},
        }
        body = {"apiVersion": "velero.io/v1", "kind": "BackupStorageLocation", "spec": spec}
        path = self.server.path("backupstoragelocations")
        self.server.create(path, {**body, "metadata": {"name": name}})

    @property
    def prefix(self) -> str:
        return f"velero/one/restic/{self.server.namespace}"

    @property
    def identifier(self) -> str:
        """What Velero writes into ``spec.repoIdentifier``."""
        return self.identifier_of(self.prefix)

    @property
    def repository(self) -> str:
        """The same repository without the proxy."""
        return self.s3.repository(self.bucket, self.prefix)

    def settings(self, prefix: str) -> S3Settings:
        """Return how a test itself reaches a prefix of the bucket, without the proxy."""
        return self.s3.settings(prefix, bucket=self.bucket)

    def identifier_of(self, prefix: str) -> str:
        return f"s3:{self.s3_url}/{self.bucket}/{prefix}"

    def objects(self, prefix: str = "") -> dict[str, str]:
        """Return key and ETag of everything in the bucket."""
        return {o["Key"]: o["ETag"] for o in self._listed(prefix)}

    def sizes(self, below: str) -> dict[str, int]:
        """Return key and bytes of what lies below a folder of the repository."""
        return {o["Key"]: o["Size"] for o in self._listed(f"{self.prefix}/{below}")}

    def _listed(self, prefix: str) -> list[Any]:
        lister = self.s3.kept_client.get_paginator("list_objects_v2")
        pages = lister.paginate(Bucket=self.bucket, Prefix=prefix)
        return [o for page in pages for o in page.get("Contents", ())]

    # -- volumes -------------------------------------------------------------------------------

    def pod(self, volume: Json, node: str = "", helper: str = "") -> Json:
        """Create a pod; ``helper`` names the init container that waits for its data."""
        waiting = [{"name": helper, "image": "i", "args": [RESTORE_UID]}] if helper else []
        spec = {
            "initContainers": waiting,
            "nodeName": node or self.node,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "data", **volume}],
        }
        metadata = {"name": f"db-{next(_numbers)}"}
        return self.server.create(self.server.path("pods"), {"metadata": metadata, "spec": spec})

    def volume(
        self, kind: str = "csi", *, claim: str = "", node: str = "", helper: str = ""
    ) -> Volume:
        """Create a pod with one volume; ``claim`` names an earlier one's claim to use again.

        ``helper`` names the init container of a pod that waits to be restored.
        """
        if kind == "emptyDir":
            pod = self.pod({"emptyDir": {}}, node, helper)
            return self._mounted(pod, "kubernetes.io~empty-dir/data")
        if kind == "inline":
            pod = self.pod({"csi": {"driver": "inline.example.com"}})
            return self._mounted(pod, "kubernetes.io~csi/data/mount")
        if kind == "ephemeral":
            template = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": _SIZE}}
            pod = self.pod({"ephemeral": {"volumeClaimTemplate": template}})
            made = self.claim("csi", f"{pod['metadata']['name']}-data", owner=pod)
        else:
            made = self.server.get(self._claims(claim)) if claim else self.claim(kind)
            source = {"claimName": made["metadata"]["name"]}
            pod = self.pod({"persistentVolumeClaim": source}, node, helper)
        plugin, end = ("nfs", "") if kind == "plain" else ("csi", "/mount")
        directory = f"kubernetes.io~{plugin}/{made['spec']['volumeName']}{end}"
        return self._mounted(pod, directory, made["metadata"]["uid"])

    def claim(self, kind: str, name: str = "", owner: Json | None = None) -> Json:
        """Create a PersistentVolume and the claim that is bound to it.

        Of kind "migrated", it was made for a plugin in the tree, and a CSI driver serves it now.
        """
        number = next(_numbers)
        volume_name = f"pv-{self.server.namespace}-{number}"
        about: Json = {"name": volume_name}
        if kind == "migrated":
            driver = self.server.create(
                self.server.path("csidrivers"),
                {"metadata": {"name": f"{volume_name}.example.com"}, "spec": {}},
            )
            about["annotations"] = {"pv.kubernetes.io/migrated-to": driver["metadata"]["name"]}
        source: Json = {"nfs": {"server": "nfs.example.com", "path": "/"}}
        if kind == "csi":
            source = {"csi": {"driver": "csi.example.com", "volumeHandle": volume_name}}
        common = {"accessModes": ["ReadWriteOnce"]}
        spec = {**common, **source, "capacity": {"storage": "1Gi"}}
        self.server.create(
            self.server.path("persistentvolumes"),
            {"metadata": about, "spec": spec},
        )
        metadata: Json = {"name": name or f"claim-{number}"}
        if owner is not None:
            pod = owner["metadata"]
            reference = {"apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}
            metadata["ownerReferences"] = [reference]
        claim = {**common, "resources": _SIZE, "volumeName": volume_name}
        return self.server.create(self._claims(), {"metadata": metadata, "spec": claim})

    def _claims(self, name: str = "") -> str:
        return self.server.path("persistentvolumeclaims", name)

    def _mounted(self, pod: Json, directory: str, claim_uid: str = "") -> Volume:
        path = self.host_pods / pod["metadata"]["uid"] / "volumes" / directory
        path.mkdir(parents=True)
        return Volume(path, pod, "data", claim_uid)

    # -- backups -------------------------------------------------------------------------------

    def backup(self, where: Volume, backup: str = "nightly", **changes: Any) -> str:
        """Create a PodVolumeBackup as Velero's server does, and return its name."""
        pod = where.pod["metadata"]
        uid = f"uid-of-{backup}"
        labels = {"velero.io/backup-name": backup, "velero.io/backup-uid": uid}
        tags = {
            "backup": backup,
            "backup-uid": uid,
            "ns": pod["namespace"],
            "pod": pod["name"],
            "pod-uid": pod["uid"],
            "volume": where.name,
        }
        if where.claim_uid:
            labels[PVC_UID] = tags["pvc-uid"] = where.claim_uid
        owner = {"apiVersion": "velero.io/v1", "kind": "Backup", "name": backup, "uid": uid}
        body = {
            "apiVersion": "velero.io/v1",
            "kind": "PodVolumeBackup",
            "metadata": {
                "generateName": f"{backup}-",
                "labels": labels,
                "annotations": {"velero.io/pvc-name": "claim"} if where.claim_uid else {},
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {
                "node": self.node,
                "pod": where.reference,
                "volume": where.name,
                "backupStorageLocation": "default",
                "repoIdentifier": self.identifier,
                "uploaderType": "restic",
                "tags": tags,
                **changes,
            },
        }
        made = self.server.create(self.server.path("podvolumebackups"), body)
        return str(made["metadata"]["name"])

    def path_of(self, name: str) -> str:
        """Return the path of a backup or restore that this scene has made."""
        restore = name.startswith(RESTORED)
        return self.server.path("podvolumerestores" if restore else "podvolumebackups", name)

    def read(self, name: str) -> Json:
        return self.server.get(self.path_of(name))

    def status(self, name: str) -> Json:
        found: Json = self.read(name).get("status") or {}
        return found

    def ended(self, name: str, agent: Agent) -> Json:
        """Wait until a backup has ended, and return its status."""

        def look() -> Json | None:
            status = self.status(name)
            return status if status.get("phase") in FINAL else None

        return until(look, f"the end of {name}", alive=agent)

    def completed(self, name: str, agent: Agent) -> Json:
        """Wait until a backup has ended, which must be well."""
        status = self.ended(name, agent)
        assert status["phase"] == "Completed", f"{status}\n{agent.log_text}"
        return status

    def under_way(self, name: str, agent: Agent) -> Json:
        """Wait until a backup has reported that bytes were read."""

        def look() -> Json | None:
            status = self.status(name)
            return status if status.get("progress", {}).get("bytesDone") else None

        return until(look, f"progress of {name}", alive=agent)

    def agent(
        self, *options: str, node: str = "", pod: Json | None = None, wrapper: Sequence[str] = ()
    ) -> contextlib.AbstractContextManager[Agent]:
        """Run an agent for the length of a scope, in the name of ``pod`` if there is one."""
        command = [sys.executable, "-m", "agent", "agent"]
        command += ["--kubeconfig", str(self.server.kubeconfig), "--node-name", node or self.node]
        command += ["--namespace", self.server.namespace, "--host-pods", str(self.host_pods)]
        command += ["--cache-dir", str(self.directory / "cache"), "--metrics-address", HERE]
        about = pod["metadata"] if pod else {}
        names = {"POD_NAME": about["name"], "POD_UID": about["uid"]} if pod else {}
        home = {"HOME": str(self.directory), "TMPDIR": str(self.directory)}  # a kill leaves files
        environment = {"PATH": os.environ["PATH"], **home, **names}
        return self.running([*wrapper, *command, *options], environment)

    @contextlib.contextmanager
    def running(self, command: Sequence[str], environment: dict[str, str]) -> Iterator[Agent]:
        """Run a command that is an agent for the length of a scope."""
        log = self.directory / f"agent-{next(_numbers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[2],
            )
        try:
            yield Agent(process, log)
        finally:
            process.kill()
            process.wait()

    # -- judges --------------------------------------------------------------------------------

    def restic(
        self, restic: Restic, *arguments: str, cwd: Path | None = None, prefix: str = ""
    ) -> str:
        """Call real restic on this scene's repository, or another one, and return what it says."""
        done = restic.run(
            self.s3.repository(self.bucket, prefix or self.prefix),
            "--cacert",
            str(self.s3.ca),
            *arguments,
            password=PASSWORD,
            cwd=cwd,
            env=self.s3.environment(),
        )
        return done.stdout


RESTORE_UID = "2f6b1f2e-3c1d-4d5a-8a77-6d1f1b0c9e55"
"""The uid of the Restore that every restore of a scene is part of."""

RESTORED = "restored-"
_SIZE = {"requests": {"storage": "1Gi"}}
