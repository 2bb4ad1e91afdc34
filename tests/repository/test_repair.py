"""repair: the index says what is true again, and what is intact in damaged packs is kept."""

import contextlib
from collections.abc import Callable

import pytest

from agent.cancel import NEVER
from agent.errors import DamagedBlob, RepositoryError, StorageError
from agent.monitor import Monitor
from agent.repository.check import check
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import decode_index, encode_index
from agent.repository.objects import Folder, pack_key
from agent.repository.opening import open_repository
from agent.repository.repair import (
    IndexRepair,
    Salvage,
    damaged_packs,
    find_packs,
    plan_index_repair,
    plan_pack_repair,
    run_index_repair,
    run_pack_repair,
)
from agent.repository.repository import Repository
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, content, keys, new_repository
from tests.repository.mess import make_mess, noise, plant, save
from tests.repository.test_prune import everything, findings


def repair_index(repository: Repository) -> IndexRepair:
    with repository.locked(exclusive=True) as lock:
        plan = plan_index_repair(repository)
        run_index_repair(repository, lock, plan)
    return plan


def repair_packs(repository: Repository, packs: list[PackId]) -> list[Salvage]:
    with repository.locked(exclusive=True) as lock:
        salvages = plan_pack_repair(repository, packs)
        run_pack_repair(repository, lock, salvages, Monitor())
    return salvages


def rewrite_index(
    repository: Repository, storage: MemoryStorage, change: Callable[[list], list]
) -> None:
    for key in keys(storage, "index"):
        packs = decode_index(repository.objects.load(Folder.INDEX, key.rpartition("/")[2]), "")
        storage.delete(key)
        repository.objects.save(Folder.INDEX, encode_index(change(packs)))


def the_pack(repository: Repository, type: BlobType) -> PackId:
    (found,) = {found.pack for table in repository.load_index().all(type) for found in table}
    return found


def flip(storage: MemoryStorage, key: str, at: int) -> None:
    body = bytearray(storage.get(key))
    body[at] ^= 1
    storage.put(key, bytes(body))


def damaged_index(storage: MemoryStorage, repository: Repository) -> None:
    storage.put(keys(storage, "index")[0], b"x" * 200)


def no_index(storage: MemoryStorage, repository: Repository) -> None:
    for key in keys(storage, "index"):
        storage.delete(key)


def partial_index(storage: MemoryStorage, repository: Repository) -> None:
    rewrite_index(repository, storage, lambda packs: [(id, blobs[1:]) for id, blobs in packs])


def gap_in_index(storage: MemoryStorage, repository: Repository) -> None:
    """Let a pack's blobs have their order changed, so that none is where it is said to be."""

    def change(packs: list) -> list:
        return [(id, [_moved(blob) for blob in blobs]) for id, blobs in packs]

    rewrite_index(repository, storage, change)


def _moved(blob):
    return type(blob)(blob.type, blob.id, blob.offset + 1, blob.length, blob.plain_length)


def split_index(storage: MemoryStorage, repository: Repository) -> None:
    """Let two index files describe a pack differently."""
    (key, *_) = keys(storage, "index")
    packs = decode_index(repository.objects.load(Folder.INDEX, key.rpartition("/")[2]), "")
    wrong = [(id, [_moved(blob) for blob in blobs]) for id, blobs in packs]
    repository.objects.save(Folder.INDEX, encode_index(wrong))


HARMS = [damaged_index, no_index, partial_index, gap_in_index, split_index]


@pytest.mark.parametrize("harm", HARMS)
def test_an_index_that_is_lost_or_wrong_is_made_again_from_the_packs(
    repository: Repository,
    storage: MemoryStorage,
    harm: Callable[[MemoryStorage, Repository], None],
) -> None:
    make_mess(repository)
    before = everything(repository)
    harm(storage, repository)
    assert any(found.damage for found in check(repository))
    assert repair_index(repository).needed
    assert everything(repository) == before
    assert not any(found.damage for found in check(repository, read_data=True))


def test_a_good_index_is_left_alone(repository: Repository, storage: MemoryStorage) -> None:
    save(repository, {"a": noise(1)}, 1)
    before = content(storage)
    assert not repair_index(repository).needed
    assert content(storage) == before


def test_packs_that_no_index_names_are_named(repository: Repository) -> None:
    pack = plant(repository, [(BlobType.DATA, b"lost and found", True)], indexed=False)
    assert [id for id, _ in repair_index(repository).found] == [pack]
    assert repository.load_index().count(BlobType.DATA) == 1


def test_a_missing_pack_is_named_no_more_so_that_a_backup_stores_it_again(
    repository: Repository, storage: MemoryStorage
) -> None:
    files = {"a": noise(1)}
    save(repository, files, 1)
    lost = the_pack(repository, BlobType.DATA)
    storage.delete(pack_key(lost))
    assert repair_index(repository).missing == (lost,)
    save(repository, files, 2)
    assert {str(files) for files in everything(repository).values()} == {str({b"a": noise(1)})}


def test_a_pack_without_a_readable_header_keeps_what_the_index_says_of_it(
    repository: Repository, storage: MemoryStorage
) -> None:
    save(repository, {"a": noise(1)}, 1)
    pack = the_pack(repository, BlobType.DATA)
    storage.put(pack_key(pack), storage.get(pack_key(pack))[:-30])
    unknown = plant(repository, [(BlobType.DATA, b"x", True)], indexed=False)
    storage.put(pack_key(unknown), bytes(100))
    plan = repair_index(repository)
    assert set(plan.unreadable) == {pack, unknown}
    assert not plan.needed
    assert everything(repository)  # its blobs are all there: only the header was cut


