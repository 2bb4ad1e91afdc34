"""A shift of two agents, as a Prometheus sees it: they back up and restore for real, and some of it fails.

Two nodes, one location in a real S3 server behind a proxy that throttles and breaks lines. One agent
is killed at its work and started again. What happened is known exactly: sizes of volumes, how each
object ended. ``size`` is MiB of a volume, ``pause`` the seconds that a fault lasts.
"""

import contextlib
import dataclasses
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import WITHOUT_OVERRIDE, Agent, Scene, Volume, until
from tests.monitoring.panels import Span
from tests.support.faultproxy import Fault, FaultProxy, Kind, reply
from tests.support.ports import free_port
from tests.support.prometheus import Json, Prometheus, scraping

NODES = ("node-1", "node-2")
KILLED = NODES[1]
"""Its agent is killed once, so what it counted between its last scrape and then is not known."""

MIB = 1 << 20
SMALL = 200
FOREVER = 10_000
STUCK, FORBIDDEN = "velero/stuck", "velero/forbidden"
LINE = b"%08d order of a claim was snapshot and restored, node agent says; token %016x\n"
RULES = Path(__file__).parents[2] / "deploy/monitoring/prometheusrule.yaml"


@dataclasses.dataclass
class Facts:
    """What happened, by what the agents did not count: the volumes and the objects."""

    files: Counter[str] = dataclasses.field(default_factory=Counter)  # read on node-1
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)  # the same
    backups: Counter[str] = dataclasses.field(default_factory=Counter)  # by phase, all nodes
    restores: Counter[str] = dataclasses.field(default_factory=Counter)
    restored: Counter[str] = dataclasses.field(default_factory=Counter)  # bytes, by node
    unreadable: int = 0
    began: float = 0.0


