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
import hashlib
import secrets
import threading
from collections.abc import Sequence

from agent.cancel import CancelToken
from agent.entry import Entry
from agent.errors import DamagedBlob, RepositoryError
from agent.monitor import Monitor
from agent.repository.crypto import Buffer
from agent.repository.identity import BlobId, BlobType
from agent.repository.indexfile import Packs
from agent.repository.indexview import IndexView
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, Objects
from agent.repository.pack import MAX_BLOB_BYTES, MAX_ENTRIES, TARGET_BYTES, PackBuilder
from agent.repository.reader import BlobReader
from agent.repository.sealing import DEFAULT_LEVEL, Sealer
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.tree import encode_tree
from agent.repository.uploads import CONNECTIONS, Uploads
from agent.repository.zone import local_zone
from chunker import Parameters

OPEN_PACKS = 2


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

    def claim(self, type: BlobType, id: BlobId) -> bool:
        """Tell whether the caller is the one who has to store this blob."""
        with self._lock:
            claimed = self._claimed[type]
            if id in claimed or self._indexed(type, id):
                return False
            claimed.add(id)
            return True

    def has(self, type: BlobType, id: BlobId) -> bool:
        with self._lock:
            return id in self._claimed[type] or self._indexed(type, id)

    def distrust(self, type: BlobType) -> None:
        """Rely no more on what earlier runs stored of this type."""
        with self._lock:
            self._distrusted.add(type)

    def _indexed(self, type: BlobType, id: BlobId) -> bool:
        return type not in self._distrusted and self._view.has(type, id)

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
        self._packs = [PackBuilder(type) for _ in range(OPEN_PACKS)]
        self._lock = threading.Lock()

    def add(self, id: BlobId, sealed: Buffer, plain_length: int) -> int:
        """Append a sealed blob, send the pack if it is full; return the blob's stored size.

        A full pack is sent under the lock. While all connections are busy no thread can fill
        another one: memory is a matter of connections, not of threads.
        """
        with self._lock:
            slot = secrets.randbelow(OPEN_PACKS)
            pack = self._packs[slot]
            blob = pack.append(id, sealed, plain_length)
            if pack.full:
                self._packs[slot] = PackBuilder(self._type)
                self._uploads.send(pack)
        return blob.length + blob.entry_bytes

    def flush(self) -> None:
        """Send what is left, as one pack if it fits."""
        with self._lock:
            left = [pack for pack in self._packs if pack.blobs]
            self._packs = [PackBuilder(self._type) for _ in range(OPEN_PACKS)]
        if len(left) > 1 and _fit_together(left):
            first, *rest = left
            for pack in rest:
                for blob in pack.blobs:
                    sealed = pack.body[blob.offset : blob.offset + blob.length]
                    first.append(blob.id, sealed, blob.plain_length)
            left = [first]
        for pack in left:
            self._uploads.send(pack)


def _fit_together(packs: list[PackBuilder]) -> bool:
    size = sum(len(pack.body) for pack in packs)
    return size < TARGET_BYTES and sum(len(pack.blobs) for pack in packs) <= MAX_ENTRIES


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """What one run of writing works with: an open repository, locked, and who looks on."""

    objects: Objects
    view: IndexView
    lock: HeldLock
    chunking: Parameters
    monitor: Monitor
    cancel: CancelToken
    connections: int = CONNECTIONS
    level: int = DEFAULT_LEVEL


class Writer:
    """The write side of a repository for one run; implements ``BackupTarget``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._uploads = Uploads(
            session.objects,
            session.lock,
            session.monitor,
            session.cancel,
            session.connections,
        )
        self._known = _Known(session.view)
        self._uploads.on_index = self._known.indexed
        self._open = {type: OpenPacks(type, self._uploads) for type in BlobType}
        self._sealer = Sealer(session.objects.key, session.level)
        self._reader = BlobReader(
            session.objects.storage, session.objects.key, session.view, session.cancel
        )

    @property
    def chunking(self) -> Parameters:
        """Return the repository's chunking parameters."""
        return self._session.chunking

    def has_content(self, ids: Sequence[bytes]) -> bool:
        """Tell whether every data blob is indexed or on its way."""
        return all(self._known.has(BlobType.DATA, BlobId(id)) for id in ids)

    def store_chunk(self, data: bytes) -> bytes:
        """Store a data blob unless it is known; return its id."""
        return self._store(BlobType.DATA, data)

    def store_tree(self, entries: Sequence[Entry]) -> bytes:
        """Store a tree unless it is known; return its id."""
        return self._store(BlobType.TREE, encode_tree(entries, local_zone))

    def load_tree(self, id: bytes) -> list[Entry]:
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
        for packs in self._open.values():
            packs.flush()
        self._uploads.drain()
        self._session.cancel.check()
        self._session.lock.prove()
        json = encode_snapshot(snapshot, local_zone)
        return self._session.objects.save(Folder.SNAPSHOTS, json)

    def close(self) -> None:
        """End the uploads; see ``Uploads.close``."""
        self._uploads.close()

    def _store(self, type: BlobType, data: bytes) -> BlobId:
        self._uploads.check()
        if len(data) > MAX_BLOB_BYTES:
            raise RepositoryError(
                f"a {type.word} blob of {len(data)} bytes does not fit into a pack, which ends at"
                " 4 GiB; a directory of so many entries has to be excluded or split"
            )
        id = BlobId(hashlib.sha256(data).digest())
        if not self._known.claim(type, id):
            return id
        try:
            sealed, plain_length = self._sealer.seal(type, id, data)
            stored = self._open[type].add(id, sealed, plain_length)
        except BaseException as error:
            self._uploads.fail(error)
            raise
        kind = "data_blobs" if type is BlobType.DATA else "tree_blobs"
        self._session.monitor.add(**{kind: 1}, bytes_added=len(data), bytes_stored=stored)
        return id
