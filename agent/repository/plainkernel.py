"""The blob kernel in Python: the specification of ``_blobs.c``, its twin in tests, and its stand-in.

It is used where the native kernel finds no libraries to call. The results are the same but for
the bytes that zstd packs into, which are any that open to the same content; small blobs take four
times as long, and hold the GIL.
"""

import hashlib
import struct

import xxhash
import zstandard

from agent.errors import MalformedData
from agent.repository.crypto import OVERHEAD, Buffer, Key

SPAN = struct.Struct("=QQ")
"""A blob in a buffer that is to be hashed: start and size in bytes."""

PLAIN = struct.Struct("=QQQ16s")
"""A blob in a buffer that is to be sealed: start, size, XXH3, and an IV that is used once."""

STORED = struct.Struct("=II")
"""A blob that was sealed: sealed length, and plain length, which is 0 if it is not compressed."""

SEALED = struct.Struct("=QII32s")
"""A blob in a buffer that is to be opened: offset, and its record in the index."""

SMALL_BYTES = 128 << 10
"""Blobs below this size are compressed at the small level."""

FAILED, NOT_AUTHENTIC, NOT_INFLATED, ANOTHER_ID, NO_ROOM = range(1, 6)
"""What a status says: at which step a blob failed."""

_SEAL = struct.Struct("=Q")
_STEP_BYTES = 1 << 20


class PlainKernel:
    """Hashes, seals and opens many blobs in one call; for any number of threads."""

    def __init__(self, key: Key, level: int, small_level: int) -> None:
        self._key = key
        self._levels = (small_level, level)

    def hash(self, data: Buffer, spans: Buffer, /) -> tuple[bytes, bytes]:
        """Return the SHA-256 ids of all spans, 32 bytes each, and their XXH3, 8 bytes each.

        Raises ``ValueError`` for a span that does not lie in the data.
        """
        parts = [_part(data, start, size) for start, size in SPAN.iter_unpack(spans)]
        ids = b"".join([hashlib.sha256(part).digest() for part in parts])
        return ids, b"".join([_SEAL.pack(xxhash.xxh3_64_intdigest(part)) for part in parts])

    def seal(self, data: Buffer, blobs: Buffer, always: bool, out: Buffer, /) -> tuple[int, bytes]:
        """Seal blobs one behind the other into ``out``; return (status, ``STORED`` records).

        Data is compressed where that makes it smaller, with ``always`` in any case. Each sealed
        blob is opened again and must have its XXH3. A status that is not 0 is that of the first
        blob that failed. Raises ``ValueError`` for a blob that does not lie in the data.
        """
        every = [
            (_part(data, start, size), *rest) for start, size, *rest in PLAIN.iter_unpack(blobs)
        ]
        stored = []
        used = 0
        for plain, seal, iv in every:
            packed: Buffer = self._compressed(plain)
            compressed = always or len(packed) < len(plain)
            sealed = self._key.seal(iv, packed if compressed else plain)
            if used + len(sealed) > len(out):
                return NO_ROOM, b""
            status = self._status(sealed, compressed, seal)
            if status:
                return status, b""
            memoryview(out)[used : used + len(sealed)] = sealed
            used += len(sealed)
            stored.append(STORED.pack(len(sealed), len(plain) if compressed else 0))
        return 0, b"".join(stored)

    def open(self, data: Buffer, blobs: Buffer, out: Buffer, /) -> bytes:
        """Open blobs one behind the other into ``out``; return one status byte for each.

        Each takes its plain size in ``out``, whatever its status. Raises ``ValueError`` if they do
        not fit.
        """
        every = [SEALED.unpack_from(blobs, place) for place in range(0, len(blobs), SEALED.size)]
        sizes = [plain or max(length - OVERHEAD, 0) for _, length, plain, _ in every]
        if sum(sizes) > len(out):
            raise ValueError("the blobs do not fit into the buffer")
        statuses = bytearray()
        used = 0
        for (offset, length, plain_length, id), size in zip(every, sizes, strict=True):
            if offset + length > len(data):
                statuses.append(FAILED)
            else:
                sealed = memoryview(data)[offset : offset + length]
                plain, status = self._open(sealed, size if plain_length else None, id)
                statuses.append(status)
                memoryview(out)[used : used + len(plain)] = plain
            used += size
        return bytes(statuses)

    def _compressed(self, plain: memoryview) -> bytes:
        compressor = zstandard.ZstdCompressor(level=self._levels[len(plain) >= SMALL_BYTES])
        return compressor.compress(plain)

    def _status(self, sealed: Buffer, compressed: bool, seal: int) -> int:
        """Open what was just sealed, a step at a time, and compare its XXH3."""
        digest = xxhash.xxh3_64()
        try:
            opened = self._key.unseal(sealed, "it")
            if compressed:
                with zstandard.ZstdDecompressor().stream_reader(opened) as stream:
                    while part := stream.read(_STEP_BYTES):
                        digest.update(part)
            else:
                digest.update(opened)
        except MalformedData:
            return NOT_AUTHENTIC
        except zstandard.ZstdError:
            return NOT_INFLATED
        return 0 if digest.intdigest() == seal else ANOTHER_ID

    def _open(self, sealed: Buffer, size: int | None, id: bytes) -> tuple[bytes, int]:
        try:
            plain = self._key.unseal(sealed, "it")
            if size is not None:
                plain = _inflated(plain, size)
        except MalformedData:
            return b"", NOT_AUTHENTIC
        except zstandard.ZstdError:
            return b"", NOT_INFLATED
        return (plain, 0) if hashlib.sha256(plain).digest() == id else (b"", ANOTHER_ID)


def _inflated(packed: bytes, size: int) -> bytes:
    """Return the content of ``size`` bytes; what the frame itself declares is not believed."""
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as stream:
        plain = stream.read(size + 1)
    if len(plain) != size:
        raise zstandard.ZstdError("another size than the index says")
    return plain


def _part(data: Buffer, start: int, size: int) -> memoryview:
    view = memoryview(data)
    if start + size > len(view):
        raise ValueError("a blob does not lie in the buffer")
    return view[start : start + size]
