"""Reading back: what the storage does not keep as it was sent is sent again, or named by nothing."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from agent.budget import Budgets
from agent.cancel import NEVER, CancelToken
from agent.config import CacheDir, VerifyStored
from agent.errors import AccessDenied, Canceled, DamagedPack, Unreachable
from agent.monitor import Counters, Monitor
from agent.repository import readback, uploads
from agent.repository.check import check
from agent.repository.identity import PackId
from agent.repository.indexfile import decode_index
from agent.repository.journal import Inheritance, Journal
from agent.repository.objects import Folder, names
from agent.repository.opening import open_repository
from agent.repository.readback import SHARE, ReadBack
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.repository.writer import WriteOptions
from agent.storage.contract import Storage
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.injection import Careless, flipped
from tests.repository.making import PASSWORD, content, fill, keys, new_repository, store_chunk
from tests.repository.mess import make_mess
from tests.repository.test_prune import forget, prune
from tests.repository.test_writer import check_sound, chunk, small_packs

CHUNKS = [chunk(number) for number in range(40)]
ALWAYS = 10**6
DOWN = failing(Unreachable("down"))


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)


def opened(storage: Storage, cache: CacheDir | None = None) -> Repository:
    return open_repository(storage, PASSWORD, cache=cache)


def write(
    repository: Repository, how: VerifyStored, cancel: CancelToken = NEVER, connections: int = 2
) -> Counters:
    """Store all chunks and a snapshot; return what was counted."""
    monitor = Monitor()
    options = WriteOptions(budgets=Budgets(connections=connections), verify_stored=how)
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, monitor, cancel, options) as writer,
    ):
        for each in CHUNKS:
            store_chunk(writer, each)
        writer.finish(Snapshot(time_ns=0, tree=writer.store_tree([])))
    return monitor.counters


def indexed(storage: Storage) -> list[set[str]]:
    """Return the keys of the packs that each index file names."""
    objects = opened(storage).objects
    return [
        {
            f"data/{id.hex()[:2]}/{id.hex()}"
            for id, _ in decode_index(objects.load(Folder.INDEX, n), n)
        }
        for n in names(storage, Folder.INDEX)
    ]


def in_order(storage: Storage) -> bool:
    """Tell whether a check that reads every byte finds no damage."""
    return not [found for found in check(opened(storage), read_data=True) if found.damage]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (flipped, "does not match its name"),
        (lambda body: body[:-1], "bytes were sent"),
        (lambda body: body + b"x", "bytes were sent"),
        (lambda body: None, "it is not there"),
    ],
)
def test_what_arrived_damaged_is_sent_again(
    keep: Callable[[bytes], bytes | None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Careless(keep)
    fill(storage)
    write(opened(storage), "all")
    assert len(storage.spoilt) == 1
    assert in_order(storage)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "is sent again" in warning
    assert said in warning


@pytest.mark.parametrize("how", ["all", "sample"])
def test_what_stays_damaged_ends_the_run_and_is_named_by_nothing(
    how: VerifyStored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "INDEX_SECONDS", 0.0)
    storage = Careless(flipped, first=ALWAYS)
    fill(storage)
    with pytest.raises(
        DamagedPack, match=r"in careless is damaged: .*, twice\. No index"
    ) as raised:
        write(opened(storage), how)
    assert f"data/{raised.value.pack[:2]}/{raised.value.pack}" in storage.spoilt
    assert keys(storage, "snapshots") == keys(storage, "index") == keys(storage, "locks") == []
    storage.left = 0
    write(opened(storage), how)
    assert in_order(storage)
    assert not set().union(*indexed(storage)) & set(storage.spoilt)


def test_a_run_that_does_not_look_is_told_of_nothing() -> None:
    storage = Careless(flipped)
    fill(storage)
    assert write(opened(storage), "none").bytes_read_back == 0
    assert storage.reads == []
    assert not in_order(storage)


def test_packs_that_are_sound_are_kept_when_another_is_damaged() -> None:
    storage = Careless(flipped, first=0)
    fill(storage)
    faulty = Faulty(storage)

    def spoil() -> None:
        storage.left = ALWAYS

    faulty.faults.append(Fault("put", spoil, key="data/*", nth=6))
    with pytest.raises(DamagedPack):
        write(opened(faulty), "all")
    named = set().union(*indexed(storage))
    assert named
    assert not named & set(storage.spoilt)
    assert check_sound(storage, opened(storage)) > 0


@pytest.mark.parametrize("how", get_args(VerifyStored))
def test_each_index_file_has_a_pack_that_was_read_back_before(
    how: VerifyStored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "INDEX_SECONDS", 0.0)
    monkeypatch.setattr("agent.repository.readback.secrets.randbelow", lambda share: 3)
    storage = MemoryStorage()
    fill(storage)
    faulty = Faulty(storage)
    counters = write(opened(faulty), how)
    read: set[str] = set()
    packs = set(keys(storage, "data"))
    files = indexed(storage)
    assert len(files) > 1
    begun = 0
    for operation, key in faulty.calls:
        if operation == "get_range" and key in packs:
            read.add(key)
        elif operation == "put" and key.startswith("index/"):
            begun += 1
            assert how == "none" or len(read) >= begun
    assert counters.bytes_read_back == sum(len(storage.get(key)) for key in read)
    assert [file for file in files if not file & read] == (files if how == "none" else [])
    if how == "all":
        assert read == packs
    if how == "sample":
        assert {key for key in packs if int(key[-1], 16) == 3} <= read


def test_one_pack_in_sixteen_is_a_sample() -> None:
    repository = new_repository()
    ids = [PackId(bytes([0] * 31 + [last])) for last in range(256)]
    chosen = []
    with repository.locked(exclusive=False) as lock:
        for seed in range(SHARE):
            sample = ReadBack(repository.objects, lock, NEVER, "sample", seed)
            chosen.append({id for id in ids if sample.wants(id, first=False)})
            assert sample.wants(ids[0], first=True)
    assert {len(each) for each in chosen} == {256 // SHARE}
    assert set().union(*chosen) == set(ids)


def test_once_there_was_damage_every_pack_is_read_back() -> None:
    storage = Careless(flipped)
    fill(storage)
    counters = write(opened(storage), "sample", connections=1)  # so that the first is the first
    assert counters.bytes_read_back == sum(len(storage.get(key)) for key in keys(storage, "data"))


def test_little_of_a_pack_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "STEP_BYTES", 1000)
    storage = Careless(flipped, first=0)
    fill(storage)
    write(opened(storage), "all")
    assert max(length for _, length in storage.reads) == 1000
    assert sum(length for _, length in storage.reads) == sum(s for _, s in storage.list("data/"))


def test_a_pack_that_changed_in_memory_is_not_sent_again() -> None:
    repository = new_repository(storage := MemoryStorage())
    with repository.locked(exclusive=False) as lock:
        proof = ReadBack(repository.objects, lock, NEVER, "all")
        with pytest.raises(DamagedPack, match="this machine's memory, which is suspect"):
            proof.prove(PackId(b"p" * 32), b"what was hashed was something else")
    assert keys(storage, "data") == []


def test_a_storage_that_cannot_be_asked_ends_the_run_and_says_nothing_of_the_pack(
    storage: MemoryStorage, tmp_path: Path
) -> None:
    fill(storage)
    cache = CacheDir(tmp_path)
    denied = Fault("get_range", failing(AccessDenied("no right")), key="data/*", times=ALWAYS)
    with pytest.raises(AccessDenied):
        write(opened(Faulty(storage, denied), cache), "all")
    assert keys(storage, "index") == []
    packs = keys(storage, "data")
    write(opened(storage, cache), "all")  # which adopts them
    assert set(packs) <= set().union(*indexed(storage))


def test_a_cancel_ends_it(storage: MemoryStorage) -> None:
    fill(storage)
    cancel = CancelToken()
    stop = Fault("size", lambda: cancel.cancel("enough"), key="data/*")
    with pytest.raises(Canceled):
        write(opened(Faulty(storage, stop)), "all", cancel)
    assert keys(storage, "index") == []


class TestTakingOver:
    """What a dead run had sent is read back before it is adopted."""

    def die(self, storage: Storage, cache: CacheDir) -> None:
        """Leave packs and a journal, and no index."""
        down = Fault("put", DOWN, key="index/*", times=ALWAYS)
        with pytest.raises(Unreachable):
            write(opened(Faulty(storage, down), cache), "none")

    def test_a_damaged_pack_is_not_adopted(
        self, storage: MemoryStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(storage)
        cache = CacheDir(tmp_path)
        self.die(storage, cache)
        packs = keys(storage, "data")
        bad = packs[1]
        storage.put(bad, flipped(storage.get(bad)))
        with caplog.at_level(logging.INFO):
            counters = write(opened(storage, cache), "all")
        assert 0 < counters.data_blobs + counters.tree_blobs < len(CHUNKS)
        assert set(packs) - set().union(*indexed(storage)) == {bad}
        assert in_order(storage)
        assert "is not adopted: its content does not match its name" in caplog.text
        assert f"adopted {len(packs) - 1} packs" in caplog.text

    def test_a_sample_reads_one_at_least(self, storage: MemoryStorage, tmp_path: Path) -> None:
        fill(storage)
        cache = CacheDir(tmp_path)
        self.die(storage, cache)
        for key in keys(storage, "data"):
            storage.put(key, flipped(storage.get(key)))
        counters = write(opened(storage, cache), "sample")
        assert counters.data_blobs == len(CHUNKS)  # one was damaged, so all were looked at
        assert in_order(storage)

    def test_what_was_found_damaged_is_not_adopted_by_the_next_run(self, tmp_path: Path) -> None:
        storage = Careless(flipped, first=ALWAYS)
        fill(storage)
        cache = CacheDir(tmp_path)
        down = Fault("put", DOWN, key="index/*", times=ALWAYS)
        lock_stays = Fault("delete", DOWN, times=ALWAYS)
        with pytest.raises(DamagedPack) as raised:
            write(opened(Faulty(storage, down, lock_stays), cache), "all")
        assert PackId(bytes.fromhex(raised.value.pack)) not in self.inherited(cache)
        storage.left = 0
        write(opened(storage, cache), "none")  # which would believe it
        assert not set().union(*indexed(storage)) & set(storage.spoilt)
        assert in_order(storage)

    def inherited(self, cache: CacheDir) -> frozenset[PackId]:
        (folder,) = {path.parent for path in cache.root.rglob("journal.*")}
        held = Inheritance(folder)
        held.release()
        return held.left.packs

    def test_a_journal_takes_damage_back_only_within_one_run(self, tmp_path: Path) -> None:
        mended, damaged = PackId(b"m" * 32), PackId(b"d" * 32)
        one, other = Journal(tmp_path), Journal(tmp_path)
        for id in (mended, damaged):
            one.pack(id)
            one.damaged(id)
        one.pack(mended)
        other.pack(damaged)
        one.close()
        other.close()
        assert Inheritance(tmp_path).left.packs == {mended}


def test_a_prune_removes_nothing_when_its_new_packs_are_damaged() -> None:
    storage = Careless(flipped, first=0)
    repository = new_repository(storage)
    _, old = make_mess(repository)
    forget(repository, old)
    before = content(storage)
    storage.left = ALWAYS
    with pytest.raises(DamagedPack):
        prune(repository)
    after = content(storage)
    assert {key: after.get(key) for key in before} == before
    storage.left = 0
    prune(opened(storage))
    assert in_order(storage)
