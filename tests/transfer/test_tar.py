"""Archive members are what other programs read: Python's tarfile judges here, GNU tar in interop."""

import io
import os
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.entry import Entry, Kind
from agent.transfer.tar import BLOCK, END, Member, padding


def entry(kind: Kind, **facts: Any) -> Entry:
    plain = {"permissions": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0, "ctime_ns": 0}
    return Entry(name=b"n", kind=kind, **{**plain, "inode": 1, "device": 1, **facts})


def read(*parts: bytes) -> list[tarfile.TarInfo]:
    # Surrogates stand for bytes that are not text, here as in names of files.
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(parts) + END), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        return archive.getmembers()


NAMES = st.binary(min_size=1, max_size=120).filter(
    lambda name: not set(name) & {0, 0x2F} and name not in (b".", b"..")
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
NAMED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
VALUES = st.binary(max_size=200)
ATTRIBUTES = st.dictionaries(
    st.text("abc.=%ü", min_size=1, max_size=8).map(lambda name: f"user.{name}".encode()), VALUES
)


@given(
    path=PATHS,
    mode=st.integers(0, 0o7777),
    owner=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), NAMED, NAMED),
    mtime=st.integers(-(2**66), 2**66),
    attributes=ATTRIBUTES,
    content=st.binary(max_size=1100),
)
def test_a_file_is_read_as_it_was_written(
    path: bytes,
    mode: int,
    owner: tuple[int, int, str, str],
    mtime: int,
    attributes: dict[bytes, bytes],
    content: bytes,
) -> None:
    uid, gid, user, group = owner
    facts = {"permissions": mode, "uid": uid, "gid": gid, "user": user, "group": group}
    made = entry(
        Kind.FILE,
        size=len(content),
        mtime_ns=mtime,
        xattrs=tuple(attributes.items()),
        content=(),
        **facts,
    )
    header = Member(path, made).header()
    assert len(header) % BLOCK == 0
    behind = Member(b"behind", entry(Kind.FIFO)).header()
    found, after = read(header, content, padding(len(content)), behind)
    assert os.fsencode(found.name) == path.rstrip(b"/")
    assert (found.mode, found.uid, found.gid, found.size) == (mode, uid, gid, len(content))
    assert (found.uname, found.gname) == (user, group)
    assert after.name == "behind"
    said = found.pax_headers.get("mtime", str(int(found.mtime)))
    whole, _, fraction = said.partition(".")
    sign = -1 if said.startswith("-") else 1
    assert abs(int(whole)) * 10**9 + int(fraction.ljust(9, "0") or 0) == sign * mtime
    held = {
        os.fsencode(key[len("SCHILY.xattr.") :]).replace(b"%3D", b"=").replace(b"%25", b"%"): value
        for key, value in found.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    assert {key: value.encode("utf-8", "surrogateescape") for key, value in held.items()} == (
        attributes
    )


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 1 << 40, (1 << 64) - 1])
def test_any_size_fits(size: int) -> None:
    header = Member(b"large", entry(Kind.FILE, size=size, content=())).header()
    file = io.BytesIO(header)
    assert tarfile.TarInfo.fromtarfile(_archive(file)).size == size


def _archive(file: io.BytesIO) -> tarfile.TarFile:
    archive = tarfile.TarFile(fileobj=io.BytesIO(), mode="w")
    archive.fileobj = file
    return archive


def test_the_length_of_a_line_counts_its_own_digits() -> None:
    for size in [*range(60, 130), *range(960, 1030)]:
        path = b"\xc3\xbc" + b"p" * size
        (found,) = read(Member(path, entry(Kind.FIFO)).header())
        assert os.fsencode(found.name) == path


def test_other_kinds_are_what_they_are() -> None:
    target = b"t\xff" + b"long" * 40
    found = read(
        Member(b"d", entry(Kind.DIRECTORY, permissions=0o1777, subtree=b"t" * 32)).header(),
        Member(b"s", entry(Kind.SYMLINK, link_target=target)).header(),
        Member(b"b", entry(Kind.BLOCK_DEVICE, rdev=os.makedev(259, 300_000))).header(),
        Member(b"c", entry(Kind.CHARACTER_DEVICE, rdev=os.makedev(4095, 5))).header(),
        Member(b"p", entry(Kind.FIFO)).header(),
        Member(b"h", entry(Kind.FILE, size=5, content=(b"x",)), b"first/name").header(),
    )
    assert [(m.name, m.type) for m in found] == [
        ("d", tarfile.DIRTYPE),
        ("s", tarfile.SYMTYPE),
        ("b", tarfile.BLKTYPE),
        ("c", tarfile.CHRTYPE),
        ("p", tarfile.FIFOTYPE),
        ("h", tarfile.LNKTYPE),
    ]
    assert found[0].mode == 0o1777
    assert os.fsencode(found[1].linkname) == target
    assert (found[2].devmajor, found[2].devminor) == (259, 300_000)
    assert (found[3].devmajor, found[3].devminor) == (4095, 5)
    assert (found[5].linkname, found[5].size) == ("first/name", 0)
