"""The writer: blobs in, packs and index files out, and a snapshot as the last thing.

Write order is a scope. ``with repository.writing(lock, ...) as writer``: packs are durable
before an index names them, and indexes before the snapshot does. Leaving the scope without
``finish`` leaves packs and indexes that the next run uses, never a snapshot.

A blob is stored once by one writer: the first thread that brings it claims it, the others rely
on that, and if the first one fails so does the run. Two packs of a type are open at a time and a
blob goes to either by chance, which hides chunk sizes from who watches the bucket
(restic-format.md section 7).
"""

import dataclasses
import logging
import secrets
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.budget import Budgets
from agent.cancel import CancelToken
from agent.config import Compression, VerifyStored
from agent.entry import Entry
from agent.errors import Canceled, DamagedBlob, RepositoryError, StorageError
from agent.monitor import Monitor
from agent.repository.contract import Remembered
from agent.repository.crypto import Buffer
from agent.repository.identity import BlobId, BlobType
from agent.repository.indexfile import Packs
from agent.repository.indexview import IndexView
from agent.repository.inflight import InFlight
from agent.repository.locking import HeldLock
from agent.repository.longblob import LongBlob, LongTreeWriter
from agent.repository.objects import Folder, Objects
from agent.repository.pack import MAX_BLOB_BYTES, MAX_ENTRIES, TARGET_BYTES, PackBuilder
from agent.repository.reader import BlobReader
from agent.repository.remembered import Directories
from agent.repository.sealing import LEVELS, Sealed, Sealer, Span
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.tree import encode_tree
from agent.repository.uploads import Sending, Uploads
from agent.repository.zone import local_zone
from chunker import Parameters

log = logging.getLogger(__name__)

OPEN_PACKS = 2
"""Packs of a type that are open at a time, if a run is alone: of several runs each has one, which costs
memory less and who watches the bucket can tell a little more from it."""


class _Known:
    """Which blobs need not be stored: those indexed, and those some thread is storing now.

    When an indexed tree turns out to be damaged, all trees of the run are stored again: the ones
    below it were not looked at, and the new snapshot must not rely on them.
    """

    def __init__(self, view: IndexView) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._claimed: dict[BlobType, set[BlobId]] = {type: set() for type in BlobType}
        self._distrusted: set[BlobType] = set()

    def claim(self, type: BlobType, ids: Sequence[BlobId]) -> list[int]:
        """Return the places of those blobs that the caller is the one who has to store."""
        mine = []
        with self._lock:
            claimed = self._claimed[type]
            known = self._indexed(type, ids)
            for place, id in enumerate(ids):
                if not known[place] and id not in claimed:
                    claimed.add(id)
                    mine.append(place)
        return mine

    def has(self, type: BlobType, ids: Sequence[BlobId]) -> bool:
        """Tell whether every one of these blobs is stored, or being stored."""
        with self._lock:
            claimed = self._claimed[type]
            known = self._indexed(type, ids)
            return all(known[place] or id in claimed for place, id in enumerate(ids))

    def distrust(self, type: BlobType) -> None:
        """Rely no more on what earlier runs stored of this type."""
        with self._lock:
            self._distrusted.add(type)

    def distrusts(self, type: BlobType) -> bool:
        """Tell whether what earlier runs stored is not relied on."""
        return type in self._distrusted

    def _indexed(self, type: BlobType, ids: Sequence[BlobId]) -> bytes:
        if type in self._distrusted:
            return bytes(len(ids))
        return self._view.known(type, b"".join(ids))

    def indexed(self, packs: Packs) -> None:
        """Move blobs from the claimed to the indexed ones; they are in either at any time."""
        self._view.add(packs)
        with self._lock:
            for _, blobs in packs:
                for blob in blobs:
                    if blob.type not in self._distrusted:
                        self._claimed[blob.type].discard(blob.id)


