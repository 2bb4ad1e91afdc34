"""One file's bytes in, its chunks out, in buffers of any size.

A chunk ends at the first candidate that lies ``min_size`` or more after its start, or after
``max_size`` bytes, or with the file. The rule guarded here: the cuts are a function of the
content alone. How it was split into buffers, and whether its zeros were read or known to be a
hole, changes nothing.

Candidates depend on the 64 bytes before them and not on where a chunk starts. So nothing is
looked at that cannot be a cut: the first ``min_size`` bytes of each chunk are never scanned,
a third of random data. The scan goes on in steps until the first hit. A step is ``min_size``,
the longest for which no hit behind the first one can matter; longer ones would be scanned in
vain, shorter ones would wait more often for the GIL.
"""

import sys
from collections.abc import Iterator

from chunker.kernel import Buffer, Scan
from chunker.kernel import scan as native_scan
from chunker.rabin import WINDOW_SIZE, Parameters

HISTORY_SIZE = WINDOW_SIZE - 1


class ChunkStream:
    """Cuts one file after the other; for one thread at a time.

    Each call hands back an iterator that has to be taken to its end before the next call, and
    before the buffer that was fed is written to again. An unfinished one makes the next call
    raise ``RuntimeError``, so chunks cannot get lost unseen; after an error in mid-file, drop
    the stream and make a new one, which costs nothing.

    Chunks are bytes of their own. They hold each byte copied once, twice where a chunk spans
    buffers. A chunk of ``min_size`` zeros, however they came, is always the object
    ``zero_chunk``: test it with ``is`` and skip hashing.
    """

    def __init__(self, parameters: Parameters, scan: Scan = native_scan) -> None:
        self.parameters = parameters
        self.zero_chunk = parameters.zero_chunk
        self._scan = scan
        self._zeros = memoryview(parameters.zero_chunk)
        self._unfinished = False
        self._start_file()

    def feed(self, data: Buffer) -> Iterator[bytes]:
        """Yield the chunks that end within ``data``, the file's next bytes.

        Raises ``RuntimeError`` while an earlier iterator is unfinished.
        """
        return self._exclusive(self._cut(data))

    def feed_zeros(self, length: int) -> Iterator[bytes]:
        """Yield the chunks that end within the file's next ``length`` bytes, all zero.

        The same as feeding them, but they are neither scanned nor copied, so a hole of
        tebibytes takes no memory. Raises ``ValueError`` for a negative length and
        ``RuntimeError`` while an earlier iterator is unfinished.
        """
        if length < 0:
            raise ValueError(f"a hole cannot have {length} bytes")
        return self._exclusive(self._cut_zeros(length))

    def finish(self) -> Iterator[bytes]:
        """Yield the file's last chunk, if any byte is left; the stream is ready for a new file.

        Raises ``RuntimeError`` while an earlier iterator is unfinished.
        """
        return self._exclusive(self._rest())

    def _start_file(self) -> None:
        self._pieces: list[bytes | memoryview] = []  # of the chunk in progress
        self._length = 0  # of the pieces
        self._history = b""  # the last bytes fed

    def _exclusive(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        if self._unfinished:
            raise RuntimeError(
                "the iterator of the previous call was not taken to its end; "
                "exhaust each one, or make a new ChunkStream"
            )
        self._unfinished = True
        return self._to_the_end(chunks)

    def _to_the_end(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield from chunks
        self._unfinished = False

    def _cut(self, data: Buffer) -> Iterator[bytes]:
        with memoryview(data) as whole, whole.cast("B") as view:
            start = -self._length
            while (cut := self._next_cut(view, start)) is not None:
                yield self._complete(view[max(start, 0) : cut])
                start = cut
            self._keep(bytes(view[max(start, 0) :]))
            self._remember(bytes(view[-HISTORY_SIZE:]))

    def _cut_zeros(self, length: int) -> Iterator[bytes]:
        left = length
        if self._length > 0:
            # Within this reach a cut becomes legal and a window all zero.
            reach = max(self.parameters.min_size - self._length, WINDOW_SIZE)
            view = self._zeros[: min(left, reach)]
            cut = self._next_cut(view, -self._length)
            if cut is not None:
                yield self._complete(view[:cut])
                left -= cut
        if self._length == 0:
            while left >= len(self.zero_chunk):
                yield self.zero_chunk
                left -= len(self.zero_chunk)
        self._keep(self._zeros[:left])
        self._remember(bytes(self._zeros[: min(length, HISTORY_SIZE)]))

    def _rest(self) -> Iterator[bytes]:
        if self._length > 0:
            yield self._complete(None)
        self._start_file()

    def _next_cut(self, view: memoryview, start: int) -> int | None:
        """Return where the chunk that began at ``start`` (maybe before ``view``) ends in it."""
        tables = self.parameters.tables
        limit = start + self.parameters.max_size
        end = min(limit, len(view))
        at = max(start + self.parameters.min_size - 1, 0)
        while at < end:
            stop = min(at + self.parameters.min_size, end)
            runs = self._scan(
                view[at:stop],
                self._history_at(view, at),
                tables.out,
                tables.mod,
                self.parameters.mask,
            )
            if runs:
                return at + int.from_bytes(runs[:8], sys.byteorder)
            at = stop
        return limit if limit <= len(view) else None

    def _history_at(self, view: memoryview, at: int) -> Buffer:
        if at >= HISTORY_SIZE:
            return view[at - HISTORY_SIZE : at]
        return self._history + bytes(view[:at])

    def _complete(self, last: memoryview | None) -> bytes:
        pieces = self._pieces if last is None else [*self._pieces, last]
        # join copies a lone piece only if it is not bytes already
        chunk = b"".join(pieces)
        self._pieces = []
        self._length = 0
        return self.zero_chunk if chunk == self.zero_chunk else chunk

    def _keep(self, piece: bytes | memoryview) -> None:
        if piece:
            self._pieces.append(piece)
            self._length += len(piece)

    def _remember(self, last: bytes) -> None:
        self._history = (self._history + last)[-HISTORY_SIZE:]
