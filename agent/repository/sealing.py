"""Sealing blobs: hash, compress, encrypt, and open the result again before anybody relies on it.

The plaintext's XXH3 is taken beside its SHA-256, and must come out again when the sealed bytes
are opened. Bad memory and bugs of ours end here, not in a restore (restic-lessons.md section 5).
"""

from collections.abc import Iterator, Sequence

import msgspec

from agent.config import Compression
from agent.errors import DamagedBlob
from agent.repository.buffers import USUAL_BYTES, Buffers
from agent.repository.crypto import OVERHEAD, Buffer, Key
from agent.repository.identity import ID_SIZE, BlobId, BlobType
from agent.repository.kernel import BlobKernel, blob_kernel
from agent.repository.objects import fresh_ivs
from agent.repository.plainkernel import PLAIN, SPAN, STORED, PlainKernel

LEVELS: dict[Compression, tuple[int, int]] = {
    "fastest": (1, 1),
    "default": (2, 1),
    "better": (7, 5),
}
"""zstd's levels for blobs of 128 KiB and more, and for smaller ones.

By default: with level 3 large blobs are 4 % smaller and take a third longer; small ones with level 1
are 3 % larger than with 3 on source code, smaller on short texts, in half the time.
"""

STEP_BYTES = 2 << 20
"""How much plaintext is sealed into one buffer, if it is more than one blob."""

_LARGEST_BYTES = 1 << 30
"""What is larger is a tree of millions of entries, which the native kernel leaves to the other."""

Span = tuple[int, int]
"""A blob in a buffer: start and size in bytes."""


class Hashed(msgspec.Struct, frozen=True):
    """Blobs in a buffer with their ids, and the XXH3 that was taken beside."""

    spans: Sequence[Span]
    ids: list[BlobId]
    seals: Sequence[int]


class Sealed(msgspec.Struct, frozen=True):
    """One sealed blob; ``plain_length`` is 0 if it is not compressed."""

    id: BlobId
    bytes: memoryview
    plain_length: int


class Sealer:
    """Turns plaintext into sealed bytes; for any number of threads."""

    def __init__(self, key: Key, compression: Compression = "default") -> None:
        self._kernel = blob_kernel(key, *LEVELS[compression])
        self._patient: BlobKernel = PlainKernel(key, *LEVELS[compression])
        self._buffers = Buffers(usual_bytes=USUAL_BYTES)

    def hash(self, data: Buffer, spans: Sequence[Span]) -> Hashed:
        """Return the ids of blobs that lie in a buffer."""
        packed = b"".join([SPAN.pack(start, size) for start, size in spans])
        ids, seals = self._kernel.hash(data, packed)
        each = [BlobId(ids[place : place + ID_SIZE]) for place in range(0, len(ids), ID_SIZE)]
        return Hashed(spans, each, memoryview(seals).cast("Q"))

    def seal(
        self, type: BlobType, data: Buffer, hashed: Hashed, places: Sequence[int]
    ) -> Iterator[list[Sealed]]:
        """Yield the blobs at some places of ``hashed`` sealed, a few at a time.

        Trees are always compressed (restic repacks those that are not); data only where it gets
        smaller. What was yielded is good until the next is asked for. Raises ``DamagedBlob`` if
        sealed bytes do not open to what they were made from.
        """
        for some in _steps(hashed.spans, places):
            size = sum(hashed.spans[place][1] for place in some)
            with self._buffers.lend(_room(size, len(some))) as out:
                yield self._sealed(type, data, hashed, some, out)

    def _sealed(
        self, type: BlobType, data: Buffer, hashed: Hashed, places: Sequence[int], out: memoryview
    ) -> list[Sealed]:
        ivs = fresh_ivs(len(places))
        blobs = b"".join(
            [
                PLAIN.pack(*hashed.spans[place], hashed.seals[place], iv)
                for place, iv in zip(places, ivs, strict=True)
            ]
        )
        large = any(hashed.spans[place][1] > _LARGEST_BYTES for place in places)
        kernel = self._patient if large else self._kernel
        status, stored = kernel.seal(data, blobs, type is BlobType.TREE, out)
        if status:
            raise _corrupt(hashed.ids[places[0]], status)
        found, offset = [], 0
        for place, (length, plain_length) in zip(places, STORED.iter_unpack(stored), strict=True):
            sealed = out[offset : offset + length]
            found.append(Sealed(hashed.ids[place], sealed, plain_length))
            offset += length
        return found


def _steps(spans: Sequence[Span], places: Sequence[int]) -> Iterator[list[int]]:
    step: list[int] = []
    size = 0
    for place in places:
        size += spans[place][1]
        if step and size > STEP_BYTES:
            yield step
            step, size = [], spans[place][1]
        step.append(place)
    if step:
        yield step


def _room(size: int, count: int) -> int:
    """Return what blobs take at most: zstd may make a tree larger, by 1/256 and a little."""
    return size + (size >> 8) + count * (OVERHEAD + 128)


def _corrupt(first: BlobId, status: int) -> DamagedBlob:
    return DamagedBlob(
        f"blob {first.hex()}, or one after it, did not survive being sealed (status {status});"
        " nothing of it was stored. This node's memory or CPU is suspect: test it before you trust"
        " its backups"
    )
