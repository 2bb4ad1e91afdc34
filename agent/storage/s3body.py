"""The body of an upload: a view of the caller's buffer that can be stopped between slices.

botocore copies a bytearray whole and refuses a memoryview; a file-like object over one is
sent as it is. Each ``read`` is one ``sendall``, so a slice is small enough for a slow link to
send within the socket's time-out (s3.md section 2: 256 KiB in 10 s is 26 KiB/s).
"""

import concurrent.futures
import time

from agent.budget import Rate
from agent.cancel import CancelToken
from agent.errors import Canceled
from agent.storage.contract import Buffer

SLICE_BYTES = 256 << 10


class Stopped(concurrent.futures.CancelledError):
    """The one exception that botocore lets through from a body untouched (s3.md section 4)."""


class Guard:
    """Watches one attempt: raises ``Canceled`` by the token, or ends it at its deadline.

    It also holds it to a rate; what is waited for that does not bring the deadline nearer.
    """

    def __init__(self, cancel: CancelToken, seconds: float, rate: Rate) -> None:
        self._cancel = cancel
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._rate = rate

    def send(self, amount: int) -> None:
        """Wait for the turn of so many bytes; raises ``Stopped``, for use below botocore."""
        try:
            self.move(amount)
        except (Canceled, TimeoutError) as reason:
            raise Stopped from reason

    def move(self, amount: int) -> None:
        """Wait for the turn of so many bytes; raises as ``check`` does."""
        self.check()
        self._end += self._rate.take(amount, self._cancel)

    def check(self) -> None:
        """Raise ``Canceled`` when the work is canceled, ``TimeoutError`` when it is late."""
        self._cancel.check()
        if time.monotonic() > self._end:
            raise TimeoutError(f"not done within the {self._seconds:.0f} seconds of one attempt")


class Body:
    """A readable, seekable view of ``buffer``; it copies nothing."""

    def __init__(self, buffer: Buffer, guard: Guard) -> None:
        self._view = memoryview(buffer).cast("B")
        self._guard = guard
        self._position = 0

    def __len__(self) -> int:
        return self._view.nbytes

    def read(self, size: int | None = -1) -> memoryview:
        """Return the next slice; everything that is left if ``size`` is negative or None."""
        end = len(self) if size is None or size < 0 else self._position + SLICE_BYTES
        part = self._view[self._position : end]
        self._position += len(part)
        if len(part):
            self._guard.send(len(part))
        return part

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset`` from the start (0), here (1) or the end (2)."""
        base = (0, self._position, len(self))[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position
