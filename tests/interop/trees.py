"""Directories that hypothesis makes up: every kind of entry, with every awkward name and attribute.

A tree is drawn as a flat list of entries, each with a number that chooses its directory among
those made before it, so that any list is a tree. Every kind occurs in every tree.
"""

import os
import random
import stat
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.interop.volumes import AS_ROOT

OF_EACH = 3
"""How many entries of each kind a tree has; directories twice as many."""

_FORBIDDEN = {0, ord("/")}
_AWKWARD = [
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "ü".encode(), "u\u0308".encode()),
    *(b" ", b"  ", b"\n", b"\r\n", b"\t", b"\x01\x1b[2J", b"\x7f", "\u2028\ufeff".encode()),
    *(
        b"-rf",
        b"*",
        b"?",
        b"[a]",
        b"~",
        b"...",
        b".hidden",
        b"\\",
        b"\\xff",
        b"\\u0041",
        b'"',
        b"'",
    ),
    *(b"&<>", b"%41", b"$HOME", b"a=b", "\ufffd".encode(), "😀".encode(), b"con", b"x" * 255),
    *("ü".encode() * 127, b"\xff" * 255),
]

names = st.one_of(
    st.sampled_from(_AWKWARD),
    st.binary(min_size=1, max_size=24).filter(
        lambda name: not _FORBIDDEN & set(name) and name not in (b".", b"..")
    ),
)
_targets = st.one_of(
    st.sampled_from([b"/etc/shadow", b"..", b".", b"../" * 50, b"/", b"nowhere/\xff", b"a" * 4000]),
    st.binary(min_size=1, max_size=80).filter(lambda target: 0 not in target),
)
_pieces = st.tuples(
    st.sampled_from([0, 0, 0, 1, 4096, 70_000, 5 << 20]),  # a hole before it
    st.integers(0, 3),  # seed
    st.sampled_from([0, 1, 100, 4096, 5000, 600_000]),
    st.sampled_from([1, 1, 2, 4]),  # times: chunks that repeat
)
_contents = st.tuples(
    st.lists(_pieces, max_size=3), st.sampled_from([0, 0, 1, 1 << 20])
)  # and a hole at the end

_FIRST, _LAST = -(1 << 31), (1 << 63) // 10**9
"""What ext4 holds begins in 1901; what restic restores ends in 2262, by Go's nanoseconds."""

_times = st.one_of(
    st.sampled_from([0, -1, 1, 999_999_999, -999_999_999, -1_000_000_000, _FIRST * 10**9]),
    st.integers(_FIRST * 10**9, _LAST * 10**9),
)
_owners = st.sampled_from([0, 1, 1000, 65534, 65536, (1 << 31) + 5, (1 << 32) - 2])
_values = st.one_of(st.just(b""), st.binary(max_size=64), st.sampled_from([b"\0", b"v" * 1500]))
_labels = st.sampled_from(["a", "note", "with space", "ü", "x=y", "100%", 'q"', "\\"])


def _acl(named: int, permissions: int) -> bytes:
    """Return an ACL in the kernel's form: version 2, entries of tag, permissions, id (acl(5))."""
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, permissions, named), (4, 4, none), (16, 7, none), (32, 0, none)]
    return (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + id.to_bytes(4, "little")
        for tag, bits, id in entries
    )


_acls = st.builds(_acl, st.sampled_from([0, 1000, 70_000]), st.integers(0, 7))
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


class Spec(NamedTuple):
    """One entry to be made; what does not fit its kind or the user's rights is left out."""

    kind: str
    where: int
    name: bytes
    content: tuple[list[tuple[int, int, int, int]], int]
    target: bytes
    device: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    attributes: dict[str, bytes]
    acl: bytes | None


_KINDS = ("file", "link", "symlink", "fifo", "block", "character")


@st.composite
def trees(draw: Any) -> list[Spec]:
    """Draw a tree."""
    kinds = ["directory"] * 2 + draw(st.permutations([*_KINDS, "directory", "directory"] * OF_EACH))
    count = len(kinds)
    unlike = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    return [
        Spec(
            kind,
            draw(st.integers(0, 1 << 16)),
            name,
            draw(_contents) if kind == "file" else ([], 0),
            draw(_targets) if kind == "symlink" else b"",
            (draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1))),
            draw(st.integers(0, 0o7777)),
            (draw(_owners), draw(_owners)),
            draw(_times),
            draw(st.dictionaries(_labels, _values, max_size=2)),
            draw(st.none() | _acls) if kind in ("file", "directory") else None,
        )
        for kind, name in zip(kinds, unlike, strict=True)
    ]


