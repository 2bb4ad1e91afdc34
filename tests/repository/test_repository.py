"""Repositories as a whole: what is listed while others add and remove."""

import pytest

from agent.cancel import NEVER
from agent.errors import MalformedData
from agent.repository.identity import BlobType
from agent.repository.opening import open_repository
from agent.storage.faults import Fault, Faulty
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, keys, new_repository, store_chunks


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    repository = new_repository(storage)
    for number in range(3):
        store_chunks(repository, [bytes([number])])
    return storage


@pytest.mark.parametrize("folder", ["snapshots", "index"])
def test_what_is_removed_while_it_is_listed_is_left_out(
    storage: MemoryStorage, folder: str
) -> None:
    gone = keys(storage, folder)[0]
    faulty = Faulty(storage, Fault("get", lambda: storage.delete(gone), key=gone))
    repository = open_repository(faulty, PASSWORD)
    if folder == "snapshots":
        assert len(repository.snapshots()) == 2
    else:
        assert repository.load_index().count(BlobType.DATA) == 2


def test_a_damaged_snapshot_is_an_error_unless_it_is_asked_to_be_left_out(
    storage: MemoryStorage,
) -> None:
    bad = keys(storage, "snapshots")[0]
    storage.put(bad, b"damaged")
    repository = open_repository(storage, PASSWORD)
    with pytest.raises(MalformedData, match=bad):
        repository.snapshots()
    refused: list[MalformedData] = []
    assert len(repository.snapshots(NEVER, refused)) == 2
    assert [error.what for error in refused] == [bad]


def test_snapshots_come_oldest_first(storage: MemoryStorage) -> None:
    times = [s.time_ns for s in open_repository(storage, PASSWORD).snapshots()]
    assert times == sorted(times)


def test_a_repository_says_where_it_is() -> None:
    assert new_repository(MemoryStorage("here")).place == "here"
