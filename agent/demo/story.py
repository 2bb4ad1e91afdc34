"""The demo: the main job on one machine, through the real agent.

Stand-ins for S3 (moto) and for the API server run as processes of their own, and so does the
agent. A volume is backed up twice and restored once; every claim that is printed is measured: what
the bucket holds, what the PodVolumeBackup's status says, what the restored files contain.
Everything that was started is ended, also on Ctrl-C.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import boto3
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agent.cluster.client import Kube
from agent.cluster.credentials import credentials
from agent.config import ClusterAccess, environment, isolated
from agent.demo import compare, objects, sample
from agent.demo.processes import (
    DemoError,
    free_port,
    last_line,
    listening,
    running,
    wait_until,
)
from agent.errors import ApiError
from agent.terminal import size_text

T = TypeVar("T")

BACKUP_SECONDS = 600.0
POLL_SECONDS = 0.2
MOST_REPEATED = 0.05
"""The second backup may upload this share of the first; the sample changes far less."""

MIB = 1 << 20


class _Progress(msgspec.Struct, rename="camel"):
    total_bytes: int = 0
    bytes_done: int = 0


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    message: str = ""
    progress: _Progress | None = None
    snapshot_id: str = msgspec.field(default="", name="snapshotID")


class _Metadata(msgspec.Struct):
    name: str = ""
    uid: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo plays: its folder, the two stand-ins, and the volume on the "host"."""

    folder: Path
    s3_url: str
    kubeconfig: Path

    @property
    def host_pods(self) -> Path:
        """Return the stand-in for the kubelet's pods directory."""
        return self.folder / "host_pods"

    @property
    def repository(self) -> str:
        """Return where Velero's restic would keep this namespace's repository."""
        return f"s3:{self.s3_url}/{objects.BUCKET}/{objects.PREFIX}/restic/{objects.APP}"


def run(megabytes: int, keep: bool) -> bool:
    """Play the demo; return whether everything held."""
    before = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    console = Console(highlight=False, soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix="podlift-demo-"))
    try:
        return _play(folder, console, megabytes, keep)
    except DemoError as error:
        return _verdict(console, [str(error)])
    except OSError as error:
        why = f"{folder} cannot be used: {error.strerror or error}; set TMPDIR to a place with room"
        return _verdict(console, [why])
    except KeyboardInterrupt:
        console.print("interrupted: everything that was started is stopped")
        raise
    finally:
        if keep:
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    """End what runs; asyncio's own handler loses a Ctrl-C that comes just as its coroutine ends."""
    with contextlib.suppress(OSError):  # the system's own write, since a print may be under way
        os.write(2, b"\nstopping what was started; this takes some seconds\n")
    raise KeyboardInterrupt


def _play(folder: Path, console: Console, megabytes: int, keep: bool) -> bool:
    settings = {
        "AWS_ACCESS_KEY_ID": objects.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": objects.SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PODLIFT_PASSWORD": objects.PASSWORD,
    }
    with isolated(**settings), _stand_ins(folder, console) as stage:
        demo = _Demo(stage, console, megabytes)
        good = demo.play()
        if keep:
            demo.keep_repository()
        return good


@contextlib.contextmanager
def _stand_ins(folder: Path, console: Console) -> Iterator[Stage]:
    """Start the S3 and the API server for the length of a scope."""
    port = free_port()
    s3_url = f"http://127.0.0.1:{port}"
    stage = Stage(folder, s3_url, folder / "apiserver" / "kubeconfig")
    console.print(f"1. starting stand-ins in {folder}")
    s3 = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    api = ["-m", "agent.demo.apiserver", "--dir", str(stage.kubeconfig.parent)]
    with (
        running("s3", s3, folder, environment()) as s3_process,
        running("apiserver", api, folder, environment()) as api_process,
    ):
        wait_until(lambda: listening(port), "the S3 stand-in", s3_process, folder / "s3.log")
        wait_until(
            stage.kubeconfig.exists,
            "the API server stand-in",
            api_process,
            folder / "apiserver.log",
        )
        console.print(f"   S3 (moto) at {s3_url}, Kubernetes API with Velero's kinds beside it")
        yield stage


