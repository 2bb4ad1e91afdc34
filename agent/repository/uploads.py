"""Uploads: full packs on their way to the storage, and the index files that name them.

A pack is named by an index file only after the storage has acknowledged it, and proven by being
read back if it was chosen for that (``readback.py``). A bounded number of packs is in flight; who
brings one more waits. The first failure is kept and stops everything: a repository fault never
half-succeeds.
"""

import concurrent.futures
import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable

from agent.budget import NEAR_CONNECTIONS, Budgets
from agent.cancel import CancelToken, Run, patience
from agent.config import VerifyStored
from agent.monitor import Monitor
from agent.repository.buffers import Buffers
from agent.repository.crypto import Key
from agent.repository.identity import BlobType, PackId
from agent.repository.indexfile import Packs, encode_index
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, Objects, fresh_iv, pack_key
from agent.repository.pack import TARGET_BYTES, PackBuilder, PackedBlob, packed_size
from agent.repository.readback import ReadBack
from agent.threads import Threads

INDEX_BLOBS = 50_000
INDEX_SECONDS = 60.0
"""An index file is written at either of these; restic's are 50,000 and 10 minutes."""

CLOSING_SECONDS = 10.0
"""How long the last index of a run that failed is tried; packs that it does not name are sent again."""

_WAIT_SLICE_SECONDS = 0.5

BODY_BYTES = TARGET_BYTES + (10 << 20)
"""Room for a pack of chunks, the last of which may begin right below the target, with its header."""

