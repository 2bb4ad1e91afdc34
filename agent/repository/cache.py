"""The cache: index files turned into tables once, kept on the node's disk.

Index files never change, so a table made from one stays true for ever. There is a cached file for each
of them, and one that is *merged* from many and names those that it covers; once one of these is no
more, the merged file is void. A cached file is ``magic || xxh3_128 of the rest || counts || names of
the index files covered || data packs || data body || tree packs || tree body``. Losing the cache
costs time, never correctness; all processes of a node and all repositories share it.

Three rules are guarded here. A file is never changed once it has its name, only removed, which does no
harm to who has it open. Each open checks the seal over the whole file, by the descriptor that
is then mapped: trust is not remembered, since a file that a crash has torn looks like any other,
and a block of another file in the middle of it would name blobs that are not there. It is read, not
looked at through the map, so what was checked is not resident; that takes 50 ms for 10 M blobs.
And all of the directory together stays below a limit: what was not used for longest goes first.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from agent.config import CacheDir
from agent.repository._table import Mapping
from agent.repository.identity import ID_SIZE, BlobType, is_object_name
from agent.repository.snapshotcache import SnapshotCache
from agent.repository.table import Table, columns, merged

_MAGIC = b"podlift table 2\n"
_SEAL_SIZE = 16
_COUNTS = struct.Struct("<5Q")  # names, data packs, data blobs, tree packs, tree blobs
_BODY_AT = len(_MAGIC) + _SEAL_SIZE
_MERGED_NAME = "merged"
_UNFINISHED_SECONDS = 3600
_BLOCK_BYTES = 1 << 20
_RELEASE_STEPS = 16  # of the 256 of a merge: what it has read is resident up to a 16th
_SPARE = 16  # this part of the limit is freed beyond need, so that not every file makes us look
_TAG_NAME = "CACHEDIR.TAG"
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by podlift; may be deleted at any time.\n"
)


log = logging.getLogger(__name__)


class Merged(NamedTuple):
    """What a merged file says, and which index files it covers."""

    names: frozenset[str]
    tables: list[Table]


class _Part(NamedTuple):
    """Tables of one type that become one in a file; ``at`` is where its packs begin there."""

    tables: Sequence[Table]
    at: int

    @property
    def packs(self) -> int:
        return sum(table.pack_count for table in self.tables)

    @property
    def blobs(self) -> int:
        return sum(map(len, self.tables))

    @property
    def end(self) -> int:
        return self.at + ID_SIZE * self.packs + columns(self.blobs)[-1]

    def pieces(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yield what is written, and where."""
        place = self.at
        for table in self.tables:
            yield place, table.packs
            place += len(table.packs)
        if len(self.tables) == 1:
            yield place, self.tables[0].body
            return
        yield place, bytes(4)  # the first of the starts
        for step, parts in enumerate(merged(self.tables)):
            yield from ((place + at, part) for at, part in parts)
            if step % _RELEASE_STEPS == 0:
                release(self.tables)


