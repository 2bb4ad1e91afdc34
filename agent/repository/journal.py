"""The journal: what a run has sent and not finished, in a file that outlives a killed process.

A pack counts only once an index names it, and an index is written once a minute. What a killed run sent
in its last minute is in the storage and known to nobody; its lock stays as well. So both are noted
*before* they are sent, in a file of the node's cache directory. The next run there, of the same
repository, adopts the packs by reading their headers, and removes the lock. Only files whose process
is gone are taken over: whoever lives holds a lock (flock) on its own. Losing a journal costs a minute
of sending again, and a lock that counts for half an hour. A pack that was read back and found damaged
(``readback.py``) is noted too: it is not adopted, unless the same run has mended it.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from agent.repository.identity import ID_SIZE, PackId

_PACK, _DAMAGED, _LOCK = b"P", b"D", b"L"
_RECORD_SIZE = 1 + ID_SIZE
_MOST_BYTES = _RECORD_SIZE << 16
"""What is read of a journal at most: it holds a minute's packs and a day's locks."""

_BEGINNINGS = 8
"""How often a journal is begun; each time it has to meet somebody who looks at that very moment."""

log = logging.getLogger(__name__)


class Leftovers(NamedTuple):
    """What dead runs have noted: packs that may be stored and in no index, and locks."""

    packs: frozenset[PackId]
    locks: frozenset[str]


class Journal:
    """Notes of one run; safe to use from many threads. Without a folder it notes nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        self._open: set[bytes] = set()
        self._folder = folder
        self._path: Path | None = None
        self._descriptor = -1

    def pack(self, id: PackId) -> None:
        """Note a pack that is about to be sent."""
        self._note(_PACK + id)

    def damaged(self, id: PackId) -> None:
        """Note that a pack is not as it was sent; noting it as a ``pack`` again takes that back."""
        with self._lock:
            self._open.discard(_PACK + id)
            self._write(_DAMAGED + id)

    def indexed(self, ids: Iterable[PackId]) -> None:
        """Say that an index names these packs."""
        with self._lock:
            self._open.difference_update(_PACK + id for id in ids)

    def lock(self, name: str) -> None:
        """Note a lock that is about to be written."""
        self._note(_LOCK + bytes.fromhex(name))

    def unlocked(self, name: str) -> None:
        """Say that a lock is gone."""
        with self._lock:
            self._open.discard(_LOCK + bytes.fromhex(name))

    def _note(self, record: bytes) -> None:
        with self._lock:
            self._open.add(record)
            self._write(record)

    def _write(self, record: bytes) -> None:
        if self._folder is None:
            return
        try:
            if self._descriptor < 0:
                self._begin(self._folder)
            os.write(self._descriptor, record)
        except OSError as error:
            log.info("no journal is kept: %s", error)
            self._folder = None

    def _begin(self, folder: Path) -> None:
        """Make the file; who looks for the dead may lock it before we do, so it is tried again."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in reversed(range(_BEGINNINGS)):
            path = folder / f"journal.{secrets.token_hex(8)}"
            try:
                self._descriptor = _made(path)
                self._path = path
                return
            except BlockingIOError:
                if not left:
                    raise

    def close(self) -> None:
        """End the run: the file goes, unless something is still to be taken over."""
        with self._lock:
            if self._descriptor < 0:
                return
            if not self._open and self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor, self._folder = -1, None


class Inheritance:
    """The journals of runs that are gone, held so that nobody else takes them over too."""

    def __init__(self, folder: Path | None) -> None:
        self._held: list[tuple[int, Path]] = []
        packs: set[PackId] = set()
        damaged: set[PackId] = set()
        locks: set[str] = set()
        for path in _journals(folder):
            descriptor = _taken(path)
            if descriptor >= 0:
                self._held.append((descriptor, path))
                records = _records(descriptor)
                packs.update(PackId(record[1:]) for record in records if record[:1] == _PACK)
                damaged.update(_damaged(records))
                locks.update(record[1:].hex() for record in records if record[:1] == _LOCK)
        self.left = Leftovers(frozenset(packs - damaged), frozenset(locks))

    def settle(self) -> None:
        """Remove the journals: all that they say is dealt with."""
        for _, path in self._held:
            with contextlib.suppress(OSError):
                path.unlink()
        self.release()

    def release(self) -> None:
        """Leave the journals, if there are any left, to somebody else."""
        for descriptor, _ in self._held:
            os.close(descriptor)
        self._held = []


def _made(path: Path) -> int:
    """Return a descriptor of a new file that is locked; else others would take us for dead."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:
            raise BlockingIOError(f"{path} was taken and removed already")
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def _journals(folder: Path | None) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        if folder is not None:
            yield from sorted(folder.glob("journal.*"))


def _taken(path: Path) -> int:
    """Return a descriptor of a journal whose process is gone, or -1."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _records(descriptor: int) -> list[bytes]:
    """Return the whole records; the last one may be torn."""
    content = os.pread(descriptor, _MOST_BYTES, 0)
    whole = len(content) // _RECORD_SIZE * _RECORD_SIZE
    return [content[at : at + _RECORD_SIZE] for at in range(0, whole, _RECORD_SIZE)]


def _damaged(records: Iterable[bytes]) -> set[PackId]:
    """Return the packs of which the last thing that one run noted is that they are damaged."""
    last = {record[1:]: record[:1] for record in records if record[:1] in (_PACK, _DAMAGED)}
    return {PackId(id) for id, kind in last.items() if kind == _DAMAGED}
