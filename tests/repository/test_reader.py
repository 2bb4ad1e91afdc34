"""Reading blobs: what they promise, from any pack that keeps the promise, or an error."""

import tracemalloc

import pytest
from msgspec.structs import replace

from agent.cancel import NEVER
from agent.errors import DamagedBlob, Unreachable
from agent.monitor import Monitor
from agent.repository import reader as reader_module
from agent.repository.fetching import plan_fetches
from agent.repository.identity import BlobId, BlobType
from agent.repository.indexfile import decode_index
from agent.repository.indexview import IndexView
from agent.repository.objects import Folder, pack_key
from agent.repository.opening import open_repository
from agent.repository.pack import PackedBlob
from agent.repository.reader import BlobOpener
from agent.repository.repository import Repository
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, keys, store_chunk, store_chunks

CHUNK = b"a chunk of data" * 100


def store_twice(repository: Repository) -> bytes:
    """Store one chunk by two writers that do not know of each other: it lies in two packs."""
    lock = repository.locked(exclusive=False)
    with (
        lock as held,
        repository.writing(held, Monitor(), NEVER) as one,
        repository.writing(held, Monitor(), NEVER) as two,
    ):
        id = store_chunk(one, CHUNK)
        assert store_chunk(two, CHUNK) == id
        store_chunk(two, b"what makes the second pack differ")
        for writer in (one, two):
            for packs in writer._open.values():
                packs.flush()
            writer._uploads.drain()
    return id


def places(repository: Repository, id: bytes) -> list[str]:
    return [pack_key(f.pack) for f in repository.load_index().find(BlobType.DATA, BlobId(id))]


def damage(storage: MemoryStorage, key: str, how: str) -> None:
    body = storage.get(key)
    if how == "delete":
        storage.delete(key)
    elif how == "truncate":
        storage.put(key, body[:20])
    else:
        storage.put(key, body[:20] + bytes([body[20] ^ 1]) + body[21:])


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("which", [0, 1])
def test_of_two_packs_the_good_one_is_used(
    storage: MemoryStorage, repository: Repository, how: str, which: int
) -> None:
    id = store_twice(repository)
    both = places(repository, id)
    assert len(both) == 2
    damage(storage, both[which], how)
    assert repository.reading().load_chunk(id) == CHUNK


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_without_a_good_pack_the_blob_is_damaged_and_named(
    storage: MemoryStorage, repository: Repository, how: str
) -> None:
    (id,), _ = store_chunks(repository, [CHUNK])
    (pack,) = places(repository, id)
    damage(storage, pack, how)
    with pytest.raises(DamagedBlob, match=pack[-64:]):
        repository.reading().load_chunk(id)


