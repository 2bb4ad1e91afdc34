"""Listing a directory: what is in it, what is left out, and what cannot be slipped in."""

import errno
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry, Kind
from agent.errors import Canceled, SourceError
from agent.monitor import Monitor
from agent.volume.directory import Directory, Surroundings
from agent.volume.exclude import Exclude
from agent.volume.looking import names_bytes
from agent.volume.mounts import holds_mounts, mount_id
from agent.volume.names import NameCache
from agent.volume.reader import Volume
from tests.support.requirements import missing
from tests.volume.listing import listing

ACL = bytes.fromhex(
    "0200000001000700ffffffff02000500e803000004000500ffffffff10000500ffffffff20000000ffffffff"
)  # user::rwx user:1000:r-x group::r-x mask::r-x other::---


def test_every_kind_is_listed_with_its_metadata(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"content")
    os.chmod(source / "file", 0o6751)
    (source / "dir").mkdir()
    os.symlink(b"else\xff/where", source / "link")
    os.mkfifo(source / "fifo", 0o640)
    os.link(source / "file", source / "other name")
    found = listing(volume.root)
    info = os.lstat(source / "file")
    file = found[b"file"]
    assert (file.kind, file.permissions, file.size, file.links) == (Kind.FILE, 0o6751, 7, 2)
    assert (file.uid, file.gid, file.inode, file.device) == (
        info.st_uid, info.st_gid, info.st_ino, info.st_dev,
    )  # fmt: skip
    assert (file.mtime_ns, file.ctime_ns) == (info.st_mtime_ns, info.st_ctime_ns)
    assert found[b"other name"].inode == file.inode
    assert (found[b"dir"].kind, found[b"dir"].size) == (Kind.DIRECTORY, 0)
    link = found[b"link"]
    assert (link.kind, link.link_target, link.size) == (Kind.SYMLINK, b"else\xff/where", 0)
    assert (found[b"fifo"].kind, found[b"fifo"].permissions) == (Kind.FIFO, 0o640)


@pytest.mark.usefixtures("as_root")
def test_devices_are_listed_with_their_numbers_and_owners_by_name(
    source: Path, volume: Volume
) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    os.chown(source / "loop", 0, 123456789)
    found = listing(volume.root)
    assert found[b"null"].kind is Kind.CHARACTER_DEVICE
    assert found[b"null"].rdev == os.makedev(1, 3)
    assert (found[b"loop"].kind, found[b"loop"].rdev) == (Kind.BLOCK_DEVICE, 1792)
    assert (found[b"loop"].user, found[b"loop"].gid, found[b"loop"].group) == (
        "root",
        123456789,
        "",
    )


def test_names_are_raw_bytes_in_raw_order(source: Path, volume: Volume) -> None:
    names = [b"\xff\xfe", b"\xc3\xa4", b"z", b"Z", b"a\nb", b'"', b"n" * 255]
    for name in names:
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).touch()
    assert list(listing(volume.root)) == sorted(names)


def test_times_of_any_year_are_exact(source: Path, volume: Volume) -> None:
    for name, mtime in {
        "old": -2_147_000_000_123_456_789,
        "one": -1,
        "far": 7_258_118_400_000_000_001,
    }.items():
        (source / name).touch()
        os.utime(source / name, ns=(0, mtime))
        assert (
            listing(volume.root)[name.encode()].mtime_ns
            == os.stat(source / name).st_mtime_ns
            == mtime
        )