class TestPacks:
    def test_what_is_intact_is_kept_and_the_damaged_pack_goes(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"good": noise(1, 3000), "bad": noise(2, 3000), "last": noise(3, 30)}, 1)
        pack = the_pack(repository, BlobType.DATA)
        second = sorted(repository.load_index().all(BlobType.DATA)[0], key=lambda f: f.blob.offset)
        flip(storage, pack_key(pack), second[1].blob.offset + 20)
        assert list(damaged_packs(repository, Monitor())) == [pack]
        (salvage,) = repair_packs(repository, [pack])
        assert [blob.id for blob in salvage.lost] == [second[1].blob.id]
        assert len(salvage.intact) == 2
        assert pack_key(pack) not in keys(storage, "data")
        assert list(damaged_packs(repository, Monitor())) == []
        found = findings(repository)
        assert len(found) == 1
        assert second[1].blob.id.hex() in found[0]
        save(repository, {"good": noise(1, 3000), "bad": noise(2, 3000), "last": noise(3, 30)}, 2)
        assert findings(repository) == []

    def test_a_pack_that_was_cut_gives_what_it_still_has(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"a": noise(1, 20_000)}, 1)
        pack = the_pack(repository, BlobType.DATA)
        body = storage.get(pack_key(pack))
        storage.put(pack_key(pack), body[: len(body) // 2])
        (salvage,) = repair_packs(repository, [pack])
        assert (len(salvage.intact), len(salvage.lost)) == (2, 3)
        reading = repository.reading()
        for blob in salvage.intact:
            assert reading.load_chunk(blob.id)
        for blob in salvage.lost:
            assert not reading.view.has(BlobType.DATA, blob.id)

    def test_a_pack_that_is_gone_is_named_no_more(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"a": noise(1)}, 1)
        pack = the_pack(repository, BlobType.DATA)
        storage.delete(pack_key(pack))
        (salvage,) = repair_packs(repository, [pack])
        assert len(salvage.lost) == 3
        assert repository.load_index().count(BlobType.DATA) == 0

    def test_a_pack_that_no_index_names_is_read_by_its_own_header(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        pack = plant(
            repository,
            [(BlobType.DATA, b"one", True), (BlobType.DATA, b"two", False)],
            indexed=False,
        )
        flip(storage, pack_key(pack), 20)
        (salvage,) = repair_packs(repository, find_packs(repository, [pack.hex()[:9]]))
        assert len(salvage.intact) == 1
        assert repository.reading().load_chunk(salvage.intact[0].id) == b"two"

    def test_a_blob_that_was_intact_and_no_longer_is_stops_it_before_anything_goes(
        self, repository: Repository, storage: MemoryStorage
    ) -> None:
        save(repository, {"a": noise(1)}, 1)
        pack = the_pack(repository, BlobType.DATA)
        before = content(storage)
        with repository.locked(exclusive=True) as lock:
            salvages = plan_pack_repair(repository, [pack])
            flip(storage, pack_key(pack), 20)
            with pytest.raises(DamagedBlob, match="nothing was removed"):
                run_pack_repair(repository, lock, salvages, Monitor())
        assert set(before) <= set(content(storage))


def readable(repository: Repository) -> set[BlobId]:
    """Return all data blobs that can be read."""
    reading = repository.reading()
    found = set()
    for table in reading.view.all(BlobType.DATA):
        for place in table:
            with contextlib.suppress(RepositoryError, StorageError):
                reading.load_chunk(place.blob.id)
                found.add(place.blob.id)
    return found


@pytest.mark.parametrize("what", ["index", "packs"])
@pytest.mark.parametrize("after", [False, True])
def test_a_repair_that_is_cut_off_at_any_call_loses_nothing(what: str, *, after: bool) -> None:
    original = MemoryStorage()
    made = new_repository(original)
    make_mess(made)
    places = [f for table in made.load_index().all(BlobType.DATA) for f in table]
    big = max({f.pack for f in places}, key=lambda id: original.size(pack_key(id)))
    flip(original, pack_key(big), 20)
    if what == "index":
        partial_index(original, made)
    before = readable(open_repository(original, PASSWORD))
    for nth in range(1, 1000):
        storage = MemoryStorage()
        for key, body in content(original).items():
            storage.put(key, body)
        fault = Fault("*", failing(OSError("cut off")), nth=nth, times=99_999, after=after)
        with contextlib.suppress(OSError):
            broken = open_repository(Faulty(storage, fault), PASSWORD)
            if what == "index":
                repair_index(broken)
            else:
                repair_packs(broken, [big])
        for lock in keys(storage, "locks"):
            storage.delete(lock)
        mended = open_repository(storage, PASSWORD)
        assert before <= readable(mended)
        if fault.seen < nth:
            break
        if what == "packs" and pack_key(big) in keys(storage, "data"):
            repair_packs(mended, [big])
            assert before <= readable(mended)
    assert 20 < nth < 999


def test_only_an_exclusive_lock_will_do(repository: Repository) -> None:
    with repository.locked(exclusive=False) as lock:
        with pytest.raises(RepositoryError, match="exclusive"):
            run_index_repair(repository, lock, plan_index_repair(repository, NEVER))
        with pytest.raises(RepositoryError, match="exclusive"):
            run_pack_repair(repository, lock, [], Monitor())