def test_a_tree_in_a_huge_pack_is_fetched_alone(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, snapshot = store_chunks(repository, [CHUNK])
    tree = repository.snapshot(snapshot).tree
    monkeypatch.setattr(reader_module, "MOST_TREE_PACK_BYTES", 10)
    counting = Faulty(storage)
    reading = open_repository(counting, PASSWORD).reading()
    counting.calls.clear()
    assert reading.load_tree(tree) == reading.load_tree(tree) == []
    assert [operation for operation, _ in counting.calls] == ["get", "get_range", "get_range"]


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_a_tree_in_a_damaged_pack_is_damaged(
    storage: MemoryStorage, repository: Repository, how: str
) -> None:
    _, snapshot = store_chunks(repository, [CHUNK])
    tree = repository.snapshot(snapshot).tree
    (place,) = repository.load_index().find(BlobType.TREE, BlobId(tree))
    key = pack_key(place.pack)
    body = storage.get(key)
    if how == "delete":
        storage.delete(key)
    else:
        storage.put(key, body[:20] if how == "truncate" else bytes([body[0] ^ 1]) + body[1:])
    with pytest.raises(DamagedBlob, match="tree blob"):
        repository.reading().load_tree(tree)


def test_a_storage_that_fails_is_not_called_damage(
    storage: MemoryStorage, repository: Repository
) -> None:
    (id,), _ = store_chunks(repository, [CHUNK])
    faulty = Faulty(storage, Fault("get_range", failing(Unreachable("down"))))
    with pytest.raises(Unreachable):
        open_repository(faulty, PASSWORD).reading().load_chunk(id)


def test_a_storage_that_fails_for_one_pack_is_helped_by_the_other(
    storage: MemoryStorage, repository: Repository
) -> None:
    id = store_twice(repository)
    faulty = Faulty(storage, Fault("get_range", failing(Unreachable("down"))))
    assert open_repository(faulty, PASSWORD).reading().load_chunk(id) == CHUNK


def test_a_blob_that_no_index_names_is_said_with_a_remedy(repository: Repository) -> None:
    with pytest.raises(DamagedBlob, match="in no index.*repair index"):  # noqa: RUF043
        repository.reading().load_chunk(bytes(32))


def test_a_blob_under_another_id_is_refused(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,), _ = store_chunks(repository, [CHUNK])
    find = IndexView.find

    def lie(self: IndexView, type: BlobType, wanted: BlobId) -> object:
        (found,) = find(self, type, BlobId(id))
        return [replace(found, blob=replace(found.blob, id=wanted))]

    monkeypatch.setattr(IndexView, "find", lie)
    with pytest.raises(DamagedBlob, match="does not match its id"):
        repository.reading().load_chunk(b"x" * 32)


def test_tree_packs_are_fetched_once_and_few_are_kept(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, snapshot = store_chunks(repository, [])
    tree = repository.snapshot(snapshot).tree
    counted = Faulty(storage)
    reading = open_repository(counted, PASSWORD).reading()
    counted.calls.clear()
    for _ in range(3):
        assert reading.load_tree(tree) == []
    assert [op for op, _ in counted.calls] == ["get"]
    monkeypatch.setattr(reader_module, "TREE_PACKS_BYTES", 0)
    assert reading.load_tree(tree) == []


def test_the_view_keeps_growing_tables_few(repository: Repository) -> None:
    ids = [store_chunks(repository, [bytes([n]) * 100])[0][0] for n in range(20)]
    view = IndexView([])
    for name in keys(repository.objects.storage, "index"):
        view.add(decode_index(repository.objects.load(Folder.INDEX, name[-64:]), name))
    assert all(view.has(BlobType.DATA, BlobId(id)) for id in ids)
    assert view.count(BlobType.DATA) == 20
    assert len(view.all(BlobType.DATA)) < 10


def test_a_sound_blob_is_opened_by_the_kernel_wherever_it_lies(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patient way is for what is damaged: taking it always would be slow, and nobody would see."""
    chunks = [bytes([number]) * 1000 for number in range(5)]
    ids, _ = store_chunks(repository, chunks)
    monkeypatch.delattr("agent.repository.reader.BlobOpener._patiently")
    reading = repository.reading()
    assert [reading.load_chunk(id) for id in ids] == chunks


def test_a_blob_that_claims_less_than_a_seal_takes_is_damaged(repository: Repository) -> None:
    opener = BlobOpener(repository.objects.key)
    for length in (0, 31):
        blob = PackedBlob(BlobType.DATA, BlobId(bytes(32)), 0, length, 0)
        with pytest.raises(DamagedBlob, match="too few to be sealed"):
            opener.open(bytes(length), blob)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_what_an_index_claims_takes_no_memory_before_it_is_there(
    storage: MemoryStorage,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    alone: bool,
    gone: bool,
) -> None:
    (id,), _ = store_chunks(repository, [CHUNK])
    (pack,) = places(repository, id)
    find = IndexView.find

    def lie(self: IndexView, type: BlobType, wanted: BlobId) -> object:
        found = find(self, type, wanted)
        return [replace(each, blob=replace(each.blob, length=64 << 20)) for each in found]

    monkeypatch.setattr(IndexView, "find", lie)
    reading = repository.reading()
    (place,) = reading.view.find(BlobType.DATA, BlobId(id))
    if gone:
        storage.delete(pack)
    tracemalloc.start()
    try:
        if alone:
            with pytest.raises(DamagedBlob, match=pack[-64:]):
                reading.load_chunk(id)
        else:
            (fetch,) = plan_fetches([place])
            with reading._blobs.fetched(fetch) as fetched:
                ((_, found),) = [
                    each for group in reading._blobs.opened(fetch, fetched) for each in group
                ]
            assert isinstance(found, DamagedBlob)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_a_data_blob_larger_than_any_chunk_is_not_opened(repository: Repository) -> None:
    sealed = bytes(repository.objects.key.seal(b"i" * 16, b""))
    blob = PackedBlob(BlobType.DATA, BlobId(bytes(32)), 0, len(sealed), (128 << 20) + 1)
    with pytest.raises(DamagedBlob, match="no chunk has more than"):
        BlobOpener(repository.objects.key).open(sealed, blob)
