"""A sweep of a repository in memory: its protocol, and a failure at each of its calls."""

import time
from collections.abc import Callable

import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import ClusterError, RepositoryError, RepositoryLocked, StorageError
from agent.monitor import Monitor
from agent.needs import Named, Needs
from agent.repository.check import check
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from agent.transfer.sweep import SweepOptions, sweep
from tests.repository.making import PASSWORD, content, keys, new_repository, store_chunk
from tests.transfer.running import noise
from tests.transfer.test_garbage import TAGS

PREFIX = "velero/restic/app"
APPLY = SweepOptions(apply=True, grace_seconds=3600)
OLD_NS = time.time_ns() - 2 * 3600 * 10**9


def store(repository: Repository, seed: int, time_ns: int = OLD_NS) -> str:
    """Store a snapshot as podlift makes it for Velero, and return its id."""
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writer,
    ):
        store_chunk(writer, noise(seed, 3000))
        tree = writer.store_tree([])
        return writer.finish(
            Snapshot(time_ns=time_ns, tree=tree, paths=("/v",), hostname="velero", tags=TAGS)
        )


class Scene:
    """A repository with a living snapshot, one that is garbage, and what only that one needs."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        repository = new_repository(self.storage)
        self.living, self.garbage = store(repository, 1), store(repository, 2)
        self.asked = 0

    def open(self, *faults: Fault) -> tuple[Faulty, Repository]:
        """Open the repository; faults count from then on."""
        faulty = Faulty(self.storage)
        repository = open_repository(faulty, PASSWORD)
        faulty.calls.clear()
        faulty.faults += faults
        return faulty, repository

    def needs(self, cancel: CancelToken = NEVER) -> Needs:
        self.asked += 1
        return Needs([Named(self.living, "monday", PREFIX)], backups=["monday"])

    def sweep(
        self,
        *faults: Fault,
        options: SweepOptions = APPLY,
        needs: Callable[[CancelToken], Needs] | None = None,
    ) -> list[str]:
        """Sweep, and return the ids of what was found to be garbage."""
        _, repository = self.open(*faults)
        swept = sweep(repository, PREFIX, needs or self.needs, options, NEVER)
        return [snapshot.id for snapshot in swept.judgement.garbage]

    @property
    def snapshots(self) -> set[str]:
        return {key.rpartition("/")[2] for key in keys(self.storage, "snapshots")}

    def damage(self) -> list[str]:
        found = check(open_repository(self.storage, PASSWORD), read_data=True)
        return [finding.message for finding in found if finding.damage]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_it_removes_the_garbage_and_what_only_that_needed(scene: Scene) -> None:
    packs = keys(scene.storage, "data")
    assert scene.sweep() == [scene.garbage]
    assert scene.snapshots == {scene.living}
    assert len(keys(scene.storage, "data")) < len(packs)
    assert keys(scene.storage, "locks") == []
    assert scene.damage() == []
    assert scene.sweep() == []


def test_without_apply_it_changes_nothing_and_foresees_what_is_freed(scene: Scene) -> None:
    before = content(scene.storage)
    _, repository = scene.open()
    look = SweepOptions(grace_seconds=3600)
    foreseen = sweep(repository, PREFIX, scene.needs, look, NEVER).figures
    assert content(scene.storage) == before
    done = sweep(repository, PREFIX, scene.needs, APPLY, NEVER).figures
    assert foreseen == done
    stored = sum(len(scene.storage.get(key)) for key in keys(scene.storage, "data"))
    assert stored == done.bytes_total_after


def test_the_needs_are_read_under_the_lock_and_after_the_snapshots(scene: Scene) -> None:
    faulty, repository = scene.open()

    def needs(cancel: CancelToken) -> Needs:
        assert len(keys(scene.storage, "locks")) == 1
        with (
            pytest.raises(RepositoryLocked),
            open_repository(scene.storage, PASSWORD).locked(exclusive=False),
        ):
            raise AssertionError("a backup began under the lock")
        read = [key for operation, key in faulty.calls if operation == "get"]
        assert f"snapshots/{scene.living}" in read
        return scene.needs(cancel)

    sweep(repository, PREFIX, needs, APPLY, NEVER)
    assert scene.snapshots == {scene.living}


def test_a_snapshot_that_appears_while_the_needs_are_read_is_left_alone(scene: Scene) -> None:
    late: list[str] = []

    def needs(cancel: CancelToken) -> Needs:
        lock = keys(scene.storage, "locks")[0]
        held = scene.storage.get(lock)
        scene.storage.delete(lock)  # somebody unlocked by force, and a backup ends just now
        late.append(store(open_repository(scene.storage, PASSWORD), 3))
        scene.storage.put(lock, held)
        return scene.needs(cancel)

    assert scene.sweep(needs=needs) == [scene.garbage]
    assert scene.snapshots == {scene.living, *late}
    assert scene.damage() == []


def test_needs_that_cannot_be_read_change_nothing_and_give_the_lock_back(scene: Scene) -> None:
    def needs(cancel: CancelToken) -> Needs:
        raise ClusterError("unknown")

    before = content(scene.storage)
    with pytest.raises(ClusterError, match="unknown"):
        scene.sweep(needs=needs)
    assert content(scene.storage) == before


def test_doubtful_needs_change_nothing(scene: Scene) -> None:
    before = content(scene.storage)
    with pytest.raises(RepositoryError, match="no backup at all"):
        scene.sweep(needs=lambda cancel: Needs())
    assert content(scene.storage) == before


def test_damage_is_found_before_anything_is_forgotten(scene: Scene) -> None:
    for key in keys(scene.storage, "data"):
        scene.storage.delete(key)
    before = content(scene.storage)
    with pytest.raises(RepositoryError, match="othing was changed"):
        scene.sweep()
    assert content(scene.storage) == before


def test_a_backup_that_runs_is_left_in_peace(scene: Scene) -> None:
    running = open_repository(scene.storage, PASSWORD)
    with running.locked(exclusive=False):
        with pytest.raises(RepositoryLocked):
            scene.sweep()
        assert scene.asked == 0
        assert scene.sweep(options=SweepOptions(grace_seconds=3600)) == [scene.garbage]
    assert scene.snapshots == {scene.living, scene.garbage}


def test_whatever_call_fails_nothing_living_is_lost_and_the_next_run_completes() -> None:
    for nth in range(1, 200):
        for after in (False, True):
            scene = Scene()
            gone = failing(StorageError("the storage is gone"))
            faulty, repository = scene.open(Fault("*", gone, nth=nth, after=after))
            try:
                sweep(repository, PREFIX, scene.needs, APPLY, NEVER)
            except (StorageError, RepositoryError):
                pass
            else:
                failed = faulty.calls[nth - 1 : nth]
                # a lock that stays is warned of, and a tree is read again from elsewhere
                assert not failed or failed[0][1].startswith(("locks/", "data/")), failed
            assert scene.living in scene.snapshots
            assert scene.damage() == []
            for lock in keys(scene.storage, "locks"):
                scene.storage.delete(lock)
            scene.sweep()
            assert scene.snapshots == {scene.living}
            assert scene.damage() == []
        if len(faulty.calls) < nth:
            break
    assert 20 < nth < 199
