"""Files of a target while their content arrives, chunk by chunk and in any order.

A small file is one chunk: those of a directory that arrive together are created in one go. Any other file is created when its first chunk arrives and finished by the thread
that brings its last one. A file that cannot be written, or whose content is lost, is removed again:
nothing is left that looks complete and is not.
"""

import threading

from agent.entry import Entry
from agent.errors import DamagedBlob, SourceError
from agent.monitor import Monitor
from agent.storage.contract import Buffer
from agent.transfer.target_folders import TargetFolder
from agent.transfer.target_links import TargetLinks
from agent.volume.descriptors import join
from agent.volume.target_file import TargetFile


class LargeFile:
    """A file that is written chunk by chunk.

    ``left`` chunks are still to come. ``file`` is open already if it was there before and is
    written only where it differs. ``counted`` is the counter that it adds to in the end.
    """

    __slots__ = ("_broken", "_file", "_lock", "counted", "entry", "folder", "left", "size")

    def __init__(
        self,
        folder: TargetFolder,
        entry: Entry,
        size: int,
        left: int,
        file: TargetFile | None = None,
    ) -> None:
        self.folder = folder
        self.entry = entry
        self.left = left
        self.size = size
        self._file = file
        self._lock = threading.Lock()
        self.counted = "files_new"
        self._broken: SourceError | DamagedBlob | None = None

    @property
    def path(self) -> bytes:
        """Return the path relative to the target's root."""
        return join(self.folder.path, self.entry.name)

    @property
    def broken(self) -> SourceError | DamagedBlob | None:
        """Return why it cannot be finished, or None."""
        return self._broken

    def write(self, offset: int, chunk: Buffer | DamagedBlob) -> bool:
        """Write one chunk; return whether it was the last one that was to come."""
        if self._broken is None:
            if isinstance(chunk, DamagedBlob):
                self._break(chunk)
            else:
                try:
                    self.open().write_at(offset, chunk)
                except SourceError as error:
                    self._break(error)
        with self._lock:
            self.left -= 1
            return self.left == 0

    def _break(self, error: SourceError | DamagedBlob) -> None:
        """Keep the first reason: the next may only be that ``open`` refuses because of it."""
        with self._lock:
            if self._broken is None:
                self._broken = error

    def open(self) -> TargetFile:
        """Return the file, after creating it in its full size; raises ``SourceError``."""
        with self._lock:
            if self._broken is not None:
                raise SourceError(self.path, str(self._broken))
            if self._file is None:
                self._file = self.folder.made.make_file(self.entry)
                self._file.truncate(self.size)
            return self._file

    def finish(self) -> TargetFile:
        """Give it its metadata and close it; raises ``SourceError``."""
        file = self.open()
        file.finish_metadata(self.entry)
        file.close()
        return file

    def discard(self) -> None:
        """Remove what was begun."""
        if self._file is not None:
            try:
                self._file.close()
            finally:
                self.folder.made.discard(self._file)


SmallFile = tuple[TargetFolder, Entry]
"""A file of one chunk that can be created in a batch."""

Wanted = dict[bytes, list[SmallFile | tuple[LargeFile, int]]]
"""For each chunk, the small files that are that chunk, and the large ones with its offset in them."""


