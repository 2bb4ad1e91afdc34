"""The programs that are compared, and the one way to run and measure a process.

CPU seconds are user and system of the process and what it waited for (wait4). Resident memory is
sampled with its children; the peak is the kernel's own. A process that was just started counts
the peak of the one that started it as its own (ru_maxrss outlives exec), so the kernel's figure of
the program (VmHWM), as last seen, is taken when ours would hide it.
"""

import contextlib
import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from workspace import environment

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "bench"
SAMPLE_SECONDS = 0.05


@dataclasses.dataclass
class Cost:
    """What one run took; ``resident`` are pairs (seconds since the start, MiB)."""

    wall_seconds: float
    cpu_seconds: float
    rss_mib: float
    resident: list[tuple[float, float]]


def run(command: list[str], environ: dict[str, str], folder: Path | None = None) -> Cost:
    """Run a program to its end in ``folder``; raise ``SystemExit`` if it fails."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=environ, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    sampler = Sampler(process.pid)
    sampler.start()
    assert process.stderr is not None
    try:
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    wall = time.monotonic() - started
    sampler.stop()
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = said.decode(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{words}")
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # now: it may have grown since
    peak_kib = usage.ru_maxrss if usage.ru_maxrss > own_peak else sampler.peak_kib
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak_kib / 1024, sampler.seen)


class Sampler(threading.Thread):
    """Looks at a process and its children until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._end = threading.Event()
        self.peak_kib = 0
        self.seen: list[tuple[float, float]] = []

    def run(self) -> None:
        """Sample; a process that is gone is no error."""
        started = time.monotonic()
        while not self._end.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                found = [_memory(pid) for pid in _family(self._pid)]
                self.peak_kib = max(self.peak_kib, found[0]["VmHWM"])
                mib = sum(each["VmRSS"] for each in found) / 1024
                if mib:
                    self.seen.append((round(time.monotonic() - started, 3), round(mib, 2)))

    def stop(self) -> None:
        """End the thread."""
        self._end.set()
        self.join()


def _memory(pid: int) -> dict[str, int]:
    """Return VmRSS and VmHWM in KiB; zeros of a process that has ended."""
    found = {"VmRSS": 0, "VmHWM": 0}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0])
    return found


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


@dataclasses.dataclass(frozen=True)
class Place:
    """A repository's name, what it takes to reach it, and a folder for the side's own files.

    ``keeps`` is False where a pack cannot be read again.
    """

    repository: str
    environ: dict[str, str]
    home: Path
    keeps: bool = True


class Podlift:
    """The agent's code, from this checkout."""

    name = "podlift"
    storages = ("local", "sink", "server")

    def version(self) -> str:
        """Return what the program says of itself."""
        return _said([sys.executable, "-m", "agent", "--version"])

    def init(self, place: Place) -> Cost:
        """Make the repository."""
        return self._run(place, "init")

    def backup(self, place: Place, volume: Path) -> Cost:
        """Back up the content of ``volume``."""
        readable = () if place.keeps else ("--verify-stored", "none")
        return self._run(place, "backup", str(volume), "--json", *readable)

    def restore(self, place: Place, snapshot: str, target: Path) -> Cost:
        """Restore into ``target``."""
        return self._run(place, "restore", snapshot, "--target", str(target))

    def _run(self, place: Place, *arguments: str) -> Cost:
        own = {"PYTHONPATH": str(ROOT), "PODLIFT_PASSWORD": PASSWORD}
        common = ["--repo", place.repository, "--cache-dir", str(place.home / "podlift-cache")]
        command = [sys.executable, "-m", "agent", *arguments, *common]
        return run(command, environment(**place.environ, **own))


class Restic:
    """The program whose format we write."""

    name = "restic"
    storages = ("local", "sink", "server")

    def __init__(self, binary: str) -> None:
        self.binary = binary

    def version(self) -> str:
        """Return what the program says of itself."""
        return _said([self.binary, "version"])

    def init(self, place: Place) -> Cost:
        """Make the repository."""
        return self._run(place, None, "init")

    def backup(self, place: Place, volume: Path) -> Cost:
        """Back up the content of ``volume``."""
        return self._run(place, volume, "backup", ".")

    def restore(self, place: Place, snapshot: str, target: Path) -> Cost:
        """Restore into ``target``."""
        return self._run(place, None, "restore", snapshot, "--target", str(target))

    def judge(self, place: Place) -> None:
        """Read every byte of a repository; raise if anything is wrong with it."""
        self._run(place, None, "check", "--read-data")

    def _run(self, place: Place, folder: Path | None, *arguments: str) -> Cost:
        own = {"RESTIC_PASSWORD": PASSWORD}
        common = ["-q", "-r", place.repository, "--cache-dir", str(place.home / "restic-cache")]
        return run([self.binary, *common, *arguments], environment(**place.environ, **own), folder)


class Kopia:
    """Velero's other mover; local directories only."""

    name = "kopia"
    storages = ("local",)

    def version(self) -> str:
        """Return what the program says of itself."""
        return _said(["kopia", "--version"])

    def init(self, place: Place) -> Cost:
        """Make the repository, compressing as the other sides do."""
        Path(place.repository).mkdir()
        made = self._run(place, "repository", "create", "filesystem", "--path", place.repository)
        self._run(place, "policy", "set", "--global", "--compression=zstd")
        return made

    def backup(self, place: Place, volume: Path) -> Cost:
        """Back up the content of ``volume``."""
        return self._run(place, "snapshot", "create", str(volume))

    def _run(self, place: Place, *arguments: str) -> Cost:
        own = {
            "KOPIA_PASSWORD": PASSWORD,
            "KOPIA_CONFIG_PATH": str(place.home / "kopia.config"),
            "KOPIA_CACHE_DIRECTORY": str(place.home / "kopia-cache"),
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }
        return run(["kopia", *arguments], environment(**own))


class Borg:
    """A mover with a repository format of its own; local directories only."""

    name = "borg"
    storages = ("local",)

    def version(self) -> str:
        """Return what the program says of itself."""
        return _said(["borg", "--version"])

    def init(self, place: Place) -> Cost:
        """Make the repository."""
        return self._run(place, None, "init", "--encryption=repokey-blake2", place.repository)

    def backup(self, place: Place, volume: Path) -> Cost:
        """Back up the content of ``volume``."""
        name = f"{place.repository}::{time.monotonic_ns()}"
        return self._run(place, volume, "create", "--compression=zstd", name, ".")

    def _run(self, place: Place, folder: Path | None, *arguments: str) -> Cost:
        own = {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(place.home / "borg")}
        return run(["borg", *arguments], environment(**own), folder)


Side = Podlift | Restic | Kopia | Borg


def sides(restic: str | None) -> list[Side]:
    """Return podlift, and those of the others that are installed."""
    found: list[Side] = [Podlift()]
    if restic is None:
        print("restic is not here (apt-get install restic): our side is measured without it")
    else:
        found.append(Restic(restic))
    others: tuple[Side, ...] = (Kopia(), Borg())
    found += [other for other in others if shutil.which(other.name)]
    return found


def _said(command: list[str]) -> str:
    environ = environment(PYTHONPATH=str(ROOT))
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environ
    ).stdout.strip()
