"""The health of blobs: which copies of which blobs are lost.

Kept as one byte for each record of the index tables, never as a set of ids. The rule guarded here:
a blob is lost only if every place that an index names for it is.
"""

import enum
from collections.abc import Iterable

from agent.repository.identity import BlobType, PackId
from agent.repository.indexview import IndexView
from agent.repository.pack import PackedBlob
from agent.repository.table import Table


class State(enum.Enum):
    """What is known of a blob."""

    WELL = "well"
    LOST = "lost"
    UNKNOWN = "in no index"


class Health:
    """Marks on the places of all blobs that an index view knows."""

    def __init__(self, view: IndexView) -> None:
        self._tables = {type: Table.merge(type, view.all(type)) for type in BlobType}
        self._lost = {type: bytearray(len(table)) for type, table in self._tables.items()}
        self.lost_places = 0

    def position(self, type: BlobType, id: bytes) -> int | None:
        """Return the number of a blob's first record, or None if no index names it."""
        return self._tables[type].locate(id)

    def count(self, type: BlobType) -> int:
        """Return how many records there are of a type."""
        return len(self._tables[type])

    def lose(self, pack: PackId, blobs: Iterable[PackedBlob]) -> None:
        """Mark blobs as lost in one pack."""
        for blob in blobs:
            position = self.position(blob.type, blob.id)
            table = self._tables[blob.type]
            while position is not None and position < len(table):
                id, number, offset, _, _ = table.fields(position)
                if id != blob.id:
                    break
                if offset == blob.offset and table.pack(number) == pack:
                    self._lost[blob.type][position] = 1
                    self.lost_places += 1
                position += 1

    def state(self, type: BlobType, id: bytes) -> State:
        """Return whether a blob can be had from anywhere."""
        table = self._tables[type]
        position = table.locate(id)
        if position is None:
            return State.UNKNOWN
        lost = self._lost[type]
        while position < len(table) and lost[position]:
            position += 1
            if position == len(table) or table.fields(position)[0] != id:
                return State.LOST
        return State.WELL

    def content_bytes(self, id: bytes) -> int:
        """Return the size of a data blob that an index names."""
        table = self._tables[BlobType.DATA]
        position = table.locate(id)
        return 0 if position is None else table.at(position).content_bytes
