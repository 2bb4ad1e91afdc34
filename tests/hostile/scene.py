"""A hostile volume beside its victim, the whole pipeline on it, and who judges what came of it."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.cancel import CancelToken
from agent.entry import Entry
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.repository.pack import open_pack
from agent.repository.reader import BlobOpener
from agent.storage.local import LocalStorage
from agent.transfer.job import Result
from agent.transfer.restore import RestoreRequest, restore
from tests.hostile.attacker import Act, attacking
from tests.hostile.victim import Victim
from tests.hostile.watch import never_opened
from tests.repository.making import PASSWORD, all_entries, fill
from tests.support.requirements import missing
from tests.support.restic import Restic, judges
from tests.transfer.running import Bench

ROUNDS = 150
"""So many runs at most until an attack has hit; under load one of them hits now and then."""

ENOUGH = 5
"""How often an attack has to hit before it counts as withstood."""


@dataclasses.dataclass
class Scene:
    """A volume with its victim, and a repository in a directory."""

    place: Path
    victim: Victim
    bench: Bench
    problems: list[str] = dataclasses.field(default_factory=list)
    """What all runs have reported, as text."""

    @classmethod
    def make(cls, place: Path) -> "Scene":
        if os.geteuid() != 0:
            missing("the right to do this (the test needs root)", "run the tests as root")
        fill(LocalStorage.create(place / "repository"))
        return cls(place, Victim.make(place / "victim"), Bench.new(place / "volume"))

    @property
    def volume(self) -> Path:
        return self.bench.volume

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.place / "repository")

    def back_up(self, *, parent: bool = True) -> Result:
        result = self.bench.run(storage=self.storage, parent=parent)
        self.problems += map(str, self.bench.monitor.problems)
        return result

    def back_up_under(self, *acts: Act, hit: str, untouched: Sequence[Path] = ()) -> list[int]:
        """Back up until problems with the word ``hit`` were met often; return what the acts did.

        Neither the victim nor what is ``untouched`` may be opened meanwhile.
        """
        with never_opened(self.victim.root, *untouched), attacking(*acts) as attacker:
            for _ in range(ROUNDS):
                self.back_up(parent=False)
                if self.hits(hit) >= ENOUGH:
                    break
        assert self.hits(hit) >= ENOUGH, f"the attack never hit: {attacker.done} {self.problems}"
        return attacker.done

    def hits(self, word: str) -> int:
        return sum(word in problem for problem in self.problems)

    def tree(self) -> bytes:
        return open_repository(self.storage, PASSWORD).snapshot("latest").tree

    def restore(self, target: Path, *, delete: bool = False) -> Monitor:
        """Restore the latest snapshot, remember its problems, and return what counted."""
        monitor = Monitor()
        source = open_repository(self.storage, PASSWORD).reading()
        request = RestoreRequest(self.tree(), target, delete=delete)
        before = _descriptors()
        restore(source, request, monitor, CancelToken())
        opened = dict(_descriptors().items() - before.items())
        assert not opened, opened
        self.problems += map(str, monitor.problems)
        return monitor

    def entries(self) -> dict[bytes, Entry]:
        """Return every entry of the latest snapshot by path."""
        return all_entries(open_repository(self.storage, PASSWORD), "latest")

    def plaintexts(self) -> list[bytes]:
        """Return everything that the repository holds, whether an index names it or not."""
        repository = open_repository(self.storage, PASSWORD)
        opener = BlobOpener(repository.objects.key)
        found: list[bytes] = []
        for key, _ in self.storage.list("data/"):
            pack = self.storage.get(key)
            found += [
                opener.open(pack[blob.offset : blob.offset + blob.length], blob)
                for blob in open_pack(pack, repository.objects.key, key)
            ]
        return found

    def judge(self, *, restored: bool = True) -> None:
        """See that nothing of the victim is in the repository, and that its snapshots are valid."""
        texts = self.plaintexts()
        assert texts
        assert not [text[:200] for text in texts if self.victim.secret in text]
        home = self.place / "restic-home"
        home.mkdir(exist_ok=True)
        repository = str(self.place / "repository")
        judge(home).run(repository, "check", "--read-data", password=PASSWORD)
        if not restored:
            return
        monitor = Monitor()
        source = open_repository(self.storage, PASSWORD).reading()
        request = RestoreRequest(self.tree(), self.place / "restored")
        restore(source, request, monitor, CancelToken())
        assert list(map(str, monitor.problems)) == []


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def judge(home: Path) -> Restic:
    """Return the newest restic that is here."""
    return judges(home)[-1]


@dataclasses.dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    output: str
    peak_mib: float


RUN = """
import re, sys
from pathlib import Path
from agent.cli import main
from agent import footprint
limit, peak = sys.argv.pop(1), sys.argv.pop(1)
if limit:
    footprint.LIMITS = (limit,)
code = main()
found = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
Path(peak).write_text(found[1])
sys.exit(code)
"""
"""A process says itself what it took at most: what wait4(2) tells is no less than its parent had."""


def podlift(scene: Scene, *arguments: str | Path, limit_mib: int = 0) -> Ran:
    """Run podlift in a process of its own on the scene's repository, and measure its memory.

    With ``limit_mib`` it believes that its container has this limit.
    """
    limit, peak = scene.place / "memory.max", scene.place / "peak"
    limit.write_text(str(limit_mib << 20))
    command = [sys.executable, "-c", RUN, str(limit) if limit_mib else "", str(peak)]
    command += map(str, arguments)
    command += [
        "--repo",
        str(scene.place / "repository"),
        "--cache-dir",
        str(scene.place / "cache"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PODLIFT_PASSWORD": PASSWORD},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    return Ran(done.returncode, output, int(peak.read_text()) / 1024)