class _Demo:
    """The acts, in order."""

    def __init__(self, stage: Stage, console: Console, megabytes: int) -> None:
        self._stage = stage
        self._console = console
        self._megabytes = megabytes
        self._failures: list[str] = []
        self._s3 = boto3.client("s3", endpoint_url=stage.s3_url)

    def play(self) -> bool:
        """Play all acts; return whether everything held."""
        say = self._console.print
        self._s3.create_bucket(Bucket=objects.BUCKET)
        pod_uid = asyncio.run(self._with_kube(self._create_cluster))
        volume = self._volume(pod_uid)
        say(f"2. making a sample volume of {self._megabytes} MiB with every kind of file")
        sample.make(volume, self._megabytes)
        entries, size = compare.count(volume)
        say(f"   {entries} entries, {size_text(size)} (most of it a hole)")
        with self._agent() as agent:
            say("3. first backup: a PodVolumeBackup is created")
            first = self._backup("first", pod_uid, agent)
            done = sample.change(volume, self._megabytes)
            say(f"4. changing a little: {done}")
            say("5. second backup of the changed volume")
            second = self._backup("second", pod_uid, agent)
        self._require(
            second[1] <= MOST_REPEATED * first[1],
            f"the second backup stored {size_text(second[1])},"
            f" {100 * second[1] / max(first[1], 1):.2f} % of the first",
        )
        self._restore(volume, second[0])
        self._check()
        return _verdict(self._console, self._failures)

    def _volume(self, pod_uid: str) -> Path:
        volume = (
            self._stage.host_pods / pod_uid / "volumes" / "kubernetes.io~csi" / objects.PV / "mount"
        )
        volume.mkdir(parents=True)
        return volume

    @contextlib.contextmanager
    def _agent(self) -> Iterator[subprocess.Popen[bytes]]:
        stage = self._stage
        port = free_port()
        arguments = ["-m", "agent", "agent", "--node-name", objects.NODE]
        arguments += ["--kubeconfig", str(stage.kubeconfig), "--host-pods", str(stage.host_pods)]
        arguments += ["--cache-dir", str(stage.folder / "cache")]
        arguments += ["--metrics-address", f"127.0.0.1:{port}"]
        with running("agent", arguments, stage.folder, environment()) as process:
            wait_until(lambda: listening(port), "the agent", process, stage.folder / "agent.log")
            yield process

    def _backup(self, name: str, pod_uid: str, agent: subprocess.Popen[bytes]) -> tuple[str, int]:
        """Create a PodVolumeBackup and follow it; return (snapshot id, bytes it stored)."""
        before = self._stored()
        started = time.monotonic()

        async def act(kube: Kube) -> _Status:
            path = await self._request(kube, name, pod_uid)
            return await self._follow(kube, path, agent)

        status = asyncio.run(self._with_kube(act))
        stored = self._stored() - before
        total = status.progress.total_bytes if status.progress else 0
        self._console.print(
            f"   {status.phase}: snapshot {status.snapshot_id[:8]}, {size_text(total)} in the"
            f" volume, {size_text(stored)} more in the bucket, {time.monotonic() - started:.1f} s"
        )
        if status.phase != "Completed":
            raise DemoError(f"the {name} backup is {status.phase}: {status.message}")
        if status.message:
            self._failures.append(f"the {name} backup has something to say: {status.message}")
        return status.snapshot_id, stored

    async def _with_kube(self, act: Callable[[Kube], Awaitable[T]]) -> T:
        kube = await Kube.connect(credentials(ClusterAccess(kubeconfig=self._stage.kubeconfig)))
        try:
            return await act(kube)
        finally:
            await kube.close()

    async def _create_cluster(self, kube: Kube) -> str:
        """Create every object; return the UID that the server gave the pod."""
        uid = ""
        for collection, wanted in objects.cluster(self._stage.s3_url):
            try:
                body = await kube.create(collection, wanted)
            except ApiError as error:
                if error.status != 409:  # the namespace may be there already
                    raise
                continue
            if wanted["kind"] == "Pod":
                uid = msgspec.json.decode(body, type=_Object).metadata.uid
        return uid

    async def _request(self, kube: Kube, name: str, pod_uid: str) -> str:
        """Create a PodVolumeBackup as Velero's server does, and return its path."""
        collection = f"/apis/velero.io/v1/namespaces/{objects.VELERO}/podvolumebackups"
        wanted = objects.pod_volume_backup(name, pod_uid, self._stage.repository)
        made = msgspec.json.decode(await kube.create(collection, wanted), type=_Object)
        return f"{collection}/{made.metadata.name}"

    async def _follow(self, kube: Kube, path: str, agent: subprocess.Popen[bytes]) -> _Status:
        """Show a backup's progress until it has ended."""
        columns = (
            TextColumn("   {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        end = time.monotonic() + BACKUP_SECONDS
        seen = self._console.is_terminal  # elsewhere it would leave but an empty line
        with Progress(*columns, console=self._console, transient=True, disable=not seen) as bar:
            task = bar.add_task("New", total=None, detail="")
            while True:
                status = msgspec.json.decode(await kube.get(path), type=_Object).status or _Status()
                now = status.progress or _Progress()
                bar.update(
                    task,
                    description=status.phase or "New",
                    completed=now.bytes_done,
                    total=now.total_bytes or None,
                    detail=f"{size_text(now.bytes_done)} of {size_text(now.total_bytes)}",
                )
                if status.phase in {"Completed", "Failed"}:
                    return status
                if agent.poll() is not None or time.monotonic() > end:
                    says = last_line(self._stage.folder / "agent.log")
                    state = status.phase or "New"
                    raise DemoError(f"the backup is still {state}; the agent's log says: {says}")
                await asyncio.sleep(POLL_SECONDS)

    def _stored(self) -> int:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=objects.BUCKET)
        return sum(found["Size"] for page in pages for found in page.get("Contents", ()))

    def keep_repository(self) -> None:
        """Copy the repository out of the stand-in's memory, where restic can look at it."""
        target = self._stage.folder / "repository"
        root = f"{objects.PREFIX}/restic/{objects.APP}/"
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=objects.BUCKET, Prefix=root
        )
        for found in (found for page in pages for found in page.get("Contents", ())):
            path = target / found["Key"].removeprefix(root)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._s3.download_file(objects.BUCKET, found["Key"], str(path))
        self._console.print(f"try: RESTIC_PASSWORD={objects.PASSWORD} restic -r {target} snapshots")

    def _restore(self, volume: Path, snapshot: str) -> None:
        target = self._stage.folder / "restored"
        self._console.print("6. restoring the second snapshot, and comparing it with the volume")
        started = time.monotonic()
        self._podlift("restore", snapshot, "--target", str(target))
        entries, size = compare.count(target)
        different = list(compare.differences(volume, target))
        self._require(
            not different,
            f"{entries} entries, {size_text(size)} restored and compared in"
            f" {time.monotonic() - started:.1f} s: {len(different)} differences",
        )
        for difference in different[:10]:
            self._console.print(f"     {difference}", markup=False)

    def _check(self) -> None:
        self._console.print("7. verifying every byte of the repository")
        output = self._podlift("check", "--read-data")
        self._require("is in order" in output, output.strip().splitlines()[-1])

    def _podlift(self, command: str, *arguments: str) -> str:
        stage = self._stage
        whole = [sys.executable, "-m", "agent", command, *arguments, "--repo", stage.repository]
        whole += ["--cache-dir", str(stage.folder / "cache")]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"podlift {command} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def _require(self, holds: bool, sentence: str) -> None:
        self._console.print(f"   {sentence}", markup=False)
        if not holds:
            self._failures.append(sentence)


def _verdict(console: Console, failures: list[str]) -> bool:
    for failure in failures:
        console.print(f"FAILED: {failure}", markup=False)
    if failures:
        console.print("Verdict: BAD: the demo did not hold; with --keep its folder and logs stay.")
        return False
    console.print(
        "Verdict: GOOD: backed up, backed up again for nearly nothing, restored identically."
    )
    console.print(
        'Next: the README\'s "By hand" for your own folders, docs/deploy.md for a cluster.'
    )
    return True