class Writing:
    """Writes what arrives; used by many threads."""

    def __init__(self, monitor: Monitor, links: TargetLinks) -> None:
        self._monitor = monitor
        self._links = links
        self._lock = threading.Lock()
        self.damaged: list[SourceError] = []
        """The first entries whose content is lost, of ``damaged_count``."""
        self.damaged_count = 0
        self.retry: list[tuple[TargetFolder, Entry]] = []
        """Names of a file that could not be written under its first name."""

    def lost(self, path: bytes, error: Exception) -> None:
        """Count an entry whose content the repository does not have intact."""
        told = SourceError(path, f"is not restored, its content is lost: {error}")
        with self._lock:
            self.damaged_count += 1
            if len(self.damaged) < _NAMED:
                self.damaged.append(told)
        self._monitor.problem(told)

    def settle(self, file: LargeFile) -> None:
        """Finish a file whose last chunk has arrived."""
        try:
            if file.broken is None:
                self._finished(file)
            else:
                self._gave_up(file, file.broken)
        except SourceError as error:
            self._gave_up(file, error)
        finally:
            file.folder.done()

    def _finished(self, file: LargeFile) -> None:
        written = file.finish()
        if file.entry.links > 1:
            self._links.written(file.entry, written.place)
        self._monitor.add(**{file.counted: 1})
        if file.size != file.entry.size:
            self._monitor.problem(_wrong_size(file.path, file.entry, file.size))

    def _gave_up(self, file: LargeFile, error: SourceError | DamagedBlob) -> None:
        try:
            file.discard()
        except SourceError as another:
            self._monitor.problem(another)
        if isinstance(error, DamagedBlob):
            self.lost_file(file.path, file.entry, error)
            return
        self._monitor.problem(error)
        if file.entry.links > 1:  # let its other names be tried in the place of the first
            names = self._links.failed(file.entry)
            with self._lock:
                self.retry += names

    def lost_file(self, path: bytes, entry: Entry, error: DamagedBlob) -> None:
        """Count a file whose content is lost; it is lost under its other names too."""
        self.lost(path, error)
        if entry.links > 1:
            self._links.written(entry, error)


_NAMED = 10


def _wrong_size(path: bytes, entry: Entry, size: int) -> SourceError:
    return SourceError(path, f"its snapshot says {entry.size} bytes, its content has {size}")


class Batches:
    """Small files that have arrived and are not created yet; one thread's own.

    Their content is only lent: ``flush`` before it is good no more.
    """

    def __init__(self, writing: Writing, monitor: Monitor) -> None:
        self._writing = writing
        self._monitor = monitor
        self._files: dict[TargetFolder, tuple[list[Entry], list[Buffer]]] = {}

    def add(self, folder: TargetFolder, entry: Entry, content: Buffer) -> None:
        """Take one file."""
        files = self._files.get(folder)
        if files is None:
            files = self._files[folder] = ([], [])
        files[0].append(entry)
        files[1].append(content)

    def flush(self) -> None:
        """Create all files that were taken."""
        files, self._files = self._files, {}
        for folder, (entries, contents) in files.items():
            self.create(folder, entries, contents)

    def create(self, folder: TargetFolder, entries: list[Entry], contents: list[Buffer]) -> None:
        """Create small files of one directory, and account for them."""
        try:
            left = folder.made.make_files(entries, contents)
        except SourceError:  # the directory itself is out of reach: each file says so
            left = list(range(len(entries)))
        sizes = list(map(len, contents))
        if sizes != [entry.size for entry in entries]:
            self._say_wrong_sizes(folder, entries, contents, left)
        for place in left:
            sizes[place] = 0
        count = len(entries) - len(left)
        self._monitor.add(files_new=count, bytes_done=sum(sizes))
        folder.done(count)
        for place in left:
            self._alone(LargeFile(folder, entries[place], len(contents[place]), 1), contents[place])

    def _say_wrong_sizes(
        self, folder: TargetFolder, entries: list[Entry], contents: list[Buffer], left: list[int]
    ) -> None:
        """Name files whose snapshot says another size than their content has."""
        for place, (entry, content) in enumerate(zip(entries, contents, strict=True)):
            if entry.size != len(content) and place not in left:
                path = join(folder.path, entry.name)
                self._monitor.problem(_wrong_size(path, entry, len(content)))

    def _alone(self, file: LargeFile, content: Buffer) -> None:
        """Create a file that the batch could not, or say why it cannot be."""
        file.write(0, content)
        self._monitor.add(bytes_done=len(content))
        self._writing.settle(file)
