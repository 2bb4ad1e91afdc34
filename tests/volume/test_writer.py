"""Restoring into a directory whose owner is hostile, from names that anybody may have written."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.entry import Entry, Kind
from agent.errors import SourceError, VolumeError
from agent.volume.target_file import Place
from agent.volume.writer import TargetDirectory, TargetTree
from tests.support.requirements import missing
from tests.volume.test_directory import ACL

NOW = 1_700_000_000_123_456_789


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def problems() -> list[SourceError]:
    return []


@pytest.fixture
def tree(target: Path, problems: list[SourceError]) -> Iterator[TargetTree]:
    with TargetTree.open(target, problems.append) as opened:
        yield opened


@pytest.fixture
def root(tree: TargetTree) -> TargetDirectory:
    return tree.root


def entry(name: bytes = b"name", kind: Kind = Kind.FILE, **fields: object) -> Entry:
    values: dict[str, object] = {
        "permissions": 0o644, "uid": os.geteuid(), "gid": os.getegid(), "mtime_ns": NOW,
        "ctime_ns": 0, "inode": 1, "device": 1, **fields,
    }  # fmt: skip
    return Entry(name=name, kind=kind, **values)  # type: ignore[arg-type]


def write(root: TargetDirectory, wanted: Entry, data: bytes) -> Place:
    with root.make_file(wanted) as file:
        file.write_at(0, data)
        file.truncate(len(data))
        file.finish_metadata(wanted)
        return file.place


def test_a_file_has_its_content_mode_and_time(
    target: Path, root: TargetDirectory, problems: list[SourceError]
) -> None:
    write(root, entry(permissions=0o6751), b"content")
    info = os.stat(target / "name")
    assert (target / "name").read_bytes() == b"content"
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o6751, NOW)
    assert problems == []


def test_nobody_else_can_open_what_is_not_finished(target: Path, root: TargetDirectory) -> None:
    with root.make_file(entry(permissions=0o777)), root.make_directory(entry(b"dir")):
        assert stat.S_IMODE(os.stat(target / "name").st_mode) == 0o600
        assert stat.S_IMODE(os.stat(target / "dir").st_mode) == 0o700


def test_ranges_may_be_written_in_any_order_and_zeros_become_holes(
    target: Path, root: TargetDirectory
) -> None:
    zeros = bytes(8 << 20)
    with root.make_file(entry()) as file:
        file.write_at(len(zeros) + 5, memoryview(b"tail" + zeros))
        file.write_at(0, b"head!" + zeros)
        file.truncate(2 * len(zeros) + 9)
    info = os.stat(target / "name")
    assert (target / "name").read_bytes() == b"head!" + zeros + b"tail" + zeros
    assert info.st_blocks * 512 < 1 << 20


def test_short_runs_of_zeros_and_zeros_amid_data_keep_their_place(
    target: Path, root: TargetDirectory
) -> None:
    data = b"\0a" + bytes(70_000) + b"b" + bytes(200_000) + b"c" + bytes(65_536)
    write(root, entry(), data)
    assert (target / "name").read_bytes() == data


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc", b"../x", b"a\0b"])
def test_a_name_that_is_not_one_component_is_refused(
    tmp_path: Path, root: TargetDirectory, name: bytes
) -> None:
    for make in (
        lambda: root.make_file(entry(name)),
        lambda: root.make_directory(entry(name, Kind.DIRECTORY)),
        lambda: root.make_symlink(entry(name, Kind.SYMLINK, link_target=b"x")),
        lambda: root.make_special(entry(name, Kind.FIFO)),
        lambda: root.link(entry(name), Place(b"x", 0, 0)),
    ):
        with pytest.raises(SourceError, match="not a name of one entry"):
            make()
    assert os.listdir(tmp_path / "target") == []


def test_a_name_too_long_is_refused_by_the_kernel_and_reported(root: TargetDirectory) -> None:
    with pytest.raises(SourceError, match="file name too long"):
        root.make_file(entry(b"n" * 256))


def test_a_planted_symlink_is_replaced_and_never_followed(
    target: Path, tmp_path: Path, root: TargetDirectory
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "victim").write_text("safe")
    os.symlink("../victim", target / "file")
    os.symlink("../outside", target / "dir")
    os.symlink("../outside", target / "link")
    os.symlink("../outside", target / "fifo")
    write(root, entry(b"file"), b"new")
    with root.make_directory(entry(b"dir", Kind.DIRECTORY)) as below:
        write(below, entry(b"inner"), b"in")
    root.make_symlink(entry(b"link", Kind.SYMLINK, link_target=b"new"))
    root.make_special(entry(b"fifo", Kind.FIFO))
    assert (tmp_path / "victim").read_text() == "safe"
    assert os.listdir(tmp_path / "outside") == []
    assert not (target / "file").is_symlink()
    assert (target / "dir" / "inner").read_bytes() == b"in"
    assert not (target / "dir").is_symlink()
    assert os.readlink(target / "link") == "new"
    assert stat.S_ISFIFO(os.lstat(target / "fifo").st_mode)


def test_what_is_there_is_replaced_and_directories_are_kept(
    target: Path, root: TargetDirectory
) -> None:
    (target / "file").write_text("old and longer")
    old = os.stat(target / "file").st_ino
    os.link(target / "file", target / "second")
    (target / "dir").mkdir()
    (target / "dir" / "kept").touch()
    (target / "empty").mkdir()
    write(root, entry(b"file"), b"new")
    root.make_directory(entry(b"dir", Kind.DIRECTORY)).close()
    write(root, entry(b"empty"), b"file now")
    assert (target / "file").read_bytes() == b"new"
    assert os.stat(target / "second").st_ino == old
    assert (target / "second").read_text() == "old and longer"
    assert (target / "dir" / "kept").exists()
    assert (target / "empty").read_bytes() == b"file now"


def test_a_full_directory_is_not_removed_for_a_file(target: Path, root: TargetDirectory) -> None:
    (target / "name").mkdir()
    (target / "name" / "precious").touch()
    with pytest.raises(SourceError, match="a directory is in its place; remove it"):
        root.make_file(entry())
    assert (target / "name" / "precious").exists()


def test_a_swap_after_a_directory_was_entered_changes_nothing(
    target: Path, tmp_path: Path, root: TargetDirectory
) -> None:
    (tmp_path / "outside").mkdir()
    with root.make_directory(entry(b"dir", Kind.DIRECTORY)) as below:
        (target / "dir").rename(target / "moved")
        os.symlink("../outside", target / "dir")
        write(below, entry(b"inner"), b"x")
        below.finish_metadata(entry(b"dir", Kind.DIRECTORY, permissions=0o711))
    assert os.listdir(tmp_path / "outside") == []
    assert os.listdir(target / "moved") == ["inner"]
    assert stat.S_IMODE(os.stat(target / "moved").st_mode) == 0o711


def test_a_directorys_time_is_set_after_its_entries(target: Path, root: TargetDirectory) -> None:
    wanted = entry(b"dir", Kind.DIRECTORY, permissions=0o1555, mtime_ns=-5)
    with root.make_directory(wanted) as below:
        write(below, entry(), b"x")
        below.finish_metadata(wanted)
        below.close()
    info = os.stat(target / "dir")
    assert (info.st_mtime_ns, stat.S_IMODE(info.st_mode)) == (-5, 0o1555)


def test_a_hard_link_is_the_same_file_also_from_another_directory(
    target: Path, root: TargetDirectory
) -> None:
    a = root.make_directory(entry(b"a", Kind.DIRECTORY))
    with a, a.make_directory(entry(b"b", Kind.DIRECTORY)) as b:
        place = write(b, entry(b"first"), b"x")
    (target / "second").write_text("in the way")
    root.link(entry(b"second"), place)
    assert os.path.samefile(target / "a" / "b" / "first", target / "second")


def test_a_link_to_a_file_that_was_swapped_is_refused(
    target: Path, tmp_path: Path, root: TargetDirectory
) -> None:
    (tmp_path / "secret").write_text("s")
    place = write(root, entry(b"first"), b"x")
    (target / "first").unlink()
    os.symlink("../secret", target / "first")
    with pytest.raises(SourceError, match="was replaced; restore again"):
        root.link(entry(b"second"), place)
    (target / "first").unlink()
    with pytest.raises(SourceError, match="vanished"):
        root.link(entry(b"second"), place)
    assert os.listdir(target) == []


def test_a_link_is_not_looked_up_through_a_planted_symlink(
    target: Path, tmp_path: Path, root: TargetDirectory
) -> None:
    with root.make_directory(entry(b"dir", Kind.DIRECTORY)) as below:
        place = write(below, entry(b"first"), b"x")
    (target / "dir").rename(tmp_path / "dir")
    os.symlink("../dir", target / "dir")
    with pytest.raises(SourceError, match="was replaced by something else"):
        root.link(entry(b"second"), place)


def test_symlinks_keep_raw_targets_and_their_own_time(
    target: Path, root: TargetDirectory, problems: list[SourceError]
) -> None:
    (target / "victim").touch()
    before = os.stat(target / "victim").st_mtime_ns
    root.make_symlink(entry(b"l", Kind.SYMLINK, link_target=b"victim", permissions=0o777))
    root.make_symlink(entry(b"raw", Kind.SYMLINK, link_target=b"\xff/..//x"))
    assert os.lstat(target / "l").st_mtime_ns == NOW
    assert os.stat(target / "l").st_mtime_ns == before
    assert os.readlink(os.fsencode(target / "raw")) == b"\xff/..//x"
    assert problems == []


@pytest.mark.parametrize("link_target", [b"", b"a\0b"])
def test_a_symlink_without_a_usable_target_is_refused(
    root: TargetDirectory, link_target: bytes
) -> None:
    with pytest.raises(SourceError, match="not to be trusted"):
        root.make_symlink(entry(kind=Kind.SYMLINK, link_target=link_target))


@pytest.mark.parametrize("kind", [Kind.SOCKET, Kind.FILE])
def test_kinds_that_cannot_be_made_are_refused(root: TargetDirectory, kind: Kind) -> None:
    with pytest.raises(SourceError, match="is not restored as such"):
        root.make_special(entry(kind=kind))


def test_an_impossible_device_number_is_refused(root: TargetDirectory) -> None:
    with pytest.raises(SourceError, match="impossible device number"):
        root.make_special(entry(kind=Kind.BLOCK_DEVICE, rdev=1 << 70))


@pytest.mark.usefixtures("as_root")
def test_devices_owners_and_set_id_bits_are_given_back(
    target: Path, root: TargetDirectory, problems: list[SourceError]
) -> None:
    number = os.makedev(7, 300)
    root.make_special(entry(b"b", Kind.BLOCK_DEVICE, rdev=number, uid=12, gid=34))
    write(root, entry(b"suid", uid=4_000_000_000, gid=34, permissions=0o6755), b"x")
    root.make_symlink(entry(b"l", Kind.SYMLINK, link_target=b"suid", uid=1, gid=2))
    device, suid, link = (os.lstat(target / name) for name in ("b", "suid", "l"))
    assert (stat.S_ISBLK(device.st_mode), device.st_rdev) == (True, number)
    assert (device.st_uid, device.st_gid, device.st_mtime_ns) == (12, 34, NOW)
    assert (suid.st_uid, suid.st_gid, stat.S_IMODE(suid.st_mode)) == (4_000_000_000, 34, 0o6755)
    assert (link.st_uid, link.st_gid) == (1, 2)
    assert problems == []


def test_attributes_are_made_equal_and_inherited_ones_are_removed(
    target: Path, root: TargetDirectory, problems: list[SourceError]
) -> None:
    try:
        os.setxattr(target, "system.posix_acl_default", ACL)
        os.setxattr(target, "user.x", b"")
    except OSError as error:
        missing(f"a file system with attributes and ACLs ({error})", "set TMPDIR to one")
    wanted = {b"user.a": b"\0\xff", b"user.empty": b""}
    write(root, entry(b"plain", xattrs=tuple(wanted.items())), b"x")
    write(root, entry(b"acl", xattrs=((b"system.posix_acl_access", ACL),), permissions=0o750), b"x")
    root.finish_metadata(entry(b"", Kind.DIRECTORY, permissions=0o755, xattrs=((b"user.d", b"1"),)))
    assert {
        os.fsencode(n): os.getxattr(target / "plain", n) for n in os.listxattr(target / "plain")
    } == wanted
    assert os.getxattr(target / "acl", "system.posix_acl_access") == ACL
    assert stat.S_IMODE(os.stat(target / "acl").st_mode) == 0o750
    assert os.listxattr(target) == ["user.d"]
    assert problems == []


def test_metadata_that_cannot_be_set_is_reported_once_by_entry_and_the_rest_is_set(
    target: Path, root: TargetDirectory, problems: list[SourceError]
) -> None:
    wanted = entry(
        uid=1 << 40,
        permissions=0o4755,
        mtime_ns=1 << 100,
        xattrs=((b"user.bad\0name", b""), (b"nonsense.x", b"1"), (b"user.good", b"1")),
    )
    write(root, wanted, b"x")
    assert len(problems) == 1
    assert problems[0].path == b"name"
    for what in (
        f"owner {1 << 40}:", "set-user-id and set-group-id were left off", "user.bad",
        "nonsense.x could not be set", "modification time",
    ):  # fmt: skip
        assert what in problems[0].reason
    assert stat.S_IMODE(os.stat(target / "name").st_mode) == 0o755
    assert os.getxattr(target / "name", "user.good") == b"1"


def test_a_time_beyond_the_file_system_is_reported(
    root: TargetDirectory, problems: list[SourceError], target: Path
) -> None:
    far = 20_000 * 365 * 86_400 * 10**9
    write(root, entry(mtime_ns=far), b"")
    if os.stat(target / "name").st_mtime_ns == far:
        assert problems == []
    else:
        assert "beyond what this file system can hold" in problems[0].reason


def test_a_mount_in_the_target_is_not_written_into(
    target: Path, root: TargetDirectory, mount: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    for name, source in {
        "tmpfs": ("-t", "tmpfs", "none"),
        "bind": ("--bind", tmp_path / "outside"),
    }.items():
        (target / name).mkdir()
        mount(*source, target / name)
        with pytest.raises(SourceError, match="is a mount point in the target"):
            root.make_directory(entry(name.encode(), Kind.DIRECTORY))


def test_a_full_volume_ends_the_restore(
    target: Path, mount: Callable[..., None], problems: list[SourceError]
) -> None:
    mount("-t", "tmpfs", "-o", "size=64k", "none", target)
    full = pytest.raises(VolumeError, match="restore stopped at name: no space left")
    with (
        TargetTree.open(target, problems.append) as tree,
        tree.root.make_file(entry()) as file,
        full,
    ):
        file.write_at(0, b"x" * 200_000)


def test_a_target_is_made_when_asked_for_and_only_then(
    tmp_path: Path, problems: list[SourceError]
) -> None:
    path = tmp_path / "new" / "deeper"
    with pytest.raises(VolumeError, match="does not exist"):
        TargetTree.open(path, problems.append)
    with TargetTree.open(path, problems.append, create=True) as tree:
        assert tree.path == os.fsencode(path)
        write(tree.root, entry(), b"x")
    assert (path / "name").read_bytes() == b"x"
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError, match="cannot be made"):
        TargetTree.open(tmp_path / "file" / "below", problems.append, create=True)


def test_a_closed_directory_writes_nowhere(
    target: Path, root: TargetDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = root.make_directory(entry(b"dir", Kind.DIRECTORY))
    below.close()
    below.close()
    monkeypatch.chdir(target)
    with pytest.raises(SourceError, match="bad file descriptor"):
        below.make_file(entry())
    assert os.listdir(target) == ["dir"]
    assert os.listdir(target / "dir") == []


@pytest.mark.parametrize("kind", [Kind.FIFO, Kind.SYMLINK])
def test_what_has_another_name_is_not_taken_for_what_was_just_made(
    target: Path, root: TargetDirectory, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    outside = target.parent / "outside"
    if kind is Kind.FIFO:
        os.mkfifo(outside, 0o600)
    else:
        outside.symlink_to("nowhere")
    before = os.lstat(outside)

    def plant(*arguments: object, **_: object) -> None:
        os.link(outside, target / "name", follow_symlinks=False)

    monkeypatch.setattr("agent.volume.writer.os.mknod", plant)
    monkeypatch.setattr("agent.volume.writer.os.symlink", plant)
    wanted = entry(kind=kind, permissions=0o666, link_target=b"nowhere")
    with pytest.raises(SourceError, match="replaced"):
        root.make_special(wanted) if kind is Kind.FIFO else root.make_symlink(wanted)
    after = os.lstat(outside)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
