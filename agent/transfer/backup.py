"""The backup pipeline: a volume in, a snapshot out.

One thread walks directories in depth-first order and looks each file up in the parent. Files that
did not change are finished on the spot. The others go in batches to the readers, which cut them
into chunks; chunks of large files go on to the savers, so that one file keeps all cores busy.
The repository hashes, compresses, seals, packs and uploads behind ``store_chunk``. Directories
are stored from the leaves up as their entries finish (``folders.py``).

A file that cannot be read is counted, named and left out. Anything else that fails ends the run
without a snapshot.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence

import msgspec

from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import DamagedBlob, MalformedData, SourceError, VolumeError
from agent.monitor import Monitor
from agent.repository.contract import BackupTarget
from agent.transfer.folders import LIST_STEP, Assembly, Folder, accounted
from agent.transfer.hardlinks import HardLinks
from agent.transfer.pool import Pool
from agent.volume.directory import Directory
from agent.volume.exclude import Exclude
from agent.volume.file import FileReader, Hole
from agent.volume.reader import Volume
from chunker import ChunkStream

log = logging.getLogger(__name__)

BATCH_FILES = 64
BATCH_BYTES = 4 << 20
READ_BUFFER_BYTES = 1 << 20

READERS = 4
SAVERS = 8
"""At most as many threads, on however many cores: each holds buffers, and the node has other work."""

FILE_WEIGHT_BYTES = 16 << 10
"""What a queued file weighs at least: its entry, its slot and its share of the batch."""

QUEUED_BYTES = 64 << 20
"""Budget of files that are queued; only the weights of small files add up to memory."""

CHUNKS_BYTES = 8 << 20
"""Budget of chunks that are cut and not yet packed; these are memory."""

_TOO_LONG = (
    "has more chunks than fit into memory beside those of its neighbours (a large hole has millions)"
    "; left out, exclude it or back it up on its own"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """What is backed up: an open volume, less what is excluded, beside its parent's root tree."""

    volume: Volume
    exclude: Exclude
    parent_tree: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    place: int
    entry: Entry
    known: bool  # the parent snapshot has a file of this name


def back_up(source: Source, target: BackupTarget, monitor: Monitor, cancel: CancelToken) -> bytes:
    """Store the volume's content, and return the id of its root tree.

    Raises ``VolumeError`` if the root cannot be listed, ``Canceled``, and whatever the target
    raises. Entries that cannot be read are problems of the monitor, not errors.
    """
    backup = _Backup(target, monitor, cancel)
    try:
        backup.walk(source)
        return backup.root()
    except BaseException as error:
        backup.run.fail(error)
        raise
    finally:
        backup.close()


