"""The restore pipeline: a snapshot's tree in, a directory's content out.

One thread walks the trees and makes directories, symlinks and special files; files are written
by a pool, chunk by chunk, each verified before it is written. A directory gets its own metadata
when everything below it is done, since every entry that is made moves its mtime. What is in the
target already and not in the snapshot stays.

An entry that cannot be restored is counted and named, and the run goes on; a chunk that cannot be
read from the repository ends it.
"""

import os
import threading
from collections.abc import Iterator

from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.repository.contract import RestoreSource
from agent.transfer.pool import Pool
from agent.volume.target_file import Place
from agent.volume.writer import TargetDirectory, TargetTree

WRITERS = 8
"""Files written at a time; most of that time is spent waiting for the storage."""

FILES_BYTES = 64 << 20
"""Budget of files that are queued; each holds one chunk of at most 8 MiB while it is written."""

_HEAVIEST = 8 << 20
_LIGHTEST = 64 << 10


class _Folder:
    """One target directory, until everything in it is done; the root has no ``entry``."""

    def __init__(
        self, parent: "_Folder | None", entry: Entry | None, directory: TargetDirectory
    ) -> None:
        self.parent = parent
        self.entry = entry
        self.directory = directory
        self._lock = threading.Lock()
        self._waiting = 1  # for the walk itself
        if parent is not None:
            parent.expect()

    def expect(self) -> None:
        """Wait for one more piece."""
        with self._lock:
            self._waiting += 1

    def done(self) -> None:
        """Account for one piece; the last one finishes this directory, and maybe its parents."""
        folder: _Folder | None = self
        while folder is not None and folder._last():
            if folder.entry is not None:
                folder.directory.finish_metadata(folder.entry)
                folder.directory.close()
            folder = folder.parent

    def _last(self) -> bool:
        with self._lock:
            self._waiting -= 1
            return self._waiting == 0


def restore(
    source: RestoreSource,
    tree: bytes,
    target: str | os.PathLike[str],
    monitor: Monitor,
    cancel: CancelToken,
) -> None:
    """Restore the tree into the directory ``target``, which is made if it is missing.

    Raises ``VolumeError`` for the target as a whole, ``Canceled``, ``RepositoryError`` and
    ``StorageError``. Entries that could not be restored in full are problems of the monitor.
    """
    with TargetTree.open(target, monitor.problem, create=True) as opened:
        run = Run(cancel)
        work = _Restore(source, monitor, run)
        try:
            work.walk(tree, opened.root)
            work.wait()
        except BaseException as error:
            run.fail(error)
            raise
        finally:
            work.close()


class _Restore:
    """One run: its pool, and the hard links that were met."""

    def __init__(self, source: RestoreSource, monitor: Monitor, run: Run) -> None:
        self._source = source
        self._monitor = monitor
        self._run = run
        self._pool = Pool(run, "restore", WRITERS, FILES_BYTES)
        self._linked: dict[tuple[int, int], tuple[Place, tuple[bytes, ...] | None]] = {}

    def wait(self) -> None:
        """Wait for the files that are still being written."""
        self._pool.wait_idle()

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def walk(self, tree: bytes, root: TargetDirectory) -> None:
        """Visit every tree, depth first; however it ends, no directory is left open."""
        top = _Folder(None, None, root)
        stack = [(top, self._below(top, tree))]
        try:
            while stack:
                self._run.check()
                folder, visit = stack[-1]
                below = next(visit, None)
                if below is None:
                    stack.pop()
                    folder.done()
                else:
                    child, subtree = below
                    stack.append((child, self._below(child, subtree)))
        finally:
            for folder, _ in reversed(stack):
                folder.done()
        self._monitor.walk_finished()

    def _below(self, folder: _Folder, tree: bytes) -> Iterator[tuple[_Folder, bytes]]:
        """Make one directory's entries, and yield its subdirectories with their trees."""
        for entry in self._source.load_tree(tree):
            self._run.check()
            if entry.kind is Kind.DIRECTORY and entry.subtree is not None:
                below = self._enter(folder, entry)
                if below is not None:
                    yield below, entry.subtree
            elif entry.kind is Kind.FILE:
                self._file(folder, entry)
            else:
                self._other(folder, entry)

    def _enter(self, folder: _Folder, entry: Entry) -> _Folder | None:
        try:
            return _Folder(folder, entry, folder.directory.make_directory(entry))
        except SourceError as error:
            self._monitor.problem(error)
            return None

    def _other(self, folder: _Folder, entry: Entry) -> None:
        if entry.kind is Kind.SOCKET:
            self._monitor.add(sockets_skipped=1)
            return
        try:
            if entry.kind is Kind.SYMLINK:
                folder.directory.make_symlink(entry)
            else:
                folder.directory.make_special(entry)
            self._monitor.add(others=1)
        except SourceError as error:
            self._monitor.problem(error)

    def _file(self, folder: _Folder, entry: Entry) -> None:
        self._monitor.add(bytes_total=entry.size)
        if entry.links > 1:
            self._hard_link(folder, entry)
            return
        folder.expect()
        weight = max(_LIGHTEST, min(entry.size, _HEAVIEST))
        try:
            queued = self._pool.submit(weight, self._write, folder, entry)
        except BaseException:
            folder.done()
            raise
        queued.add_done_callback(lambda _: folder.done())  # also when it is dropped

    def _hard_link(self, folder: _Folder, entry: Entry) -> None:
        """Write the first of several links here and now, so that the others can link to it."""
        identity = (entry.device, entry.inode)
        place, content = self._linked.get(identity, (None, None))
        if place is not None and content == entry.content:
            try:
                folder.directory.link(entry, place)
                self._monitor.add(files_new=1, bytes_done=entry.size)
            except SourceError as error:
                self._monitor.problem(error)
            return
        written = self._write(folder, entry)
        if written is not None and place is None:
            self._linked[identity] = (written, entry.content)

    def _write(self, folder: _Folder, entry: Entry) -> Place | None:
        """Write one file, and return where it is; count the problem and return None if not."""
        try:
            with folder.directory.make_file(entry) as file:
                offset = 0
                for chunk in self._chunks(entry):
                    file.write_at(offset, chunk)
                    offset += len(chunk)
                    self._monitor.add(bytes_done=len(chunk))
                file.truncate(offset)
                file.finish_metadata(entry)
                place = file.place
        except SourceError as error:
            self._monitor.problem(error)
            return None
        if offset != entry.size:
            self._monitor.problem(
                SourceError(
                    file.path, f"its snapshot says {entry.size} bytes, its content has {offset}"
                )
            )
        self._monitor.add(files_new=1)
        return place

    def _chunks(self, entry: Entry) -> Iterator[bytes]:
        """Yield the content; a chunk that repeats, as in a hole, is fetched once."""
        last_id, last = b"", b""
        for id in entry.content or ():
            self._run.check()
            if id != last_id:
                last_id, last = id, self._source.load_chunk(id)
            yield last
