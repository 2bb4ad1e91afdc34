"""Chunks as bytes, of files that are given in parts: what a pipeline does with a stream's pieces."""

from chunker import Chunks, ChunkStream, Parameters, Piece, ZeroChunks, scan
from chunker.kernel import Scan


def stream_of(parameters: Parameters, *, enough: int = 4 << 20, scan: Scan = scan) -> ChunkStream:
    """Return a stream whose buffers are as small as they may be, and dirty."""
    return ChunkStream(
        parameters, lambda: bytearray(b"\xa5") * parameters.max_size, enough=enough, scan=scan
    )


def taken(stream: ChunkStream, pieces: list[Piece]) -> list[bytes]:
    """Return the chunks in pieces, and spoil their buffers: they are nobody's any more."""
    chunks: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, ZeroChunks):
            chunks += [stream.parameters.zero_chunk] * piece.count
            continue
        assert isinstance(piece, Chunks)
        chunks += [bytes(piece.buffer[start : start + size]) for start, size in piece.spans]
        piece.buffer[:] = b"\xee" * len(piece.buffer)
    return chunks


def fed(stream: ChunkStream, data: bytes) -> list[bytes]:
    """Fill data in, as far as there is room each time."""
    chunks: list[bytes] = []
    left = memoryview(data)
    while left:
        with stream.room() as room:
            count = min(len(room), len(left))
            assert count
            room[:count] = left[:count]
        chunks += taken(stream, stream.filled(count))
        left = left[count:]
    return chunks


def cut(parts: list[bytes | int], stream: ChunkStream) -> list[bytes]:
    """Return the chunks of a file; bytes are filled in as they are, numbers are holes."""
    chunks: list[bytes] = []
    for part in parts:
        if isinstance(part, int):
            chunks += taken(stream, stream.zeros(part))
        else:
            chunks += fed(stream, part)
    return chunks + taken(stream, stream.finish())
