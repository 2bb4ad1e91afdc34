"""What is read from one volume and written to another is read as the same again."""

import os
import stat
from pathlib import Path

import msgspec

from agent.cancel import NEVER
from agent.entry import Entry, Kind
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.volume.directory import Directory
from agent.volume.exclude import Exclude
from agent.volume.file import Hole
from agent.volume.reader import Volume
from agent.volume.target_file import Place
from agent.volume.writer import TargetDirectory, TargetTree
from tests.volume.test_directory import ACL

Links = dict[tuple[int, int], Place]


def copy(source: Directory, target: TargetDirectory, links: Links) -> None:
    """Copy by the public API alone, as a backup and a restore would."""
    for entry in source.entries(Exclude(), Monitor(), NEVER):
        if entry.kind is Kind.DIRECTORY:
            with source.open_directory(entry) as below, target.make_directory(entry) as made:
                copy(below, made, links)
                made.finish_metadata(entry)
        elif entry.kind is Kind.FILE:
            copy_file(source, target, entry, links)
        elif entry.kind is Kind.SYMLINK:
            target.make_symlink(entry)
        else:
            target.make_special(entry)


def copy_file(source: Directory, target: TargetDirectory, entry: Entry, links: Links) -> None:
    identity = (entry.device, entry.inode)
    if identity in links:
        target.link(entry, links[identity])
        return
    with source.open_file(entry) as reader, target.make_file(entry) as made:
        offset = 0
        for part in reader.segments(lambda: memoryview(bytearray(50_000))):
            if isinstance(part, Hole):
                offset += part.length
            else:
                made.write_at(offset, part)
                offset += len(part)
        made.truncate(offset)
        made.finish_metadata(reader.entry_after())
        if entry.links > 1:
            links[identity] = made.place


Found = dict[bytes, tuple[Entry, bytes]]


def everything(directory: Directory, inodes: dict[int, int], found: Found) -> Found:
    """Return each entry by path, with inodes numbered as met and clock-given fields cleared."""
    for entry in directory.entries(Exclude(), Monitor(), NEVER):
        path = os.path.join(directory.path, entry.name)
        content = b""
        if entry.kind is Kind.FILE:
            with directory.open_file(entry) as reader:
                content = b"".join(
                    bytes(part.length) if isinstance(part, Hole) else bytes(part)
                    for part in reader.segments(lambda: memoryview(bytearray(100_000)))
                )
        elif entry.kind is Kind.DIRECTORY:
            with directory.open_directory(entry) as below:
                everything(below, inodes, found)
        number = inodes.setdefault(entry.inode, len(inodes))
        plain = msgspec.structs.replace(
            entry, inode=number, device=0, ctime_ns=0, xattrs=tuple(sorted(entry.xattrs))
        )
        found[path] = (plain, content)
    return found


def fill(source: Path) -> None:
    deep = source / "dir" / "deeper"
    deep.mkdir(parents=True)
    (source / "empty").touch()
    (source / "file").write_bytes(os.urandom(123_457))
    os.chmod(source / "file", 0o4711)
    os.link(source / "file", deep / "hard link")
    with (deep / "sparse").open("wb") as out:
        out.seek(1 << 20)
        out.write(b"data")
        out.truncate(3 << 20)
    Path(os.fsdecode(os.fsencode(deep) + b"/\xff\xfe")).write_bytes(b"raw name")
    (deep / ("n" * 255)).write_bytes(b"long name")
    os.symlink(b"\xff", deep / "link")
    os.symlink("/etc/passwd", deep / "outside")
    os.mkfifo(deep / "fifo", 0o621)
    os.setxattr(deep / "sparse", "user.k", b"\0v")
    os.setxattr(source / "empty", "system.posix_acl_access", ACL)
    os.setxattr(deep, "system.posix_acl_default", ACL)
    if os.geteuid() == 0:
        os.mknod(deep / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(deep / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 300_000))
        os.chown(source / "file", 1234, 5678)
        os.chmod(source / "file", 0o6711)
        os.lchown(deep / "link", 77, 88)
        os.chown(deep, 99, 100)
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        os.setxattr(source / "file", "security.capability", capability)
        os.setxattr(deep / "link", "trusted.on-link", b"1", follow_symlinks=False)
    os.chmod(deep, 0o2755)
    for name, mtime in {
        "fifo": -2_000_000_000_000_000_001,
        "link": 7_000_000_000_000_000_007,
        "sparse": -1,
    }.items():
        os.utime(deep / name, ns=(0, mtime), follow_symlinks=False)
    os.utime(deep, ns=(0, 1))


def test_everything_survives_from_one_volume_to_the_other(source: Path, tmp_path: Path) -> None:
    fill(source)
    problems: list[SourceError] = []
    target = tmp_path / "target"
    for _ in range(2):  # the second time everything is in the way
        with (
            Volume.open(source) as volume,
            TargetTree.open(target, problems.append, create=True) as tree,
        ):
            copy(volume.root, tree.root, {})
        assert problems == []
        with Volume.open(source) as before, Volume.open(target) as after:
            assert everything(after.root, {}, {}) == everything(before.root, {}, {})
    assert os.stat(target / "dir" / "deeper" / "sparse").st_blocks * 512 < 1 << 20