USUAL_BODY_BYTES = TARGET_BYTES + (1 << 20)
"""Half of all packs are smaller."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sending:
    """How packs are sent: how many at a time, and which of them are read back."""

    budgets: Budgets = dataclasses.field(default_factory=Budgets)
    verify_stored: VerifyStored = "sample"


class Uploads:
    """Sends packs, and writes an index file when enough of them have arrived."""

    def __init__(
        self,
        objects: Objects,
        lock: HeldLock,
        monitor: Monitor,
        cancel: CancelToken,
        how: Sending = Sending(),
    ) -> None:
        self._objects = objects
        self._lock = lock
        self._monitor = monitor
        self._cancel = cancel
        at_once = how.budgets.connections
        if not objects.storage.waits:
            at_once = min(at_once, NEAR_CONNECTIONS)
        self._pool = Threads(at_once, "upload")
        self.share_of = how.budgets.share_of
        self._most_in_flight = self.share_of(at_once)
        self._read_back = ReadBack(objects, lock, cancel, how.verify_stored)
        self._state = threading.Condition()
        self._indexing = threading.Lock()
        self._arrived: Packs = []
        self._arrived_blobs = 0
        self._arrived_proven = False  # whether at least one of them was read back
        self._index_due = time.monotonic() + INDEX_SECONDS
        self._run = Run(cancel)
        self._running: set[concurrent.futures.Future[None]] = set()
        self.index_names: set[str] = set()
        self._bodies = Buffers(BODY_BYTES, USUAL_BODY_BYTES)
        self.on_index: Callable[[Packs], None] = lambda packs: None

    @property
    def key(self) -> Key:
        """Return the key that seals."""
        return self._objects.key

    def fail(self, error: BaseException) -> None:
        """Remember the first failure of anything that belongs to this run."""
        self._run.fail(error)

    def check(self) -> None:
        """Raise what went wrong so far, or ``Canceled``."""
        self._run.check()

    def builder(self, type: BlobType) -> PackBuilder:
        """Return an empty pack; one of data in the memory of one that was sent, which saves time.

        There are few packs of trees, and most end small: each would only hold on to 16 MiB.
        """
        return PackBuilder(type, self._bodies.take(BODY_BYTES) if type is BlobType.DATA else None)

    def send(self, pack: PackBuilder) -> None:
        """Queue a full pack; waits while too many are in flight."""
        with self._state:
            while len(self._running) >= self._most_in_flight():
                self.check()
                self._state.wait(_WAIT_SLICE_SECONDS)
            self.check()
            future = self._pool.submit(self._upload, pack)
            self._running.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: concurrent.futures.Future[None]) -> None:
        # The failure first: ``drain`` takes a pack that is no longer running for one that arrived.
        if not future.cancelled() and (error := future.exception()) is not None:
            self.fail(error)
        with self._state:
            self._running.discard(future)
            self._state.notify()

    def _upload(self, pack: PackBuilder) -> None:
        self.check()
        with pack.finish(self.key, fresh_iv()) as whole:
            digest = hashlib.sha256(whole).digest()
            id = PackId(digest)
            self._lock.check()
            self._lock.journal.pack(id)
            self._objects.storage.put(pack_key(id), whole, sha256=digest, cancel=self._cancel)
            self._monitor.add(bytes_uploaded=len(whole))
            proven = False
            while not self._note(id, pack.blobs, proven=proven):
                self._read_back.prove(id, whole)
                self._monitor.add(bytes_read_back=len(whole))
                proven = True
        self._take_memory_of(pack)
        self._index_if_due()

    def _take_memory_of(self, sent: PackBuilder) -> None:
        """Keep it for the next pack, and of such memory as much as are in flight at a time."""
        if isinstance(sent.body, memoryview):
            self._bodies.give(sent.body, sent.size)
            self._bodies.keep(self._most_in_flight())

    def _note(self, id: PackId, blobs: list[PackedBlob], *, proven: bool) -> bool:
        """Let the next index name a pack; return False if it has to be read back before."""
        with self._state:
            if not proven and self._read_back.wants(id, first=not self._arrived_proven):
                return False
            self._arrived.append((id, blobs))
            self._arrived_blobs += len(blobs)
            self._arrived_proven |= proven
        return True

    def _index_if_due(self) -> None:
        with self._state:
            due = self._due()
        if due:
            with self._indexing:
                if self._due():  # unless another thread was faster
                    self._write_index(self._cancel)

    def _due(self) -> bool:
        return self._arrived_blobs >= INDEX_BLOBS or time.monotonic() >= self._index_due

    def _write_index(self, cancel: CancelToken) -> None:
        """Write the index of all packs that have arrived; one thread at a time."""
        with self._state:
            packs, self._arrived, self._arrived_blobs = self._arrived, [], 0
            proven, self._arrived_proven = self._arrived_proven, False
            self._index_due = time.monotonic() + INDEX_SECONDS
        if not packs:
            return
        try:
            self._lock.prove()
            name = self._objects.save(Folder.INDEX, encode_index(packs), cancel=cancel)
        except BaseException:
            with self._state:  # ``close`` tries once more
                self._arrived += packs
                self._arrived_proven |= proven
            raise
        with self._state:
            self.index_names.add(name)
        self._lock.journal.indexed(id for id, _ in packs)
        self.on_index(packs)

    def adopt(self, packs: Packs) -> int:
        """Index packs that a run which is gone had sent; return how many: not what is damaged."""
        adopted = sum(self._pool.map(lambda pack: self._take_over(*pack), packs))
        self._flush_index(self._cancel)
        return adopted

    def _take_over(self, id: PackId, blobs: list[PackedBlob]) -> bool:
        proven = False
        while not self._note(id, blobs, proven=proven):
            self.check()
            size = packed_size(blobs)
            if not self._read_back.kept(id, size):
                return False
            self._monitor.add(bytes_read_back=size)
            proven = True
        return True

    def drain(self) -> None:
        """Wait until all that was sent so far has arrived, and write the index; raise what failed."""
        with self._state:
            waiting = set(self._running)
        while waiting:
            self.check()
            done, waiting = concurrent.futures.wait(waiting, timeout=_WAIT_SLICE_SECONDS)
            for future in done:  # whose callback may not have told of its failure yet
                future.result()
        self.check()
        self._flush_index(self._cancel)

    def close(self) -> None:
        """End the threads; packs that have arrived still get their index.

        After a failure this is what keeps finished work: what was uploaded is found again by
        the next run. Sending is over when this returns.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)
        with patience(CLOSING_SECONDS) as cancel:
            self._flush_index(cancel)

    def _flush_index(self, cancel: CancelToken) -> None:
        with self._indexing:
            self._write_index(cancel)