class OpenPacks:
    """The packs of one type that still take blobs."""

    def __init__(self, type: BlobType, uploads: Uploads) -> None:
        self._type = type
        self._uploads = uploads
        self._slots = uploads.share_of(OPEN_PACKS)
        self._packs = [self._empty() for _ in range(OPEN_PACKS)]
        for after, pack in enumerate(self._packs):
            # The first ones end apart, or both would always be full, and in flight, at the same moment.
            pack.end_bytes -= after * pack.end_bytes // OPEN_PACKS
        self._lock = threading.Lock()

    def _empty(self) -> PackBuilder:
        return self._uploads.builder(self._type)

    def add(self, blobs: Sequence[Sealed]) -> int:
        """Append sealed blobs, send each pack that is full; return the stored size of them all.

        A full pack is sent under the lock, before there is memory for the next. While all connections
        are busy no thread can fill another one: memory is a matter of connections, not of threads.
        """
        size = 0
        with self._lock:
            slots = self._slots()
            for blob, chance in zip(blobs, secrets.token_bytes(len(blobs)), strict=True):
                slot = chance % slots
                pack = self._packs[slot]
                packed = pack.append(blob.id, blob.bytes, blob.plain_length)
                size += packed.length + packed.entry_bytes
                if pack.full:
                    self._uploads.send(pack)
                    self._packs[slot] = self._empty()
        return size

    def flush(self) -> None:
        """Send what is left, as one pack if it fits."""
        with self._lock:
            left = [pack for pack in self._packs if pack.blobs]
            self._packs = [self._empty() if pack.blobs else pack for pack in self._packs]
        if len(left) > 1 and _fit_together(left):
            first, *rest = left
            for pack in rest:
                for blob in pack.blobs:
                    first.append(blob.id, pack.sealed(blob), blob.plain_length)
            left = [first]
        for pack in left:
            self._uploads.send(pack)


def _fit_together(packs: list[PackBuilder]) -> bool:
    size = sum(pack.size for pack in packs)
    return size < TARGET_BYTES and sum(len(pack.blobs) for pack in packs) <= MAX_ENTRIES


