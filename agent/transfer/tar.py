"""Members of a tar archive: POSIX pax headers, as GNU tar, bsdtar and Python read them.

A member is a header of 512 bytes, its content padded to 512, and before it, where the header's
fields are too narrow, an extended header of ``length key=value`` lines. The rule guarded here:
nothing is rounded or cut. Times have nanoseconds, names are the kernel's bytes, attributes keep
binary values (``SCHILY.xattr.``), and any size fits. Two empty blocks end an archive; whoever
does not see them knows that it is not whole.

Pure functions of values. The format: POSIX.1-2017, pax, "ustar Interchange Format" and "pax
Header Block"; ``SCHILY.xattr`` is star's, with GNU tar's escapes of ``=`` and ``%`` in names.
"""

import os

import msgspec

from agent.entry import Entry, Kind

BLOCK = 512
END = bytes(2 * BLOCK)
"""What ends an archive that is whole."""

_TYPES = {
    Kind.FILE: b"0",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER_DEVICE: b"3",
    Kind.BLOCK_DEVICE: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_HARD_LINK = b"1"
_EXTENDED = b"x"
_SECOND_NS = 1_000_000_000
_NAME_BYTES = 100
_OWNER_BYTES = 31
_SMALL = 8**7
_LARGE = 8**11


class Member(msgspec.Struct, frozen=True):
    """One entry of an archive; ``path`` has no leading slash, ``link`` is the first of the links.

    A file that is no link is followed by ``entry.size`` bytes of content and ``padding`` of it.
    """

    path: bytes
    entry: Entry
    link: bytes = b""

    @property
    def content_bytes(self) -> int:
        """Return how many bytes of content follow the header."""
        return self.entry.size if self.entry.kind is Kind.FILE and not self.link else 0

    def header(self) -> bytes:
        """Return the header blocks."""
        entry = self.entry
        path = self.path + b"/" if entry.kind is Kind.DIRECTORY else self.path
        target = self.link or entry.link_target
        records = _Records()
        kind = _HARD_LINK if self.link else _TYPES[entry.kind]
        seconds, rest = divmod(entry.mtime_ns, _SECOND_NS)
        if rest or not 0 <= seconds < _LARGE:
            records.add(b"mtime", _decimal(entry.mtime_ns))
            seconds = min(max(seconds, 0), _LARGE - 1)
        fields = _Fields(
            name=records.text(b"path", path, _NAME_BYTES),
            mode=entry.permissions,
            uid=records.number(b"uid", entry.uid, _SMALL),
            gid=records.number(b"gid", entry.gid, _SMALL),
            size=records.number(b"size", self.content_bytes, _LARGE),
            mtime=seconds,
            kind=kind,
            target=records.text(b"linkpath", target, _NAME_BYTES),
            user=records.text(b"uname", entry.user.encode(), _OWNER_BYTES),
            group=records.text(b"gname", entry.group.encode(), _OWNER_BYTES),
            device=entry.rdev if entry.kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE) else 0,
        )
        if not self.link:
            for name, value in entry.xattrs:
                escaped = name.replace(b"%", b"%25").replace(b"=", b"%3D")
                records.add(b"SCHILY.xattr." + escaped, value)
        return records.header() + fields.block()


def padding(size: int) -> bytes:
    """Return the zeros that fill up the last block of ``size`` bytes."""
    return bytes(-size % BLOCK)


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one header block, each of which fits."""

    name: bytes
    kind: bytes
    size: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: bytes = b""
    user: bytes = b""
    group: bytes = b""
    device: int = 0

    def block(self) -> bytes:
        """Return the block, with its sum over all bytes."""
        before = (
            self.name.ljust(_NAME_BYTES, b"\0")
            + b"%07o\0%07o\0%07o\0" % (self.mode, self.uid, self.gid)
            + b"%011o\0%011o\0" % (self.size, self.mtime)
        )
        after = (
            self.kind
            + self.target.ljust(_NAME_BYTES, b"\0")
            + b"ustar\x0000"
            + self.user.ljust(_OWNER_BYTES + 1, b"\0")
            + self.group.ljust(_OWNER_BYTES + 1, b"\0")
            + _wide(os.major(self.device))
            + _wide(os.minor(self.device))
        ).ljust(BLOCK - len(before) - 8, b"\0")
        total = sum(before) + sum(after) + 8 * ord(" ")
        return before + b"%06o\0 " % total + after


class _Records:
    """The lines of an extended header."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._raw = False

    def add(self, key: bytes, value: bytes) -> None:
        """Add a line; its length counts its own digits."""
        rest = len(key) + len(value) + 3
        size = rest + len(str(rest))
        if len(str(size)) > len(str(rest)):
            size += 1
        self._lines.append(b"%d %s=%s\n" % (size, key, value))

    def text(self, key: bytes, value: bytes, most: int) -> bytes:
        """Return what the header's field holds of a text; what it cannot becomes a line."""
        if len(value) > most or not value.isascii():
            self.add(key, value)
            self._raw |= not _is_text(value)
        return value[:most]

    def number(self, key: bytes, value: int, end: int) -> int:
        """Return what the header's field holds of a number."""
        if value < end:
            return value
        self.add(key, b"%d" % value)
        return 0

    def header(self) -> bytes:
        """Return the extended header with its own block, or nothing if there are no lines."""
        if not self._lines:
            return b""
        if self._raw:
            charset = _Records()
            charset.add(b"hdrcharset", b"BINARY")
            self._lines[:0] = charset._lines
        body = b"".join(self._lines)
        fields = _Fields(name=b"././@PaxHeader", kind=_EXTENDED, size=len(body), mode=0o644)
        return fields.block() + body + padding(len(body))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decimal(ns: int) -> bytes:
    """Return nanoseconds as seconds with a fraction, exactly."""
    seconds, rest = divmod(abs(ns), _SECOND_NS)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{'-' if ns < 0 else ''}{seconds}{fraction}".encode()


def _wide(number: int) -> bytes:
    """Return a device number in octal, or in GNU's base 256 where that is too narrow."""
    if number < _SMALL:
        return b"%07o\0" % number
    return b"\x80" + number.to_bytes(7, "big")