class Shift:
    """Agents at work, and the Prometheus that looks."""

    def __init__(self, scene: Scene, proxy: FaultProxy, size: int, pause: float) -> None:
        self.scene, self.proxy, self.size, self.pause = scene, proxy, size, pause
        self.facts = Facts()
        self.ports = {node: free_port() for node in NODES}
        self.agents: dict[str, Agent] = {}
        self._running = contextlib.ExitStack()
        self._volumes: dict[str, list[Volume]] = {node: [] for node in NODES}
        self._snapshots: dict[str, list[str]] = {node: [] for node in NODES}
        self.prometheus: Prometheus

    @contextlib.contextmanager
    def watched(self, binary: str, every_seconds: float) -> Iterator[None]:
        """Run the agents, and a Prometheus that has seen each before there is work."""
        targets = {node: f"127.0.0.1:{port}" for node, port in self.ports.items()}
        rules: Json = yaml.safe_load(RULES.read_text())["spec"]
        folder = self.scene.directory / "prometheus"
        with self._running, scraping(binary, folder, targets, rules, every_seconds) as prometheus:
            self.prometheus = prometheus
            for node in NODES:
                self._start(node)
            until(lambda: self._seen(2), "both agents to be scraped")
            yield

    def _start(self, node: str) -> None:
        address = f"127.0.0.1:{self.ports[node]}"
        running = self.scene.agent(
            "--metrics-address", address, node=node, wrapper=WITHOUT_OVERRIDE
        )
        self.agents[node] = self._running.enter_context(running)

    def _seen(self, ready: int) -> bool:
        return self._sum("podlift_ready") == ready

    def _throttled(self) -> float:
        """Return how many agents have waited for a storage that throttles, as far as was seen."""
        return self._sum("podlift_storage_throttled_seconds_total > bool 0")

    def _sum(self, name: str) -> float:
        """Return a sum over agents; 0 where none has been scraped just now, as on a busy machine."""
        return self.prometheus.value(f"sum({name}) or vector(0)")

    def span(self, points: int = 200) -> Span:
        """Return the time since the work began."""
        return Span(self.facts.began, time.time(), self.prometheus.scrape_seconds, points)

    # -- what happens ---------------------------------------------------------------------------

    def work(self, volumes: int) -> None:
        """Do everything once, and wait until the last of it has been scraped.

        ``volumes`` are on the first node, and half as many on the other.
        """
        self._back_up_everything(volumes)
        self._pass()
        self._back_up_changes()
        stuck = self._begin_what_is_throttled()
        self._fail()
        self._restore(NODES[0])
        self._kill_at(stuck)
        self._restore(KILLED)
        self.scene.server.faults.cut_watches()  # type: ignore[attr-defined]
        until(lambda: self._sum("podlift_watch_ends_total") > 0, "the end of watches")
        self._pass()

    def _pass(self, times: float = 1) -> None:
        """Let Prometheus look for a while."""
        time.sleep(max(self.pause, 2 * self.prometheus.scrape_seconds) * times)

    def _back_up_everything(self, volumes: int) -> None:
        """Back new volumes up while the storage breaks a line, and is throttling for a while."""
        for node, count in zip(NODES, (volumes, (volumes + 1) // 2), strict=True):
            self._volumes[node] = [self._filled(node) for _ in range(count)]
        self._make_unreadable(self._volumes[NODES[0]][0])
        self.facts.began = time.time()
        self._pass(0.5)
        self.proxy.add(Fault(Kind.RESET, 100), "PUT", "/data/")
        self.proxy.add(reply(503, "SlowDown"), "PUT", "/data/", times=FOREVER)
        begun = [self._backup(node, each) for node in NODES for each in self._volumes[node]]
        until(lambda: self._throttled() == len(NODES), "both agents to be throttled")
        self._pass()
        self.proxy.clear()
        self._ended(begun)

    def _back_up_changes(self) -> None:
        begun = []
        for node in NODES:
            for number, volume in enumerate(self._volumes[node]):
                before = _content(volume)
                if number % 2 == 0:
                    with (volume.path / "log").open("ab") as log:
                        log.write(LINE % (number, secrets.randbits(64)))
                    self._count(node, read=(volume.path / "log").stat().st_size)
                self._count(node, unmodified=before["files"] - (number % 2 == 0))
                self._count(node, changed=int(number % 2 == 0))
                begun.append(self._backup(node, volume))
        self._ended(begun)

    def _fail(self) -> None:
        """Ask for what cannot be: a type that is not taken, a repository that may not be written."""
        volume = self._volumes[NODES[0]][0]
        self.proxy.add(reply(403, "AccessDenied"), "PUT", FORBIDDEN, times=FOREVER)
        forbidden = self.scene.identifier_of(FORBIDDEN)
        for changes in ({"uploaderType": "kopia"}, {"repoIdentifier": forbidden}):
            name = self.scene.backup(volume, node=NODES[0], **changes)
            self._ended([(NODES[0], name)])

    def _begin_what_is_throttled(self) -> str:
        self.proxy.add(reply(503, "SlowDown"), "PUT", f"/{STUCK}/data/", times=FOREVER)
        stuck = self.scene.identifier_of(STUCK)
        return self.scene.backup(self._filled(KILLED), node=KILLED, repoIdentifier=stuck)

    def _kill_at(self, name: str) -> None:
        """Kill an agent at its work, and let the next one take the backup over."""
        self.scene.under_way(name, self.agents[KILLED])
        self._pass()
        self.agents[KILLED].end(signal.SIGKILL)
        self._pass(0.5)
        self.proxy.clear()
        self._start(KILLED)
        self._ended([(KILLED, name)], of=STUCK)
        until(lambda: self._seen(2), "the new agent to be scraped")

    def _restore(self, node: str) -> None:
        """Restore a node's volumes as they are now, and what there is not."""
        volumes = self._volumes[node]
        latest = self._snapshots[node][-len(volumes) :]
        begun = [ask(self.scene, self._waiting(node), snapshot) for snapshot in latest]
        for name, volume in zip(begun, volumes, strict=True):
            status = self.scene.completed(name, self.agents[node])
            assert status["progress"]["bytesDone"] == _content(volume)["bytes"]
            self.facts.restored[node] += _content(volume)["bytes"]
            self.facts.restores["Completed"] += 1
        missing = ask(self.scene, self._waiting(node), secrets.token_hex(32))
        self.facts.restores[self.scene.ended(missing, self.agents[node])["phase"]] += 1

    def _waiting(self, node: str) -> Volume:
        return waiting_pod(self.scene, node=node)

    # -- with what ------------------------------------------------------------------------------

    def _filled(self, node: str) -> Volume:
        """Make a volume: half of it random, half lines that compress, and many small files."""
        volume = self.scene.volume(node=node)
        half = self.size * MIB // 2
        (volume.path / "media").write_bytes(secrets.token_bytes(half))
        seed = secrets.randbits(32)
        lines = b"".join(LINE % (number, seed * number) for number in range(half // len(LINE)))
        (volume.path / "log").write_bytes(lines)
        for number in range(SMALL):
            (volume.path / f"small-{number}").write_bytes(secrets.token_bytes(600))
        found = _content(volume)
        if node != KILLED:
            self._count(node, new=found["files"], read=found["bytes"])
        return volume

    def _make_unreadable(self, volume: Volume) -> None:
        for name in ("secret", "locked"):
            (volume.path / name).touch(mode=0)
            if os.geteuid() == 0:
                os.chown(volume.path / name, 1000, 1000)
            self.facts.unreadable += 2  # once in each of its two backups

    def _count(self, node: str, *, read: int = 0, **files: int) -> None:
        if node != KILLED:
            self.facts.bytes["read"] += read
            self.facts.files.update(files)

    def _backup(self, node: str, volume: Volume) -> tuple[str, str]:
        if node != KILLED:
            self.facts.bytes["processed"] += _content(volume)["bytes"]
        return node, self.scene.backup(volume, node=node)

    def _ended(self, begun: list[tuple[str, str]], of: str = "") -> None:
        for node, name in begun:
            status = self.scene.ended(name, self.agents[node])
            self.facts.backups[status["phase"]] += 1
            if "snapshotID" in status and not of:
                self._snapshots[node].append(status["snapshotID"])


def _content(volume: Volume) -> Counter[str]:
    """Return how many files a volume has that can be read, and their bytes."""
    found: Counter[str] = Counter()
    for entry in os.scandir(volume.path):
        status = entry.stat()
        if status.st_mode & 0o400:
            found.update(files=1, bytes=status.st_size)
    return found


@contextlib.contextmanager
def with_scene(scene: Scene, proxy: FaultProxy, size: int, pause: float) -> Iterator[Shift]:
    """Prepare a scene whose repositories are cheap to open."""
    scene.node = NODES[0]
    yield Shift(scene.with_repository().with_repository(STUCK), proxy, size, pause)
