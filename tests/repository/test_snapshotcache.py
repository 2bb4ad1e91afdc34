"""Snapshots are fetched once, and what the cache says of them is what the repository has."""

from pathlib import Path

import pytest

from agent.config import CacheDir
from agent.errors import MalformedData
from agent.monitor import Monitor
from agent.repository.objects import Folder
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, fill, keys

COUNT = 5


class Counting(MemoryStorage):
    """Counts how often a snapshot is fetched."""

    fetched = 0

    def get(self, key: str, **how: object) -> bytes:
        self.fetched += key.startswith("snapshots/")
        return super().get(key, **how)  # type: ignore[arg-type]


class Made:
    """A repository with some snapshots, and its cache."""

    def __init__(self, root: Path, limit_mib: int = 64) -> None:
        self.storage = Counting()
        fill(self.storage)
        self.cache = CacheDir(root, limit_mib)
        repository = self.open()
        with repository.locked(exclusive=False) as lock:
            for number in range(COUNT):
                with repository.writing(lock, Monitor()) as writer:
                    writer.finish(Snapshot(time_ns=number + 1, tree=writer.store_tree([])))
        self.storage.fetched = 0

    def open(self) -> Repository:
        return open_repository(self.storage, PASSWORD, cache=self.cache)

    def look(self, *, fresh: bool = False) -> tuple[int, list[str]]:
        """Return how many were fetched, and the ids of all, looked at by a process of its own."""
        before = self.storage.fetched
        found = [snapshot.id for snapshot in self.open().snapshots(fresh=fresh)]
        return self.storage.fetched - before, found

    @property
    def kept(self) -> list[Path]:
        return sorted(self.cache.root.glob("*/snapshots/*"))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "cache")


def test_each_is_fetched_once(made: Made) -> None:
    fetched, found = made.look()
    assert (fetched, len(found)) == (COUNT, COUNT)
    assert made.look() == (0, found)
    assert [path.name for path in made.kept] == sorted(found)


def test_whoever_removes_something_looks_at_what_is_stored(made: Made) -> None:
    _, found = made.look()
    assert made.look(fresh=True) == (COUNT, found)


def test_what_is_kept_is_sealed_as_it_lies_in_the_repository(made: Made) -> None:
    made.look()
    for path in made.kept:
        assert path.read_bytes() == made.storage.get(f"snapshots/{path.name}")


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_torn_one_is_fetched_again(made: Made, content: bytes) -> None:
    _, found = made.look()
    made.kept[2].write_bytes(content)
    assert made.look() == (1, found)
    assert made.look() == (0, found)


def test_one_that_was_put_in_the_place_of_another_is_not_believed(made: Made) -> None:
    _, found = made.look()
    made.kept[0].write_bytes(made.kept[1].read_bytes())
    assert made.look() == (1, found)


def test_what_is_forgotten_is_gone_whatever_the_cache_has(made: Made) -> None:
    _, found = made.look()
    for id in found[:2]:
        made.open().objects.remove(Folder.SNAPSHOTS, id)
    assert made.look() == (0, found[2:])
    assert [path.name for path in made.kept] == sorted(found[2:])


def test_a_damaged_one_is_refused_and_not_kept(made: Made) -> None:
    key = keys(made.storage, "snapshots")[0]
    made.storage.delete(key)
    made.storage.put(key, b"something else")
    refused: list[MalformedData] = []
    assert len(made.open().snapshots(refused=refused)) == COUNT - 1
    assert len(refused) == 1
    assert len(made.kept) == COUNT - 1


def test_without_room_or_a_folder_they_are_fetched_each_time(tmp_path: Path) -> None:
    full = Made(tmp_path / "full", limit_mib=0)
    assert full.look()[0] == full.look()[0] == COUNT
    assert full.kept == []
    blocked = Made(tmp_path / "blocked")
    folder = next(blocked.cache.root.glob("*/index")).parent / "snapshots"
    folder.write_bytes(b"in the way")
    assert blocked.look()[0] == blocked.look()[0] == COUNT