def test_attributes_and_acls_are_read_from_files_and_directories(
    source: Path, volume: Volume
) -> None:
    (source / "file").touch()
    (source / "dir").mkdir()
    try:
        os.setxattr(source / "file", "user.empty", b"")
        os.setxattr(source / "file", "user.\u00e4", b"\x00\xff")
        os.setxattr(source / "dir", "user.d", b"1")
        os.setxattr(source / "dir", "system.posix_acl_default", ACL)
        os.setxattr(source / "file", "system.posix_acl_access", ACL)
    except OSError as error:
        missing(f"a file system with attributes and ACLs ({error})", "set TMPDIR to one")
    found = listing(volume.root)
    assert found[b"file"].xattrs == ()
    order = [os.fsencode(n) for n in os.listxattr(source / "file")]
    with volume.root.open_file(found[b"file"]) as file:
        alone = file.entry.xattrs
    (together,) = volume.root.read_files([found[b"file"]], memoryview(bytearray(9)), Monitor())
    assert together is not None
    assert together.entry.xattrs == alone
    assert [name for name, _ in alone] == order
    assert dict(alone) == {
        b"user.empty": b"", "user.\u00e4".encode(): b"\x00\xff", b"system.posix_acl_access": ACL,
    }  # fmt: skip
    assert dict(found[b"dir"].xattrs) == {b"user.d": b"1", b"system.posix_acl_default": ACL}


def _opened(volume: Volume, monitor: Monitor) -> Entry:
    with volume.root.open_file(listing(volume.root)[b"file"], monitor) as file:
        return file.entry


