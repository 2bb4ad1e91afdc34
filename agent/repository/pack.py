"""Packs: many sealed blobs in one object, and a sealed header that tells them apart.

``blob || blob || ... || sealed header || uint32le(size of the sealed header)``. Offsets are
implied by the order, so blobs are contiguous from 0; a pack holds one type of blob only
(restic-format.md section 7). Pure: IVs come from the caller.
"""

import struct

import msgspec

from agent.errors import MalformedData
from agent.repository.crypto import OVERHEAD, Buffer, Key
from agent.repository.identity import ID_SIZE, BlobId, BlobType

TARGET_BYTES = 16 << 20
"""A pack is closed when it holds this much (restic's default)."""

_PLAIN_ENTRY = struct.Struct("<BI32s")
_ZSTD_ENTRY = struct.Struct("<BII32s")
_TRAILER = struct.Struct("<I")
FRAME_BYTES = OVERHEAD + _TRAILER.size
"""What a pack costs beside its blobs and their header entries."""

_ZSTD_FLAG = 2
MAX_HEADER_BYTES = (16 << 20) - OVERHEAD
MAX_ENTRIES = MAX_HEADER_BYTES // _ZSTD_ENTRY.size
MAX_BLOB_BYTES = (1 << 32) - (1 << 27)
"""Offsets and lengths are 32 bits: what a pack below its target still takes, with its header."""


class PackedBlob(msgspec.Struct, frozen=True, gc=False):
    """Where one blob lies in its pack; sizes in bytes.

    ``length`` is the sealed size, ``plain_length`` the size of the plaintext if the blob is
    compressed and 0 if it is stored as it is.
    """

    type: BlobType
    id: BlobId
    offset: int
    length: int
    plain_length: int

    @property
    def entry_bytes(self) -> int:
        """Return the size of this blob's header entry."""
        return entry_bytes(self.plain_length)

    @property
    def content_bytes(self) -> int:
        """Return the size of the plaintext."""
        return self.plain_length or self.length - OVERHEAD


def entry_bytes(plain_length: int) -> int:
    """Return the size of a blob's header entry; ``plain_length`` is 0 unless it is compressed."""
    return _ZSTD_ENTRY.size if plain_length else _PLAIN_ENTRY.size


def packed_size(blobs: list[PackedBlob]) -> int:
    """Return the size that a pack of these blobs has; check and prune rely on it."""
    return sum(b.length + b.entry_bytes for b in blobs) + FRAME_BYTES


class PackBuilder:
    """A pack in the making: append sealed blobs, then finish it once.

    ``body`` is a buffer that may have been used before. Whoever gave it can use it again when the
    finished pack is no longer wanted; a pack that does not fit moves to memory of its own. ``end_bytes``
    may be lowered for a pack that shall be full earlier.
    """

    def __init__(self, type: BlobType, body: memoryview | None = None) -> None:
        self.type = type
        self.body: bytearray | memoryview = bytearray() if body is None else body
        self.size = 0
        self.end_bytes = TARGET_BYTES
        self.blobs: list[PackedBlob] = []

    def append(self, id: BlobId, sealed: Buffer, plain_length: int) -> PackedBlob:
        """Add one sealed blob; ``plain_length`` is 0 unless it is compressed."""
        blob = PackedBlob(self.type, id, self.size, len(sealed), plain_length)
        self._write(sealed)
        self.blobs.append(blob)
        return blob

    @property
    def full(self) -> bool:
        """Tell whether the pack should be finished."""
        return self.size >= self.end_bytes or len(self.blobs) >= MAX_ENTRIES

    def sealed(self, blob: PackedBlob) -> Buffer:
        """Return a blob that was appended."""
        return self.body[blob.offset : blob.offset + blob.length]

    def finish(self, key: Key, iv: bytes) -> memoryview:
        """Seal the header, and return the whole pack, which lies in ``body``."""
        for part in self.end(key, iv):
            self._write(part)
        return memoryview(self.body)[: self.size]

    def end(self, key: Key, iv: bytes) -> tuple[Buffer, Buffer]:
        """Return what stands behind the blobs: the sealed header, and its size."""
        header = key.seal(iv, encode_header(self.blobs))
        return header, _TRAILER.pack(len(header))

    def _write(self, part: Buffer) -> None:
        end = self.size + len(part)
        if end > len(self.body):
            if isinstance(self.body, memoryview):
                self.body = bytearray(self.body[: self.size])
            # A slice past the end appends; the buffer over-allocates, so this is not done often.
            self.body[self.size :] = part
        else:
            self.body[self.size : end] = part
        self.size = end


def encode_header(blobs: list[PackedBlob]) -> bytes:
    """Return the plain header: one entry a blob, in physical order."""
    parts = []
    for blob in blobs:
        if blob.plain_length:
            kind = blob.type | _ZSTD_FLAG
            parts.append(_ZSTD_ENTRY.pack(kind, blob.length, blob.plain_length, blob.id))
        else:
            parts.append(_PLAIN_ENTRY.pack(blob.type, blob.length, blob.id))
    return b"".join(parts)


def decode_header(header: bytes, what: str) -> list[PackedBlob]:
    """Parse a plain header; raise ``MalformedData`` naming ``what``."""
    blobs: list[PackedBlob] = []
    place = offset = 0
    while place < len(header):
        kind = header[place]
        entry = _ZSTD_ENTRY if kind & _ZSTD_FLAG else _PLAIN_ENTRY
        if kind > 3 or place + entry.size > len(header):
            raise MalformedData(what, f"header entry at byte {place} is not valid")
        fields = entry.unpack_from(header, place)
        length, plain, id = fields[1], fields[2] if kind & _ZSTD_FLAG else 0, fields[-1]
        if length < OVERHEAD:
            raise MalformedData(what, f"header entry at byte {place} has a length of {length}")
        blobs.append(PackedBlob(BlobType(kind & 1), BlobId(id), offset, length, plain))
        offset += length
        place += entry.size
    return blobs


def header_span(tail: Buffer, pack_bytes: int, what: str) -> tuple[int, int]:
    """Return (offset, size) of the sealed header, from the last 4 bytes of a pack."""
    if pack_bytes < OVERHEAD + _TRAILER.size or len(tail) < _TRAILER.size:
        raise MalformedData(what, f"{pack_bytes} bytes are too few for a pack")
    (size,) = _TRAILER.unpack(memoryview(tail)[-_TRAILER.size :])
    offset = pack_bytes - _TRAILER.size - size
    if size < OVERHEAD + _PLAIN_ENTRY.size or offset < 0 or size > MAX_HEADER_BYTES + OVERHEAD:
        raise MalformedData(what, f"its header length is {size}")
    return offset, size


def open_pack(pack: Buffer, key: Key, what: str) -> list[PackedBlob]:
    """Return the blobs that a whole pack's header names."""
    view = memoryview(pack)
    offset, size = header_span(view[-4:], len(view), what)
    blobs = decode_header(key.unseal(view[offset : offset + size], what), what)
    if packed_size(blobs) != len(view):
        raise MalformedData(
            what, f"{len(view)} bytes, but its header describes {packed_size(blobs)}"
        )
    return blobs


assert _PLAIN_ENTRY.size == 5 + ID_SIZE
assert _ZSTD_ENTRY.size == 9 + ID_SIZE
