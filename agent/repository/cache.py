"""The cache: index files turned into tables once, kept on the node's disk.

Index files never change, so a table made from one stays true for ever. A cached file is
``magic || xxh3_128 of the rest || sizes || data packs || data records || tree packs || tree
records``; a file that is torn or does not match its seal is dropped and made again. Losing the
cache costs time, never correctness; two processes may share it.
"""

import contextlib
import logging
import mmap
import os
import secrets
import struct
import time
from pathlib import Path

import xxhash

from agent.repository.identity import BlobType, is_object_name
from agent.repository.table import Table

_MAGIC = b"podlift table 1\n"
_SEAL_SIZE = 16
_SIZES = struct.Struct("<4Q")
_UNFINISHED_SECONDS = 3600
_TAG_NAME = "CACHEDIR.TAG"
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by podlift; may be deleted at any time.\n"
)


log = logging.getLogger(__name__)


class Cache:
    """The cache of one repository, in ``root/<repository id>``."""

    def __init__(self, root: Path, repository_id: str) -> None:
        """Make the directories; where that fails there is no cache, and a warning says so."""
        self._folder = root / repository_id / "index"
        tag = root / _TAG_NAME
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not tag.exists():
                tag.write_text(_TAG)
        except OSError as error:
            log.warning("no index is cached in %s, so each run fetches all: %s", root, error)

    def load(self, index_id: str) -> list[Table] | None:
        """Return the tables of an index file, or None if they are not (or no longer) here."""
        path = self._folder / index_id
        try:
            with path.open("rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):
            return None
        tables = _parse(content)
        if tables is None:
            with contextlib.suppress(OSError):
                path.unlink()
        return tables

    def save(self, index_id: str, tables: list[Table]) -> None:
        """Keep the tables of an index file; a full or read-only disk is not an error."""
        by_type = {table.type: table for table in tables}
        parts = [
            part
            for type in BlobType
            for part in (by_type[type].packs, bytes(by_type[type].records))
        ]
        body = _SIZES.pack(*(len(part) for part in parts)) + b"".join(parts)
        temporary = self._folder / f".{index_id}.{secrets.token_hex(4)}"
        try:
            temporary.write_bytes(_MAGIC + xxhash.xxh3_128_digest(body) + body)
            os.replace(temporary, self._folder / index_id)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def keep_only(self, index_ids: set[str]) -> None:
        """Drop what belongs to index files that are no more, and what a crash left half-written."""
        left_behind = time.time() - _UNFINISHED_SECONDS
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name in index_ids:
                    continue
                if is_object_name(path.name) or path.stat().st_mtime < left_behind:
                    path.unlink(missing_ok=True)


def _parse(content: memoryview) -> list[Table] | None:
    head = len(_MAGIC)
    body = content[head + _SEAL_SIZE :]
    if content[:head] != _MAGIC or len(body) < _SIZES.size:
        return None
    if xxhash.xxh3_128_digest(body) != content[head : head + _SEAL_SIZE]:
        return None
    sizes = _SIZES.unpack_from(body)
    if _SIZES.size + sum(sizes) != len(body):
        return None
    place, parts = _SIZES.size, []
    for size in sizes:
        parts.append(body[place : place + size])
        place += size
    return [
        Table(BlobType.DATA, bytes(parts[0]), parts[1]),
        Table(BlobType.TREE, bytes(parts[2]), parts[3]),
    ]
