"""The census: every blob that the indexes name, and which copy of it the repository needs.

Kept as marks, one byte a record of the index tables, and a few numbers a pack; never as a set of
ids. The rule guarded here: of each used blob one copy is kept, in a pack that is there, as large
as its blobs add up to and without gaps, if any such pack holds one.

Use: ``mark`` what is used; then ``settle`` once, which counts and chooses; then read.
"""

from array import array
from collections.abc import Container, Iterator, Mapping

import msgspec

from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexview import IndexView
from agent.repository.pack import FRAME_BYTES, PackedBlob
from agent.repository.table import Table

_USED = 1
_KEPT = 2
_REPEATED = 4
"""The same place of the same pack, named by a second index file."""


PackContent = tuple[PackId, list[PackedBlob]]
"""A pack, and some or all of its blobs."""


class PackFacts(msgspec.Struct, frozen=True):
    """What the census found of one pack; bytes are sealed blobs and their header entries.

    ``stored_bytes`` is the size of the object, None if there is none. ``sound`` tells whether it
    is there and what its index says. ``used_*`` are the copies that are to be kept.
    ``outdated`` is a pack with trees that are not compressed.
    """

    number: int
    id: PackId
    stored_bytes: int | None
    sound: bool
    blobs: int
    bytes: int
    used_blobs: int
    used_bytes: int
    mixed: bool = False
    trees: bool = False
    outdated: bool = False


