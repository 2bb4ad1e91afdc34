"""Batches of names and small files: what the kernel ``_look`` returns, as entries.

The kernel does only what needs no decision. Whatever has a status here is looked at again by
``directory``, one by one, which decides and words the error.
"""

import functools
import hashlib
import itertools
import operator
import os
import stat as mode_bits
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agent.entry import Entry, Kind
from agent.volume import _look
from agent.volume.names import NameCache
from agent.volume.xattrs import Attributes

SMALL_BYTES = 512 << 10
"""Files below this size are read in batches; whoever gives the buffer decides how many at a time."""

MOUNT_UNTOLD, MOUNT = 251, 252
"""The status of a name of which the kernel does not tell whether it is a mount point (before 5.8), and
of one that is."""

_FACTS = struct.Struct("=6I2q5Q")
_FILE = struct.Struct("=6I2q5Q4Q")
_PIN = struct.Struct("=QQ")
_LENGTHS = struct.Struct("=II")
_SECOND = 1_000_000_000
_NAMES_AT_A_TIME = 8192
_NAME_BYTES = 56
"""What a name takes beside its bytes: the object's head, what is allocated in vain, its place in a list."""

_name = operator.attrgetter("name")


class ReadFile(NamedTuple):
    """A file that was read into a buffer; its entry is that from before the first byte."""

    entry: Entry
    start: int
    length: int


class Listing:
    """The names of a directory, sorted, with the facts of each; iterating unpacks them.

    The first of the facts is the status: 0, or the number of the error.
    """

    def __init__(self, names: Sequence[bytes], facts: bytearray) -> None:
        self.names = names
        self._facts = facts

    def __iter__(self) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        return zip(self.names, _FACTS.iter_unpack(self._facts), strict=True)

    def digest(self) -> bytes:
        """Return 16 bytes that tell this listing from any other of this volume.

        They are of a SHA-256: names and times are the owner's choice, who could forge anything
        weaker, and so hide a change.
        """
        digest = ListingDigest()
        digest.add(self)
        return digest.finish(self.names)

    @property
    def facts(self) -> bytearray:
        """Return the facts as they are packed."""
        return self._facts


class ListingDigest:
    """The digest of a listing, of which there may be a part at a time."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, listing: Listing) -> None:
        """Take the facts of the next names."""
        self._digest.update(listing.facts)

    def finish(self, names: Sequence[bytes]) -> bytes:
        """Return the digest of these names with all facts that were added."""
        for start in range(0, len(names), _NAMES_AT_A_TIME):
            self._digest.update(b"\0".join(names[start : start + _NAMES_AT_A_TIME]))
            self._digest.update(b"\0")
        return self._digest.digest()[:16]


def look(directory: int, names: Sequence[bytes]) -> bytes:
    """Return the packed facts of names of an open directory."""
    return _look.look(directory, tuple(names))


def is_file_of(facts: tuple[int, ...], device: int, *, holds_mounts: bool) -> bool:
    """Tell whether facts are those of a regular file of a device, and no mount point."""
    told = facts[0] == 0 or (facts[0] == MOUNT_UNTOLD and not holds_mounts)
    return told and mode_bits.S_ISREG(facts[1]) and facts[9] == device


def is_mounted_file(facts: tuple[int, ...]) -> bool:
    """Tell whether facts are those of a mount point that is no directory."""
    return facts[0] == MOUNT and not mode_bits.S_ISDIR(facts[1])


def file_entry(name: bytes, facts: tuple[int, ...], names: NameCache) -> Entry:
    """Return the entry of a regular file, without its attributes."""
    _, mode, uid, gid, mtime_rest, ctime_rest, mtime, ctime, inode, device, _, links, size = facts
    return Entry(
        name,
        Kind.FILE,
        mode & 0o7777,
        uid,
        gid,
        mtime * _SECOND + mtime_rest,
        ctime * _SECOND + ctime_rest,
        inode,
        device,
        links,
        size,
        names.user(uid),
        names.group(gid),
    )


def read_files(
    directory: int, entries: Sequence[Entry], buffer: memoryview, names: NameCache
) -> Iterator[tuple[ReadFile, Attributes] | None]:
    """Read regular files one behind the other into ``buffer``; None for one that was not read.

    What is yielded is the file, its entry fresh but without attributes, and these.
    """
    pins = b"".join([_PIN.pack(entry.inode, entry.device) for entry in entries])
    files, attributes = _look.read_files(
        directory, tuple([entry.name for entry in entries]), pins, buffer
    )
    for entry, record in zip(entries, _FILE.iter_unpack(files), strict=True):
        facts = record[:13]
        if facts[0]:
            yield None
            continue
        start, length, place, size = record[13:]
        fresh = _fresh(entry, facts, length, names)
        kept = _attributes(attributes[place : place + size]) if size else ()
        yield ReadFile(fresh, start, length), kept


def _fresh(entry: Entry, facts: tuple[int, ...], length: int, names: NameCache) -> Entry:
    """Return the entry of now; every change of metadata moves ctime."""
    if facts[7] * _SECOND + facts[5] == entry.ctime_ns and length == entry.size:
        return entry
    return file_entry(entry.name, (*facts[:12], length), names)


@functools.lru_cache(maxsize=256)
def _attributes(packed: bytes) -> Attributes:
    """Take attributes apart; with labels, every file of a volume has the same."""
    found = []
    place = 0
    while place < len(packed):
        name, value = _LENGTHS.unpack_from(packed, place)
        place += _LENGTHS.size
        found.append((packed[place : place + name], packed[place + name : place + name + value]))
        place += name + value
    return tuple(found)


def listed(directory: int, most_bytes: int) -> list[bytes] | None:
    """Return the raw names of an open directory, sorted, or None; raises ``OSError``.

    None stands for names that take more than ``most_bytes`` as ``names_bytes`` counts; no more of them
    are listed. Where a directory is listed by age, an owner who goes on to rename files never lets a
    listing end.
    """
    names: list[bytes] = []
    with os.scandir(directory) as found:
        raw = map(os.fsencode, map(_name, found))
        while some := list(itertools.islice(raw, _NAMES_AT_A_TIME)):
            names += some
            most_bytes -= names_bytes(some)
            if most_bytes < 0:
                return None
    names.sort()
    return names


def names_bytes(names: Sequence[bytes]) -> int:
    """Return what a list of names takes in memory."""
    return sum(map(len, names)) + len(names) * _NAME_BYTES
