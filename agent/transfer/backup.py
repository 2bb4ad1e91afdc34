"""The backup pipeline: a volume in, a snapshot out.

One thread walks directories (``walk.py``) and finishes what did not change. The rest goes in batches to
the readers. Small files are read into one buffer and stored together; a large one is read into
buffers that are cut where they lie and go on to the savers, so that one file keeps all cores busy. The
repository hashes, compresses, seals, packs and uploads behind ``store_chunks``. Directories are stored
from the leaves up as their entries finish (``folders.py``).

A file that cannot be read is counted, named and left out. Anything else that fails ends the run
without a snapshot.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext

from msgspec.structs import replace

from agent.cancel import CancelToken, Run
from agent.entry import Entry
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.repository.buffers import USUAL_BYTES, Buffers
from agent.repository.contract import BackupTarget
from agent.transfer.checkpoint import Checkpoints
from agent.transfer.folder import Folder
from agent.transfer.folders import LIST_STEP, Assembly
from agent.transfer.hardlinks import HardLinks
from agent.transfer.pieces import BATCH_BYTES, Batch, File, Ids, Seen
from agent.transfer.pool import Pool
from agent.transfer.walk import Shared, Source, Walk
from agent.volume.directory import Directory
from agent.volume.file import FileReader, Hole
from agent.volume.looking import SMALL_BYTES
from chunker import ENOUGH_BYTES, Chunks, ChunkStream, Piece, ZeroChunks

READERS = 4
SAVERS = 8
"""At most as many threads, on however many cores: each holds buffers, and the node has other work."""

MOST_READERS = 8
"""At most as many where more are asked for, for a file system that answers late: 2 to 8 MiB each."""

QUEUED_BYTES = 64 << 20
"""Budget of files that are queued; only the weights of small files add up to memory."""

SAVED_BYTES = 3 << 20
"""Budget, for each saver, of buffers with chunks that are cut and not yet packed; these are memory. A saver with
nothing to do takes a larger one as well, for whoever brings it waits with it in hand."""

_TOO_LONG = (
    "has more chunks than fit into memory beside those of its neighbours (a large hole has millions)"
    "; left out, exclude it or back it up on its own"
)


def back_up(
    source: Source,
    target: BackupTarget,
    monitor: Monitor,
    cancel: CancelToken,
    checkpoints: Checkpoints | None = None,
) -> bytes:
    """Store the volume's content, and return the id of its root tree.

    Raises ``VolumeError`` if the root cannot be listed, ``Canceled``, and whatever the target
    raises. Entries that cannot be read are problems of the monitor, not errors.
    """
    backup = _Backup(target, monitor, cancel, source)
    root = Folder.root(source.parent_tree)
    try:
        with (
            checkpoints.of(lambda: backup.assembly.partial(root)) if checkpoints else nullcontext()
        ):
            backup.walk(source, root)
            return backup.root()
    except BaseException as error:
        backup.run.fail(error)
        raise
    finally:
        backup.close()


class _Backup:
    """One run: its pools, and what all of its threads share."""

    def __init__(
        self, target: BackupTarget, monitor: Monitor, cancel: CancelToken, source: Source
    ) -> None:
        budgets = source.budgets
        cores, share = os.cpu_count() or 2, budgets.share_of
        self._reading = budgets.rates.reading
        self.run = Run(cancel)
        self._target = target
        self._monitor = monitor
        self._cancel = cancel
        readers = min(source.readers, MOST_READERS) or min(max(2, cores), READERS)
        self._readers = Pool(self.run, "read", readers, share(QUEUED_BYTES))
        savers = min(cores, SAVERS)
        cut = share(savers * SAVED_BYTES)
        self._savers = Pool(self.run, "save", savers, cut, at_least=share(savers))
        self.assembly = Assembly(target, monitor, budgets)
        self._links = HardLinks()
        self._zero_id: bytes | None = None
        self._one_chunk = min(target.chunking.min_size, SMALL_BYTES)
        self._buffers = Buffers(usual_bytes=USUAL_BYTES)

    def close(self) -> None:
        """End all threads; readers first, since they feed the savers."""
        self._readers.close()
        self._savers.close()
        self.assembly.close()

    def root(self) -> bytes:
        """Wait for the root tree."""
        return self.assembly.root(self.run.check)

    def walk(self, source: Source, root: Folder) -> None:
        """Visit every directory."""
        shared = Shared(
            self.run, self._target, self._monitor, self._cancel, self.assembly, self._links
        )
        Walk(source, shared, self._queue).all(root)

    def _queue(self, folder: Folder, directory: Directory, batch: Batch) -> None:
        directory.retain()
        try:
            queued = self._readers.submit(
                batch.weight, self._read_batch, folder, directory, batch.files
            )
        except BaseException:
            directory.release()
            raise
        queued.add_done_callback(lambda _: directory.release())  # also when it is dropped

    # -- the readers ---------------------------------------------------------------------------

    def _read_batch(self, folder: Folder, directory: Directory, batch: Sequence[File]) -> None:
        self.run.check()
        small = [file for file in batch if file.entry.size < self._one_chunk]
        large = [file for file in batch if file.entry.size >= self._one_chunk]
        if small:
            large += self._read_small(folder, directory, small)
        for file in large:
            self.run.check()
            self._read(folder, directory, file)

    def _read_small(
        self, folder: Folder, directory: Directory, files: Sequence[File]
    ) -> list[File]:
        """Read files of one chunk each, and store them in one go; return those left to ``_read``."""
        with self._buffers.lend(BATCH_BYTES + SMALL_BYTES) as buffer:
            read = directory.read_files([file.entry for file in files], buffer, self._monitor)
            # one that has grown since it was listed may be more than one chunk
            read = [one if one and one.length < self._one_chunk else None for one in read]
            spans = [(one.start, one.length) for one in read if one is not None and one.length]
            ids = iter(self._target.store_chunks(buffer, spans))
        finished: list[tuple[int, Entry | None]] = []
        unusual = []
        grown = changed = 0
        for file, one in zip(files, read, strict=True):
            if one is None:
                unusual.append(file)
                continue
            content = (next(ids),) if one.length else ()
            entry = self._links.settle(replace(one.entry, content=content))
            finished.append((file.place, entry))
            grown += one.length - file.entry.size
            changed += file.known
        size = sum(length for _, length in spans)
        self._reading.take(size, self._cancel)
        self._monitor.add(
            bytes_total=grown,
            bytes_done=size,
            bytes_read=size,
            files_new=len(finished) - changed,
            files_changed=changed,
        )
        self.assembly.finish_many(folder, finished)
        return unusual

    def _read(self, folder: Folder, directory: Directory, file: File) -> None:
        """Read one file; it is finished when the last of its chunks is stored."""
        seen = Seen(self._monitor, self._reading, self._cancel)
        chunking = self._target.chunking
        stream = ChunkStream(chunking, lambda: self._buffers.take(chunking.max_size))
        try:
            with directory.open_file(file.entry, self._monitor) as reader:
                ids = self._content(reader, stream, seen)
                entry = replace(reader.entry_after(), size=seen.size)
        except SourceError as error:
            self._monitor.add(bytes_total=seen.size - file.entry.size)
            self._monitor.problem(error)
            self.assembly.finish_many(folder, [(file.place, None)])
            return

        def finish(content: list[bytes]) -> None:
            self._monitor.add(
                bytes_total=seen.size - file.entry.size,
                **{"files_changed" if file.known else "files_new": 1},
            )
            finished = self._links.settle(replace(entry, content=tuple(content)))
            self.assembly.finish_many(folder, [(file.place, finished)])

        ids.when_stored(finish, self.run.fail)

    def _content(self, reader: FileReader, stream: ChunkStream, seen: Seen) -> Ids:
        """Cut a file into chunks, have them stored, and return their ids in order."""
        ids = Ids()
        taken = 0
        try:
            for piece in self._cut(reader, stream, seen):
                saved, count = self._save(piece)
                steps = (ids.count + count) // LIST_STEP * LIST_STEP - taken
                if steps:
                    if not self.assembly.take(steps):
                        raise SourceError(reader.path, _TOO_LONG)
                    taken += steps
                ids.append(saved, count)
        except SourceError:
            self.assembly.give_back(taken)
            raise
        return ids

    def _cut(self, reader: FileReader, stream: ChunkStream, seen: Seen) -> Iterator[Piece]:
        """Yield the chunks of a file as it is read."""
        for segment in reader.segments(stream.room):
            self.run.check()
            if isinstance(segment, Hole):
                yield from stream.zeros(segment.length)
                seen.add(segment.length, read=0)
            else:
                yield from stream.filled(len(segment))
                seen.add(len(segment), read=len(segment))
        yield from stream.finish()

    def _save(self, piece: Piece) -> tuple["Future[Sequence[bytes]] | Sequence[bytes]", int]:
        """Have chunks stored by the savers; return their ids, and how many they are.

        The chunk of zeros, of which a large hole has thousands, is hashed once a run.
        """
        if isinstance(piece, ZeroChunks):
            if self._zero_id is None:
                zeros = self._target.chunking.zero_chunk
                (self._zero_id,) = self._target.store_chunks(zeros, [(0, len(zeros))])
            return [self._zero_id], piece.count
        # A small file's buffer is as large as another's, so it weighs as much.
        weight = max(ENOUGH_BYTES, piece.end)
        return self._savers.submit(weight, self._store, piece), len(piece.spans)

    def _store(self, piece: Chunks) -> Sequence[bytes]:
        ids = self._target.store_chunks(piece.buffer, piece.spans)
        self._buffers.give(piece.buffer, filled=piece.end)
        return ids
