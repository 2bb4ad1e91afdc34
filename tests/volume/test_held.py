"""Descriptors that are held for a while and opened again, never as something else."""

import os
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.errors import SourceError
from agent.volume.held import Descriptors, Held
from agent.volume.target_file import TargetFile
from agent.volume.writer import TargetTree
from tests.volume.test_writer import entry

LIMIT = 4


class Known(Held):
    """A file that is opened again by its path, and counts how often."""

    def __init__(self, descriptors: Descriptors, path: Path) -> None:
        self.path = path
        self.reopened = 0
        super().__init__(descriptors, os.open(path, os.O_RDWR | os.O_CREAT))

    def reopen(self) -> int:
        self.reopened += 1
        return os.open(self.path, os.O_RDWR)


def count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_more_than_the_limit_are_open_and_the_longest_unused_goes(tmp_path: Path) -> None:
    before = count()
    descriptors = Descriptors(LIMIT)
    every = [Known(descriptors, tmp_path / f"f{n}") for n in range(20)]
    assert count() == before + LIMIT
    with every[16].using():
        pass
    Known(descriptors, tmp_path / "one more")
    assert [descriptors.has(every[n]) for n in (16, 17, 18)] == [True, False, True]
    descriptors.close()
    assert count() == before


def test_what_is_in_use_is_never_closed(tmp_path: Path) -> None:
    descriptors = Descriptors(1)
    one, two = (Known(descriptors, tmp_path / name) for name in "ab")
    with one.using() as first, two.using() as second:
        Known(descriptors, tmp_path / "c")
        assert one.is_at(first)
        assert two.is_at(second)
    descriptors.close()


def test_what_is_closed_is_not_opened_again_and_closing_twice_does_nothing(tmp_path: Path) -> None:
    before = count()
    held = Known(Descriptors(LIMIT), tmp_path / "a")
    held.close()
    held.close()
    with pytest.raises(OSError, match="descriptor"), held.using():
        pass
    assert (held.reopened, count()) == (0, before)


def test_threads_share_what_is_held_and_leave_nothing_open(tmp_path: Path) -> None:
    before = count()
    descriptors = Descriptors(LIMIT)
    every = [Known(descriptors, tmp_path / f"f{n}") for n in range(12)]
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        start.wait()
        for step in range(600):
            held = every[(step * (seed + 1) + seed) % len(every)]
            with held.using() as descriptor:
                assert held.is_at(descriptor)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    with every[0].using():
        pass
    assert count() <= before + LIMIT + 6
    for held in every:
        held.close()
    assert count() == before


def test_an_error_of_a_close_that_made_room_is_told_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = Descriptors(1)
    held = Known(descriptors, tmp_path / "a")
    close = os.close

    def late(descriptor: int) -> None:
        close(descriptor)
        raise OSError(5, "input/output error")

    monkeypatch.setattr("agent.volume.held.os.close", late)
    other = Known(descriptors, tmp_path / "b")
    monkeypatch.undo()
    assert descriptors.has(other)
    with pytest.raises(OSError, match="input/output"):
        held.close()
    held.close()
    descriptors.close()


@pytest.mark.parametrize("other", ["directory", "symlink", "nothing"])
def test_a_directory_that_was_replaced_is_not_entered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr("agent.volume.writer.HELD_DESCRIPTORS", 1)
    with TargetTree.open(tmp_path, lambda _: None) as tree:
        made = tree.root.make_directory(entry(b"d"))
        tree.root.make_directory(entry(b"e"))
        assert not tree.descriptors.has(made)
        assert made.names() == frozenset()
        tree.root.names()
        (tmp_path / "d").rename(tmp_path / "away")
        if other == "directory":
            (tmp_path / "d").mkdir()
        elif other == "symlink":
            (tmp_path / "d").symlink_to("away")
        before = count()
        with pytest.raises(SourceError, match=r"replaced|vanished"):
            made.make_file(entry())
        assert count() <= before
    assert list((tmp_path / "away").iterdir()) == []


@pytest.fixture
def put_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TargetFile]:
    """Return a file in the making that was closed because others were used later."""
    monkeypatch.setattr("agent.volume.writer.HELD_DESCRIPTORS", 1)
    with TargetTree.open(tmp_path, lambda _: None) as tree:
        file = tree.root.make_file(entry())
        tree.root.names()
        tree.root.make_directory(entry(b"d"))
        yield file


def test_a_file_that_was_replaced_is_not_written_again(
    tmp_path: Path, put_away: TargetFile
) -> None:
    (tmp_path / "name").rename(tmp_path / "away")
    (tmp_path / "name").write_bytes(b"safe")
    with pytest.raises(SourceError, match="replaced"):
        put_away.write_at(0, b"bad")
    assert (tmp_path / "name").read_bytes() == b"safe"


def test_a_fifo_in_the_place_of_a_file_is_not_opened(tmp_path: Path, put_away: TargetFile) -> None:
    (tmp_path / "name").unlink()
    os.mkfifo(tmp_path / "name")
    found = os.stat(tmp_path / "name")
    # As if it had got the number of the file, which is free again.
    put_away.device, put_away.inode = found.st_dev, found.st_ino
    reader = os.open(tmp_path / "name", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(SourceError, match="replaced"):
            put_away.write_at(0, b"bad")
        poll = select.poll()
        poll.register(reader)
        assert poll.poll(0) == []  # once it had a writer, it would have hung up
    finally:
        os.close(reader)
