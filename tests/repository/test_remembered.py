"""Remembered directories: valid as long as everything that an entry promises holds, void otherwise."""

import os
from pathlib import Path

import pytest

from agent.config import CacheDir
from agent.repository import remembered
from agent.repository.cache import Cache
from agent.repository.contract import Remembered
from agent.repository.remembered import Directories

INDEX = ["1" * 64, "2" * 64]


def tree(number: int) -> bytes:
    return number.to_bytes(2) * 16


def entry(number: int) -> Remembered:
    return Remembered(bytes([number % 251]) * 16, number, number * 1000)


def content(numbers: list[int]) -> bytes:
    made = Directories(b"", INDEX)
    for number in numbers:
        made.remember(tree(number), entry(number))
    return made.content(INDEX)


def test_what_was_remembered_is_recalled_and_nothing_else() -> None:
    numbers = list(range(0, 2000, 2))
    loaded = Directories(content([*reversed(numbers), 4, 8]), INDEX)
    assert [loaded.recall(tree(n)) for n in numbers] == [entry(n) for n in numbers]
    assert not any(loaded.recall(tree(n + 1)) for n in numbers)
    assert Directories(content([]), INDEX).recall(tree(0)) is None


def test_only_what_a_run_has_met_is_kept() -> None:
    loaded = Directories(content([1, 2, 3]), INDEX)
    loaded.remember(tree(2), entry(2))
    again = Directories(loaded.content(INDEX), INDEX)
    assert [n for n in range(5) if again.recall(tree(n))] == [2]


def test_more_index_files_do_no_harm_and_one_less_makes_it_void() -> None:
    whole = content([1])
    assert Directories(whole, [*INDEX, "3" * 64]).recall(tree(1)) == entry(1)
    for names in (INDEX[:1], [], ["3" * 64]):
        assert Directories(whole, names).recall(tree(1)) is None


def test_other_circumstances_make_it_void(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content([1])
    monkeypatch.setattr(remembered, "local_zone", lambda _: 3600)
    assert Directories(whole, INDEX).recall(tree(1)) is None
    monkeypatch.undo()
    assert Directories(whole, INDEX).recall(tree(1)) == entry(1)
    monkeypatch.setattr(remembered, "_USERS", ("/etc/hostname",))
    assert Directories(whole, INDEX).recall(tree(1)) is None


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_DIRECTORIES", 3)
    loaded = Directories(content([1, 2, 3, 4, 5]), INDEX)
    assert [n for n in range(9) if loaded.recall(tree(n))] == [1, 2, 3]


def test_a_file_that_ends_anywhere_is_void_or_less() -> None:
    whole = content([1, 2])
    for end in range(len(whole)):
        loaded = Directories(whole[:end], INDEX)
        assert [loaded.recall(tree(n)) for n in (1, 2)] in ([None, None], [entry(1), None])


class TestCache:
    def test_it_takes_the_place_of_the_parents(self, tmp_path: Path) -> None:
        cache = Cache(CacheDir(tmp_path), "r" * 64)
        assert cache.load_directories("a") == b""
        cache.save_directories("a", b"of a", "")
        cache.save_directories("b", b"of b", "a")
        assert (cache.load_directories("a"), cache.load_directories("b")) == (b"", b"of b")

    def test_torn_at_any_byte_it_is_nothing(self, tmp_path: Path) -> None:
        cache = Cache(CacheDir(tmp_path), "r" * 64)
        cache.save_directories("a", content([1]), "")
        (path,) = tmp_path.glob("*/directories/a")
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place])
            assert cache.load_directories("a") == b""
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert cache.load_directories("a") == b""
        path.write_bytes(whole)
        assert cache.load_directories("a") == content([1])

    def test_what_a_crash_left_half_written_is_removed(self, tmp_path: Path) -> None:
        cache = Cache(CacheDir(tmp_path), "r" * 64)
        cache.keep_only(set())  # nothing is remembered yet
        cache.save_directories("a", b"of a", "")
        left = tmp_path / ("r" * 64) / "directories" / ".b.0123"
        left.write_bytes(b"half")
        cache.keep_only(set())
        assert left.exists()  # somebody may be writing it
        os.utime(left, (0, 0))
        cache.keep_only(set())
        assert not left.exists()
        assert cache.load_directories("a") == b"of a"

    def test_it_counts_for_the_limit(self, tmp_path: Path) -> None:
        cache = Cache(CacheDir(tmp_path, 1), "r" * 64)
        cache.save_directories("a", bytes(900_000), "")
        cache.save_directories("b", bytes(900_000), "")
        assert cache.load_directories("a") == b""
        assert len(cache.load_directories("b")) == 900_000
        cache.save_directories("c", bytes(2_000_000), "")
        assert cache.load_directories("c") == b""

    def test_a_folder_that_cannot_be_written_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        cache = Cache(CacheDir(tmp_path / "file"), "r" * 64)
        cache.save_directories("a", b"of a", "")
        assert cache.load_directories("a") == b""
