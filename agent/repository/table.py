"""Sorted tables of blobs: what an index says, in columns instead of objects.

One table holds one type of blob, in order of ids; pack ids stand once, in order of their number.
Its body has four columns, one after the other: where each *stem* (the first byte of an id, the
first two in a table of 65,536 blobs or more) begins; 4 more bytes of each id, its *hint*; what
is left of it; and its place, ``pack number u32 || offset u32 || length u32 || plain length u32``,
little endian.

The columns are a matter of memory, for the body may as well be a memory-mapped file, which is how
the cache keeps it, and only those pages of it are resident that somebody looked at. Stem and hint
tell almost always that a blob is not here, and cost 4 bytes a blob; the rest of an id is looked at
for what is here, so that membership is never a guess; both together are 30 bytes a blob at most. The
places, 16 more, wait until a blob is read. There are a few blobs a stem, and ids are hashes, so a
look-up is one step by stem and a short bisection; nothing is gained by guessing proportions.

``_table`` does all that without the GIL.
"""

import itertools
import struct
from collections.abc import Collection, Container, Iterable, Iterator, Sequence

import msgspec

from agent.repository import _table
from agent.repository.crypto import Buffer
from agent.repository.identity import ID_SIZE, BlobId, BlobType, PackId
from agent.repository.pack import PackedBlob, entry_bytes