class Census:
    """Marks on all blobs that an index view knows."""

    def __init__(self, view: IndexView) -> None:
        self._tables = {type: Table.merge(type, view.all(type)) for type in BlobType}
        self._marks = {type: bytearray(len(table)) for type, table in self._tables.items()}
        self.packs: list[PackId] = []
        self._pack_of = self._number_packs()
        count = len(self.packs)
        self._blobs, self._bytes = array("Q", bytes(8 * count)), array("Q", bytes(8 * count))
        self._used, self._used_bytes = array("Q", bytes(8 * count)), array("Q", bytes(8 * count))
        self._outdated = bytearray(count)
        self._sound = bytearray(count)
        self._contested: dict[BlobType, array[int]] = {}
        self._order: dict[BlobType, array[int]] = {}
        self._starts: dict[BlobType, array[int]] = {}
        self.duplicate_blobs = self.duplicate_bytes = 0
        self.repeated = False  # whether several index files name the same place

    def _number_packs(self) -> dict[BlobType, "array[int]"]:
        """Give each pack one number, however many tables and index files name it."""
        numbers: dict[PackId, int] = {}
        pack_of = {}
        for type, table in self._tables.items():
            mine = pack_of[type] = array("I")
            for place in range(table.pack_count):
                id = table.pack(place)
                if id not in numbers:
                    numbers[id] = len(self.packs)
                    self.packs.append(id)
                mine.append(numbers[id])
        return pack_of

    def mark(self, type: BlobType, id: bytes) -> bool | None:
        """Mark a blob as used: True if it was not before, None if no index names it."""
        position = self._tables[type].locate(id)
        if position is None:
            return None
        marks = self._marks[type]
        if marks[position] & _USED:
            return False
        marks[position] |= _USED
        return True

    def settle(self, stored: Mapping[PackId, int]) -> None:
        """Count everything, and choose a copy of each used blob; ``stored`` has pack sizes."""
        self._contested = {type: self._count(type) for type in BlobType}
        for type in BlobType:
            self._sort_by_pack(type)
        for number, id in enumerate(self.packs):
            size = self._bytes[number] + FRAME_BYTES
            self._sound[number] = stored.get(id) == size and self._gapless(number)
        for type, positions in self._contested.items():
            for position in positions:
                self._choose(type, position)

    def _count(self, type: BlobType) -> "array[int]":
        """Count a table's blobs; return the positions of those that have several copies."""
        contested = array("I")
        table, marks = self._tables[type], self._marks[type]
        position, count = 0, len(table)
        while position < count:
            end = self._count_copies(type, position)
            if marks[position] & _USED:
                copies = [p for p in range(position, end) if not marks[p] & _REPEATED]
                if len(copies) == 1:
                    self._keep(type, copies[0])
                else:
                    contested.append(position)
            position = end
        return contested

    def _count_copies(self, type: BlobType, first: int) -> int:
        """Count the records of one blob, and return where the next blob begins."""
        table = self._tables[type]
        wanted = table.fields(first)[0]
        places: list[tuple[int, int, int, int]] = []
        position = first
        while position < len(table):
            id, local, offset, length, plain = table.fields(position)
            if id != wanted:
                break
            number = self._pack_of[type][local]
            if (number, offset, length, plain) in places:
                self._marks[type][position] |= _REPEATED
                self.repeated = True
            else:
                places.append((number, offset, length, plain))
                blob = PackedBlob(type, BlobId(id), offset, length, plain)
                self._blobs[number] += 1
                self._bytes[number] += blob.length + blob.entry_bytes
                if type is BlobType.TREE and not plain:
                    self._outdated[number] = 1
            position += 1
        return position

    def _keep(self, type: BlobType, position: int) -> None:
        self._marks[type][position] |= _KEPT
        number, blob = self._place(type, position)
        self._used[number] += 1
        self._used_bytes[number] += blob.length + blob.entry_bytes

    def _place(self, type: BlobType, position: int) -> tuple[int, PackedBlob]:
        id, local, offset, length, plain = self._tables[type].fields(position)
        return self._pack_of[type][local], PackedBlob(type, BlobId(id), offset, length, plain)

    def _choose(self, type: BlobType, first: int) -> None:
        """Keep the copy that lies among the most of what is kept anyway, in a sound pack."""
        copies = []
        for position, number, blob in self._copies(type, first):
            copies.append((self._sound[number], self._used_bytes[number], -number, position))
            self.duplicate_blobs += 1
            self.duplicate_bytes += blob.length + blob.entry_bytes
        chosen = max(copies)[-1]
        self._keep(type, chosen)
        _, kept = self._place(type, chosen)
        self.duplicate_blobs -= 1
        self.duplicate_bytes -= kept.length + kept.entry_bytes

    def _copies(self, type: BlobType, first: int) -> Iterator[tuple[int, int, PackedBlob]]:
        """Yield position, pack and place of every copy of the blob whose records begin there."""
        table = self._tables[type]
        wanted = table.fields(first)[0]
        for position in range(first, len(table)):
            number, blob = self._place(type, position)
            if blob.id != wanted:
                break
            if not self._marks[type][position] & _REPEATED:
                yield position, number, blob

    def relied_on(self, gone: Container[int]) -> list[PackContent]:
        """Return the kept copies of blobs of which other copies lie in packs that go."""
        found: dict[int, list[PackedBlob]] = {}
        for type, positions in self._contested.items():
            for first in positions:
                copies = list(self._copies(type, first))
                (kept,) = [c for c in copies if self._marks[type][c[0]] & _KEPT]
                if kept[1] not in gone and any(number in gone for _, number, _ in copies):
                    found.setdefault(kept[1], []).append(kept[2])
        return [(self.packs[number], blobs) for number, blobs in found.items()]

    def _sort_by_pack(self, type: BlobType) -> None:
        """Note which positions each pack has, 4 bytes a blob."""
        table, marks, pack_of = self._tables[type], self._marks[type], self._pack_of[type]
        starts = array("I", bytes(4 * (len(self.packs) + 1)))
        for position, (_, local, *_) in enumerate(table.rows()):
            if not marks[position] & _REPEATED:
                starts[pack_of[local] + 1] += 1
        for number in range(len(self.packs)):
            starts[number + 1] += starts[number]
        order = array("I", bytes(4 * starts[-1]))
        free = array("I", starts)
        for position, (_, local, *_) in enumerate(table.rows()):
            if not marks[position] & _REPEATED:
                number = pack_of[local]
                order[free[number]] = position
                free[number] += 1
        self._order[type], self._starts[type] = order, starts

    def _positions(self, type: BlobType, number: int) -> "array[int]":
        starts = self._starts[type]
        return self._order[type][starts[number] : starts[number + 1]]

    def _gapless(self, number: int) -> bool:
        end = 0
        for blob in self.blobs(number):
            if blob.offset != end:
                return False
            end += blob.length
        return True

    def blobs(self, number: int, *, kept_only: bool = False) -> list[PackedBlob]:
        """Return the blobs of a pack in order of their place, or those of them that are kept."""
        found = [
            self._place(type, position)[1]
            for type in BlobType
            for position in self._positions(type, number)
            if not kept_only or self._marks[type][position] & _KEPT
        ]
        return sorted(found, key=lambda blob: blob.offset)

    def facts(self, stored: Mapping[PackId, int]) -> Iterator[PackFacts]:
        """Yield what is known of each pack; after ``settle``."""
        for number, id in enumerate(self.packs):
            of_type = [len(self._positions(type, number)) for type in BlobType]
            yield PackFacts(
                number,
                id,
                stored.get(id),
                bool(self._sound[number]),
                self._blobs[number],
                self._bytes[number],
                self._used[number],
                self._used_bytes[number],
                mixed=all(of_type),
                trees=bool(of_type[BlobType.TREE]),
                outdated=bool(self._outdated[number]),
            )

    def tree_place(self, id: bytes) -> tuple[int, PackedBlob] | None:
        """Return the number of a pack that holds a tree, and its place there."""
        position = self._tables[BlobType.TREE].locate(id)
        return None if position is None else self._place(BlobType.TREE, position)
