"""Content-defined chunking exactly as restic's: bytes in, chunks out.

Knows nothing of backups. The same content gives the same chunks wherever it lies in a file,
and the same chunks that restic would cut, so either finds what the other has stored
(restic-format.md section 10).
"""

from chunker.kernel import KERNEL_NAME, Buffer, Scan, scan
from chunker.rabin import MIN_SIZE, Parameters, generate_polynomial, is_irreducible
from chunker.stream import ENOUGH_BYTES, Chunks, ChunkStream, Piece, ZeroChunks

__all__ = [
    "ENOUGH_BYTES",
    "KERNEL_NAME",
    "MIN_SIZE",
    "Buffer",
    "ChunkStream",
    "Chunks",
    "Parameters",
    "Piece",
    "Scan",
    "ZeroChunks",
    "generate_polynomial",
    "is_irreducible",
    "scan",
]
