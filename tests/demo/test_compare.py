"""The judge of restores finds each kind of difference, and none where there is none."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.demo.compare import count, differences
from agent.demo.sample import change, make
from tests.support.requirements import missing

HOUR_NS = 3600 * 10**9


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Return two directories that are the same."""
    for side in ("one", "two"):
        root = tmp_path / side
        (root / "dir").mkdir(parents=True)
        (root / "file").write_bytes(b"x" * (1 << 20) + b"end")
        (root / "twin").hardlink_to(root / "file")
        (root / "dir" / "single").write_text("single")
        (root / "dir" / "other").write_text("single")
        (root / "link").symlink_to("file")
        os.mkfifo(root / "fifo")
        for path in sorted(root.rglob("*"), reverse=True):
            os.utime(path, ns=(0, HOUR_NS), follow_symlinks=False)
    return tmp_path / "one", tmp_path / "two"


def same_time(path: Path) -> None:
    os.utime(path, ns=(0, HOUR_NS), follow_symlinks=False)


def content(root: Path) -> None:
    with (root / "file").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"END")
    same_time(root / "file")


def size(root: Path) -> None:
    os.truncate(root / "dir" / "single", 3)
    same_time(root / "dir" / "single")


def symlink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    same_time(root / "link")


def kind(root: Path) -> None:
    (root / "fifo").unlink()
    (root / "fifo").touch()
    same_time(root / "fifo")


def unlinked(root: Path) -> None:
    content = (root / "twin").read_bytes()
    (root / "twin").unlink()
    (root / "twin").write_bytes(content)
    same_time(root / "twin")


def linked(root: Path) -> None:
    (root / "dir" / "other").unlink()
    (root / "dir" / "other").hardlink_to(root / "dir" / "single")
    same_time(root / "dir")


def lost(root: Path) -> None:
    (root / "dir" / "single").unlink()
    same_time(root / "dir")


def extra(root: Path) -> None:
    Path(os.fsdecode(bytes(root) + b"/new-\xff")).touch()


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (content, "/file: content differs"),
    (size, "/dir/single: size is 3, not 6"),
    (symlink, "/link: the symlink leads elsewhere"),
    (kind, "/fifo is another kind of entry"),
    (unlinked, "/twin: is no longer a hard link"),
    (linked, "/dir/single: has become a hard link"),
    (lost, "/dir/single is in the source only"),
    (extra, "/new-\\xff is in the copy only"),
    (lambda root: (root / "dir" / "single").chmod(0o4711), "/dir/single: st_mode is"),
    (lambda root: os.utime(root / "dir", ns=(0, HOUR_NS + 1)), "/dir: st_mtime_ns is"),
    (lambda root: os.setxattr(root / "file", "user.x", b"1"), "/file: extended attributes differ"),
]


def test_nothing_is_found_in_equal_trees(sides: tuple[Path, Path]) -> None:
    one, two = sides
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(two):
        listener.bind("socket")  # sockets are left out of backups
    assert list(differences(one, two)) == []
    assert count(one) == count(two) == (7, 2 * ((1 << 20) + 3) + 12)


@pytest.mark.parametrize(("alter", "finding"), CHANGES, ids=[words for _, words in CHANGES])
def test_each_difference_is_named(
    sides: tuple[Path, Path], alter: Callable[[Path], object], finding: str
) -> None:
    one, two = sides
    alter(two)
    assert any(found.startswith(finding) for found in differences(one, two))


def test_owners_and_devices_are_compared(sides: tuple[Path, Path]) -> None:
    if os.geteuid() != 0:
        missing("the right to give files away", "run the tests as root")
    one, two = sides
    os.chown(two / "file", 1000, 1001)
    os.mknod(one / "device", 0o20600, os.makedev(1, 3))
    os.mknod(two / "device", 0o20600, os.makedev(1, 5))
    found = "\n".join(differences(one, two))
    assert "/file: st_uid is 1000, not 0" in found
    assert "/file: st_gid is 1001, not 0" in found
    assert "/device: st_rdev is" in found


def test_the_roots_own_times_are_compared_on_request(sides: tuple[Path, Path]) -> None:
    one, two = sides
    os.utime(one, ns=(0, 1))
    os.utime(two, ns=(0, 2))
    assert list(differences(one, two)) == []
    assert list(differences(one, two, times_of_root=True)) == ["/: st_mtime_ns is 2, not 1"]


@pytest.mark.parametrize("megabytes", [3, 340])
def test_the_sample_is_the_same_each_time_and_changes_a_little(
    tmp_path: Path, megabytes: int
) -> None:
    """The larger one is only as large as its changes need: a table of that many pages."""
    for side in ("one", "two"):
        make(tmp_path / side, 3)
    content = [
        found for found in differences(tmp_path / "one", tmp_path / "two") if "mtime" not in found
    ]
    assert content == []
    words = change(tmp_path / "two", megabytes)
    assert ("2 database pages overwritten" in words) == (megabytes == 340)
    changed = "\n".join(differences(tmp_path / "one", tmp_path / "two"))
    assert "/src/mod00/file000.py is in the source only" in changed
    assert "/odd/renamed is in the copy only" in changed
    log = "/logs/app.log: content differs" if megabytes == 340 else "/logs/app.log.1 is in the copy"
    assert log in changed
