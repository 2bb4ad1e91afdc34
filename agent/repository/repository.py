"""An open repository: its snapshots, its index, and the scopes in which it is read and written."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from agent.cancel import NEVER, CancelToken
from agent.config import CacheDir
from agent.entry import Entry
from agent.errors import (
    Canceled,
    DamagedBlob,
    MalformedData,
    ObjectMissing,
    RepositoryError,
    StorageError,
    UsageError,
)
from agent.monitor import Monitor
from agent.repository.cache import Cache
from agent.repository.contract import Chunks, Range
from agent.repository.fetching import Fetch, plan_fetches
from agent.repository.headers import read_header
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import decode_index
from agent.repository.indexview import IndexView
from agent.repository.inventory import lost_packs
from agent.repository.journal import Inheritance, Journal
from agent.repository.locking import HeldLock
from agent.repository.merging import Loaded, merge_if_worthwhile
from agent.repository.objects import Folder, Objects, file_key, names, pack_key
from agent.repository.pack import PackedBlob
from agent.repository.parameters import RepositoryConfig
from agent.repository.reader import BlobReader
from agent.repository.remembered import Directories
from agent.repository.snapshot import Snapshot, decode_snapshot
from agent.repository.snapshotcache import SnapshotCache
from agent.repository.table import Table
from agent.repository.writer import Session, WriteOptions, Writer
from agent.storage.contract import Buffer
from agent.threads import Threads
from chunker import MIN_SIZE

ZEROS = bytes(MIN_SIZE)
"""The chunk that a long run of zeros is cut into (restic-format.md section 10)."""

ZEROS_ID = hashlib.sha256(ZEROS).digest()

log = logging.getLogger(__name__)

_STAY_LOST = (
    "%d of the blobs that %s has lost are not in this volume and stay lost; `podlift check` names the"
    " snapshots and files, `podlift repair` takes the packs out of the index"
)

LOADERS = 4
"""Files fetched at a time when many small ones are needed."""

A = TypeVar("A")
T = TypeVar("T")


class Reader:
    """The read side of a repository for one run; implements ``RestoreSource``."""

    def __init__(self, blobs: BlobReader, view: IndexView, lock: HeldLock | None = None) -> None:
        """Read under a lock that may still have to settle, or under none."""
        self._blobs = blobs
        self._lock = lock
        self.view = view

    @property
    def waits(self) -> bool:
        """Tell whether the storage is far away."""
        return self._blobs.waits

    def load_tree(self, id: bytes) -> Iterable[Entry]:
        """Return the entries of a directory, a list unless they are very many."""
        return self._blobs.load_tree(id)

    def load_chunk(self, id: bytes) -> bytes:
        """Return a chunk, verified."""
        return self._blobs.load(BlobType.DATA, BlobId(id))

    def chunk_size(self, id: bytes) -> int:
        """Return how many bytes a chunk has."""
        if self.is_zeros(id):
            return len(ZEROS)
        return self.view.find(BlobType.DATA, BlobId(id))[0].content_bytes

    def is_chunk(self, id: bytes, data: bytes) -> bool:
        """Tell whether these bytes are that chunk."""
        return hashlib.sha256(data).digest() == id

    def is_zeros(self, id: bytes) -> bool:
        """Tell whether this is the chunk that every hole is made of."""
        return id == ZEROS_ID

    def plan(self, ids: Collection[bytes]) -> tuple[Sequence[Range], dict[bytes, DamagedBlob]]:
        """Return the ranges that bring these chunks, and those that no index names.

        From here on nobody may prune: raises ``RepositoryLocked`` if a lock does not settle.
        """
        if self._lock is not None:
            self._lock.settle()
        places = self.view.find_many(BlobType.DATA, ids)
        lost = {id: self.view.lost(BlobType.DATA, BlobId(id)) for id in ids if id not in places}
        wanted = [places[id] for id in ids if id in places]
        return [_PlannedRange(self._blobs, fetch) for fetch in plan_fetches(wanted)], lost


class _PlannedRange:
    """A fetch with who reads it; implements ``Range``."""

    __slots__ = ("_blobs", "_fetch", "content_bytes", "count", "length")

    def __init__(self, blobs: BlobReader, fetch: Fetch) -> None:
        self._blobs = blobs
        self._fetch = fetch
        self.count = len(fetch.blobs)
        self.length = fetch.length
        self.content_bytes = fetch.content_bytes

    def fetched(self) -> contextlib.AbstractContextManager[Buffer]:
        """Read the range."""
        return self._blobs.fetched(self._fetch)

    def groups(self, fetched: Buffer) -> Iterator[Chunks]:
        """Open what was fetched."""
        return self._blobs.opened(self._fetch, fetched)


class Repository:
    """A repository that was opened with its password."""

    def __init__(self, objects: Objects, config: RepositoryConfig, cache: CacheDir | None) -> None:
        self.objects = objects
        self.config = config
        self._cache = Cache(cache, config.id) if cache is not None else None
        self._lock: HeldLock | None = None
        self.folder = self._cache.journals if self._cache is not None else None
        """What belongs to this repository on this node, or None: journals, temporary files."""

    @property
    def place(self) -> str:
        """Return what an operator would call this repository."""
        return self.objects.storage.place

    def snapshots(
        self,
        cancel: CancelToken = NEVER,
        refused: list[MalformedData] | None = None,
        *,
        fresh: bool = False,
    ) -> list[Snapshot]:
        """Return all snapshots, oldest first.

        Those that the cache has are not fetched, unless ``fresh``: whoever removes something looks
        at what is stored. A damaged one raises ``MalformedData``, or is left out if a list in
        ``refused`` takes its error.
        """
        there = set(names(self.objects.storage, Folder.SNAPSHOTS, cancel))
        kept = self._cache.snapshots if self._cache is not None and not fresh else None
        if kept is not None:
            kept.keep_only(there)

        def load(name: str) -> Snapshot | None:
            try:
                if kept is None:
                    return self.load_snapshot(name, cancel)
                return self._kept_snapshot(name, kept, cancel)
            except ObjectMissing:
                return None
            except MalformedData as error:
                if refused is None:
                    raise
                refused.append(error)
                return None

        loaded = in_parallel(load, sorted(there))  # those of one time in one order
        return sorted((s for s in loaded if s is not None), key=lambda s: s.time_ns)

    def _kept_snapshot(self, name: str, kept: SnapshotCache, cancel: CancelToken) -> Snapshot:
        """Return a snapshot out of the cache, or fetch and keep it; raises as ``load_snapshot``."""
        here = kept.get(name)
        stored = here or self.objects.fetch(Folder.SNAPSHOTS, name, cancel=cancel)
        found = decode_snapshot(self.objects.unseal(Folder.SNAPSHOTS, name, stored), name)
        if here is None:
            kept.keep(name, stored)
        return found

    def load_snapshot(self, name: str, cancel: CancelToken = NEVER) -> Snapshot:
        """Return the snapshot of a full id; raises ``ObjectMissing`` and ``MalformedData``."""
        return decode_snapshot(self.objects.load(Folder.SNAPSHOTS, name, cancel=cancel), name)

    def snapshot(self, wanted: str, cancel: CancelToken = NEVER) -> Snapshot:
        """Return the snapshot named by an id, a unique beginning of one, or ``latest``."""
        if wanted == "latest":
            every = [s for s in self.snapshots(cancel) if not s.is_checkpoint]
            if not every:
                raise UsageError(f"{self.place} holds no snapshots yet")
            return every[-1]
        found = [
            n for n in names(self.objects.storage, Folder.SNAPSHOTS, cancel) if n.startswith(wanted)
        ]
        if len(found) != 1 or not wanted:
            raise UsageError(
                f"{wanted!r} names {len(found) or 'no'} snapshots of {self.place};"
                " `podlift snapshots` lists them"
            )
        return self.load_snapshot(found[0], cancel)

    def load_index(self, cancel: CancelToken = NEVER) -> IndexView:
        """Read every index file, from the cache where it is there."""
        found = set(names(self.objects.storage, Folder.INDEX, cancel))
        merged = None
        if self._cache is not None:
            self._cache.keep_only(found)
            merged = self._cache.load_merged(found)
        fresh = sorted(found - merged.names if merged is not None else found)
        tables = in_parallel(lambda name: self._tables_if_there(name, cancel), fresh)
        loaded = Loaded(merged, {n: t for n, t in zip(fresh, tables, strict=True) if t is not None})
        view = IndexView(loaded.tables, loaded.names)
        if self._cache is not None:
            merge_if_worthwhile(self._cache, view, loaded)
        return view

    def _tables_if_there(self, name: str, cancel: CancelToken) -> list[Table] | None:
        try:
            return self.index_tables(name, cancel)
        except ObjectMissing:
            return None  # a prune has just replaced it; the new one is in the listing or comes next

    def index_tables(self, name: str, cancel: CancelToken = NEVER) -> list[Table]:
        """Return what one index file says; raises ``ObjectMissing`` and ``MalformedData``."""
        cached = self._cache.load(name) if self._cache is not None else None
        if cached is not None:
            return cached
        json = self.objects.load(Folder.INDEX, name, cancel=cancel)
        packs = decode_index(json, file_key(Folder.INDEX, name))
        tables = [Table.build(type, packs) for type in BlobType]
        if self._cache is not None:
            self._cache.save(name, tables)
            return self._cache.load(name) or tables  # mapped, so that it is not in memory
        return tables

    def reading(self, cancel: CancelToken = NEVER) -> Reader:
        """Load the index for reading."""
        view = self.load_index(cancel)
        return Reader(self.blobs(view, cancel), view, self._lock)

    def blobs(self, view: IndexView, cancel: CancelToken = NEVER) -> BlobReader:
        """Return who reads the blobs of an index."""
        return BlobReader(self.objects.storage, self.objects.key, view, cancel, self.folder)

    @contextlib.contextmanager
    def locked(
        self,
        *,
        exclusive: bool,
        wait_seconds: float = 0,
        cancel: CancelToken = NEVER,
        begun: bool = False,
    ) -> Iterator[HeldLock]:
        """Hold a lock for the length of a scope; it has settled, unless ``begun`` is enough."""
        self._remove_dead_locks(cancel)
        with contextlib.closing(Journal(self.folder)) as journal:
            lock = HeldLock(self.objects, exclusive, journal=journal)
            if begun and not wait_seconds:
                lock.begin(cancel)
            else:
                lock.acquire_within(wait_seconds, cancel)
            self._lock = lock
            try:
                yield lock
            finally:
                self._lock = None
                lock.release()

    def _remove_dead_locks(self, cancel: CancelToken) -> None:
        """Remove the locks of processes of this node that are gone."""
        gone = Inheritance(self.folder)
        try:
            if self._remove_locks(gone, cancel) and not gone.left.packs:
                gone.settle()
        finally:
            gone.release()

    def _remove_locks(self, gone: Inheritance, cancel: CancelToken) -> bool:
        """Remove the locks that journals name; return whether that could be done."""
        try:
            for name in gone.left.locks:
                self.objects.remove(Folder.LOCKS, name, cancel=cancel)
                log.info("removed the lock %s, whose process is gone", name[:8])
        except StorageError as error:
            log.warning("a lock of a process that is gone stays behind: %s", error)
            return False
        return True

    @contextlib.contextmanager
    def writing(
        self,
        lock: HeldLock,
        monitor: Monitor,
        cancel: CancelToken = NEVER,
        options: WriteOptions = WriteOptions(),  # noqa: B008  (frozen)
    ) -> Iterator[Writer]:
        """Load the index, and write in the scope, under a lock that is held already.

        What lies in packs that are missing or cut short counts as unknown: it is stored again if it
        comes by.
        """
        view = self.load_index(cancel)
        lost = lost_packs(self.objects.storage, view, cancel)
        if lost:
            log.warning(
                "%s has lost %d packs with %d blobs (%s…); what of them is still in the volume is"
                " stored again",
                self.place, len(lost), view.drop(lost), min(lost).hex()[:16],
            )  # fmt: skip
        chunking = self.config.chunking()
        session = Session(self.objects, view, lock, chunking, monitor, cancel, options, self.folder)
        memory = None if lost else self._memory_of(options.parent, view)
        writer = Writer(session, memory)
        try:
            self._adopt(writer, view, cancel)
            yield writer
        except BaseException:
            with contextlib.suppress(Canceled, RepositoryError, StorageError):
                writer.close()
            raise
        writer.close()
        if self._cache is not None and memory is not None and writer.snapshot:
            content = memory.content(view.names | writer.index_names)
            self._cache.save_directories(writer.snapshot, content, options.parent)
        if lost:
            log.warning(_STAY_LOST, view.still_lost(), self.place)

    def _adopt(self, writer: Writer, view: IndexView, cancel: CancelToken) -> None:
        """Index what runs of this node that are gone had sent in their last minute."""
        gone = Inheritance(self.folder)
        try:
            unknown = gone.left.packs - view.naming(gone.left.packs) if gone.left.packs else ()
            described = in_parallel(lambda id: self._described(id, cancel), sorted(unknown))
            packs = [(id, blobs) for id, blobs in described if blobs]
            if packs:
                adopted = writer.adopt(packs)
                log.info("%s: adopted %d packs of a run that is gone", self.place, adopted)
            if self._remove_locks(gone, cancel):  # of who ended since we began
                gone.settle()
        finally:
            gone.release()

    def _described(self, id: PackId, cancel: CancelToken) -> tuple[PackId, list[PackedBlob]]:
        """Return what a pack says of itself; nothing if it did not arrive, or not whole."""
        try:
            size = self.objects.storage.size(pack_key(id), cancel=cancel)
            return id, read_header(self.objects, id, size, cancel)
        except (ObjectMissing, MalformedData):
            return id, []

    def _memory_of(self, snapshot: str, view: IndexView) -> Directories | None:
        """Return what is remembered of a snapshot's directories, if anything can be."""
        if self._cache is None:
            return None
        return Directories(self._cache.load_directories(snapshot), view.names)


def in_parallel(load: Callable[[A], T], found: Iterable[A]) -> list[T]:
    """Do the same with many things, a few at a time; return what came of each, in order."""
    with Threads(LOADERS, "load") as pool:
        return list(pool.map(load, found))