@dataclasses.dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a run writes, and what it shares with other runs of the process.

    ``parent`` is the id of the snapshot whose directories may be remembered, if there is one.
    ``verify_stored`` says which packs are read back.
    """

    parent: str = ""
    compression: Compression = "default"
    verify_stored: VerifyStored = "sample"
    budgets: Budgets = dataclasses.field(default_factory=Budgets)


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """What one run of writing works with: an open repository, locked, and who looks on."""

    objects: Objects
    view: IndexView
    lock: HeldLock
    chunking: Parameters
    monitor: Monitor
    cancel: CancelToken
    options: WriteOptions
    folder: Path | None = None
    """Where temporary files are made, or None; see ``longblob``."""


class Writer:
    """The write side of a repository for one run; implements ``BackupTarget``."""

    snapshot = ""
    """The id of the snapshot, once it is stored."""

    def __init__(self, session: Session, memory: Directories | None = None) -> None:
        self._session = session
        self._memory = memory
        self._uploads = Uploads(
            session.objects,
            session.lock,
            session.monitor,
            session.cancel,
            Sending(session.options.budgets, session.options.verify_stored),
        )
        self._known = _Known(session.view)
        self._uploads.on_index = self._known.indexed
        self._open = {type: OpenPacks(type, self._uploads) for type in BlobType}
        self._storing = InFlight()
        self._sealer = Sealer(session.objects.key, session.options.compression)
        self._reader = BlobReader(
            session.objects.storage,
            session.objects.key,
            session.view,
            session.cancel,
            session.folder,
        )

    @property
    def chunking(self) -> Parameters:
        """Return the repository's chunking parameters."""
        return self._session.chunking

    def has_content(self, ids: Sequence[bytes]) -> bool:
        """Tell whether every data blob is indexed or on its way."""
        return self._known.has(BlobType.DATA, [BlobId(id) for id in ids])

    def store_chunks(self, data: Buffer, spans: Sequence[Span]) -> Sequence[bytes]:
        """Store the data blobs that lie in a buffer unless they are known; return their ids."""
        return self._store(BlobType.DATA, data, spans)

    def store_tree(self, entries: Sequence[Entry]) -> bytes:
        """Store a tree unless it is known; return its id."""
        text = encode_tree(entries, local_zone)
        return self._store(BlobType.TREE, text, [(0, len(text))])[0]

    def begin_tree(self) -> LongTreeWriter:
        """Begin a tree that is made piece by piece."""
        level = LEVELS[self._session.options.compression][0]
        blob = LongBlob(self._session.objects.key, level, self._session.folder)
        return LongTreeWriter(blob, self._store_long)

    def load_tree(self, id: bytes) -> Iterable[Entry]:
        """Return the entries of an earlier snapshot's directory.

        Raises ``DamagedBlob`` or ``MalformedData``; after the first, trees are stored anew.
        """
        try:
            return self._reader.load_tree(id)
        except DamagedBlob:
            self._known.distrust(BlobType.TREE)
            raise

    def finish(self, snapshot: Snapshot) -> str:
        """Flush packs, write the index, then the snapshot; return its id."""
        self.snapshot = self.checkpoint(snapshot)
        return self.snapshot

    def checkpoint(self, snapshot: Snapshot) -> str:
        """Make durable what was stored before this call, then a snapshot of it; return its id.

        Others may go on storing meanwhile. A blob that one thread relies on may still be on its
        way into a pack by another, so all calls that have begun are waited for first.
        """
        self._storing.wait_for_earlier(self._uploads.check)
        for packs in self._open.values():
            packs.flush()
        self._uploads.drain()
        self._session.cancel.check()
        self._session.lock.prove()
        json = encode_snapshot(snapshot, local_zone)
        return self._session.objects.save(Folder.SNAPSHOTS, json)

    def adopt(self, packs: Packs) -> int:
        """Take over packs that are stored and in no index, but those found damaged; return how many.

        Durable when this returns.
        """
        return self._uploads.adopt(packs)

    def remove_checkpoints(self, ids: Sequence[str]) -> None:
        """Remove checkpoints that are of no more use; one that stays fails nothing."""
        for id in ids:
            try:
                self._session.objects.remove(Folder.SNAPSHOTS, id, cancel=self._session.cancel)
            except (StorageError, Canceled) as error:
                log.warning("the checkpoint %s stays: %s; forget removes it", id[:8], error)

    @property
    def index_names(self) -> frozenset[str]:
        """Return the index files that this run has written."""
        return frozenset(self._uploads.index_names)

    def recall(self, tree: bytes) -> Remembered | None:
        """Return what is remembered of a directory of the parent, as long as trees are trusted."""
        if self._memory is None or self._known.distrusts(BlobType.TREE):
            return None
        remembered = self._memory.recall(tree)
        if remembered is not None:
            try:
                self._reader.prove_tree(tree)  # what is relied on has to be there
            except DamagedBlob:
                self._known.distrust(BlobType.TREE)
                return None
        return remembered

    def remember(self, tree: bytes, remembered: Remembered) -> None:
        """Remember a directory for the next run."""
        if self._memory is not None:
            self._memory.remember(tree, remembered)

    def close(self) -> None:
        """End the uploads; see ``Uploads.close``."""
        self._uploads.close()

    def _store(self, type: BlobType, data: Buffer, spans: Sequence[Span]) -> Sequence[BlobId]:
        self._uploads.check()
        largest = max((size for _, size in spans), default=0)
        if largest > MAX_BLOB_BYTES:
            raise RepositoryError(
                f"a {type.word} blob of {largest} bytes does not fit into a pack, which ends at 4 GiB;"
                " a directory of so many entries has to be excluded or split"
            )
        hashed = self._sealer.hash(data, spans)
        with self._storing.call():
            mine = self._known.claim(type, hashed.ids)
            if not mine:
                return hashed.ids
            stored = 0
            try:
                for blobs in self._sealer.seal(type, data, hashed, mine):
                    stored += self._open[type].add(blobs)
            except BaseException as error:
                self._uploads.fail(error)
                raise
        self._session.monitor.add(
            **{"data_blobs" if type is BlobType.DATA else "tree_blobs": len(mine)},
            bytes_added=sum(spans[place][1] for place in mine),
            bytes_stored=stored,
        )
        return hashed.ids

    def _store_long(self, blob: LongBlob) -> bytes:
        """Send a tree that was made piece by piece, unless it is known; return its id."""
        self._uploads.check()
        pack = blob.finish()
        (packed,) = pack.blobs
        with self._storing.call():
            if not self._known.claim(BlobType.TREE, [packed.id]):
                return packed.id
            try:
                self._uploads.send(pack)
            except BaseException as error:
                self._uploads.fail(error)
                raise
        self._session.monitor.add(
            tree_blobs=1,
            bytes_added=packed.plain_length,
            bytes_stored=packed.length + packed.entry_bytes,
        )
        return packed.id
