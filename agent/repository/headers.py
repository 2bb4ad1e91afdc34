"""Headers: what a stored pack says of itself, without reading the rest of it."""

from agent.cancel import NEVER, CancelToken
from agent.errors import MalformedData
from agent.repository.identity import PackId
from agent.repository.objects import Objects, pack_key
from agent.repository.pack import PackedBlob, decode_header, header_span, packed_size
from agent.storage.contract import read_range

_TRAILER_BYTES = 4


def read_header(
    objects: Objects, id: PackId, size: int, cancel: CancelToken = NEVER
) -> list[PackedBlob]:
    """Return the blobs of a pack of ``size`` bytes by its header, in two requests.

    Raises ``MalformedData`` if it cannot be believed, and the storage's errors.
    """
    what = f"pack {id.hex()}"
    if size < _TRAILER_BYTES:
        raise MalformedData(what, f"{size} bytes are too few for a pack")
    key = pack_key(id)
    tail = read_range(objects.storage, key, size - _TRAILER_BYTES, _TRAILER_BYTES, cancel=cancel)
    offset, length = header_span(tail, size, what)
    sealed = read_range(objects.storage, key, offset, length, cancel=cancel)
    blobs = decode_header(objects.key.unseal(sealed, what), what)
    if packed_size(blobs) != size:
        raise MalformedData(what, f"it has {size} bytes, its header describes {packed_size(blobs)}")
    return blobs
