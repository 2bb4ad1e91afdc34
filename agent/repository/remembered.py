"""Remembered directories: what the listing of each looked like when its tree was stored.

A directory whose listing has the digest of last time has the tree of last time, so neither has its
parent's tree to be decoded nor its own to be encoded and hashed. The rule guarded here is what an
entry promises: that the tree, and every chunk that its files name, was in the index of this
repository. So the file says which index files that were, and is void unless all of them are there
still: index files never change. It is void as well if anything that goes into the text of a tree but
not into a listing is another (``circumstances``). Whoever loads it sees to it that no pack is lost.

The file is that of a snapshot, the parent of the run that loads it. Its content is
``circumstances(16) || count of index files u64 || their names || records``, sorted by tree; the
cache seals it. Losing it costs time, never correctness.
"""

import os
import struct
import threading
from collections.abc import Collection

import xxhash

from agent.repository.contract import Remembered
from agent.repository.identity import ID_SIZE
from agent.repository.times import format_time
from agent.repository.zone import local_zone

_RECORD = struct.Struct("<32s16sQQ")
_HEAD = struct.Struct("<16sQ")

MOST_DIRECTORIES = 500_000
"""What is remembered of one snapshot at most: 32 MB, in memory twice while it is written."""

_VERSION = b"1"
_USERS = ("/etc/passwd", "/etc/group")
_INSTANTS = (0, 1_750_000_000_000_000_000, 1_766_000_000_000_000_000)


def circumstances() -> bytes:
    """Return a digest of what else goes into a tree's text: the zone, and the names of users."""
    texts = [format_time(ns, local_zone) for ns in _INSTANTS]
    for path in _USERS:
        try:
            stat = os.stat(path)
        except OSError:
            continue
        texts.append(f"{path} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}")
    return xxhash.xxh3_128_digest(_VERSION + "\0".join(texts).encode())


class Directories:
    """What is remembered of the parent, and what this run has met; safe to use from many threads."""

    def __init__(self, content: bytes, index_names: Collection[str]) -> None:
        """Take over the file of the parent, or b"", if it is not void."""
        self._circumstances = circumstances()
        self._records = memoryview(_records_of(content, self._circumstances, index_names))
        self._count = len(self._records) // _RECORD.size
        self._lock = threading.Lock()
        self._met = bytearray()

    def recall(self, tree: bytes) -> Remembered | None:
        """Return what is remembered of a directory that has this tree in the parent."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            start = middle * _RECORD.size
            if self._records[start : start + ID_SIZE].tobytes() < tree:
                low = middle + 1
            else:
                high = middle
        if low == self._count:
            return None
        id, digest, files, size = _RECORD.unpack_from(self._records, low * _RECORD.size)
        return Remembered(digest, files, size) if id == tree else None

    def remember(self, tree: bytes, remembered: Remembered) -> None:
        """Note a directory of this run, if there is room."""
        record = _RECORD.pack(tree, remembered.digest, remembered.files, remembered.content_bytes)
        with self._lock:
            if len(self._met) < MOST_DIRECTORIES * _RECORD.size:
                self._met += record

    def content(self, index_names: Collection[str]) -> bytes:
        """Return the file of this run's snapshot; every tree that was met is in these index files."""
        with self._lock:
            met = bytes(self._met)
        size = _RECORD.size
        records = sorted({met[place : place + size] for place in range(0, len(met), size)})
        names = bytes.fromhex("".join(sorted(index_names)))
        return b"".join([_HEAD.pack(self._circumstances, len(index_names)), names, *records])


def _records_of(content: bytes, circumstances: bytes, index_names: Collection[str]) -> bytes:
    """Return the records of a file, or b"" if it is void."""
    if len(content) < _HEAD.size:
        return b""
    then, count = _HEAD.unpack_from(content)
    end = _HEAD.size + count * ID_SIZE
    if then != circumstances or end > len(content) or (len(content) - end) % _RECORD.size:
        return b""
    there = {bytes.fromhex(name) for name in index_names}
    for place in range(_HEAD.size, end, ID_SIZE):
        if content[place : place + ID_SIZE] not in there:
            return b""
    return content[end:]
