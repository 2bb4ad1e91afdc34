"""Sealing blobs: compress, encrypt, and open the result again before anybody relies on it.

The plaintext's XXH3 is taken beside its SHA-256, and must come out again when the sealed bytes
are opened. Bad memory and bugs of ours end here, not in a restore (restic-lessons.md section 5).
"""

import threading

import xxhash
import zstandard

from agent.errors import DamagedBlob, MalformedData
from agent.repository.crypto import Key
from agent.repository.identity import BlobId, BlobType
from agent.repository.objects import fresh_iv

DEFAULT_LEVEL = 3

_LARGE_BYTES = 8 << 20
"""What is larger than any chunk, the tree of a huge directory, is not held twice to compare it."""

_STEP_BYTES = 1 << 20


class Sealer:
    """Turns plaintext into sealed bytes; each thread has its own zstd contexts."""

    def __init__(self, key: Key, level: int = DEFAULT_LEVEL) -> None:
        self._key = key
        self._level = level
        self._local = threading.local()

    def seal(self, type: BlobType, id: BlobId, plain: bytes) -> tuple[bytearray, int]:
        """Return (sealed bytes, plain length, which is 0 if the blob is not compressed).

        Trees are always compressed (restic repacks those that are not); data only where it
        gets smaller. Raises ``DamagedBlob`` if the sealed bytes do not open to ``plain``.
        """
        seal = xxhash.xxh3_64_intdigest(plain)
        compressor, decompressor = self._contexts()
        packed = compressor.compress(plain)
        compressed = type is BlobType.TREE or len(packed) < len(plain)
        sealed = self._key.seal(fresh_iv(), packed if compressed else plain)
        try:
            opened = self._key.unseal(sealed, "a blob that was just sealed")
            if not compressed:
                again = xxhash.xxh3_64_intdigest(opened)
            elif len(plain) <= _LARGE_BYTES:
                again = xxhash.xxh3_64_intdigest(
                    decompressor.decompress(opened, max_output_size=len(plain))
                )
            else:
                again = _digest_of_frames(decompressor, opened)
        except (MalformedData, zstandard.ZstdError) as error:
            raise _corrupt(id) from error
        if again != seal:
            raise _corrupt(id)
        return sealed, len(plain) if compressed else 0

    def _contexts(self) -> tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor]:
        if not hasattr(self._local, "contexts"):
            self._local.contexts = (
                zstandard.ZstdCompressor(level=self._level),
                zstandard.ZstdDecompressor(),
            )
        contexts: tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor] = self._local.contexts
        return contexts


def _digest_of_frames(decompressor: zstandard.ZstdDecompressor, packed: bytes) -> int:
    """Return the XXH3 of what ``packed`` decompresses to, a step at a time."""
    digest = xxhash.xxh3_64()
    with decompressor.stream_reader(packed) as stream:
        while part := stream.read(_STEP_BYTES):
            digest.update(part)
    return digest.intdigest()


def _corrupt(id: BlobId) -> DamagedBlob:
    return DamagedBlob(
        f"blob {id.hex()} did not survive being sealed; nothing of it was stored. This node's"
        " memory or CPU is suspect: test it before you trust its backups"
    )
