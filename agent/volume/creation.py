"""Batches of small new files: what the kernel ``_create`` is given, and what it leaves to others."""

import struct
from collections.abc import Sequence

from agent.entry import Entry
from agent.storage.contract import Buffer
from agent.volume._create import create_files

SMALL_BYTES = 64 << 10
"""The largest content that is kept for a batch; a longer one may have a hole in it."""

_FACTS = struct.Struct("=IIIIq")
_SECOND = 1_000_000_000


def is_small(entry: Entry) -> bool:
    """Tell whether a file needs nothing that a batch cannot do."""
    return (
        entry.size < SMALL_BYTES
        and entry.links < 2
        and not entry.xattrs
        and not (entry.uid | entry.gid) >> 32
    )


def create_batch(directory: int, entries: Sequence[Entry], contents: Sequence[Buffer]) -> list[int]:
    """Create small files with their metadata in an open directory.

    Returns the places of those that were not made as wanted: each has to be made anew, by whoever
    can say why it cannot be. A file that is there already is never touched.
    """
    statuses = create_files(
        directory,
        tuple([entry.name for entry in entries]),
        tuple(contents),
        b"".join([_facts(entry) for entry in entries]),
    )
    if not any(statuses):
        return []
    return [place for place, status in enumerate(statuses) if status]


def _facts(entry: Entry) -> bytes:
    seconds, nanoseconds = divmod(entry.mtime_ns, _SECOND)
    return _FACTS.pack(entry.uid, entry.gid, entry.permissions, nanoseconds, seconds)
