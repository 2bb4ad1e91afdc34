"""Index files: which pack holds which blob.

``{"packs":[{"id":...,"blobs":[{"id","type","offset","length","uncompressed_length"}]}]}``
(restic-format.md section 8). The rule guarded here: all blobs of a pack stand in one index file.
"""

from typing import Annotated, Literal

import msgspec

from agent.errors import MalformedData
from agent.repository.crypto import OVERHEAD
from agent.repository.identity import ID_SIZE, BlobId, BlobType, PackId
from agent.repository.node import read_json
from agent.repository.pack import PackedBlob

_U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]


class _Blob(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    id: str
    type: Literal["data", "tree"]
    offset: _U32
    length: _U32
    uncompressed_length: _U32 = 0


class _Pack(msgspec.Struct, frozen=True, gc=False):
    id: str
    blobs: list[_Blob] | None = None


class _Index(msgspec.Struct, frozen=True):
    packs: list[_Pack] | None = None


Packs = list[tuple[PackId, list[PackedBlob]]]
"""The content of one index file."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Index)
_TYPES = {type.word: type for type in BlobType}


def encode_index(packs: Packs) -> bytearray:
    """Return the JSON of an index file, which is made pack by pack: as objects it is several times as large."""
    json = bytearray(b'{"packs":[')
    for place, (pack, blobs) in enumerate(packs):
        if place:
            json += b","
        records = [
            _Blob(b.id.hex(), b.type.word, b.offset, b.length, b.plain_length)  # type: ignore[arg-type]
            for b in blobs
        ]
        _encoder.encode_into(_Pack(pack.hex(), records), json, -1)
    json += b"]}\n"
    return json


def decode_index(json: bytes, what: str) -> Packs:
    """Parse an index file; raise ``MalformedData`` naming ``what``."""
    index = read_json(_decoder, json, what)
    return [
        (PackId(_raw(pack.id, what)), [_packed(blob, what) for blob in pack.blobs or ()])
        for pack in index.packs or ()
    ]


def _raw(name: str, what: str) -> bytes:
    try:
        raw = bytes.fromhex(name)
    except ValueError:
        raw = b""
    if len(raw) != ID_SIZE or len(name) != 2 * ID_SIZE:
        raise MalformedData(what, f"{name[:80]!r} is not an id")
    return raw


def _packed(blob: _Blob, what: str) -> PackedBlob:
    if blob.length < OVERHEAD:
        raise MalformedData(what, f"blob {blob.id[:80]} has a length of {blob.length}")
    return PackedBlob(
        _TYPES[blob.type],
        BlobId(_raw(blob.id, what)),
        blob.offset,
        blob.length,
        blob.uncompressed_length,
    )
