"""Many backups, several agents, one repository, and everything goes wrong at random.

The storage resets, throttles, stalls and loses replies; the API server does too, and cuts watches;
agents are killed and stopped, and new ones take their place. In the end every PodVolumeBackup is
Completed, every snapshot is restored and compared, restic has read every byte, and nothing is left: no
lock, no journal, no checkpoint; nor do the agents hold more threads, descriptors or memory than
their work explains. PODLIFT_SOAK_SECONDS makes it as long as one likes.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from http.client import HTTPException
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.demo.apiserver.faults import Cut
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.storage.local import LocalStorage
from agent.transfer.restore import RestoreRequest, restore
from tests.cluster.stage import Stage
from tests.faults.agent_soaking import Weather, start
from tests.interop.volumes import differences
from tests.support.apiservers import StandinServer
from tests.support.restic import judges
from tests.transfer.running import noise

PASSWORD = "pass"
NODES, CONCURRENCY, AT_ONCE = 4, 2, 50
SECONDS = float(os.environ.get("PODLIFT_SOAK_SECONDS", "15"))
PATIENCE_SECONDS = 240.0

HELD_THREADS, HELD_DESCRIPTORS = 24, 40
"""What an idle agent may hold; a leak of one a backup would be beyond after a few dozen."""

HELD_MIB = 256 + 64 * (CONCURRENCY - 1)


class Node:
    """One node: its volume, its agent now, and how often that was replaced."""

    def __init__(self, soak: "Soak", number: int) -> None:
        self._soak = soak
        self.name = f"node-{number}"
        self.pod, self.volume = soak.stage.pod_on(self.name)
        for file in range(10):
            (self.volume / f"f{file}").write_bytes(noise(100 * number + file, 20_000))
        (self.volume / "large").write_bytes(noise(number, 1 << 20))
        self.replaced = 0
        self.agent = self._start()

    def _start(self) -> ForkServerProcess:
        stage = self._soak.stage
        settings = stage.settings(
            node_name=self.name,
            cache_dir=self._soak.root / self.name,
            concurrency=CONCURRENCY,
            grace_seconds=8.0,
        )
        seed = self._soak.draw.randrange(1 << 30)
        return start(Weather(settings, self._soak.place, seed))

    def replace(self, number: int) -> None:
        """End the agent by a signal, and start a new one."""
        pid = self.agent.pid
        assert pid is not None
        os.kill(pid, number)
        self.agent.join(30)
        assert self.agent.exitcode in (0, -number), self.agent.exitcode
        self.replaced += 1
        self.agent = self._start()

    def held(self) -> tuple[int, int, float]:
        """Return how many threads and descriptors the agent holds, and its peak of memory in MiB."""
        folder = Path(f"/proc/{self.agent.pid}")
        status = (folder / "status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return (
            len(list((folder / "task").iterdir())),
            len(list((folder / "fd").iterdir())),
            int(peak) / 1024,
        )


class Soak:
    """The cluster, its nodes, and the backups that were asked for."""

    def __init__(self, server: StandinServer, root: Path) -> None:
        self.root = root
        self.stage = Stage(server, root)
        self.place = root / "repository"
        self.draw = random.Random(2026)
        self.server = server
        self.asked: dict[str, Node] = {}
        self.nodes = [Node(self, number) for number in range(NODES)]

    def ask(self) -> None:
        """Create one more PodVolumeBackup."""
        node = self.draw.choice(self.nodes)
        name = f"b-{len(self.asked)}"
        about = node.pod["metadata"]
        reference = {key: about[key] for key in ("name", "namespace", "uid")}
        tags = {"ns": about["namespace"], "pod": about["name"], "volume": "data", "backup": name}
        self.stage.pvb(name, pod=reference, node=node.name, tags=tags)
        self.asked[name] = node

    def open(self) -> list[str]:
        """Return the backups that have not ended."""
        return [n for n in self.asked if "completionTimestamp" not in self.status(n)]

    def status(self, name: str) -> dict[str, str]:
        """Read a status; what goes wrong may hit this test as well."""
        while True:
            try:
                return self.stage.status(name)
            except (OSError, HTTPException, AssertionError):
                time.sleep(0.01)

    def strike(self) -> None:
        """Let something go wrong."""
        faults = self.server.faults
        blows: list[Callable[[], object]] = [
            lambda: faults.lose_reply(times=2),
            lambda: faults.throttle(times=2, method=self.draw.choice(["GET", "PATCH"])),
            lambda: faults.reset(times=3, method=self.draw.choice(["GET", "PATCH"])),
            lambda: faults.cut_watches(self.draw.choice(list(Cut))),
            lambda: self.draw.choice(self.nodes).replace(signal.SIGKILL),
            lambda: self.draw.choice(self.nodes).replace(signal.SIGTERM),
        ]
        self.draw.choice(blows)()

    def calm(self) -> None:
        """Wait until every backup has ended, with nothing going wrong but the storage."""
        self.server.faults.clear()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.open():
            assert time.monotonic() < deadline, {name: self.status(name) for name in left}
            time.sleep(0.1)


@pytest.mark.timeout(600 + SECONDS)
def test_everything_ends_well_whatever_goes_wrong(standin: StandinServer, tmp_path: Path) -> None:
    soak = Soak(standin, tmp_path)
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or len(soak.asked) < AT_ONCE:
            if len(soak.open()) < AT_ONCE // 2:
                soak.ask()
            soak.strike()
            time.sleep(soak.draw.uniform(0.0, 0.4))
        soak.calm()
        held = [node.held() for node in soak.nodes]
        assert sum(node.replaced for node in soak.nodes) > NODES
        for node in soak.nodes:
            node.agent.terminate()
            node.agent.join(30)
            assert node.agent.exitcode == 0
    finally:
        for node in soak.nodes:
            node.agent.kill()
    judge(soak)
    threads, descriptors, mib = (max(values) for values in zip(*held, strict=True))
    print(  # noqa: T201 (what the soak is there to show)
        f"\n{len(soak.asked)} backups, {sum(node.replaced for node in soak.nodes)} agents replaced: all"
        f" completed; at most {threads} threads, {descriptors} descriptors, {mib:.0f} MiB"
    )
    assert threads <= HELD_THREADS
    assert descriptors <= HELD_DESCRIPTORS
    assert mib <= HELD_MIB


def judge(soak: Soak) -> None:
    """Restore and compare everything, let restic read it, and look for what should not be left."""
    repository = open_repository(LocalStorage(soak.place), PASSWORD)
    snapshots = {snapshot.id: snapshot for snapshot in repository.snapshots()}
    assert not [each for each in snapshots.values() if each.is_checkpoint]
    assert not list((soak.place / "locks").iterdir())
    assert not list(soak.root.rglob("journal.*"))
    reading = repository.reading()
    for name, node in soak.asked.items():
        status = soak.stage.status(name)
        assert status["phase"] == "Completed", (name, status)
        target, monitor = soak.root / "restored", Monitor()
        restore(
            reading, RestoreRequest(snapshots[status["snapshotID"]].tree, target), monitor, NEVER
        )
        assert monitor.problems == []
        assert differences(node.volume, target) == []
        shutil.rmtree(target)
    for restic in judges(soak.root / "home"):
        done = restic.run(str(soak.place), "check", "--read-data", "--no-cache", password=PASSWORD)
        assert "no errors were found" in done.stdout