class _Backup:
    """One run: its pools, and what all of its threads share."""

    def __init__(self, target: BackupTarget, monitor: Monitor, cancel: CancelToken) -> None:
        cores = os.cpu_count() or 2
        self.run = Run(cancel)
        self._target = target
        self._monitor = monitor
        self._cancel = cancel
        self._readers = Pool(self.run, "read", min(max(2, cores), READERS), QUEUED_BYTES)
        self._savers = Pool(self.run, "save", min(cores, SAVERS), CHUNKS_BYTES)
        self._assembly = Assembly(target.store_tree, monitor)
        self._links = HardLinks()
        self._zero_id: bytes | None = None

    def close(self) -> None:
        """End all threads; readers first, since they feed the savers."""
        self._readers.close()
        self._savers.close()

    def root(self) -> bytes:
        """Wait for the root tree."""
        return self._assembly.root(self.run.check)

    # -- the walk: one thread ------------------------------------------------------------------

    def walk(self, source: Source) -> None:
        """Visit every directory, depth first, in order of names."""
        root, directory = Folder(None, 0, None, None), source.volume.root
        stack = [(directory, self._visit(source, root, directory, source.parent_tree))]
        try:
            while stack:
                self.run.check()
                opened = next(stack[-1][1], None)
                if opened is None:
                    stack.pop()[0].close()
                else:
                    folder, directory = opened
                    subtree = folder.earlier.subtree if folder.earlier is not None else None
                    stack.append((directory, self._visit(source, folder, directory, subtree)))
        finally:
            for directory, _ in stack:
                directory.close()
        self._monitor.walk_finished()

    def _visit(
        self, source: Source, folder: Folder, directory: Directory, earlier_tree: bytes | None
    ) -> Iterator[tuple[Folder, Directory]]:
        """Deal with one directory's entries, and yield its subdirectories, opened."""
        entries = self._list(source, folder, directory)
        if entries is None:
            return
        earlier = self._earlier(earlier_tree, directory.path)
        if not entries:
            self._assembly.store(folder)
            return
        folder.expect(len(entries))
        self._sort_out(folder, directory, entries, earlier)
        for place, entry in enumerate(entries):
            if entry.kind is not Kind.DIRECTORY:
                continue
            child = Folder(folder, place, entry, earlier.get(entry.name))
            if not directory.crossable(entry):
                self._assembly.store(child)
            elif (opened := self._open(directory, entry)) is not None:
                yield child, opened
            else:
                self._assembly.finish(folder, place, None)

    def _open(self, directory: Directory, entry: Entry) -> Directory | None:
        try:
            return directory.open_directory(entry)
        except SourceError as error:
            self._monitor.problem(error)
            return None

    def _list(self, source: Source, folder: Folder, directory: Directory) -> Sequence[Entry] | None:
        """Return the entries, or None after leaving out a directory that cannot be listed."""
        try:
            return directory.entries(source.exclude, self._monitor, self._cancel)
        except SourceError as error:
            if folder.parent is None:
                raise VolumeError(f"the volume's root cannot be listed: {error.reason}") from error
            self._monitor.problem(error)
            self._assembly.finish(folder.parent, folder.place, None)
            return None

    def _earlier(self, tree: bytes | None, path: bytes) -> dict[bytes, Entry]:
        """Return the directory's entries in the parent; a damaged parent only costs reading."""
        if tree is None:
            return {}
        try:
            return {entry.name: entry for entry in self._target.load_tree(tree)}
        except (DamagedBlob, MalformedData) as error:
            log.warning(
                "directory %r of the parent snapshot cannot be read, so its files are read anew:"
                " %s",
                path,
                error,
            )
            return {}

    def _sort_out(
        self,
        folder: Folder,
        directory: Directory,
        entries: Sequence[Entry],
        earlier: dict[bytes, Entry],
    ) -> None:
        """Finish what needs no reading, and queue the files that do."""
        batch: list[_File] = []
        weight = 0
        for place, entry in enumerate(entries):
            if entry.kind is Kind.FILE:
                before = earlier.get(entry.name)
                self._monitor.add(bytes_total=entry.size)
                if before is not None and self._reusable(entry, before):
                    self._reuse(folder, place, entry, before)
                    continue
                batch.append(_File(place, entry, before is not None))
                weight += max(entry.size, FILE_WEIGHT_BYTES)
                if len(batch) >= BATCH_FILES or weight >= BATCH_BYTES:
                    self._queue(folder, directory, batch, weight)
                    batch, weight = [], 0
            elif entry.kind is not Kind.DIRECTORY:
                self._monitor.add(others=1)
                self._assembly.finish(folder, place, entry)
        if batch:
            self._queue(folder, directory, batch, weight)

    def _reusable(self, entry: Entry, before: Entry) -> bool:
        return (
            entry.unchanged_since(before)
            and self._target.has_content(before.content or ())
            and self._assembly.take(accounted(before.content))
        )

    def _reuse(self, folder: Folder, place: int, entry: Entry, before: Entry) -> None:
        finished = self._links.settle(msgspec.structs.replace(entry, content=before.content))
        self._monitor.add(files_unmodified=1, bytes_done=entry.size)
        self._assembly.finish(folder, place, finished)

    def _queue(self, folder: Folder, directory: Directory, batch: list[_File], weight: int) -> None:
        directory.retain()
        try:
            queued = self._readers.submit(weight, self._read_batch, folder, directory, batch)
        except BaseException:
            directory.release()
            raise
        queued.add_done_callback(lambda _: directory.release())  # also when it is dropped

    # -- the readers ---------------------------------------------------------------------------

    def _read_batch(self, folder: Folder, directory: Directory, batch: list[_File]) -> None:
        stream = ChunkStream(self._target.chunking)
        with memoryview(bytearray(_buffer_bytes(batch))) as buffer:
            for file in batch:
                self.run.check()
                finished = self._read(directory, file, stream, buffer)
                if finished is None:
                    stream = ChunkStream(self._target.chunking)
                self._assembly.finish(folder, file.place, finished)

    def _read(
        self, directory: Directory, file: _File, stream: ChunkStream, buffer: memoryview
    ) -> Entry | None:
        """Read one file; return its finished entry, or None after counting the problem."""
        seen = _Seen(self._monitor)
        try:
            with directory.open_file(file.entry) as reader:
                content = self._content(reader, stream, buffer, seen)
                entry = reader.entry_after()
        except SourceError as error:
            self._monitor.add(bytes_total=seen.size - file.entry.size)
            self._monitor.problem(error)
            return None
        entry = msgspec.structs.replace(entry, content=tuple(content), size=seen.size)
        self._monitor.add(
            bytes_total=seen.size - file.entry.size,
            **{"files_changed" if file.known else "files_new": 1},
        )
        return self._links.settle(entry)

    def _content(
        self, reader: FileReader, stream: ChunkStream, buffer: memoryview, seen: "_Seen"
    ) -> list[bytes]:
        """Cut a file into chunks, store them, and return their ids in order."""
        ids = _Ids()
        taken = 0
        try:
            for chunk in self._cut(reader, stream, buffer, seen):
                ids.append(self._save(chunk, stream, seen.size))
                if ids.count % LIST_STEP == 0:
                    if not self._assembly.take(LIST_STEP):
                        raise SourceError(reader.path, _TOO_LONG)
                    taken += LIST_STEP
        except SourceError:
            self._assembly.give_back(taken)
            raise
        return ids.finish()

    def _cut(
        self, reader: FileReader, stream: ChunkStream, buffer: memoryview, seen: "_Seen"
    ) -> Iterator[bytes]:
        """Yield the chunks of a file as it is read."""
        for segment in reader.segments(buffer):
            self.run.check()
            if isinstance(segment, Hole):
                chunks = stream.feed_zeros(segment.length)
                seen.add(segment.length, read=0)
            else:
                chunks = stream.feed(segment)
                seen.add(len(segment), read=len(segment))
            for chunk in chunks:
                self.run.check()  # a hole of tebibytes is one segment
                yield chunk
        yield from stream.finish()

    def _store(self, chunk: bytes) -> bytes:
        return self._target.store_chunks(chunk, [(0, len(chunk))])[0]

    def _save(
        self, chunk: bytes, stream: ChunkStream, seen: int
    ) -> "bytes | concurrent.futures.Future[bytes]":
        """Store a chunk: here and now for a small file, by the savers for a large one.

        The chunk of zeros, of which a large hole has thousands, is hashed once a run.
        """
        if chunk is stream.zero_chunk:
            if self._zero_id is None:
                self._zero_id = self._store(chunk)
            return self._zero_id
        if seen <= len(chunk):
            return self._store(chunk)
        return self._savers.submit(len(chunk), self._store, chunk)


class _Seen:
    """The bytes of one file that went by, told to the monitor as they do."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.size = 0

    def add(self, length: int, *, read: int) -> None:
        self.size += length
        self._monitor.add(bytes_done=length, bytes_read=read)


class _Ids:
    """The ids of a file's chunks, in order, while some of them are still being stored."""

    def __init__(self) -> None:
        self.count = 0
        self._done: list[bytes] = []
        self._open: collections.deque[bytes | concurrent.futures.Future[bytes]] = (
            collections.deque()
        )

    def append(self, id: "bytes | concurrent.futures.Future[bytes]") -> None:
        self.count += 1
        self._open.append(id)
        while self._open and (isinstance(self._open[0], bytes) or self._open[0].done()):
            self._take()

    def _take(self) -> None:
        first = self._open.popleft()
        self._done.append(first if isinstance(first, bytes) else first.result())

    def finish(self) -> list[bytes]:
        while self._open:
            self._take()
        return self._done


def _buffer_bytes(batch: Sequence[_File]) -> int:
    """Return a buffer size that suits a batch: a small file should be read in one go."""
    largest = max(file.entry.size for file in batch)
    return min(READ_BUFFER_BYTES, max(largest + 1, 4096))
