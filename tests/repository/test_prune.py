"""prune: what no snapshot needs goes, what one needs stays, and the figures say so beforehand."""

import hashlib
from collections.abc import Callable

import pytest

from agent.cancel import NEVER, CancelToken
from agent.entry import Kind
from agent.errors import Canceled, DamagedBlob, RepositoryError, RepositoryLocked, UsageError
from agent.monitor import Monitor
from agent.repository.check import check
from agent.repository.identity import BlobType, PackId
from agent.repository.indexfile import decode_index, encode_index
from agent.repository.objects import Folder, pack_key
from agent.repository.opening import open_repository
from agent.repository.pack import FRAME_BYTES, PackedBlob
from agent.repository.prune import PrunePlan, plan_prune, run_prune
from agent.repository.pruneplan import Figures, PruneOptions, parse_size, parse_tolerance
from agent.repository.repository import Repository
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, content, keys
from tests.repository.mess import (
    forget,
    make_mess,
    noise,
    plant,
    plant_snapshot,
    save,
    save_at_once,
)

TIDY = PruneOptions(max_unused=parse_tolerance("0"))


def plan(repository: Repository, options: PruneOptions = TIDY) -> PrunePlan:
    with repository.locked(exclusive=True):
        return plan_prune(repository, options, Monitor(), NEVER)


def prune(repository: Repository, options: PruneOptions = TIDY) -> Figures:
    """Prune, and return the figures of its plan."""
    with repository.locked(exclusive=True) as lock:
        planned = plan_prune(repository, options, Monitor(), NEVER)
        run_prune(repository, lock, planned, Monitor(), NEVER)
    return planned.figures


def everything(repository: Repository) -> dict[str, dict[bytes, bytes]]:
    """Return the content of every file of every snapshot."""
    reading = repository.reading()
    found: dict[str, dict[bytes, bytes]] = {}
    for snapshot in repository.snapshots():
        files = found[snapshot.id] = {}
        pending = [(b"", snapshot.tree)]
        while pending:
            path, tree = pending.pop()
            for entry in reading.load_tree(tree):
                if entry.kind is Kind.DIRECTORY and entry.subtree is not None:
                    pending.append((path + entry.name + b"/", entry.subtree))
                else:
                    parts = map(reading.load_chunk, entry.content or ())
                    files[path + entry.name] = b"".join(parts)
    return found


def findings(repository: Repository) -> list[str]:
    return [found.message for found in check(repository, read_data=True)]


def pack_bytes(storage: MemoryStorage) -> int:
    return sum(listed.size for listed in storage.list("data/"))


def test_a_mess_becomes_a_repository_without_waste_or_oddities(
    repository: Repository, storage: MemoryStorage
) -> None:
    kept, old = make_mess(repository)
    before = everything(repository)
    forget(repository, old)
    prune(repository)
    assert everything(repository) == {id: before[id] for id in kept}
    assert findings(repository) == []
    again = plan(repository)
    assert again.empty
    figures = again.figures
    assert (figures.blobs_unused, figures.blobs_duplicate, figures.packs_unindexed) == (0, 0, 0)


def test_what_the_plan_says_is_what_happens(repository: Repository, storage: MemoryStorage) -> None:
    for day in range(6):
        save(repository, {"same": noise(1), "own": noise(100 + day, 30_000)}, day)
    save_at_once(repository, {"t": noise(2)}, {"t": noise(2), "u": noise(3)}, 7)
    plant(repository, [(BlobType.DATA, noise(4), True)], indexed=False)
    forget(repository, [s.id for s in repository.snapshots()][:3])
    before = pack_bytes(storage)
    packs_before = set(keys(storage, "data"))
    dry, done = plan(repository).figures, prune(repository)
    assert dry == done
    assert done.packs_deleted > 0
    assert done.packs_repacked > 0
    assert done.blobs_duplicate > 0
    packs_after = set(keys(storage, "data"))
    new = len(packs_after - packs_before)
    assert before - pack_bytes(storage) == done.bytes_freed - new * FRAME_BYTES
    gone = done.packs_deleted + done.packs_repacked + done.packs_unindexed
    assert len(packs_before - packs_after) == gone
    after = plan(repository).figures
    assert (after.blobs_used, after.bytes_used) == (done.blobs_used, done.bytes_used)
    assert after.bytes_unused == done.bytes_unused_left == 0
    assert after.packs == done.packs - done.packs_deleted - done.packs_repacked + new


