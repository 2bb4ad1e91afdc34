"""Buffers that are lent and kept: fresh memory costs as much as hashing what goes into it.

A buffer is a mapping of its own, so it takes memory as far as it was ever filled: a bytearray of
8 MiB is written to, and takes 8, before anybody has put 2 into it. (Where the system always makes huge
pages, as far as the last of these.) What an unusually large chunk has
filled beyond the rest is given back to the system, page by page, and the buffer is kept.
"""

import contextlib
import mmap
import threading
from collections.abc import Iterator
from typing import cast

BUFFER_BYTES = 9 << 20
"""Room for the largest chunk, sealed. A larger buffer, for the tree of a huge directory, is not kept."""

USUAL_BYTES = 3 << 20
"""Nine chunks of ten are smaller."""


class Buffers:
    """Lends buffers to any number of threads, and keeps those that come back."""

    def __init__(self, size: int = BUFFER_BYTES, usual_bytes: int | None = None) -> None:
        """Lend buffers of ``size`` bytes; of one that was filled further keep ``usual_bytes`` (whole pages)."""
        self._size = size
        self._usual_bytes = size if usual_bytes is None else usual_bytes
        self._lock = threading.Lock()
        self._idle: list[memoryview] = []

    def take(self, size: int) -> memoryview:
        """Return a buffer of at least ``size`` bytes with anything in it, to give back or to drop."""
        with self._lock:
            if size <= self._size and self._idle:
                return self._idle.pop()
        return _mapped(max(size, self._size))

    def give(self, buffer: memoryview, filled: int) -> None:
        """Give a buffer back that was filled so far, or as far as the rest of its last chunk."""
        if len(buffer) > self._size:
            return
        if filled > self._usual_bytes:
            cast(mmap.mmap, buffer.obj).madvise(mmap.MADV_DONTNEED, self._usual_bytes)
        with self._lock:
            self._idle.append(buffer)

    def keep(self, most: int) -> None:
        """Keep no more than so many of those that are idle."""
        with self._lock:
            del self._idle[most:]

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[memoryview]:
        """Lend a buffer for the length of a scope; one that fails drops it."""
        buffer = self.take(size)
        yield buffer[:size]
        self.give(buffer, size)


def _mapped(size: int) -> memoryview:
    try:
        return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as error:  # which would be taken for an error of the file that is read into it
        raise MemoryError(f"no memory for a buffer of {size} bytes: {error}") from error
