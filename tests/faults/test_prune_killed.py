"""Forget and prune are killed at every call of their storage, and no snapshot is ever the worse.

After each kill the repository is as a power cut would leave it. Then the lock of the dead process
goes, every snapshot that is listed is restored and compared, restic reads every byte, and a new
prune comes to its end.
"""

import itertools
import shutil
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository.check import check
from agent.repository.opening import open_repository
from agent.repository.unlock import unlock
from agent.storage.faults import Operation
from agent.storage.local import LocalStorage
from agent.transfer.restore import RestoreRequest, restore
from tests.faults.killing import forget_and_prune, killed_at
from tests.interop.volumes import differences
from tests.repository.making import PASSWORD, new_repository
from tests.repository.mess import make_mess
from tests.support.restic import judges

MOST_CALLS = 400


class Scene:
    """A repository full of waste, and what its snapshots hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.original = root / "original"
        repository = new_repository(LocalStorage.create(self.original))
        self.kept, self.old = make_mess(repository)
        self.restored = {id: self.restore(self.original, id) for id in (*self.kept, *self.old)}
        self.judges = itertools.cycle(judges(root / "home"))

    def restore(self, place: Path, id: str) -> Path:
        repository = open_repository(LocalStorage(place), PASSWORD)
        target = self.root / f"{place.name}-{id}"
        monitor = Monitor()
        wanted = RestoreRequest(repository.snapshot(id).tree, target)
        restore(repository.reading(), wanted, monitor, NEVER)
        assert monitor.problems == []
        return target

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.original, self.root / name))

    def judge(self, place: Path) -> None:
        """Fail unless a killed run has cost nothing, and the next one sets everything right."""
        repository = open_repository(LocalStorage(place), PASSWORD)
        assert all(judged.removed for judged in unlock(repository, NEVER))
        listed = {snapshot.id for snapshot in repository.snapshots()}
        assert set(self.kept) <= listed <= {*self.kept, *self.old}
        self._compare(place, listed)
        judge = next(self.judges)
        done = judge.run(str(place), "check", "--read-data", "--no-cache")
        assert "no errors were found" in done.stdout
        forget_and_prune(place, [id for id in self.old if id in listed])
        assert [found.message for found in check(repository, read_data=True)] == []
        self._compare(place, set(self.kept))
        shutil.rmtree(place)

    def _compare(self, place: Path, ids: set[str]) -> None:
        for id in ids:
            target = self.restore(place, id)
            assert differences(self.restored[id], target) == []
            shutil.rmtree(target)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("killed"))


@pytest.mark.timeout(400)  # some hundred runs, each of them judged by restic
@pytest.mark.parametrize(
    ("operation", "after"), [("*", False), ("put", True), ("delete", True)], ids=str
)
def test_a_kill_at_any_call_costs_no_snapshot_anything(
    scene: Scene, operation: Operation, after: bool
) -> None:
    kills = 0
    for nth in range(1, MOST_CALLS):
        place = scene.copy("killed")
        killed = killed_at(place, scene.old, operation, nth, after=after)
        if killed:
            kills += 1
        scene.judge(place)
        if not killed:
            break
    assert 3 < kills < MOST_CALLS - 1