def test_looking_ahead_changes_nothing(repository: Repository, storage: MemoryStorage) -> None:
    _, old = make_mess(repository)
    before = content(storage)
    ahead = plan(repository, PruneOptions(TIDY.max_unused, ignored=frozenset(old))).figures
    assert content(storage) == before
    forget(repository, old)
    assert prune(repository) == ahead


def test_an_empty_repository_has_nothing_to_prune(repository: Repository) -> None:
    assert plan(repository).empty


def test_when_all_snapshots_are_forgotten_nothing_is_left(
    repository: Repository, storage: MemoryStorage
) -> None:
    kept, old = make_mess(repository)
    forget(repository, kept + old)
    prune(repository)
    assert keys(storage, "data") == keys(storage, "index") == keys(storage, "locks") == []


def test_a_repository_without_waste_is_not_touched(
    repository: Repository, storage: MemoryStorage
) -> None:
    save(repository, {"a": noise(1)}, 1)
    before = content(storage)
    prune(repository)
    assert content(storage) == before


class TestWhatIsCopied:
    def wasteful(self, repository: Repository) -> None:
        """Leave one pack that is a third waste."""
        save(repository, {"keep": noise(1, 8000), "drop": noise(2, 4000)}, 1)
        save(repository, {"keep": noise(1, 8000)}, 2)
        forget(repository, [repository.snapshots()[0].id])

    @pytest.mark.parametrize(
        ("tolerance", "copied"), [("0", 1), ("5%", 1), ("20%", 1), ("50%", 0), ("unlimited", 0)]
    )
    def test_waste_is_borne_up_to_a_limit(
        self, repository: Repository, tolerance: str, copied: int
    ) -> None:
        self.wasteful(repository)
        figures = prune(repository, PruneOptions(parse_tolerance(tolerance)))
        assert figures.packs_repacked == copied
        assert (figures.bytes_unused_left > 0) is (not copied)
        assert findings(repository) == []

    def test_a_limit_of_bytes_holds(self, repository: Repository) -> None:
        self.wasteful(repository)
        assert plan(repository, PruneOptions(parse_tolerance("5K"))).figures.packs_repacked == 0
        assert plan(repository, PruneOptions(parse_tolerance("3K"))).figures.packs_repacked == 1

    def test_no_more_is_copied_than_is_allowed(self, repository: Repository) -> None:
        self.wasteful(repository)
        small = PruneOptions(TIDY.max_unused, max_repack_bytes=10_000)
        assert plan(repository, small).figures.packs_repacked == 0
        large = PruneOptions(TIDY.max_unused, max_repack_bytes=20_000)
        assert plan(repository, large).figures.packs_repacked == 1

    def test_the_most_wasteful_pack_is_copied_first(self, repository: Repository) -> None:
        for day, waste in enumerate([4000, 40_000, 8000]):
            save(repository, {"k": noise(day), "x": noise(50 + day, waste)}, day)
            save(repository, {"k": noise(day)}, 10 + day)
        forget(repository, [s.id for s in repository.snapshots()[:3]])
        figures = plan(repository, PruneOptions(parse_tolerance("14K"))).figures
        assert figures.packs_repacked == 1
        assert 12_000 < figures.bytes_unused_left < 14_000

    @pytest.mark.parametrize(("days", "copied"), [(9, 0), (10, 20)])
    def test_small_packs_are_joined_when_there_are_enough(
        self, repository: Repository, storage: MemoryStorage, days: int, copied: int
    ) -> None:
        for day in range(days):
            save(repository, {"f": noise(day)}, day)
        before = everything(repository)
        assert prune(repository, PruneOptions()).packs_repacked == copied
        assert len(keys(storage, "data")) == (2 if copied else 2 * days)
        assert everything(repository) == before

    def test_mixed_packs_and_plain_trees_are_copied_whatever_waste_is_allowed(
        self, repository: Repository
    ) -> None:
        plant_snapshot(repository, noise(1), 1, mixed=True)
        plant_snapshot(repository, noise(2), 2, compressed=False)
        figures = prune(repository, PruneOptions(parse_tolerance("unlimited")))
        assert figures.packs_repacked == 2  # data that does not compress is fine as it is
        assert plan(repository).empty
        assert findings(repository) == []


