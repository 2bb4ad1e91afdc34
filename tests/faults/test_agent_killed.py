"""The agent is killed at every one of its calls, and the next one completes what it was doing.

One backup is run again and again. In the n-th run the agent gets SIGKILL at its n-th call to the storage
or the API server, before the call or after it; then a new agent is started. The PodVolumeBackup has
to be Completed, restic reads every byte, the snapshot is restored and compared, and what was sent
had arrived is not sent again: nothing may be stored twice.
"""

import itertools
import multiprocessing
import shutil
from collections import Counter
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository.identity import BlobId, BlobType
from agent.repository.opening import open_repository
from agent.repository.pack import open_pack
from agent.repository.repository import Repository
from agent.storage.local import LocalStorage
from agent.transfer.restore import RestoreRequest, restore
from tests.cluster.stage import Stage
from tests.faults.agent_killing import Plan, until_ended
from tests.interop.volumes import differences
from tests.support.apiservers import StandinServer
from tests.support.restic import judges
from tests.transfer.running import noise

PASSWORD = "pass"
MOST_CALLS = 600
STRIDE = 7
"""Each test takes every seventh call, all of them together take all."""


class Killing:
    """The stage, the volume, and what was seen so far."""

    def __init__(self, stage: Stage, root: Path) -> None:
        self.stage = stage
        self.root = root
        self.survived = 0
        self.twice: list[int] = []
        self.judges = itertools.cycle(judges(root / "home"))
        for number in range(3):
            folder = stage.volume / f"d{number}"
            folder.mkdir()
            for file in range(12):
                (folder / f"f{file}").write_bytes(noise(100 * number + file, 9000))
        (stage.volume / "large").write_bytes(noise(7, 2 << 20))
        (stage.volume / "link").symlink_to("large")

    def run(self, nth: int, *, after: bool) -> bool:
        """Kill an agent at its n-th call, let the next one finish; return False if it lived."""
        name, place = f"b-{nth}-{'after' if after else 'before'}", self.root / f"repo-{nth}-{after}"
        settings = self.stage.settings(cache_dir=self.root / f"cache-{nth}-{after}")
        self.stage.pvb(name, tags={"ns": "n", "pod": "db-0", "volume": "data", "backup-uid": name})
        killed = until_ended(self.stage, name, Plan(settings, place, nth, after))
        if killed:
            assert not until_ended(self.stage, name, Plan(settings, place))
        self._judge(self.stage.status(name), place, settings.cache_dir)
        for path in (place, settings.cache_dir):
            shutil.rmtree(path)
        self.stage.server.delete(self.stage.server.path("podvolumebackups", name))
        self.survived += killed
        return killed

    def _judge(self, status: dict[str, str], place: Path, cache: Path) -> None:
        assert status["phase"] == "Completed", status
        repository = open_repository(LocalStorage(place), PASSWORD)
        assert status["snapshotID"] in {each.id for each in repository.snapshots()}
        assert not list((place / "locks").iterdir())
        assert not [each for each in repository.snapshots() if each.is_checkpoint]
        assert not list(cache.rglob("journal.*"))
        done = next(self.judges).run(
            str(place), "check", "--read-data", "--no-cache", password=PASSWORD
        )
        assert "no errors were found" in done.stdout
        target = self.root / "restored"
        monitor = Monitor()
        wanted = RestoreRequest(repository.snapshot(status["snapshotID"]).tree, target)
        restore(repository.reading(), wanted, monitor, NEVER)
        assert monitor.problems == []
        assert differences(self.stage.volume, target) == []
        shutil.rmtree(target)
        self.twice.append(stored_twice(repository))
        assert self.twice[-1] == 0  # packs that had arrived were adopted

    def tell(self, calls: str) -> None:
        """Print what the harness is for."""
        print(  # noqa: T201 (what the harness is there to show)
            f"\nkilled {calls}: {self.survived} of {self.survived} survived; stored twice: at most"
            f" {max(self.twice, default=0)} bytes, {sum(self.twice)} in all"
        )


def stored_twice(repository: Repository) -> int:
    """Return how many bytes of data blobs lie in the repository more often than once."""
    sizes: dict[BlobId, int] = {}
    seen: Counter[BlobId] = Counter()
    storage = repository.objects.storage
    for key, _ in storage.list("data/"):
        for blob in open_pack(storage.get(key), repository.objects.key, key):
            if blob.type is BlobType.DATA:
                sizes[blob.id] = blob.length
                seen[blob.id] += 1
    return sum(sizes[id] * (count - 1) for id, count in seen.items())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("first", range(1, STRIDE + 1))
def test_a_kill_at_any_call_is_survived(
    standin: StandinServer, tmp_path: Path, first: int, after: bool
) -> None:
    killing = Killing(Stage(standin, tmp_path), tmp_path)
    for nth in range(first, MOST_CALLS, STRIDE):
        if not killing.run(nth, after=after):
            break
    assert 3 < killing.survived < MOST_CALLS // STRIDE
    killing.tell(f"at calls {first}, {first + STRIDE}, … ({'after' if after else 'before'} each)")
    assert not multiprocessing.active_children()


def test_the_stage_runs_without_a_kill(standin: StandinServer, tmp_path: Path) -> None:
    killing = Killing(Stage(standin, tmp_path), tmp_path)
    assert not killing.run(0, after=False)
    assert killing.twice == [0]
