"""A regular file while it is being read: data into a lent buffer, holes without reading.

The file may shrink, grow or change under the read. What is read is what the entry afterwards
describes: its size is the number of bytes delivered, its times are those from before the
first byte, so that a later backup sees any change made since and reads the file again. A
file is read to its size at open and, if it has grown by then, once more to the size that it
has at that moment; never further, so a file that grows for ever ends. A size of 0 is not
believed (pseudo files and some FUSE file systems say it of any file): such a file is read to
its end, within a bound.
"""

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator

import msgspec

from agent.entry import Entry
from agent.errors import SourceError
from agent.volume.descriptors import reason
from agent.volume.scope import OneDescriptor

_BLOCK = 512
"""The unit of ``st_blocks``, whatever the file system (stat(3type))."""

_UNSIZED_BYTES = 1 << 30
"""How far a file is read that says it has no bytes; one that goes on is endless, not a file."""

_DROPPED_FROM_BYTES = 16 << 20
"""A large file that nobody has read lately does not stay in the node's page cache because of us."""

_NO_HOLES_TOLD = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


@dataclasses.dataclass(frozen=True, slots=True)
class Hole:
    """``length`` bytes of zeros that no block holds; they were not read."""

    length: int


class FileReader(OneDescriptor):
    """One open file; used by one thread at a time, closed by whoever opened it."""

    def __init__(self, descriptor: int, path: bytes, entry: Entry, stat: os.stat_result) -> None:
        self.path = path
        self.entry = entry
        self.bytes_delivered = 0
        self.changed = False
        self._cold = False
        super().__init__(descriptor)
        self._opened = stat
        # A file with a block for each byte has no holes; asking would only cost time.
        self._sparse = stat.st_blocks * _BLOCK < stat.st_size

    def segments(self, room: Callable[[], memoryview]) -> Iterator[memoryview | Hole]:
        """Yield the content from the start: filled parts of what ``room`` returns, and holes.

        ``room`` is asked for a writable view of bytes for each part, which is filled unless the
        file or its data ends. ``changed`` is set at the end. Raises ``SourceError`` when a read
        fails.
        """
        self.bytes_delivered = 0
        self._cold = self._opened.st_size >= _DROPPED_FROM_BYTES and self._is_cold()
        limit = self._opened.st_size or _UNSIZED_BYTES
        try:
            yield from self._until(limit, room)
            now = os.fstat(self._descriptor)
            if now.st_size > limit == self.bytes_delivered:
                yield from self._until(now.st_size, room)
                now = os.fstat(self._descriptor)
        except OSError as error:
            raise SourceError(self.path, reason(error)) from error
        if self.bytes_delivered == _UNSIZED_BYTES and now.st_size == 0:
            raise SourceError(self.path, "says that it is empty but does not end; left out")
        self.changed = self._differs(now)

    def entry_after(self) -> Entry:
        """Return the entry with the number of bytes that were delivered as its size."""
        if self.entry.size == self.bytes_delivered:
            return self.entry
        return msgspec.structs.replace(self.entry, size=self.bytes_delivered)

    def _differs(self, now: os.stat_result) -> bool:
        before = self._opened
        return (
            now.st_size != self.bytes_delivered
            or now.st_mtime_ns != before.st_mtime_ns
            or now.st_ctime_ns != before.st_ctime_ns
        )

    def _until(self, limit: int, room: Callable[[], memoryview]) -> Iterator[memoryview | Hole]:
        """Deliver up to the offset ``limit``, or to the end of the file if that comes first."""
        while self.bytes_delivered < limit:
            start, end = self._next_data(limit)
            if start > self.bytes_delivered:
                hole = start - self.bytes_delivered
                self.bytes_delivered = start
                yield Hole(hole)
            while self.bytes_delivered < end:
                buffer = room()
                filled = self._fill(buffer, end - self.bytes_delivered)
                if filled == 0:
                    return
                self._let_go(filled)
                self.bytes_delivered += filled
                yield buffer[:filled]
            if start == end:
                return

    def _is_cold(self) -> bool:
        """Tell whether the file's first block would have to come from the disk."""
        try:
            os.preadv(self._descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass  # a file system that does not tell
        return False

    def _let_go(self, count: int) -> None:
        """Take what was just read out of the page cache, if it is only there because of that."""
        if self._cold:
            position = self.bytes_delivered
            os.posix_fadvise(self._descriptor, position, count, os.POSIX_FADV_DONTNEED)

    def _next_data(self, limit: int) -> tuple[int, int]:
        """Return where the next data starts and ends; equal if only a hole is left."""
        position = self.bytes_delivered
        if not self._sparse:
            return position, limit
        try:
            start = os.lseek(self._descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno in _NO_HOLES_TOLD:
                self._sparse = False
                return position, limit
            if error.errno != errno.ENXIO:
                raise
            # No data from here on: a hole to the end, which truncation may have moved.
            end = max(position, min(limit, os.fstat(self._descriptor).st_size))
            return end, end
        if start >= limit:
            return limit, limit
        hole = os.lseek(self._descriptor, start, os.SEEK_HOLE)
        return start, min(limit, max(hole, start + 1))  # punched since: a zero is read, and on

    def _fill(self, buffer: memoryview, wanted: int) -> int:
        """Read up to ``wanted`` bytes into ``buffer``; less than that only at its or the file's end."""
        room = min(len(buffer), wanted)
        filled = 0
        while filled < room:
            position = self.bytes_delivered + filled
            count = os.preadv(self._descriptor, [buffer[filled:room]], position)
            if count == 0:
                break
            filled += count
        return filled
