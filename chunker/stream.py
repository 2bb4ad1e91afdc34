"""One file's bytes in, its chunks out, where they lie.

A chunk ends at the first candidate that lies ``min_size`` or more after its start, or after
``max_size`` bytes, or with the file. The rule guarded here: the cuts are a function of the
content alone. How it was split into buffers, and whether its zeros were read or known to be a
hole, changes nothing.

The file is read straight into a buffer of the stream, and chunks are places in it: nothing is copied
but what is left of the last chunk when the next buffer begins. A buffer that is full enough is
given away with its chunks.

Candidates depend on the 64 bytes before them and not on where a chunk starts. So nothing is
looked at that cannot be a cut: the first ``min_size`` bytes of each chunk are never scanned,
a third of random data. The scan goes on in steps until the first hit. A step is ``min_size``,
the longest for which no hit behind the first one can matter; longer ones would be scanned in
vain, shorter ones would wait more often for the GIL.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chunker.kernel import Scan
from chunker.kernel import scan as native_scan
from chunker.rabin import WINDOW_SIZE, Parameters

HISTORY_SIZE = WINDOW_SIZE - 1

ENOUGH_BYTES = 2 << 20
"""A buffer that has this much in it, and a chunk, is given away."""

STEP_BYTES = 1 << 20
"""So much is filled in at a time: a chunk may end long before its buffer does, which takes no memory there."""


class Chunks(NamedTuple):
    """A buffer, and the chunks in it as (start, size); it belongs to whoever got it."""

    buffer: memoryview
    spans: Sequence[tuple[int, int]]

    @property
    def end(self) -> int:
        """Return where the last chunk ends."""
        return sum(self.spans[-1])


@dataclasses.dataclass(frozen=True, slots=True)
class ZeroChunks:
    """That many chunks of ``min_size`` zeros each, which lie nowhere."""

    count: int


Piece = Chunks | ZeroChunks


class ChunkStream:
    """Cuts one file after the other; for one thread at a time.

    Fill ``room()`` and say ``filled``, or say ``zeros``, until the file ends; then ``finish``. After an
    error in mid-file ``drop`` what is there of it. The pieces of a file come in its order.
    """

    def __init__(
        self,
        parameters: Parameters,
        lend: Callable[[], bytearray | memoryview],
        *,
        enough: int = ENOUGH_BYTES,
        scan: Scan = native_scan,
    ) -> None:
        """``lend`` returns a buffer of ``max_size`` bytes or more, with anything in it."""
        self.parameters = parameters
        self._lend = lend
        self._enough = enough
        self._scan = scan
        self._buffer = memoryview(b"")
        self._clear()

    def _clear(self) -> None:
        self._spans: list[tuple[int, int]] = []
        self._start = 0  # of the chunk in progress
        self._looked = 0  # up to where there is no cut for it
        self._end = 0  # of what was filled

    def room(self) -> memoryview:
        """Return where the file's next bytes belong; never empty."""
        if not self._buffer:
            self._buffer = memoryview(self._lend())
        step = min(STEP_BYTES, self._enough)
        end = (self._end // step + 1) * step
        return memoryview(self._buffer)[self._end : min(end, len(self._buffer))]

    def filled(self, count: int) -> list[Piece]:
        """Take the first ``count`` bytes of the room; return what is complete by them."""
        self._cut(count)
        return self._if_full()

    def zeros(self, length: int) -> list[Piece]:
        """Take ``length`` zeros that need not be read; return what is complete by them.

        The same as filling them in, but a hole of tebibytes takes no time. Raises ``ValueError``
        for a negative length.
        """
        if length < 0:
            raise ValueError(f"a hole cannot have {length} bytes")
        pieces: list[Piece] = []
        left = self._complete_with_zeros(length, pieces) if self._end > self._start else length
        count, left = divmod(left, self.parameters.min_size)
        if count:
            if self._spans:
                pieces.append(self._give_away())
            pieces.append(ZeroChunks(count))
        self._fill_zeros(left, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """Return the file's last chunks, if any byte is left; the stream is ready for a new file."""
        if self._end > self._start:
            self._spans.append((self._start, self._end - self._start))
        self._start = self._end
        pieces: list[Piece] = [self._give_away()] if self._spans else []
        self._clear()
        return pieces

    def drop(self) -> None:
        """Forget what was filled in of a file that could not be read."""
        self._clear()

    def _complete_with_zeros(self, length: int, pieces: list[Piece]) -> int:
        """Fill zeros in until a chunk ends with them; return how many of them are left."""
        before = self._end - self._start
        # Within this reach a cut becomes legal and a window all zero.
        reach = min(length, max(self.parameters.min_size - before, WINDOW_SIZE))
        if not self._fill_zeros(reach, pieces):
            return length - reach
        self._end, over = self._start, self._end - self._start  # those of the next chunk again
        self._looked = min(self._looked, self._end)
        return length - reach + over

    def _fill_zeros(self, length: int, pieces: list[Piece]) -> bool:
        """Fill zeros in; tell whether a chunk ended."""
        ended = False
        while length > 0:
            with self.room() as room:
                count = min(length, len(room))
                room[:count] = bytes(count)
            ended = self._cut(count) or ended
            pieces += self._if_full()
            length -= count
        return ended

    def _cut(self, count: int) -> bool:
        """Take bytes that were filled in; tell whether a chunk ended with them."""
        self._end += count
        known = len(self._spans)
        while (cut := self._next_cut()) is not None:
            self._spans.append((self._start, cut - self._start))
            self._start = cut
        return len(self._spans) > known

    def _if_full(self) -> list[Piece]:
        full = self._end >= self._enough or self._end == len(self._buffer)
        return [self._give_away()] if self._spans and full else []

    def _next_cut(self) -> int | None:
        """Return where the chunk in progress ends, or None if that is not known yet."""
        parameters = self.parameters
        limit = self._start + parameters.max_size
        end = min(limit, self._end)
        at = max(self._start + parameters.min_size - 1, self._looked)
        with memoryview(self._buffer) as view:
            while at < end:
                stop = min(at + parameters.min_size, end)
                runs = self._scan(
                    view[at:stop], view[at - HISTORY_SIZE : at], *parameters.tables, parameters.mask
                )
                if runs:
                    return at + int.from_bytes(runs[:8], sys.byteorder)
                at = self._looked = stop
        return limit if limit <= self._end else None

    def _give_away(self) -> Chunks:
        """Begin a new buffer with what is left of the last chunk, and return the old one."""
        given = Chunks(self._buffer, tuple(self._spans))
        left = self._end - self._start
        if left:
            self._buffer = memoryview(self._lend())
            with memoryview(given.buffer) as view:
                self._buffer[:left] = view[self._start : self._end]
        else:
            self._buffer = memoryview(b"")
        looked = self._looked - self._start
        self._clear()
        self._looked, self._end = max(looked, 0), left
        return given