class TestWhatIsOdd:
    def test_a_pack_that_two_index_files_name_counts_once_and_is_named_once_afterwards(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"a": noise(1)}, 1)
        (index,) = keys(storage, "index")
        before = plan(repository).figures
        json = repository.objects.load(Folder.INDEX, index.rpartition("/")[2])
        repository.objects.save(Folder.INDEX, json)
        assert prune(repository) == before
        assert findings(repository) == []
        assert len(keys(storage, "index")) == 1

    def test_a_missing_pack_that_nobody_needs_is_dropped_from_the_index(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"a": noise(1)}, 1)
        lost = plant(repository, [(BlobType.DATA, noise(2), True)])
        storage.delete(pack_key(lost))
        assert prune(repository).packs_missing == 1
        assert findings(repository) == []

    def test_a_copy_in_a_pack_that_is_missing_is_no_copy(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        data = noise(1, 4000)
        save(repository, {"a": data}, 1)
        lost = plant(repository, [(BlobType.DATA, data, False), (BlobType.DATA, noise(5), True)])
        storage.delete(pack_key(lost))
        before = everything(repository)
        prune(repository)
        assert everything(repository) == before
        assert findings(repository) == []

    def test_a_damaged_blob_is_copied_from_another_pack(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        data, extra = noise(1, 4000), noise(2, 4000)
        save(repository, {"a": data, "x": extra}, 1)
        save(repository, {"a": data}, 2)
        forget(repository, [repository.snapshots()[0].id])
        plant(repository, [(BlobType.DATA, data, False)])
        wanted = hashlib.sha256(data).digest()
        places = repository.load_index().all(BlobType.DATA)[0].find(wanted)  # type: ignore[arg-type]
        for place in places:
            if storage.size(pack_key(place.pack)) > 5000:  # the one that has waste, and is copied
                body = bytearray(storage.get(pack_key(place.pack)))
                body[place.blob.offset + 20] ^= 1
                storage.put(pack_key(place.pack), bytes(body))
        prune(repository)
        assert everything(repository) == {repository.snapshots()[0].id: {b"a": data}}
        assert findings(repository) == []

    def test_an_intact_copy_outlives_a_damaged_one_that_would_have_been_kept(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        data = noise(1, 4000)
        save(repository, {"a": data, "much": noise(2, 40_000)}, 1)
        copy = plant(repository, [(BlobType.DATA, data, False)])
        before = everything(repository)
        wanted = hashlib.sha256(data).digest()
        (damaged,) = (
            place
            for place in repository.load_index().all(BlobType.DATA)[0].find(wanted)  # type: ignore[arg-type]
            if place.pack != copy
        )
        body = bytearray(storage.get(pack_key(damaged.pack)))
        body[damaged.blob.offset + 20] ^= 1
        storage.put(pack_key(damaged.pack), bytes(body))
        assert prune(repository).blobs_duplicate == 1
        assert pack_key(copy) not in keys(storage, "data")
        assert everything(repository) == before

    def test_index_files_that_disagree_on_a_size_stop_it(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"a": bytes(3000)}, 1)
        (key,) = keys(storage, "index")
        packs = decode_index(repository.objects.load(Folder.INDEX, key.rpartition("/")[2]), "")
        other = [
            (id, [PackedBlob(b.type, b.id, b.offset, b.length, b.plain_length + 1) for b in blobs])
            for id, blobs in packs
        ]
        repository.objects.save(Folder.INDEX, encode_index(other))
        with pytest.raises(RepositoryError, match="its index describes"):
            prune(repository)


def _damage_snapshot(storage: MemoryStorage) -> None:
    storage.put(keys(storage, "snapshots")[0], b"x" * 100)


def _damage_index(storage: MemoryStorage) -> None:
    storage.put(keys(storage, "index")[0], b"x" * 100)


def _lose_index(storage: MemoryStorage) -> None:
    storage.delete(keys(storage, "index")[0])


def _packs(storage: MemoryStorage, type: BlobType) -> list[str]:
    view = open_repository(storage, PASSWORD).load_index()
    return [pack_key(found.pack) for table in view.all(type) for found in table]


def _lose_trees(storage: MemoryStorage) -> None:
    for key in _packs(storage, BlobType.TREE):
        storage.delete(key)


def _damage_trees(storage: MemoryStorage) -> None:
    for key in _packs(storage, BlobType.TREE):
        storage.put(key, bytes(storage.size(key)))


def _lose_data(storage: MemoryStorage) -> None:
    storage.delete(_packs(storage, BlobType.DATA)[0])


def _cut_data(storage: MemoryStorage) -> None:
    key = _packs(storage, BlobType.DATA)[0]
    storage.put(key, storage.get(key)[:-1])


def _forget_in_index(storage: MemoryStorage) -> None:
    """Let the index name all blobs of the data pack but one that is used."""
    objects = open_repository(storage, PASSWORD).objects
    for key in keys(storage, "index"):
        packs = decode_index(objects.load(Folder.INDEX, key.rpartition("/")[2]), "")
        thinned = [(id, blobs[1:] if len(blobs) > 3 else blobs) for id, blobs in packs]
        storage.delete(key)
        objects.save(Folder.INDEX, encode_index(thinned))


DAMAGE: list[tuple[Callable[[MemoryStorage], None], str]] = [
    (_damage_snapshot, "podlift forget [0-9a-f]{8}"),
    (_damage_index, "an index file cannot be read"),
    (_lose_index, "no index names"),
    (_lose_trees, "cannot be read"),
    (_damage_trees, "cannot be read"),
    (_lose_data, "is missing, and snapshots need"),
    (_cut_data, "its index describes"),
    (_forget_in_index, "no index names"),
]


@pytest.mark.parametrize(("harm", "words"), DAMAGE, ids=lambda v: getattr(v, "__name__", ""))
def test_what_cannot_be_read_stops_a_prune_before_anything_changes(
    repository: Repository,
    storage: MemoryStorage,
    harm: Callable[[MemoryStorage], None],
    words: str,
) -> None:
    save(repository, {"a": noise(1, 20_000), "below/b": noise(2)}, 1)
    harm(storage)
    before = content(storage)
    with pytest.raises(RepositoryError, match=words) as raised:
        prune(open_repository(storage, PASSWORD))
    assert "othing was changed" in str(raised.value)
    assert content(storage) == before


def test_a_damaged_blob_that_has_to_be_copied_stops_a_prune_before_anything_is_removed(
    repository: Repository, storage: MemoryStorage
) -> None:
    save(repository, {"keep": noise(1, 8000), "drop": noise(2, 4000)}, 1)
    save(repository, {"keep": noise(1, 8000)}, 2)
    forget(repository, [repository.snapshots()[0].id])
    (key,) = set(_packs(storage, BlobType.DATA))
    storage.put(key, bytes(storage.size(key)))
    before = content(storage)
    with pytest.raises(DamagedBlob, match="nothing was removed"):
        prune(repository)
    after = content(storage)
    assert {key: after.get(key) for key in before} == before


@pytest.mark.parametrize("gone", ["snapshots/*", "index/*"])
def test_what_is_listed_and_then_not_there_stops_a_prune(
    repository: Repository, storage: MemoryStorage, gone: str
) -> None:
    save(repository, {"a": noise(1)}, 1)
    prefix = gone[:-1]
    victim = keys(storage, prefix.rstrip("/"))[0]
    faulty = Faulty(storage, Fault("get", lambda: storage.delete(victim), key=gone))
    with pytest.raises(RepositoryError, match="without respecting our exclusive lock"):
        prune(open_repository(faulty, PASSWORD))


def test_every_step_proves_the_lock_and_comes_in_the_order_that_loses_nothing(
    repository: Repository, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old = make_mess(repository)
    forget(repository, old)
    faulty = Faulty(storage)
    pruned = open_repository(faulty, PASSWORD)
    with pruned.locked(exclusive=True) as lock:
        planned = plan_prune(pruned, TIDY, Monitor(), NEVER)
        monkeypatch.setattr(lock, "prove", lambda: faulty.calls.append(("prove", "")))
        monkeypatch.setattr(lock, "check", lambda: faulty.calls.append(("prove", "")))
        faulty.calls.clear()
        run_prune(pruned, lock, planned, Monitor(), NEVER)
    writes = [(op, key) for op, key in faulty.calls if op in ("put", "delete")]
    steps = [f"{op} {key.partition('/')[0]}" for op, key in writes if "locks" not in key]
    order = ["put data", "put index", "delete index", "delete data"]
    assert [step for at, step in enumerate(steps) if step not in steps[:at]] == order
    assert steps == sorted(steps, key=order.index)
    proofs = [op for op, _ in faulty.calls].count("prove")
    assert proofs >= len(steps)


def test_only_an_exclusive_lock_will_do(repository: Repository) -> None:
    planned = plan(repository)
    with (
        repository.locked(exclusive=False) as lock,
        pytest.raises(RepositoryError, match="exclusive"),
    ):
        run_prune(repository, lock, planned, Monitor(), NEVER)


def test_nobody_writes_while_a_prune_runs_and_the_other_way_round(repository: Repository) -> None:
    with (
        repository.locked(exclusive=True),
        pytest.raises(RepositoryLocked),
    ):
        save(repository, {"a": noise(1)}, 1)
    with (
        repository.locked(exclusive=False),
        pytest.raises(RepositoryLocked),
    ):
        prune(repository)


@pytest.mark.parametrize("operation", ["put", "delete"])
@pytest.mark.parametrize("nth", range(1, 5))
def test_a_failing_storage_costs_no_snapshot_anything(
    repository: Repository, storage: MemoryStorage, operation: str, nth: int
) -> None:
    kept, old = make_mess(repository)
    before = everything(repository)
    forget(repository, old)
    error = OSError("the storage burns")
    faulty = Faulty(storage, Fault(operation, failing(error), key="[di]*", nth=nth, times=99))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="burns"):
        prune(open_repository(faulty, PASSWORD))
    assert everything(repository) == {id: before[id] for id in kept}
    prune(repository)
    assert everything(repository) == {id: before[id] for id in kept}
    assert findings(repository) == []


def test_a_prune_can_be_canceled_at_any_step(
    repository: Repository, storage: MemoryStorage
) -> None:
    kept, old = make_mess(repository)
    before = everything(repository)
    forget(repository, old)
    for operation, key in [("get", "data/*"), ("put", "data/*"), ("delete", "index/*")]:
        token = CancelToken()
        stop = Fault(operation, lambda token=token: token.cancel("enough"), key=key)  # type: ignore[arg-type,misc]
        stopped = open_repository(Faulty(storage, stop), PASSWORD)
        with stopped.locked(exclusive=True) as lock:
            try:
                planned = plan_prune(stopped, TIDY, Monitor(), token)
                run_prune(stopped, lock, planned, Monitor(), token)
            except Canceled:
                pass
        assert everything(repository) == {id: before[id] for id in kept}
    prune(repository)
    assert findings(repository) == []


def test_the_monitor_tells_what_is_copied(repository: Repository) -> None:
    _, old = make_mess(repository)
    forget(repository, old)
    monitor = Monitor()
    with repository.locked(exclusive=True) as lock:
        planned = plan_prune(repository, TIDY, monitor, NEVER)
        run_prune(repository, lock, planned, monitor, NEVER)
    now = monitor.counters
    assert now.bytes_done == now.bytes_total == planned.figures.bytes_repacked
    assert now.trees > 5


def test_index_files_hold_packs_whole_and_no_more_blobs_than_they_should(
    repository: Repository, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.repository.rewrite.INDEX_BLOBS", 5)
    for day in range(4):
        save(repository, {"f": noise(day, 12_000)}, day)
    lost = save(repository, {"f": noise(9)}, 9)
    forget(repository, [lost])
    prune(repository, PruneOptions())
    sizes, seen = [], set[PackId]()
    for key in keys(storage, "index"):
        packs = decode_index(repository.objects.load(Folder.INDEX, key.rpartition("/")[2]), "")
        sizes.append(sum(len(blobs) for _, blobs in packs))
        assert not seen & {id for id, _ in packs}
        seen |= {id for id, _ in packs}
    assert max(sizes) <= 5
    assert findings(repository) == []


@pytest.mark.parametrize(
    "text", ["", "5", "5%%", "100%", "x", "-1", "1.5G", "%", "9" * 5000, f"{'9' * 5000}%"]
)
def test_a_limit_that_makes_no_sense_is_refused(text: str) -> None:
    if text == "5":
        assert parse_tolerance(text).bytes == 5
        return
    with pytest.raises(UsageError):
        parse_tolerance(text)


def test_sizes_are_in_units_of_1024() -> None:
    assert [parse_size(t) for t in ("7", "7b", "2K", "3m", "1G", "1T")] == [
        7,
        7,
        2048,
        3 << 20,
        1 << 30,
        1 << 40,
    ]
