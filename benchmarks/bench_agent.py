"""One agent on its node: what it costs while it waits, and how soon it reads when there is work.

`podlift agent` runs as a process of its own, on moto and on the API server of the demo; where the
shared folder has a real kube-apiserver (and etcd is installed), on that one as well. It is left alone
for a while, asked by /healthz, /readyz and /metrics as a kubelet and Prometheus would, then given one
PodVolumeBackup after another, the first into an empty bucket with an empty cache, each of the others
of a volume of which 1 % has changed, and left alone again: what the work took must be given back.

All times are from the moment before the PodVolumeBackup is sent to the API server. It is claimed and
completed when a watch says so; the first byte is read when the kernel says so (inotify's IN_ACCESS of a
file in the volume, which read(2) and its kin raise, and nothing else). CPU is the process's own clock
of the kernel, in nanoseconds; RSS and what of it is private come from smaps_rollup.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import report
from samples import SAMPLES
from sides import ROOT, Podlift
from storages import Served, storage
from workspace import GIB, environment, parser, workspace

from agent.cluster.client import Kube
from agent.cluster.credentials import credentials
from agent.config import ClusterAccess
from agent.demo import objects
from agent.demo.processes import free_port, listening, running, wait_until
from agent.errors import ApiError

IDLE_MIB, IDLE_CPU_PERCENT, FIRST_BYTE_SECONDS, PEAK_MIB = 80, 0.2, 1.0, 256
"""To hold: the row "control" of design.md's "Numbers to hold", and its limit of any memory."""

SETTLE_SECONDS = 2.0
"""After the start, or the end of work, until the agent counts as idle."""

ASK_SECONDS = 10.0
PVBS = f"/apis/velero.io/v1/namespaces/{objects.VELERO}/podvolumebackups"
COLUMNS = ["API server", "moment", "RSS MiB", "private MiB", "peak MiB", "CPU %"]
COLUMNS += ["claimed s", "first byte s", "completed s"]

IN_ACCESS, IN_ISDIR = 0x1, 0x40000000
EVENT = struct.Struct("iIII")
LIBC = ctypes.CDLL(None, use_errno=True)


