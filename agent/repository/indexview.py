"""The index view: every blob that the repository is known to hold, for one run.

It starts as what the repository's index files say and grows by each index file that this run
writes. Tables that are cached files stay apart, and only the pages of them that were looked at are in
memory; those without a file are merged. Additions are kept as tables of their own; beyond ``_MERGE_AT``
of them the smaller half is merged, which takes as much memory once more as those alone, while it lasts.
"""

import threading
from collections.abc import Collection, Container, Iterable

from agent.errors import DamagedBlob
from agent.repository.cache import is_mapped
from agent.repository.crypto import Buffer
from agent.repository.identity import ID_SIZE, BlobId, BlobType, PackId
from agent.repository.indexfile import Packs
from agent.repository.table import Found, Table

_MERGE_AT = 8


class IndexView:
    """Membership and places of blobs; safe to use from many threads."""

    def __init__(self, tables: list[Table], names: Collection[str] = ()) -> None:
        """``names`` are the index files that the tables are from."""
        self.names = frozenset(names)
        self._lock = threading.Lock()
        self._tables: dict[BlobType, tuple[Table, ...]] = {
            type: self._gathered(type, [t for t in tables if t.type is type and len(t)])
            for type in BlobType
        }
        self._lost: list[Table] = []

    @staticmethod
    def _gathered(type: BlobType, tables: list[Table]) -> tuple[Table, ...]:
        """Return what is mapped as it is, and all else as one table."""
        mapped, others = _parted(tables)
        return (*mapped, Table.merge(type, others)) if others else tuple(mapped)

    def add(self, packs: Packs) -> None:
        """Take over what a new index file says."""
        for type in BlobType:
            table = Table.build(type, packs)
            if not len(table):
                continue
            with self._lock:
                mapped, added = _parted([*self._tables[type], table])
                if len(added) > _MERGE_AT:
                    added.sort(key=len)
                    few = len(added) // 2 + 1
                    added = [*added[few:], Table.merge(type, added[:few])]
                self._tables[type] = (*mapped, *added)

    def swap(self, old: list[Table], new: list[Table]) -> None:
        """Take tables in the place of those that they were made of, which are let go.

        Where some of those are not here any more, since packs were dropped, nothing changes.
        """
        with self._lock:
            for type in BlobType:
                gone = {id(table) for table in old if table.type is type and len(table)}
                left = tuple(table for table in self._tables[type] if id(table) not in gone)
                if len(left) + len(gone) == len(self._tables[type]):
                    made = tuple(table for table in new if table.type is type and len(table))
                    self._tables[type] = made + left

    def drop(self, packs: Container[PackId]) -> int:
        """Rely no more on what lies in these packs; return how many places of blobs that were."""
        dropped = 0
        for type in BlobType:
            with self._lock:
                divided = [table.divided(packs) for table in self._tables[type]]
                self._tables[type] = tuple(kept for kept, _ in divided if len(kept))
            self._lost += [lost for _, lost in divided if len(lost)]
            dropped += sum(len(lost) for _, lost in divided)
        return dropped

    def still_lost(self) -> int:
        """Return how many of the dropped blobs are known from nowhere else by now."""
        return len(
            {
                (table.type, row[0])
                for table in self._lost
                for row in table.rows()
                if not self.has(table.type, BlobId(row[0]))
            }
        )

    def has(self, type: BlobType, id: BlobId) -> bool:
        """Tell whether the repository holds this blob."""
        return any(id in table for table in self._tables[type])

    def known(self, type: BlobType, ids: Buffer) -> bytes:
        """Return a byte for each id (they are 32 bytes each): 1 if the repository holds it, or 0."""
        marks = bytearray(len(ids) // ID_SIZE)
        for table in self._tables[type]:
            table.known(ids, marks)
        return bytes(marks)

    def find(self, type: BlobType, id: BlobId) -> list[Found]:
        """Return every place of a blob; raise ``DamagedBlob`` if no index names it."""
        found = [place for table in self._tables[type] for place in table.find(id)]
        if not found:
            raise self.lost(type, id)
        return found

    @staticmethod
    def lost(type: BlobType, id: BlobId) -> DamagedBlob:
        """Return the error that says that no index names a blob."""
        return DamagedBlob(
            f"{type.word} blob {id.hex()} is in no index of the repository; if its pack is"
            " still there, `podlift repair index` finds it again"
        )

    def find_many(self, type: BlobType, ids: Collection[bytes]) -> dict[bytes, Found]:
        """Return one place of each of many blobs; those that no index names are left out."""
        found: dict[bytes, Found] = {}
        for table in reversed(self._tables[type]):
            found |= table.find_many(ids)
        return found

    def all(self, type: BlobType) -> list[Table]:
        """Return the tables of one type, for whoever walks all blobs."""
        return list(self._tables[type])

    def naming(self, packs: Container[PackId]) -> set[PackId]:
        """Return which of these packs are named."""
        return {
            pack
            for tables in self._tables.values()
            for table in tables
            for number in range(table.pack_count)
            if (pack := table.pack(number)) in packs
        }

    def count(self, type: BlobType) -> int:
        """Return how many blobs of a type are known (one in two packs counts twice)."""
        return sum(len(table) for table in self._tables[type])


def _parted(tables: Iterable[Table]) -> tuple[list[Table], list[Table]]:
    """Return the tables that are cached files, and the others."""
    mapped: list[Table] = []
    others: list[Table] = []
    for table in tables:
        (mapped if is_mapped(table) else others).append(table)
    return mapped, others
