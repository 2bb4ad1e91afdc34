"""The inventory: exactly those packs are lost that are missing or have another size."""

import pytest

from agent.cancel import NEVER
from agent.errors import Unreachable
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import encode_index
from agent.repository.indexview import IndexView
from agent.repository.inventory import lost_packs
from agent.repository.objects import Folder
from agent.repository.pack import PackedBlob
from agent.repository.repository import Repository
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.making import keys, new_repository, store_chunks


def lost(repository: Repository) -> set[str]:
    view = repository.load_index()
    return {id.hex() for id in lost_packs(repository.objects.storage, view, NEVER)}


def stored() -> tuple[MemoryStorage, Repository, list[str]]:
    """Return a repository with packs of many first digits, and their names."""
    storage = MemoryStorage()
    repository = new_repository(storage)
    for number in range(20):
        store_chunks(repository, [b"%d" % number, b"%d again" % number])
    return storage, repository, [key.rpartition("/")[2] for key in keys(storage, "data")]


def key_of(name: str) -> str:
    return f"data/{name[:2]}/{name}"


def test_nothing_is_lost_of_a_repository_that_is_whole_or_empty() -> None:
    _, repository, names = stored()
    assert len({name[0] for name in names}) > 5
    assert lost(repository) == set()
    assert lost(new_repository()) == set()


def test_what_is_missing_cut_or_longer_is_lost_and_nothing_else() -> None:
    storage, repository, names = stored()
    storage.delete(key_of(names[0]))
    storage.put(key_of(names[5]), storage.get(key_of(names[5]))[:-1])
    storage.put(key_of(names[9]), storage.get(key_of(names[9])) + b"x")
    assert lost(repository) == {names[0], names[5], names[9]}


def test_a_pack_in_a_folder_where_nobody_looks_for_it_is_lost() -> None:
    storage, repository, names = stored()
    body = storage.get(key_of(names[0]))
    storage.delete(key_of(names[0]))
    other = "00" if names[0][:2] != "00" else "01"
    storage.put(f"data/{other}/{names[0]}", body)
    assert lost(repository) == {names[0]}


def test_a_pack_that_two_index_files_name_is_there_all_the_same() -> None:
    _, repository, _ = stored()
    index = next(repository.objects.storage.list("index/")).key.rpartition("/")[2]
    json = repository.objects.load(Folder.INDEX, index)
    repository.objects.save(Folder.INDEX, json)  # sealed anew, so under another name
    assert lost(repository) == set()


def test_a_pack_with_both_types_is_as_large_as_both_sums() -> None:
    storage = MemoryStorage()
    repository = new_repository(storage)
    blobs = [
        PackedBlob(BlobType.DATA, BlobId(b"d" * 32), 0, 100, 0),
        PackedBlob(BlobType.TREE, BlobId(b"t" * 32), 100, 50, 90),
    ]
    pack = PackId(bytes(32))
    size = 100 + 37 + 50 + 41 + 36
    storage.put(key_of(pack.hex()), bytes(size))
    repository.objects.save(Folder.INDEX, encode_index([(pack, blobs)]))
    assert lost(repository) == set()
    storage.put(key_of(pack.hex()), bytes(size - 1))
    assert lost(repository) == {pack.hex()}


def test_a_listing_that_fails_is_no_lost_pack() -> None:
    storage, repository, _ = stored()
    view = repository.load_index()
    faulty = Faulty(storage, Fault("list", failing(Unreachable("no answer")), key="data/7*"))
    with pytest.raises(Unreachable):
        lost_packs(faulty, view, NEVER)


def test_a_view_that_dropped_packs_finds_what_is_elsewhere_and_counts_what_is_not() -> None:
    blob = [PackedBlob(BlobType.DATA, BlobId(bytes([n]) * 32), 0, 100, 0) for n in range(3)]
    first, second = PackId(b"1" * 32), PackId(b"2" * 32)
    view = IndexView([])
    view.add([(first, [blob[0], blob[1]]), (second, [blob[1], blob[2]])])
    assert view.drop({first}) == 2
    assert not view.has(BlobType.DATA, blob[0].id)
    assert [place.pack for place in view.find(BlobType.DATA, blob[1].id)] == [second]
    assert view.still_lost() == 1
    view.add([(PackId(b"3" * 32), [blob[0]])])
    assert view.still_lost() == 0
