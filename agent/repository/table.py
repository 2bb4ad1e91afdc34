"""Sorted tables of blobs: what an index says, in fixed-width records instead of objects.

A record is ``id(32) || pack number u32 || offset u32 || length u32 || plain length u32``, little
endian, sorted by id; pack ids stand once, in order of their number. One table holds one type of
blob. A record costs 48 bytes, an entry of a dict some 300; and the bytes of a table may as well
be a memory-mapped file, which is how the cache keeps them.
"""

import heapq
import struct
from collections.abc import Collection, Container, Iterable, Iterator

import msgspec

from agent.repository.crypto import Buffer
from agent.repository.identity import ID_SIZE, BlobId, BlobType, PackId
from agent.repository.pack import PackedBlob

_RECORD = struct.Struct("<32sIIII")
RECORD_SIZE = _RECORD.size

_LEAD = 8  # bytes of an id that a guess is made by
_TOP = (1 << 8 * _LEAD) - 1
_SCAN_UP_TO = 32  # looking at a record in passing costs that much less than looking for it
_GUESSES = 8
"""How often a guess is made before the middle is taken: ids that somebody made up lie unevenly."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """Where a blob is: its pack, and its place in there."""

    pack: PackId
    blob: PackedBlob

    @property
    def content_bytes(self) -> int:
        """Return the size of the plaintext."""
        return self.blob.content_bytes


class Table:
    """An immutable set of blobs of one type; membership by binary search."""

    def __init__(self, type: BlobType, packs: bytes, records: Buffer) -> None:
        self.type = type
        self.packs = packs
        self.records = memoryview(records)
        self._count = len(self.records) // RECORD_SIZE

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

    def divided(self, packs: Container[PackId]) -> tuple["Table", "Table"]:
        """Return the records of all other packs, and those of these."""
        gone = bytes(pack in packs for pack in self._pack_ids())
        kept, dropped = bytearray(), bytearray()
        for place, row in enumerate(self.rows()):
            start = place * RECORD_SIZE
            (dropped if gone[row[1]] else kept).extend(self.records[start : start + RECORD_SIZE])
        return Table(self.type, self.packs, kept), Table(self.type, self.packs, dropped)

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
        """Return the place of the first record that is not below ``id``.

        Ids are hashes, so they lie evenly: a guess by proportion halves the exponent of what is
        left with each look, where the middle only halves what is left.
        """
        low, high = 0, self._count  # the place is in low..high
        floor, ceiling = 0, _TOP  # no id in between begins below or above
        wanted = int.from_bytes(id[:_LEAD])
        records = self.records
        looks = 0
        while low < high:
            looks += 1
            if looks > _GUESSES or ceiling <= floor:
                place = (low + high) // 2
            else:
                place = low + (high - low) * (wanted - floor) // (ceiling - floor)
                place = min(max(place, low), high - 1)
            start = place * RECORD_SIZE
            found = records[start : start + ID_SIZE]
            if bytes(found) < id:
                low, floor = place + 1, int.from_bytes(found[:_LEAD])
            else:
                high, ceiling = place, int.from_bytes(found[:_LEAD])
        return low

    def locate(self, id: bytes) -> int | None:
        """Return the position of the first record of a blob, or None if it is not here."""
        position = self._position(id)
        if position < self._count and self._id_at(position) == id:
            return position
        return None

    def __contains__(self, id: bytes) -> bool:
        return self.locate(id) is not None

    def find(self, id: BlobId) -> list[Found]:
        """Return every place of a blob; an empty list if it is not here."""
        found = []
        position = self._position(id)
        while position < self._count and self._id_at(position) == id:
            found.append(self.at(position))
            position += 1
        return found

    def find_many(self, ids: Collection[bytes]) -> dict[bytes, Found]:
        """Return one place of each of many blobs; those that are not here are left out."""
        if self._count > len(ids) * _SCAN_UP_TO:
            return {id: found[0] for id in ids if (found := self.find(BlobId(id)))}
        wanted = ids if isinstance(ids, (dict, set, frozenset)) else set(ids)
        packs = self._pack_ids()
        return {
            id: Found(packs[pack], PackedBlob(self.type, BlobId(id), offset, length, plain))
            for id, pack, offset, length, plain in _RECORD.iter_unpack(self.records)
            if id in wanted
        }

    def _pack_ids(self) -> list[PackId]:
        size = len(self.packs)
        return [PackId(self.packs[at : at + ID_SIZE]) for at in range(0, size, ID_SIZE)]

    def fields(self, position: int) -> tuple[bytes, int, int, int, int]:
        """Return a record: blob id, number of its pack, offset, length, plain length."""
        return _RECORD.unpack_from(self.records, position * RECORD_SIZE)

    def rows(self) -> Iterator[tuple[bytes, int, int, int, int]]:
        """Yield the fields of every record, in order of blob ids."""
        return _RECORD.iter_unpack(self.records)

    def at(self, position: int) -> Found:
        """Return the record at a position."""
        id, number, offset, length, plain = self.fields(position)
        blob = PackedBlob(self.type, BlobId(id), offset, length, plain)
        return Found(self.pack(number), blob)

    def pack(self, number: int) -> PackId:
        """Return the pack of a number."""
        return PackId(self.packs[number * ID_SIZE : (number + 1) * ID_SIZE])

    def __iter__(self) -> Iterator[Found]:
        return (self.at(position) for position in range(self._count))
