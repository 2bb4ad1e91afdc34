"""Removal of what a snapshot does not have, from a target whose owner is hostile."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import SourceError
from agent.volume.removal import Spares
from agent.volume.writer import TargetTree
from tests.volume.test_races import ROUNDS, exchange, swapping
from tests.volume.test_writer import entry

Remove = Callable[..., int]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def remove(target: Path) -> Iterator[Remove]:
    """Return a function that removes a name of the target and returns how many went with it."""
    with TargetTree.open(target, lambda _: None) as tree:

        def do(name: bytes, spares: Spares | None = None) -> int:
            counts: list[int] = []
            before = len(os.listdir("/proc/self/fd"))
            try:
                tree.root.remove(name, counts.append, spares)
            finally:
                assert len(os.listdir("/proc/self/fd")) == before
                removed.extend(counts)
            return sum(counts)

        yield do


removed: list[int] = []


def test_everything_below_is_removed_and_counted(target: Path, remove: Remove) -> None:
    (target / "d" / "e" / "f").mkdir(parents=True)
    (target / "d" / "file").write_bytes(b"x")
    (target / "d" / "e" / "link").symlink_to("file")
    os.mkfifo(target / "d" / "fifo")
    (target / "stays").write_bytes(b"x")
    assert remove(b"d") == 6
    assert [path.name for path in target.iterdir()] == ["stays"]


def test_a_symlink_is_removed_and_what_it_leads_to_is_not(
    target: Path, tmp_path: Path, remove: Remove
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"safe")
    (target / "d").mkdir()
    (target / "d" / "link").symlink_to(outside)
    (target / "link").symlink_to(outside)
    assert (remove(b"d"), remove(b"link")) == (2, 1)
    assert (outside / "victim").read_bytes() == b"safe"
    assert list(target.iterdir()) == []


def test_what_is_not_there_counts_as_removed(remove: Remove) -> None:
    assert remove(b"never") == 1


def test_what_is_spared_stays_with_the_directories_above_it(target: Path, remove: Remove) -> None:
    for name in ("d/e/keep.log", "d/e/go", "d/f/go", "d/go"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(b"x")
    asked: list[bytes] = []

    def spares(path: bytes) -> bool:
        asked.append(path)
        return path.endswith(b".log")

    assert remove(b"d", spares) == 4
    assert sorted(asked) == [
        b"d", b"d/e", b"d/e/go", b"d/e/keep.log", b"d/f", b"d/f/go", b"d/go",
    ]  # fmt: skip
    left = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert left == ["d", "d/e", "d/e/keep.log"]


def test_3000_levels_are_removed_without_a_path_for_each(
    target: Path, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.open(target, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir(b"n" * 200, dir_fd=here)
        below = os.open(b"n" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert remove(b"n" * 200) == 3000
    assert list(target.iterdir()) == []


def test_a_mount_point_is_left_with_what_is_in_it(
    target: Path, remove: Remove, mount: Callable[..., None]
) -> None:
    (target / "d" / "mounted").mkdir(parents=True)
    mount("-t", "tmpfs", "tmpfs", target / "d" / "mounted")
    (target / "d" / "mounted" / "file").write_bytes(b"safe")
    with pytest.raises(SourceError, match=r"d/mounted: is a mount point"):
        remove(b"d")
    assert (target / "d" / "mounted" / "file").read_bytes() == b"safe"


def test_a_directory_that_is_mounted_onto_itself_is_a_mount_point_too(
    target: Path, tmp_path: Path, remove: Remove, mount: Callable[..., None]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"safe")
    (target / "d").mkdir()
    mount("--bind", outside, target / "d")
    with pytest.raises(SourceError, match="mount point"):
        remove(b"d")
    assert (outside / "file").read_bytes() == b"safe"


def test_what_was_removed_before_a_failure_is_counted(
    target: Path, remove: Remove, mount: Callable[..., None]
) -> None:
    (target / "d" / "e" / "mounted").mkdir(parents=True)
    for number in range(20):
        (target / "d" / "e" / f"f{number}").write_bytes(b"x")
    mount("-t", "tmpfs", "tmpfs", target / "d" / "e" / "mounted")
    removed.clear()
    with pytest.raises(SourceError):
        remove(b"d")
    assert sum(removed) == 20 - len(list((target / "d" / "e").glob("f*")))


def test_nothing_outside_is_removed_while_a_directory_is_swapped_for_a_symlink(
    target: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    for path in (outside / "victim", outside / "below" / "victim"):
        path.write_bytes(b"safe")
    link = tmp_path / "link"
    link.symlink_to(outside)
    place = target / "d" / "below"

    def swap() -> None:
        with contextlib.suppress(OSError, AssertionError):  # the removal was faster
            exchange(place, link)

    counts: list[int] = []
    refused: list[SourceError] = []
    with swapping(swap), TargetTree.open(target, lambda _: None) as tree:
        for _ in range(ROUNDS):
            place.mkdir(parents=True, exist_ok=True) if not place.is_symlink() else None
            try:
                tree.root.remove(b"d", counts.append)
            except SourceError as error:
                refused.append(error)
    assert sum(counts) > 0
    assert (outside / "victim").read_bytes() == b"safe"
    assert (outside / "below" / "victim").read_bytes() == b"safe"


def test_entries_that_vanish_while_they_are_removed_are_as_good_as_removed(target: Path) -> None:
    def vanish() -> None:
        shutil.rmtree(target / "d", ignore_errors=True)

    refused: list[SourceError] = []
    with swapping(vanish), TargetTree.open(target, lambda _: None) as tree:
        for _ in range(100):
            for number in range(5):
                with contextlib.suppress(FileNotFoundError):
                    (target / "d" / f"e{number}" / "f").mkdir(parents=True, exist_ok=True)
            try:
                tree.root.remove(b"d", lambda _: None)
            except SourceError as error:
                refused.append(error)
    assert refused == []


def test_a_file_is_discarded_only_while_its_name_is_its_own(target: Path) -> None:
    with TargetTree.open(target, lambda _: None) as tree:
        file = tree.root.make_file(entry())
        (target / "name").rename(target / "away")
        (target / "name").mkdir()
        tree.root.discard(file)
        assert (target / "name").is_dir()
        (target / "name").rmdir()
        (target / "away").rename(target / "name")
        tree.root.discard(file)
        tree.root.discard(file)
    assert list(target.iterdir()) == []