_ROW = struct.Struct("<32sIIII")
_PLACE = struct.Struct("<IIII")
_START_SIZE, _HINT_SIZE, _PLACE_SIZE = 4, 4, 16
_ROWS_AT_A_TIME = 4096
_TWO_BYTES_FROM = 65_536
FIRST_BYTES = 256
"""A merge is done in so many parts, one for each first byte of an id."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """Where a blob is: its pack, and its place in there."""

    pack: PackId
    blob: PackedBlob

    @property
    def content_bytes(self) -> int:
        """Return the size of the plaintext."""
        return self.blob.content_bytes


def columns(count: int) -> tuple[int, int, int, int, int]:
    """Return where starts, hints, rests and places of a body begin, and where it ends, in bytes."""
    stem = _stem_size(count)
    sizes = (
        _START_SIZE * (FIRST_BYTES**stem + 1),
        _HINT_SIZE * count,
        (ID_SIZE - _HINT_SIZE - stem) * count,
        _PLACE_SIZE * count,
    )
    hints, rests, places, end = itertools.accumulate(sizes)
    return 0, hints, rests, places, end


def _stem_size(count: int) -> int:
    return 1 if count < _TWO_BYTES_FROM else 2


class Table:
    """An immutable set of blobs of one type."""

    def __init__(self, type: BlobType, packs: Buffer, body: Buffer, count: int) -> None:
        """Take over a body; raise ``ValueError`` if its size is not that of ``count`` blobs."""
        self.type = type
        self.packs = memoryview(packs)
        self.body = memoryview(body)
        self._count = count
        if len(self.body) != columns(count)[-1] or len(self.packs) % ID_SIZE:
            raise ValueError(f"{len(self.body)} bytes are not a table of {count} blobs")

    def __len__(self) -> int:
        return self._count

    @property
    def pack_count(self) -> int:
        """Return how many packs are numbered."""
        return len(self.packs) // ID_SIZE

    @classmethod
    def build(cls, type: BlobType, content: Iterable[tuple[PackId, list[PackedBlob]]]) -> "Table":
        """Sort the blobs of one type out of packs."""
        packs, rows = bytearray(), bytearray()
        for pack, blobs in content:
            number = len(packs) // ID_SIZE
            before = len(rows)
            for b in blobs:
                if b.type is type:
                    rows += _ROW.pack(b.id, number, b.offset, b.length, b.plain_length)
            if len(rows) > before:
                packs += pack
        return cls._of_rows(type, bytes(packs), rows)

    @classmethod
    def _of_rows(cls, type: BlobType, packs: Buffer, rows: Buffer) -> "Table":
        return cls(type, packs, _table.build(rows), len(rows) // _ROW.size)

    @classmethod
    def merge(cls, type: BlobType, tables: Sequence["Table"]) -> "Table":
        """Join tables into one; a blob that stands in several packs keeps all its records."""
        if len(tables) == 1:
            return tables[0]
        count = sum(map(len, tables))
        body = bytearray(columns(count)[-1])
        for parts in merged(tables):
            for place, part in parts:
                body[place : place + len(part)] = part
        return cls(type, b"".join(table.packs for table in tables), body, count)

    def divided(self, packs: Container[PackId]) -> tuple["Table", "Table"]:
        """Return the records of all other packs, and those of these."""
        gone = bytes(self.pack(number) in packs for number in range(self.pack_count))
        if not any(gone):
            return self, Table.merge(self.type, ())
        kept, dropped = (
            self._of_rows(
                self.type, self.packs, _table.select(self.body, self._count, gone, wanted)
            )
            for wanted in (False, True)
        )
        return kept, dropped

    def sums(self) -> bytes:
        """Return what the blobs of each pack add up to with their entries, as native uint64."""
        return _table.sums(self.body, self._count, self.pack_count, entry_bytes(1), entry_bytes(0))

    def locate(self, id: bytes) -> int | None:
        """Return the position of the first record of a blob, or None if it is not here."""
        position = _table.find(self.body, self._count, id)
        return position if position >= 0 else None

    def __contains__(self, id: bytes) -> bool:
        return _table.find(self.body, self._count, id) >= 0

    def known(self, ids: Buffer, marks: bytearray) -> None:
        """Set the mark of each blob that is here to 1: of ids of 32 bytes, one byte for each."""
        _table.known(self.body, self._count, ids, marks)

    def find(self, id: BlobId) -> list[Found]:
        """Return every place of a blob; an empty list if it is not here."""
        found: list[Found] = []
        position = _table.find(self.body, self._count, id)
        while 0 <= position < self._count and (place := self.at(position)).blob.id == id:
            found.append(place)
            position += 1
        return found

    def find_many(self, ids: Collection[bytes]) -> dict[bytes, Found]:
        """Return one place of each of many blobs; those that are not here are left out."""
        positions = memoryview(_table.positions(self.body, self._count, b"".join(ids))).cast("q")
        places = columns(self._count)[3]
        packs: dict[int, PackId] = {}  # what lies together is asked for together
        found = {}
        for id, position in zip(ids, positions, strict=True):
            if position >= 0:
                number, *place = _PLACE.unpack_from(self.body, places + position * _PLACE_SIZE)
                pack = packs.get(number) or packs.setdefault(number, self.pack(number))
                found[id] = Found(pack, PackedBlob(self.type, BlobId(id), *place))
        return found

    def fields(self, position: int) -> tuple[bytes, int, int, int, int]:
        """Return a record: blob id, number of its pack, offset, length, plain length."""
        return _ROW.unpack(_table.rows(self.body, self._count, position, position + 1))

    def rows(self) -> Iterator[tuple[bytes, int, int, int, int]]:
        """Yield the fields of every record, in order of blob ids."""
        for first in range(0, self._count, _ROWS_AT_A_TIME):
            end = min(first + _ROWS_AT_A_TIME, self._count)
            yield from _ROW.iter_unpack(_table.rows(self.body, self._count, first, end))

    def at(self, position: int) -> Found:
        """Return the record at a position."""
        id, number, offset, length, plain = self.fields(position)
        blob = PackedBlob(self.type, BlobId(id), offset, length, plain)
        return Found(self.pack(number), blob)

    def pack(self, number: int) -> PackId:
        """Return the pack of a number."""
        return PackId(bytes(self.packs[number * ID_SIZE : (number + 1) * ID_SIZE]))

    def __iter__(self) -> Iterator[Found]:
        return (self.at(position) for position in range(self._count))


def merged(tables: Sequence[Table]) -> Iterator[list[tuple[int, bytes]]]:
    """Merge tables, a first byte at a time: yield (place, part) of the body that comes of it.

    Packs are numbered on from table to table. Memory: a 256th of the body.
    """
    count = sum(map(len, tables))
    stem = _stem_size(count)
    first_packs = itertools.accumulate((table.pack_count for table in tables), initial=0)
    sources = tuple(
        (table.body, len(table), first) for table, first in zip(tables, first_packs, strict=False)
    )
    starts, hints, rests, places, _ = columns(count)
    at = [starts + _START_SIZE, hints, rests, places]  # the first start is 0
    base = 0
    for byte in range(FIRST_BYTES):
        parts = _table.merge(sources, byte, stem, base)
        yield list(zip(at, parts, strict=True))
        at = [place + len(part) for place, part in zip(at, parts, strict=True)]
        base += len(parts[1]) // _HINT_SIZE