class Cache:
    """The cache of one repository, in ``root/<repository id>``; safe to use from many threads."""

    def __init__(self, place: CacheDir, repository_id: str) -> None:
        """Make the directories; where that fails there is no cache, and a warning says so."""
        self._place = place
        self._folder = place.root / repository_id / "index"
        self._remembered = place.root / repository_id / "directories"
        self._lock = threading.Lock()
        self._room_bytes = 0
        kept = place.root / repository_id / "snapshots"
        self.snapshots = SnapshotCache(kept, self._make_room)
        tag = place.root / _TAG_NAME
        try:
            place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not tag.exists():
                tag.write_text(_TAG)
        except OSError as error:
            log.warning("no index is cached in %s, so each run fetches all: %s", place.root, error)

    @property
    def journals(self) -> Path:
        """Return where the runs of this node keep their journals."""
        return self._folder.parent

    def load(self, index_id: str) -> list[Table] | None:
        """Return the tables of an index file, or None if they are not (or no longer) here."""
        found = self._open(index_id)
        return None if found is None else found.tables

    def load_merged(self, index_ids: set[str]) -> Merged | None:
        """Return what was merged, if every index file that it covers is still there."""
        found = self._open(_MERGED_NAME)
        if found is not None and not found.names <= index_ids:
            self._remove(_MERGED_NAME)
            return None
        return found

    def _open(self, name: str) -> Merged | None:
        try:
            with (self._folder / name).open("rb") as file:
                if not _sealed(file.fileno()):
                    self._remove(name)
                    return None
                os.utime(file.fileno())
                content = memoryview(Mapping(file.fileno()))
        except (OSError, ValueError):
            return None
        try:
            return _parse(content)
        except (ValueError, struct.error):
            self._remove(name)
            return None

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def save(self, index_id: str, tables: list[Table]) -> None:
        """Keep the tables of an index file; a full or read-only disk is not an error."""
        self._write(index_id, (), tables, lambda: True)

    def save_merged(
        self, index_ids: Iterable[str], tables: list[Table], go_on: Callable[[], bool]
    ) -> bool:
        """Merge tables into the file that covers these index files; return whether it is there.

        Ends early without it if ``go_on``, which is asked every few milliseconds, says so, if the
        file would be beyond the limit, or if another process is about the same.
        """
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._write(_MERGED_NAME, sorted(index_ids), tables, go_on)
        except OSError:
            return False
        finally:
            os.close(folder)

    def _write(
        self, name: str, covers: Sequence[str], tables: list[Table], go_on: Callable[[], bool]
    ) -> bool:
        of_type = [[table for table in tables if table.type is type] for type in BlobType]
        data = _Part(of_type[0], _BODY_AT + _COUNTS.size + ID_SIZE * len(covers))
        trees = _Part(of_type[1], data.end)
        temporary = self._folder / f".{name}.{secrets.token_hex(4)}"
        try:
            if not self._make_room(trees.end):
                return False
            with temporary.open("xb+", buffering=0) as file:
                counts = _COUNTS.pack(len(covers), data.packs, data.blobs, trees.packs, trees.blobs)
                _write_at(file.fileno(), _BODY_AT, counts + bytes.fromhex("".join(covers)))
                for part in (data, trees):
                    for place, piece in part.pieces():
                        _write_at(file.fileno(), place, piece)
                        if not go_on():
                            raise InterruptedError
                    release(part.tables)
                _write_at(file.fileno(), 0, _MAGIC + _digest(file.fileno()))
            os.replace(temporary, self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return False
        return True

    def keep_only(self, index_ids: set[str]) -> None:
        """Drop what belongs to index files that are no more, and what a crash left half-written."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if is_object_name(path.name) and path.name not in index_ids:
                    path.unlink(missing_ok=True)
        for folder in (self._folder, self._remembered, self._folder.parent / "snapshots"):
            _remove_unfinished(folder)
        self._make_room(0)

    def load_directories(self, snapshot: str) -> bytes:
        """Return what is remembered of the directories of a snapshot, or b""."""
        try:
            with (self._remembered / snapshot).open("rb") as file:
                if _sealed(file.fileno()):
                    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, _BODY_AT)
        except OSError:
            pass
        return b""

    def save_directories(self, snapshot: str, content: bytes, parent: str) -> None:
        """Keep what is remembered of a snapshot, in the place of its parent's."""
        temporary = self._remembered / f".{snapshot}.{secrets.token_hex(4)}"
        try:
            self._remembered.mkdir(exist_ok=True, mode=0o700)
            if self._make_room(_BODY_AT + len(content)):
                temporary.write_bytes(_MAGIC + xxhash.xxh3_128_digest(content) + content)
                os.replace(temporary, self._remembered / snapshot)
            if parent and parent != snapshot:
                (self._remembered / parent).unlink(missing_ok=True)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _make_room(self, size: int) -> bool:
        """Remove what was not used for longest until a file of this size fits; tell if it does.

        Others may write as well, so we look again after each 16th of the limit that was written.
        """
        limit = self._place.limit_mib << 20
        if size > limit:
            return False
        with self._lock:
            if size == 0 or self._room_bytes < size:
                files = sorted(_files(self._place.root))
                taken = sum(bytes for _, bytes, _ in files)
                if taken + size > limit:
                    taken -= _remove_oldest(files, taken + size + limit // _SPARE - limit)
                self._room_bytes = min(limit - taken, max(size, limit // _SPARE))
            self._room_bytes -= size
            return self._room_bytes >= 0


def is_mapped(table: Table) -> bool:
    """Tell whether a table is a cached file, not a copy in memory."""
    return isinstance(table.body.obj, Mapping)


def release(tables: Iterable[Table]) -> None:
    """Give back the memory of the pages that were looked at; they come back from the file."""
    for table in tables:
        content = table.body.obj
        if isinstance(content, Mapping):
            content.release()


def _remove_unfinished(folder: Path) -> None:
    """Remove what a crash left half-written; what is young may still be somebody's."""
    left_behind = time.time() - _UNFINISHED_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name[0] == "." and path.stat().st_mtime < left_behind:
                path.unlink(missing_ok=True)


def _files(root: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each cached file was last used, its size and path, of all repositories."""
    kinds = ("index", "directories", "snapshots")
    for path in itertools.chain.from_iterable(root.glob(f"*/{kind}/*") for kind in kinds):
        with contextlib.suppress(OSError):
            found = path.stat()
            yield found.st_mtime, found.st_size, path


def _remove_oldest(files: list[tuple[float, int, Path]], needed: int) -> int:
    """Remove files until as many bytes are free; return how many are. Half-written ones stay."""
    freed = 0
    for _, size, path in files:
        if freed >= needed:
            break
        if path.name[0] != ".":
            with contextlib.suppress(OSError):
                path.unlink()
                freed += size
    return freed


def _write_at(descriptor: int, place: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        count = os.pwrite(descriptor, left, place)
        left, place = left[count:], place + count


def _digest(descriptor: int) -> bytes:
    """Return the XXH3 of what is behind the seal."""
    seal = xxhash.xxh3_128()
    place = _BODY_AT
    while block := os.pread(descriptor, _BLOCK_BYTES, place):
        seal.update(block)
        place += len(block)
    return seal.digest()


def _sealed(descriptor: int) -> bool:
    head = os.pread(descriptor, _BODY_AT, 0)
    return head[: len(_MAGIC)] == _MAGIC and head[len(_MAGIC) :] == _digest(descriptor)


def _parse(content: memoryview) -> Merged:
    """Divide a file whose seal is right; raise ``ValueError`` if it is not as long as it says."""
    count, *sizes = _COUNTS.unpack_from(content, _BODY_AT)
    place = _BODY_AT + _COUNTS.size
    names = bytes(content[place : place + ID_SIZE * count]).hex()
    place += ID_SIZE * count
    tables = []
    for type, packs, blobs in zip(BlobType, sizes[::2], sizes[1::2], strict=True):
        body = place + ID_SIZE * packs
        end = body + columns(blobs)[-1]
        tables.append(Table(type, content[place:body], content[body:end], blobs))
        place = end
    if place != len(content):
        raise ValueError(f"{len(content)} bytes where {place} were said")
    size = 2 * ID_SIZE
    return Merged(frozenset(names[at : at + size] for at in range(0, len(names), size)), tables)
