"""Many backups, several agents, one repository, and everything goes wrong at random.

The storage resets, throttles, stalls and loses replies; the API server does too, and cuts watches;
agents are killed and stopped, and new ones take their place. In the end every PodVolumeBackup is
Completed, every snapshot is restored and compared, restic has read every byte, and nothing is left: no
lock, no journal, no checkpoint; nor do the agents hold more threads, descriptors or memory than
their work explains. The volumes change all the while, and what is restored is held against what they
had. The first node's agent lives through it all, to show what a long life would leak.
PODLIFT_SOAK_SECONDS makes it as long as one likes; fifty more backups are asked for each minute.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from http.client import HTTPException
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.cancel import NEVER
from agent.cluster.claim import MOST_ATTEMPTS
from agent.cluster.order import OWNER
from agent.demo.apiserver.faults import Cut
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.storage.local import LocalStorage
from agent.transfer.restore import RestoreRequest, restore
from tests.cluster.stage import Stage
from tests.faults.agent_soaking import Weather, start
from tests.interop.volumes import differences
from tests.support.apihandle import Json
from tests.support.apiservers import StandinServer
from tests.support.restic import judges
from tests.transfer.running import noise

PASSWORD = "pass"
NODES, CONCURRENCY, AT_ONCE = 4, 2, 50
SECONDS = float(os.environ.get("PODLIFT_SOAK_SECONDS", "15"))
WAVE_SECONDS, PATIENCE_SECONDS = 60.0, 240.0
LIFE_SECONDS = 3.0
"""How long an agent lives at least."""

SPARED_ATTEMPTS = MOST_ATTEMPTS - 2
"""What an agent works on for the fourth time it may finish: a backup is given up after five attempts, and
while this is looked at another may begin."""

CHANGING, KEPT = "changing", 20
"""The folder whose files come and go, and how many of them there are at most."""

HELD_THREADS, HELD_DESCRIPTORS = 24, 40
"""What an idle agent may hold; a leak of one a backup would be beyond after a few dozen."""

HELD_MIB, GROWN_MIB = 256 + 64 * (CONCURRENCY - 1), 96


class Held(NamedTuple):
    """What an agent holds: threads, descriptors, and the peak of its memory."""

    threads: int
    descriptors: int
    mib: float


class Asked(NamedTuple):
    """A backup that was asked for: of which node, and the newest changing file at that moment."""

    node: "Node"
    newest: int


class Node:
    """One node: its volume, its agent now, and how often that was replaced."""

    def __init__(self, soak: "Soak", number: int) -> None:
        self._soak = soak
        self.number, self.name = number, f"node-{number}"
        self.pod, self.volume = soak.stage.pod_on(self.name)
        for file in range(10):
            (self.volume / f"f{file}").write_bytes(noise(100 * number + file, 20_000))
        (self.volume / "large").write_bytes(noise(number, 1 << 20))
        (self.volume / CHANGING).mkdir()
        self.newest = self.replaced = 0
        self._started = 0.0
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
        self._started = time.monotonic()
        return start(Weather(settings, self._soak.place, seed))

    def replace(self, number: int) -> None:
        """End the agent by a signal, and start a new one; spare one that has only just started."""
        if time.monotonic() - self._started < LIFE_SECONDS or self._soak.exhausted(self):
            return
        pid = self.agent.pid
        assert pid is not None
        os.kill(pid, number)
        self.agent.join(30)
        assert self.agent.exitcode in (0, -number), self.agent.exitcode
        self.replaced += 1
        self.agent = self._start()

    def content(self, number: int) -> bytes:
        """Return what is in the changing file of that number."""
        return noise(self.number * 1_000_000 + number, 40_000)

    def change(self) -> None:
        """Add the next changing file, whole at once, and remove the one that is too old."""
        written = self._soak.root / f"{self.name}.next"
        written.write_bytes(self.content(self.newest + 1))
        written.rename(self.volume / CHANGING / str(self.newest + 1))
        self.newest += 1
        (self.volume / CHANGING / str(self.newest - KEPT)).unlink(missing_ok=True)

    def held(self) -> Held:
        """Look at what the agent holds."""
        folder = Path(f"/proc/{self.agent.pid}")
        status = (folder / "status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return Held(
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
        self.asked: dict[str, Asked] = {}
        self.ended: dict[str, int] = {}
        """The newest changing file when a backup was first seen to have ended."""
        self.nodes = [Node(self, number) for number in range(NODES)]

    def ask(self) -> None:
        """Create one more PodVolumeBackup."""
        node = self.draw.choice(self.nodes)
        name = f"b-{len(self.asked)}"
        about = node.pod["metadata"]
        reference = {key: about[key] for key in ("name", "namespace", "uid")}
        tags = {"ns": about["namespace"], "pod": about["name"], "volume": "data", "backup": name}
        self.stage.pvb(name, pod=reference, node=node.name, tags=tags)
        self.asked[name] = Asked(node, node.newest)

    def open(self) -> list[str]:
        """Return the backups that have not ended."""
        for name in self.asked.keys() - self.ended.keys():
            if "completionTimestamp" in self.status(name):
                self.ended[name] = self.asked[name].node.newest
        return sorted(self.asked.keys() - self.ended.keys())

    def status(self, name: str) -> dict[str, str]:
        """Read a status."""
        return self.object(name).get("status") or {}

    def object(self, name: str) -> Json:
        """Read a backup; what goes wrong may hit this test as well."""
        while True:
            try:
                return self.stage.object(name)
            except (OSError, HTTPException, AssertionError):
                time.sleep(0.01)

    def exhausted(self, node: Node) -> bool:
        """Tell whether so many agents of a node ended at the same backup that the next is to finish it."""
        for name in self.asked.keys() - self.ended.keys():
            if self.asked[name].node is node:
                annotations = self.object(name)["metadata"].get("annotations", {})
                owner = json.loads(annotations.get(OWNER, "{}"))
                if len(owner.get("earlier", ())) >= SPARED_ATTEMPTS:
                    return True
        return False

    def strike(self) -> None:
        """Let something go wrong."""
        faults = self.server.faults
        blows: list[Callable[[], object]] = [
            lambda: faults.lose_reply(times=2),
            lambda: faults.throttle(times=2, method=self.draw.choice(["GET", "PATCH"])),
            lambda: faults.reset(times=3, method=self.draw.choice(["GET", "PATCH"])),
            lambda: faults.cut_watches(self.draw.choice(list(Cut))),
            lambda: self.draw.choice(self.nodes[1:]).replace(signal.SIGKILL),
            lambda: self.draw.choice(self.nodes[1:]).replace(signal.SIGTERM),
        ]
        self.draw.choice(blows)()

    def calm(self) -> None:
        """Wait until every backup has ended, with nothing going wrong but the storage."""
        self.server.faults.clear()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.open():
            assert time.monotonic() < deadline, {name: self.status(name) for name in left}
            time.sleep(0.1)

    def rage(self, seconds: float) -> None:
        """Ask for backups in waves, change the volumes, and let things go wrong all the while."""
        end, wave = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            if now >= wave and not self.open():
                wave = now + WAVE_SECONDS
                for _ in range(AT_ONCE):
                    self.ask()
            self.draw.choice(self.nodes).change()
            self.strike()
            time.sleep(self.draw.uniform(0.0, 0.4))


@pytest.mark.timeout(600 + 2 * SECONDS)
def test_everything_ends_well_whatever_goes_wrong(standin: StandinServer, tmp_path: Path) -> None:
    soak = Soak(standin, tmp_path)
    try:
        soak.rage(SECONDS / 2)
        half = soak.nodes[0].held()
        soak.rage(SECONDS / 2)
        soak.calm()
        held = [node.held() for node in soak.nodes]
        replaced = sum(node.replaced for node in soak.nodes)
        for node in soak.nodes:
            node.agent.terminate()
            node.agent.join(30)
            assert node.agent.exitcode == 0
    finally:
        for node in soak.nodes:
            node.agent.kill()
    judge(soak)
    most = Held(*(max(values) for values in zip(*held, strict=True)))
    print(  # noqa: T201 (what the soak is there to show)
        f"\n{len(soak.asked)} backups, {replaced} agents replaced, {sum(n.newest for n in soak.nodes)}"
        f" files changed: all completed, restored and compared; held at most: {most};"
        f" by the agent that lived on, at half the time: {half}, at the end: {held[0]}"
    )
    assert replaced >= NODES
    assert most.threads <= HELD_THREADS
    assert most.descriptors <= HELD_DESCRIPTORS
    assert most.mib <= HELD_MIB
    assert held[0].mib <= half.mib + GROWN_MIB


def judge(soak: Soak) -> None:
    """Restore and compare everything, let restic read it, and look for what should not be left."""
    repository = open_repository(LocalStorage(soak.place), PASSWORD)
    snapshots = {snapshot.id: snapshot for snapshot in repository.snapshots()}
    assert not [each for each in snapshots.values() if each.is_checkpoint]
    assert not list(LocalStorage(soak.place).list("locks/"))
    assert not list(soak.root.rglob("journal.*"))
    reading = repository.reading()
    for name, asked in soak.asked.items():
        status = soak.stage.status(name)
        assert status["phase"] == "Completed", (name, status)
        target, monitor = soak.root / "restored", Monitor()
        restore(
            reading, RestoreRequest(snapshots[status["snapshotID"]].tree, target), monitor, NEVER
        )
        assert monitor.problems == []
        judge_changing(target / CHANGING, asked, soak.ended[name])
        assert [d for d in differences(asked.node.volume, target) if CHANGING not in d] == []
        shutil.rmtree(target)
    for restic in judges(soak.root / "home"):
        done = restic.run(str(soak.place), "check", "--read-data", "--no-cache", password=PASSWORD)
        assert "no errors were found" in done.stdout


def judge_changing(restored: Path, asked: Asked, newest: int) -> None:
    """Every changing file that stood from the asking to the end is there, and all that is there is whole."""
    found = {int(path.name): path.read_bytes() for path in restored.iterdir()}
    stood = range(max(1, newest - KEPT + 1), asked.newest + 1)
    assert set(stood) <= found.keys()
    for number, content in found.items():
        assert content == asked.node.content(number)
    shutil.rmtree(restored)
