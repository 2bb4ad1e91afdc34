"""Sorted tables of blobs: what an index says, in fixed-width records instead of objects.

A record is ``id(32) || pack number u32 || offset u32 || length u32 || plain length u32``, little
endian, sorted by id; pack ids stand once, in order of their number. One table holds one type of
blob. A record costs 48 bytes, an entry of a dict some 300; and the bytes of a table may as well
be a memory-mapped file, which is how the cache keeps them.
"""

import bisect
import heapq
import struct
from collections.abc import Iterable, Iterator

import msgspec

from agent.repository.crypto import Buffer
from agent.repository.identity import ID_SIZE, BlobId, BlobType, PackId
from agent.repository.pack import PackedBlob

_RECORD = struct.Struct("<32sIIII")
RECORD_SIZE = _RECORD.size


class Found(msgspec.Struct, frozen=True):
    """Where a blob is: its pack, and its place in there."""

    pack: PackId
    blob: PackedBlob


class Table:
    """An immutable set of blobs of one type; membership by binary search."""

    def __init__(self, type: BlobType, packs: bytes, records: Buffer) -> None:
        self.type = type
        self.packs = packs
        self.records = memoryview(records)
        self._count = len(self.records) // RECORD_SIZE
        self._positions = range(self._count)

    def __len__(self) -> int:
        return self._count

    @classmethod
    def build(cls, type: BlobType, content: Iterable[tuple[PackId, list[PackedBlob]]]) -> "Table":
        """Sort the blobs of one type out of packs."""
        packs = bytearray()
        records: list[bytes] = []
        for pack, blobs in content:
            number = len(packs) // ID_SIZE
            mine = [b for b in blobs if b.type is type]
            if mine:
                packs += pack
                records += [
                    _RECORD.pack(b.id, number, b.offset, b.length, b.plain_length) for b in mine
                ]
        records.sort()
        return cls(type, bytes(packs), b"".join(records))

    @classmethod
    def merge(cls, type: BlobType, tables: list["Table"]) -> "Table":
        """Join tables into one; a blob that stands in several packs keeps all its records."""
        if len(tables) == 1:
            return tables[0]
        packs = b"".join(table.packs for table in tables)
        shifted: list[Iterator[bytes]] = []
        first = 0
        for table in tables:
            shifted.append(table._shifted(first))
            first += len(table.packs) // ID_SIZE
        records = bytearray()
        for record in heapq.merge(*shifted):
            records += record  # not joined from a list: that would hold every record as an object
        return cls(type, packs, records)

    def _shifted(self, first_pack: int) -> Iterator[bytes]:
        if first_pack == 0:
            for place in range(0, len(self.records), RECORD_SIZE):
                yield bytes(self.records[place : place + RECORD_SIZE])
            return
        for id, pack, offset, length, plain in _RECORD.iter_unpack(self.records):
            yield _RECORD.pack(id, pack + first_pack, offset, length, plain)

    def _id_at(self, position: int) -> bytes:
        place = position * RECORD_SIZE
        return bytes(self.records[place : place + ID_SIZE])

    def _position(self, id: bytes) -> int:
        return bisect.bisect_left(self._positions, id, key=self._id_at)

    def __contains__(self, id: bytes) -> bool:
        position = self._position(id)
        return position < self._count and self._id_at(position) == id

    def find(self, id: BlobId) -> list[Found]:
        """Return every place of a blob; an empty list if it is not here."""
        found = []
        position = self._position(id)
        while position < self._count and self._id_at(position) == id:
            found.append(self._found(position))
            position += 1
        return found

    def _found(self, position: int) -> Found:
        id, number, offset, length, plain = _RECORD.unpack_from(
            self.records, position * RECORD_SIZE
        )
        pack = PackId(self.packs[number * ID_SIZE : (number + 1) * ID_SIZE])
        return Found(pack, PackedBlob(self.type, BlobId(id), offset, length, plain))

    def __iter__(self) -> Iterator[Found]:
        return (self._found(position) for position in self._positions)
