"""Ranges: several blobs of one pack, fetched in as few requests as memory allows.

Blobs that lie close together come in one request, whatever lies between them included; a
request asks for no more than ``RANGE_BYTES``, unless one blob alone is larger. A restore wants
large blobs and pays for every byte (``fetching``); here most are trees of a few hundred bytes, and
a request costs more than what lies between two of them.
"""

from collections.abc import Iterable, Iterator

from agent.cancel import NEVER, CancelToken
from agent.repository.crypto import Buffer
from agent.repository.identity import PackId
from agent.repository.objects import pack_key
from agent.repository.pack import PackedBlob
from agent.storage.contract import Storage, read_range

RANGE_BYTES = 4 << 20
GAP_BYTES = 256 << 10
"""What is rather fetched and dropped than asked around: about a round trip's worth of bytes."""


def read_blobs(
    storage: Storage, pack: PackId, blobs: Iterable[PackedBlob], cancel: CancelToken = NEVER
) -> Iterator[tuple[PackedBlob, Buffer]]:
    """Yield blobs of a pack with their sealed bytes, in order of their place.

    Raises the storage's errors, among them one for a pack that ends too early.
    """
    for together in _ranges(sorted(blobs, key=lambda blob: blob.offset)):
        start = together[0].offset
        length = max(blob.offset + blob.length for blob in together) - start
        got = memoryview(read_range(storage, pack_key(pack), start, length, cancel=cancel))
        for blob in together:
            yield blob, got[blob.offset - start : blob.offset - start + blob.length]


def _ranges(blobs: list[PackedBlob]) -> Iterator[list[PackedBlob]]:
    together: list[PackedBlob] = []
    end = 0
    for blob in blobs:
        blob_end = blob.offset + blob.length
        far = blob.offset - end > GAP_BYTES
        if together and (far or blob_end - together[0].offset > RANGE_BYTES):
            yield together
            together = []
        together.append(blob)
        end = blob_end
    if together:
        yield together