def test_an_attribute_removed_while_it_is_read_is_left_out(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").touch()
    monkeypatch.setattr("agent.volume.xattrs.os.listxattr", lambda _: ["user.gone"])
    monitor = Monitor()
    assert _opened(volume, monitor).xattrs == ()
    assert monitor.counters.problems == 0


def test_a_file_system_without_attributes_has_none(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> list[str]:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    (source / "file").touch()
    monkeypatch.setattr("agent.volume.xattrs.os.listxattr", refuse)
    monitor = Monitor()
    assert _opened(volume, monitor).xattrs == ()
    assert monitor.counters.problems == 0


def test_what_has_attributes_that_cannot_be_read_is_kept_and_named(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> list[str]:
        raise OSError(errno.EIO, "I/O")

    (source / "file").touch()
    monkeypatch.setattr("agent.volume.xattrs.os.listxattr", fail)
    monitor = Monitor()
    assert _opened(volume, monitor).xattrs == ()
    assert str(monitor.problems[0]).startswith(
        "file: kept without its extended attributes: input/output error; check the disk"
    )


@pytest.mark.usefixtures("as_root")
def test_attributes_of_a_symlink_are_its_own_and_not_its_targets(
    source: Path, volume: Volume
) -> None:
    (source / "file").touch()
    os.symlink("file", source / "link")
    os.setxattr(source / "file", "trusted.target", b"1")
    os.setxattr(source / "link", "trusted.link", b"2", follow_symlinks=False)
    assert listing(volume.root)[b"link"].xattrs == ((b"trusted.link", b"2"),)


def test_sockets_are_counted_and_left_out(source: Path, volume: Volume) -> None:
    before = os.open(source, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{before}/s")
    os.close(before)
    monitor = Monitor()
    assert listing(volume.root, monitor) == {}
    assert (monitor.counters.sockets_skipped, monitor.counters.problems) == (1, 0)


def test_excluded_entries_are_counted_and_left_out(source: Path, volume: Volume) -> None:
    (source / "a.log").touch()
    (source / "logs").mkdir()
    (source / "kept").touch()
    monitor = Monitor()
    assert list(listing(volume.root, monitor, "*.log", "logs/")) == [b"kept"]
    assert monitor.counters.excluded == 2


def test_subdirectories_are_listed_below_their_own_path(source: Path, volume: Volume) -> None:
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "c").write_bytes(b"x")
    root = volume.root
    with root.open_directory(listing(root)[b"a"]) as a, a.open_directory(listing(a)[b"b"]) as b:
        assert (a.path, b.path) == (b"a", b"a/b")
        assert list(listing(b, None, "/a/b/d")) == [b"c"]
        assert listing(b, None, "/a/b/c") == {}


def test_a_name_that_vanishes_during_the_listing_is_no_problem(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "a").touch()
    (source / "c").touch()
    monkeypatch.setattr("agent.volume.directory.listed", lambda *_: [b"a", b"b", b"c"])
    monitor = Monitor()
    entries = volume.root.entries(Exclude(), monitor, NEVER)
    assert [entry.name for entry in entries] == [b"a", b"c"]
    assert monitor.counters.problems == 0


def test_a_directory_of_too_many_names_is_not_listed(source: Path, volume: Volume) -> None:
    for name in ("a", "b", "c"):
        (source / name).touch()
    room = names_bytes([b"a", b"b", b"c"])
    assert volume.root.names(room) == [b"a", b"b", b"c"]
    for most in (0, room - 1):
        with pytest.raises(SourceError, match=f"names that take more than {most} bytes"):
            volume.root.names(most)


def test_attributes_of_one_file_have_a_bound(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.volume.xattrs.MOST_BYTES", 10)
    (source / "d").mkdir()
    os.setxattr(source / "d", "user.a", b"1" * 6)
    monitor = Monitor()
    (entry,) = volume.root.entries(Exclude(), monitor, NEVER)
    assert (len(entry.xattrs), monitor.counters.problems) == (1, 0)
    os.setxattr(source / "d", "user.b", b"1" * 6)
    (entry,) = volume.root.entries(Exclude(), monitor, NEVER)
    assert entry.xattrs == ()
    (problem,) = monitor.problems
    assert "too many of them, or they are too large" in problem.reason


def test_a_cancel_ends_the_listing(source: Path, volume: Volume) -> None:
    (source / "a").touch()
    cancel = CancelToken()
    cancel.cancel("enough")
    with pytest.raises(Canceled, match="enough"):
        volume.root.entries(Exclude(), Monitor(), cancel)


def test_a_directory_swapped_for_a_symlink_is_refused(
    source: Path, volume: Volume, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (source / "dir").mkdir()
    entry = listing(volume.root)[b"dir"]
    (source / "dir").rmdir()
    os.symlink(tmp_path / "outside", source / "dir")
    with pytest.raises(SourceError, match="dir: was replaced") as caught:
        volume.root.open_directory(entry)
    assert caught.value.path == b"dir"


def test_a_directory_swapped_for_another_is_refused(source: Path, volume: Volume) -> None:
    (source / "dir").mkdir()
    (source / "other").mkdir()
    entry = listing(volume.root)[b"dir"]
    (source / "dir").rename(source / "gone")
    (source / "other").rename(source / "dir")
    with pytest.raises(SourceError, match="was replaced by something else"):
        volume.root.open_directory(entry)


def test_a_directory_that_vanished_says_so(source: Path, volume: Volume) -> None:
    (source / "dir").mkdir()
    entry = listing(volume.root)[b"dir"]
    (source / "dir").rmdir()
    with pytest.raises(SourceError, match="vanished meanwhile"):
        volume.root.open_directory(entry)


def test_an_open_directory_moved_out_from_under_its_parent_is_still_the_same(
    source: Path, volume: Volume, tmp_path: Path
) -> None:
    (source / "dir").mkdir()
    (source / "dir" / "mine").touch()
    (tmp_path / "secret").mkdir()
    with volume.root.open_directory(listing(volume.root)[b"dir"]) as directory:
        (source / "dir").rename(source / "moved")
        os.symlink(tmp_path / "secret", source / "dir")
        assert list(listing(directory)) == [b"mine"]


def test_a_file_cannot_be_opened_as_a_directory(source: Path, volume: Volume) -> None:
    (source / "file").touch()
    with pytest.raises(SourceError, match="not crossed"):
        volume.root.open_directory(listing(volume.root)[b"file"])


def test_a_mounted_file_system_is_kept_as_a_directory_that_is_not_crossed(
    source: Path, mount: Callable[..., None]
) -> None:
    (source / "mnt").mkdir()
    mount("-t", "tmpfs", "-o", "mode=0750", "none", source / "mnt")
    monitor = Monitor()
    with Volume.open(source) as volume:
        entry = listing(volume.root, monitor)[b"mnt"]
        assert (entry.kind, entry.permissions) == (Kind.DIRECTORY, 0o750)
        assert entry.device != volume.device
        assert not volume.root.crossable(entry)
        assert monitor.counters.mounts_skipped == 1
        with pytest.raises(SourceError, match="not crossed"):
            volume.root.open_directory(entry)


def test_bind_mounts_of_the_same_file_system_are_not_crossed(
    source: Path, tmp_path: Path, mount: Callable[..., None]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("s")
    (source / "mnt").mkdir()
    (source / "file").touch()
    mount("--bind", tmp_path / "outside", source / "mnt")
    mount("--bind", tmp_path / "outside" / "secret", source / "file")
    monitor = Monitor()
    with Volume.open(source) as volume:
        found = listing(volume.root, monitor)
        assert list(found) == [b"mnt"]
        assert found[b"mnt"].device == volume.device
        assert not volume.root.crossable(found[b"mnt"])
    assert monitor.counters.mounts_skipped == 2


def test_files_of_an_overlays_layers_belong_to_it_whatever_their_device_number(
    tmp_path: Path, mount: Callable[..., None]
) -> None:
    merged = tmp_path / "merged"
    for name in ("lower", "layers", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_bytes(b"of the lower layer")
    mount("-t", "tmpfs", "none", tmp_path / "layers")
    (tmp_path / "layers" / "upper").mkdir()
    (tmp_path / "layers" / "work").mkdir()
    options = (
        f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/layers/upper,workdir={tmp_path}/layers/work"
    )
    mount("-t", "overlay", "-o", options, "none", merged)
    monitor = Monitor()
    with Volume.open(merged) as volume:
        entry = listing(volume.root, monitor)[b"file"]
        assert entry.device != volume.device
        with volume.root.open_file(entry) as file:
            parts = [bytes(p) for p in file.segments(lambda: memoryview(bytearray(100)))]  # type: ignore[arg-type]
    assert parts == [b"of the lower layer"]
    assert monitor.counters.mounts_skipped == 0


def test_without_mount_ids_the_device_number_decides(
    source: Path, mount: Callable[..., None]
) -> None:
    (source / "mnt").mkdir()
    (source / "file").touch()
    mount("-t", "tmpfs", "none", source / "mnt")
    descriptor = os.open(source, os.O_RDONLY)
    device = os.fstat(descriptor).st_dev
    monitor = Monitor()
    with Directory(descriptor, b"", Surroundings(device, None, True, NameCache())) as root:
        found = listing(root, monitor)
        assert sorted(found) == [b"file", b"mnt"]
        assert not root.crossable(found[b"mnt"])
    assert monitor.counters.mounts_skipped == 1
    assert mount_id(descriptor) is None  # closed by now
    assert holds_mounts(None)


def test_a_directory_lives_until_its_last_reference_is_given_back(
    source: Path, volume: Volume
) -> None:
    (source / "dir").mkdir()
    (source / "dir" / "file").write_bytes(b"late")
    directory = volume.root.open_directory(listing(volume.root)[b"dir"])
    entry = listing(directory)[b"file"]
    directory.retain()
    directory.close()
    directory.close()
    read: list[bytes] = []

    def work() -> None:
        with directory.open_file(entry) as file:
            directory.release()
            read.extend(bytes(s) for s in file.segments(lambda: memoryview(bytearray(10))))  # type: ignore[arg-type]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert read == [b"late"]
    with pytest.raises(ValueError, match="closed"):
        directory.open_file(entry)
    with pytest.raises(ValueError, match="more often"):
        directory.release()


def test_a_thousand_levels_are_walked_with_one_descriptor_each(
    source: Path, volume: Volume
) -> None:
    descriptor = os.open(source, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=descriptor))
    os.close(descriptor)
    opened = [volume.root]
    while entry := listing(opened[-1]).get(b"d"):
        opened.append(opened[-1].open_directory(entry))
    assert len(opened) == 1001
    assert list(listing(opened[-1])) == [b"bottom"]
    assert opened[-1].path == b"/".join([b"d"] * 1000)
    for directory in reversed(opened):
        directory.close()
    subprocess.run(["rm", "-rf", source / "d"], check=True)