class Reads:
    """Notes when a file in a folder, not the folder itself, was read for the first time."""

    def __init__(self, folder: Path) -> None:
        self.first: float | None = None
        self._fd = _checked(LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        _checked(LIBC.inotify_add_watch(self._fd, os.fsencode(folder), IN_ACCESS))

    def __enter__(self) -> "Reads":
        asyncio.get_running_loop().add_reader(self._fd, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _look(self) -> None:
        now, data = time.monotonic(), os.read(self._fd, 65536)
        while data:
            _, mask, _, length = EVENT.unpack_from(data)
            data = data[EVENT.size + length :]
            if not mask & IN_ISDIR and self.first is None:
                self.first = now


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify: {os.strerror(number)}")
    return result


@dataclasses.dataclass(frozen=True)
class Idle:
    """An agent without work: memory in MiB, CPU in percent of one core."""

    rss: float
    private: float
    peak: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds from the creation of a PodVolumeBackup; ``first_byte`` is None if nothing was read."""

    claimed: float
    first_byte: float | None
    completed: float


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one API server's agent did; ``backups`` begins with the one of the cold cache."""

    server: str
    start: Idle
    backups: list[Times]
    end: Idle


@dataclasses.dataclass(frozen=True)
class Stage:
    """One API server with the demo's cluster in it, the bucket, and the volume on the "host"."""

    folder: Path
    kubeconfig: Path
    s3_url: str

    @contextlib.asynccontextmanager
    async def kube(self) -> AsyncIterator[Kube]:
        """Connect to the API server for the length of a scope."""
        kube = await Kube.connect(credentials(ClusterAccess(kubeconfig=self.kubeconfig)))
        try:
            yield kube
        finally:
            await kube.close()

    @contextlib.contextmanager
    def agent(self) -> Iterator[tuple[int, str]]:
        """Run an agent for the length of a scope; yield its process id and its URL."""
        port = free_port()
        command = ["-m", "agent", "agent", "--node-name", objects.NODE]
        command += ["--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.folder / "cache")]
        command += ["--host-pods", str(self.folder / "pods")]
        command += ["--metrics-address", f"127.0.0.1:{port}"]
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        with running("agent", command, self.folder, environment(**own)) as process:
            wait_until(lambda: listening(port), "the agent", process, self.folder / "agent.log")
            yield process.pid, f"http://127.0.0.1:{port}"

    async def create_cluster(self) -> str:
        """Create what a backup needs; return the pod's UID."""
        uid = ""
        async with self.kube() as kube:
            for collection, wanted in objects.cluster(self.s3_url):
                with contextlib.suppress(ApiError):  # the namespace may be there already
                    made = json.loads(await kube.create(collection, wanted))
                    uid = made["metadata"]["uid"] if wanted["kind"] == "Pod" else uid
        return uid

    def volume(self, pod_uid: str) -> Path:
        """Return where the volume belongs."""
        plugin = self.folder / "pods" / pod_uid / "volumes" / "kubernetes.io~csi"
        return plugin / objects.PV / "mount"


async def backup(stage: Stage, kube: Kube, volume: Path, pod_uid: str) -> Times:
    """Create one PodVolumeBackup and follow it to its end; raise ``SystemExit`` if it fails."""
    wanted = objects.pod_volume_backup("bench", pod_uid, f"s3:{stage.s3_url}/{objects.BUCKET}/r")
    seen = {"resourceVersion": (await kube.list(PVBS)).resource_version}
    claimed = None
    with Reads(volume) as reads:
        started = time.monotonic()
        name = json.loads(await kube.create(PVBS, wanted))["metadata"]["name"]
        lines = kube.watch(PVBS, seen, server_seconds=600, idle_seconds=120)
        async with contextlib.aclosing(lines):  # type: ignore[type-var]
            async for line in lines:
                found, now = json.loads(line)["object"], time.monotonic() - started
                status = found.get("status") or {}
                if found["metadata"].get("name") != name or not status.get("phase"):
                    continue
                claimed = now if claimed is None else claimed
                if status["phase"] == "Completed":
                    first = None if reads.first is None else reads.first - started
                    return Times(claimed, first, now)
                if status["phase"] != "InProgress":
                    raise SystemExit(f"a backup is {status['phase']}: {status.get('message')}")
    raise SystemExit("the API server ended the watch of a backup")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process: all its threads, those that have ended too."""
    clock = ctypes.c_int()
    if error := LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def memory_mib(pid: int) -> dict[str, float]:
    """Return what the kernel says of a process's memory by its own names, in MiB."""
    found: dict[str, float] = {}
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[key] = int(value.split()[0]) / 1024
    return found


def idle(pid: int, url: str, seconds: float) -> Idle:
    """Watch an agent without work for some seconds; its memory is that of their end."""
    time.sleep(SETTLE_SECONDS)
    began, before = time.monotonic(), cpu_seconds(pid)
    while (left := began + seconds - time.monotonic()) > 0:
        for page in ("healthz", "readyz", "metrics"):
            with urllib.request.urlopen(f"{url}/{page}") as answer:
                answer.read()
        time.sleep(min(ASK_SECONDS, left))
    percent = 100 * (cpu_seconds(pid) - before) / (time.monotonic() - began)
    held = memory_mib(pid)
    private = held["Private_Clean"] + held["Private_Dirty"]
    return Idle(held["VmRSS"], private, held["VmHWM"], percent)


def measure(server: str, stage: Stage, options: Any) -> Seen:
    """Run one agent through its day."""
    pod_uid = asyncio.run(stage.create_cluster())
    sample, volume = SAMPLES["incompressible"], stage.volume(pod_uid)
    sample.make(volume, 64 if options.quick else options.mib)
    window, count = (8.0, 2) if options.quick else (options.idle_seconds, options.backups)

    async def work() -> list[Times]:
        async with stage.kube() as kube:
            found = [await backup(stage, kube, volume, pod_uid)]
            for number in range(count):
                sample.change(volume, number)
                found.append(await backup(stage, kube, volume, pod_uid))
            return found

    with stage.agent() as (pid, url):
        start = idle(pid, url, window)
        return Seen(server, start, asyncio.run(work()), idle(pid, url, window))


@contextlib.contextmanager
def standin(folder: Path) -> Iterator[Path]:
    """Run the demo's API server for the length of a scope; yield its kubeconfig."""
    made = folder / "apiserver" / "kubeconfig"
    command = ["-m", "agent.demo.apiserver", "--dir", str(made.parent)]
    environ = environment(PYTHONPATH=str(ROOT))
    with running("apiserver", command, folder, environ) as process:
        wait_until(made.exists, "the API server", process, folder / "apiserver.log")
        yield made


@contextlib.contextmanager
def real(folder: Path) -> Iterator[Path]:
    """Run the real kube-apiserver for the length of a scope, as the tests do."""
    from tests.support.apiservers import SHARED, KubeApiServer, KubeProcess

    directory = folder / "kube-apiserver"
    directory.mkdir()
    binary = directory / "kube-apiserver"
    with binary.open("wb") as out:
        packed = SHARED / "apiserver" / "kube-apiserver.xz"
        subprocess.run(["xz", "-dc", str(packed)], stdout=out, check=True)
    binary.chmod(0o755)
    process = KubeProcess(directory)
    process.running = True
    try:
        process.start()
        KubeApiServer(process).apply_velero_crds()
        yield directory / "kubeconfig"
    finally:
        process.kill()


def real_is_here() -> bool:
    """Tell whether there is all that a real kube-apiserver takes."""
    sys.path.insert(0, str(ROOT))
    try:
        from tests.support.apiservers import LAUNCHER
    except ImportError:  # the tests' requirements are not installed
        return False
    return LAUNCHER.exists() and all(map(shutil.which, ("etcd", "openssl", "xz", "curl")))


def verdicts(seen: Seen) -> list[tuple[bool, str]]:
    """Return each number to hold, and whether it was."""
    found = []
    for moment, at in (("after the start", seen.start), ("after work", seen.end)):
        name = f"{seen.server}, idle {moment}"
        found.append((at.rss <= IDLE_MIB, f"{name}: RSS {at.rss:.1f} MiB ≤ {IDLE_MIB}"))
        held = at.cpu <= IDLE_CPU_PERCENT
        found.append((held, f"{name}: CPU {at.cpu:.3f} % ≤ {IDLE_CPU_PERCENT}"))
    firsts = [each.first_byte for each in seen.backups[1:]]
    name = f"{seen.server}, creation to first byte, warm"
    read = [first for first in firsts if first is not None]
    if len(read) < len(firsts) or not read:
        found.append((False, f"{name}: not seen in {len(firsts) - len(read)} of {len(firsts)}"))
    else:
        median = statistics.median(read)
        held = median <= FIRST_BYTE_SECONDS
        found.append((held, f"{name}: {median:.2f} s ≤ {FIRST_BYTE_SECONDS:g}"))
    peak = seen.end.peak
    found.append((peak <= PEAK_MIB, f"{seen.server}, peak: RSS {peak:.0f} MiB ≤ {PEAK_MIB}"))
    return found


def rows(seen: Seen) -> list[list[Any]]:
    """Return what the report shows, in the order in which it happened."""
    nothing = [None] * 3
    shown = [[seen.server, "idle, after the start", *dataclasses.astuple(seen.start), *nothing]]
    for number, times in enumerate(seen.backups):
        moment = f"backup {number + 1}, {'warm' if number else 'cold'}"
        shown.append([seen.server, moment, *nothing, None, *dataclasses.astuple(times)])
    return [*shown, [seen.server, "idle, after work", *dataclasses.astuple(seen.end), *nothing]]


def main() -> int:
    """Measure, report, and end with a verdict."""
    options = _options()
    servers = {"stand-in": standin}
    if not options.quick and real_is_here():
        servers["kube-apiserver"] = real
    measured = []
    with workspace((1 if options.quick else 4) * GIB) as folder:
        for name, server in servers.items():
            place = folder / name
            place.mkdir()
            with storage("server", place / "s3") as store, server(place) as kubeconfig:
                assert isinstance(store, Served)
                store.create_bucket(objects.BUCKET)
                measured.append(measure(name, Stage(place, kubeconfig, store.url), options))
    return _finish(measured, options)


def _options() -> Any:
    made = parser(__doc__)
    made.add_argument("--mib", type=int, default=512, help="size of the volume (%(default)s)")
    made.add_argument("--idle-seconds", type=float, default=30, help="each window (%(default)s)")
    made.add_argument("--backups", type=int, default=4, help="of a warm cache (%(default)s)")
    return made.parse_args()


def _finish(measured: list[Seen], options: Any) -> int:
    judged = [verdict for seen in measured for verdict in verdicts(seen)]
    said = [f"{'held' if held else 'NOT held'}: {what}" for held, what in judged]
    result = {
        "about": report.about([Podlift().version()], options.quick),
        "columns": COLUMNS,
        "rows": [row for seen in measured for row in rows(seen)],
        "verdicts": said,
    }
    report.write(options.out, "agent", result)
    print(report.markdown(result))
    held = bool(judged) and all(good for good, _ in judged)
    print(f"Verdict: {'held' if held else 'NOT held'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
