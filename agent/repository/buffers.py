"""Buffers that are lent and kept: fresh memory costs as much as hashing what goes into it."""

import contextlib
import threading
from collections.abc import Iterator

KEPT_BYTES = 9 << 20
"""A buffer for the largest chunk is kept, one for the tree of a huge directory is not."""


class Buffers:
    """Lends buffers to any number of threads; there are as many as were ever lent at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of at least ``size`` bytes with anything in it, to give back or to drop."""
        with self._lock:
            buffer = self._idle.pop() if self._idle else bytearray()
        return buffer if len(buffer) >= size else bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Give a buffer back."""
        if len(buffer) <= KEPT_BYTES:
            with self._lock:
                self._idle.append(buffer)

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[bytearray]:
        """Lend a buffer for the length of a scope; one that fails drops it."""
        buffer = self.take(size)
        yield buffer
        self.give(buffer)
