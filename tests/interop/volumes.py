"""A volume with every kind of entry, and a way to compare two of them in every respect."""

import os
import random
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SPARSE_BYTES = 12 << 20
AS_ROOT = os.geteuid() == 0


def make_volume(root: Path) -> None:
    """Fill ``root``: sizes around the chunker's limits, odd names, links, devices, attributes."""
    draw = random.Random(2)
    root.mkdir(exist_ok=True)
    (root / "large").write_bytes(draw.randbytes(5 << 20))
    (root / "text").write_bytes(b"a line of text that compresses\n" * 100_000)
    (root / "one-chunk").write_bytes(draw.randbytes(512 << 10))
    (root / "zeros").write_bytes(bytes(3 << 20))
    (root / "empty").write_bytes(b"")
    (root / "empty-directory").mkdir()
    small = root / "small"
    small.mkdir()
    for number in range(120):
        (small / f"file-{number:03}").write_bytes(draw.randbytes(draw.randrange(3000)))
    deep = root / "deep"
    for level in range(30):
        deep = deep / f"level-{level}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("bottom")
    _names(root / "names")
    _kinds(root / "kinds")
    _times(root)


def _names(folder: Path) -> None:
    folder.mkdir()
    for name in (b"bad\xff\xfe", b"new\nline", b'quote"back\\slash', "grüße 🎉".encode(), b"<&>"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)


def _kinds(folder: Path) -> None:
    folder.mkdir()
    (folder / "target").write_text("content with several names")
    os.link(folder / "target", folder / "hard-link")
    os.link(folder / "target", folder.parent / "small" / "hard-link-elsewhere")
    (folder / "symlink").symlink_to("target")
    (folder / "dangling").symlink_to(b"nowhere/\xff")
    (folder / "setuid").write_text("x")
    os.chmod(folder / "setuid", 0o6755)
    (folder / "sticky").mkdir()
    os.chmod(folder / "sticky", 0o1777)
    os.mkfifo(folder / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket")[-100:] if len(str(folder)) < 90 else "\0skipped")
    with open(folder / "sparse", "wb") as sparse:
        sparse.write(b"head")
        sparse.seek(SPARSE_BYTES - (2 << 20))
        sparse.write(b"tail")
        sparse.truncate(SPARSE_BYTES)
    (folder / "attributes").write_text("x")
    os.setxattr(folder / "attributes", "user.empty", b"")
    os.setxattr(folder / "attributes", "user.note", b"some \0 bytes")
    os.setxattr(folder / "sticky", "user.on-directory", b"yes")
    if AS_ROOT:
        _for_root(folder)


def _for_root(folder: Path) -> None:
    os.mknod(folder / "block", 0o660 | stat.S_IFBLK, os.makedev(7, 3))
    os.mknod(folder / "character", 0o600 | stat.S_IFCHR, os.makedev(1, 300))
    os.chown(folder / "attributes", 12345, 54321)
    os.lchown(folder / "symlink", 1, 1)
    acl = (  # version 2; owner rw, user 1000 r, group r, mask r, others none (acl(5), Linux)
        b"\x02\0\0\0" b"\x01\0\x06\0\xff\xff\xff\xff" b"\x02\0\x04\0\xe8\x03\0\0"
        b"\x04\0\x04\0\xff\xff\xff\xff" b"\x10\0\x04\0\xff\xff\xff\xff" b"\x20\0\0\0\xff\xff\xff\xff"
    )  # fmt: skip
    os.setxattr(folder / "attributes", "system.posix_acl_access", acl)


def _times(root: Path) -> None:
    draw = random.Random(3)
    for path in sorted(walk(root), reverse=True):
        seconds = draw.choice([0, 1_700_000_000, 1_720_000_000, -1_000_000_000, 4_000_000_000])
        nanoseconds = draw.choice([0, 1, 123_456_789, 500_000_000])
        os.utime(path, ns=(0, seconds * 10**9 + nanoseconds), follow_symlinks=False)


def walk(root: Path) -> Iterator[bytes]:
    """Yield every path below ``root``."""
    pending = [os.fsencode(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


class Seen(NamedTuple):
    """All that a restore has to bring back of one entry."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    device: int
    content: bytes
    attributes: dict[str, bytes]
    links: tuple[bytes, ...]


def look(root: Path) -> dict[bytes, Seen]:
    """Return what is there, by path; sockets are left out, no backup has them."""
    base = len(os.fsencode(root)) + 1
    stats = {path: os.lstat(path) for path in walk(root)}
    names: dict[tuple[int, int], list[bytes]] = {}
    for path, found in sorted(stats.items()):
        names.setdefault((found.st_dev, found.st_ino), []).append(path[base:])
    return {
        path[base:]: Seen(
            found.st_mode,
            (found.st_uid, found.st_gid) if AS_ROOT else (0, 0),
            found.st_mtime_ns,
            found.st_rdev,
            _content(path, found),
            {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)},
            () if stat.S_ISDIR(found.st_mode) else tuple(names[found.st_dev, found.st_ino]),
        )
        for path, found in stats.items()
        if not stat.S_ISSOCK(found.st_mode)
    }  # fmt: skip


def _content(path: bytes, found: os.stat_result) -> bytes:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        return Path(os.fsdecode(path)).read_bytes()
    return b""


def differences(one: Path, other: Path) -> list[str]:
    """Return one line for each entry that is not the same in both."""
    left, right = look(one), look(other)
    lines = [f"only in one: {path!r}" for path in left.keys() ^ right.keys()]
    for path in left.keys() & right.keys():
        for field, a, b in zip(Seen._fields, left[path], right[path], strict=True):
            if a != b:
                lines.append(f"{path!r}: {field}: {str(a)[:80]} and {str(b)[:80]}")
    return sorted(lines)
