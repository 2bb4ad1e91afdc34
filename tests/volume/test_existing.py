"""Files that are in the target already: read, kept, or written where they differ."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.errors import SourceError
from agent.volume.existing import ExistingFile
from agent.volume.writer import TargetDirectory, TargetTree
from tests.volume.test_writer import entry


@pytest.fixture
def root(tmp_path: Path) -> Iterator[TargetDirectory]:
    with TargetTree.open(tmp_path, lambda _: None) as tree:
        yield tree.root


def existing(root: TargetDirectory) -> ExistingFile:
    file = root.open_existing(entry())
    assert file is not None
    return file


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_is_read_in_any_place_and_ends_where_it_ends(
    tmp_path: Path, root: TargetDirectory
) -> None:
    (tmp_path / "name").write_bytes(b"0123456789")
    with existing(root) as file:
        assert (file.size, file.links) == (10, 1)
        assert [file.read_at(0, 4), file.read_at(8, 9), file.read_at(99, 1)] == [
            b"0123", b"89", b"",
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["nothing", "directory", "symlink", "fifo"])
def test_only_a_regular_file_is_taken_for_one(
    tmp_path: Path, root: TargetDirectory, kind: str
) -> None:
    (tmp_path / "other").write_bytes(b"x")
    if kind == "directory":
        (tmp_path / "name").mkdir()
    elif kind == "symlink":
        (tmp_path / "name").symlink_to("other")
    elif kind == "fifo":
        os.mkfifo(tmp_path / "name")
    before = len(os.listdir("/proc/self/fd"))
    assert root.open_existing(entry()) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_written_in_place_and_zeros_are_written_too(
    tmp_path: Path, root: TargetDirectory
) -> None:
    (tmp_path / "name").write_bytes(b"x" * 200_000)
    with existing(root) as file:
        target = file.rewrite()
    assert target is not None
    with target:
        target.write_at(1000, bytes(150_000))
    assert (tmp_path / "name").read_bytes() == b"x" * 1000 + bytes(150_000) + b"x" * 49_000


@pytest.mark.parametrize("lacks", ["nothing", "mode", "mtime", "attribute"])
def test_a_file_of_two_names_is_not_written_and_kept_only_if_it_lacks_nothing(
    tmp_path: Path, root: TargetDirectory, lacks: str
) -> None:
    (tmp_path / "name").write_bytes(b"x")
    (tmp_path / "name").chmod(0o604 if lacks == "mode" else 0o640)
    os.setxattr(tmp_path / "name", "user.a", b"other" if lacks == "attribute" else b"1")
    os.utime(tmp_path / "name", ns=(0, 7 if lacks == "mtime" else 8))
    os.link(tmp_path / "name", tmp_path / "other")
    before = os.stat(tmp_path / "other")
    wanted = entry(permissions=0o640, mtime_ns=8, xattrs=((b"user.a", b"1"),))
    with existing(root) as file:
        assert file.rewrite() is None
        target = file.keep(wanted)
    assert (target is not None) is (lacks == "nothing")
    if target is not None:
        with target:
            target.finish_metadata(wanted)
    assert os.stat(tmp_path / "other").st_ctime_ns == before.st_ctime_ns


@pytest.mark.parametrize("what", ["file", "symlink"])
def test_neither_a_file_that_lost_its_name_nor_what_took_it_is_written_to(
    tmp_path: Path, root: TargetDirectory, what: str
) -> None:
    (tmp_path / "name").write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b"safe")
    with existing(root) as file:
        (tmp_path / "name").rename(tmp_path / "away")
        if what == "symlink":
            (tmp_path / "name").symlink_to("outside")
        else:
            (tmp_path / "name").write_bytes(b"safe")
        assert file.rewrite() is None
        assert file.keep(entry(permissions=0o604)) is None


def test_a_name_that_is_gone_when_links_are_counted_is_missed(
    tmp_path: Path, root: TargetDirectory
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"safe")
    os.link(outside, tmp_path / "name")
    with existing(root) as file:
        (tmp_path / "name").unlink()
        (tmp_path / "name").write_bytes(b"safe")
        assert outside.stat().st_nlink == 1
        assert file.rewrite() is None


@pytest.mark.usefixtures("as_root")
def test_who_may_not_write_a_file_can_still_keep_it(tmp_path: Path, root: TargetDirectory) -> None:
    (tmp_path / "name").write_bytes(b"right")
    os.chown(tmp_path / "name", 12_345, 0)
    (tmp_path / "name").chmod(0o400)
    tmp_path.chmod(0o755)
    wanted = entry(uid=12_345, gid=0, permissions=0o440)
    with acting_as(12_345), existing(root) as file:
        with pytest.raises(SourceError, match="permission denied"):
            file.rewrite()
        target = file.keep(wanted)
        assert target is not None
        with target:
            target.finish_metadata(wanted)
    assert (tmp_path / "name").stat().st_mode & 0o777 == 0o440