def build(root: Path, specs: list[Spec], *, links_plain: bool = False) -> int:
    """Make the tree below ``root``, and return how many entries it has.

    With ``links_plain`` symlinks have no attributes of their own.
    """
    root.mkdir()
    folders, files = [os.fsencode(root)], []
    made: list[tuple[bytes, Spec]] = []
    for spec in specs:
        path = folders[spec.where % len(folders)] + b"/" + spec.name
        if os.path.lexists(path) or len(path) > 3000:
            continue
        if spec.kind == "link":
            if not files:
                continue
            os.link(files[spec.where % len(files)], path)
            made.append((path, spec._replace(kind="linked")))
            continue
        _make(path, spec)
        if spec.kind == "directory":
            folders.append(path)
        elif spec.kind == "file":
            files.append(path)
        made.append((path, spec))
    for path, spec in reversed(made):  # children first: they move the times of their directory
        if spec.kind == "symlink" and links_plain:
            spec = spec._replace(attributes={})
        if spec.kind != "linked":
            _dress(path, spec)
    return len(made)


def _make(path: bytes, spec: Spec) -> None:
    device = os.makedev(*spec.device)
    if spec.kind == "directory":
        os.mkdir(path)
    elif spec.kind == "file":
        _write(path, spec)
    elif spec.kind == "symlink":
        os.symlink(spec.target, path)
    elif spec.kind == "fifo" or not AS_ROOT:
        os.mkfifo(path)
    else:
        kind = stat.S_IFBLK if spec.kind == "block" else stat.S_IFCHR
        # 0:0 is what overlayfs takes for a deleted entry; no file system keeps it apart.
        os.mknod(path, kind | 0o600, device or os.makedev(1, 3))


def _write(path: bytes, spec: Spec) -> None:
    pieces, end = spec.content
    with open(path, "wb") as file:
        for hole, seed, size, times in pieces:
            file.seek(hole, os.SEEK_CUR)
            file.write(random.Random(seed).randbytes(size) * times)
        file.truncate(file.tell() + end)


def _dress(path: bytes, spec: Spec) -> None:
    """Give an entry its metadata: owner, attributes, mode, time, since each spoils the next."""
    plain = spec.kind in ("file", "directory")
    if AS_ROOT:
        os.chown(path, *spec.owner, follow_symlinks=False)
    prefix = "user." if plain else "trusted."
    if plain or AS_ROOT:
        for label, value in spec.attributes.items():
            os.setxattr(path, prefix + label, value, follow_symlinks=False)
    if spec.acl is not None:
        os.setxattr(path, "system.posix_acl_access", spec.acl)
        if spec.kind == "directory":
            os.setxattr(path, "system.posix_acl_default", spec.acl)
    if AS_ROOT and spec.kind == "file" and spec.where % 3 == 0:
        os.setxattr(path, "security.capability", _CAPABILITY)
    if spec.kind != "symlink":
        mode = spec.mode if AS_ROOT else spec.mode | (0o700 if spec.kind == "directory" else 0o600)
        os.chmod(path, mode)
    os.utime(path, ns=(0, spec.mtime_ns), follow_symlinks=False)


def a_tree_of_everything(root: Path) -> None:
    """Make one tree with each kind of entry and attribute once, under names that say which."""
    base = Spec("file", 0, b"", ([], 0), b"", (1, 3), 0o640, (7, 8), -1, {}, None)
    labels = {"empty": b"", "binary": b"\0\xff"}
    acl = _acl(1000, 5)
    large, small = ([(0, 1, 600_000, 2)], 0), ([(0, 1, 100, 1)], 0)
    every = [
        base._replace(name=b"file", where=1, content=large, mode=0o6751, attributes=labels),
        base._replace(name=b"empty", where=1),
        base._replace(name=b"sparse", where=1, content=([(0, 1, 5, 1)], 6 << 20)),
        base._replace(name=b"old", where=1, mtime_ns=_FIRST * 10**9 + 10**9 + 1),
        base._replace(name=b"acl", where=1, acl=acl),
        base._replace(name=b"capable", where=0),
        base._replace(name=b"one", where=1, content=small),
        base._replace(name=b"linked", kind="link", where=6),
        base._replace(name=b"alike", where=1, content=small),
        base._replace(name=b"same", where=1, content=small),
        base._replace(name=b"symlink", kind="symlink", target=b"to/\xff", attributes=labels),
        base._replace(name=b"fifo", kind="fifo"),
        base._replace(name=b"device", kind="character"),
        base._replace(name=b"bare", kind="directory"),
        base._replace(name=b"sticky", kind="directory", mode=0o1777, attributes=labels, acl=acl),
    ]
    assert build(root, every) == len(every)
