"""Sizes: what snapshots would take when restored, and what they take in the repository.

Blobs are numbered by their place in the sorted index tables, so that "seen" is one byte a blob
and never a set of ids. Each tree is read once however many snapshots hold it; only directories
with hard links below them are read again for each snapshot, because a file of several names
counts once in each.
"""

import dataclasses
from array import array
from collections.abc import Iterable, Iterator

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry, Kind
from agent.errors import DamagedBlob
from agent.repository.crypto import OVERHEAD
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexview import IndexView
from agent.repository.objects import Folder, sizes
from agent.repository.paths import LoadTree
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot

_UNSEEN, _SUMMED, _LINKED = 0, 1, 2
_MOST = (1 << 64) - 1


@dataclasses.dataclass(slots=True)
class Stats:
    """What a set of snapshots holds.

    ``restore_bytes`` and the numbers of entries are summed over the snapshots, with hard links
    counted once in ``restore_bytes``. ``content_bytes`` is the plaintext of their distinct
    chunks. ``plain_bytes`` and ``stored_bytes`` are all their blobs, trees included, before and
    after sealing; ``packs`` are those with any of them. ``repository_*`` is all that is stored.
    """

    snapshots: int = 0
    files: int = 0
    directories: int = 0
    others: int = 0
    restore_bytes: int = 0
    content_bytes: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    plain_bytes: int = 0
    stored_bytes: int = 0
    packs: int = 0
    repository_packs: int = 0
    repository_bytes: int = 0

    @property
    def compression_ratio(self) -> float | None:
        """Return how many bytes of blobs one stored byte holds; None if nothing is stored."""
        return self.plain_bytes / self.stored_bytes if self.stored_bytes else None

    @property
    def dedup_ratio(self) -> float | None:
        """Return how many restored bytes one byte of distinct content gives; None without any."""
        return self.restore_bytes / self.content_bytes if self.content_bytes else None


def measure(
    repository: Repository, snapshots: Iterable[Snapshot], cancel: CancelToken = NEVER
) -> Stats:
    """Return the sizes of snapshots; raises ``DamagedBlob`` if a part of them is missing."""
    reader = repository.reading(cancel)
    stats = Stats()
    walk = _Walk(reader.load_tree, _Used(reader.view, stats), stats, cancel)
    for snapshot in snapshots:
        walk.snapshot(snapshot.tree)
    stats.packs = walk.used.packs()
    for _, size in sizes(repository.objects.storage, Folder.DATA, cancel):
        stats.repository_packs += 1
        stats.repository_bytes += size
    return stats


class _Used:
    """The blobs that were met, by their number in the index tables."""

    def __init__(self, view: IndexView, stats: Stats) -> None:
        self._stats = stats
        self._tables = {type: view.all(type) for type in BlobType}
        self._seen = {type: bytearray(view.count(type)) for type in BlobType}
        self._packs = {
            type: [bytearray(table.pack_count) for table in tables]
            for type, tables in self._tables.items()
        }

    def count(self, type: BlobType) -> int:
        """Return how many numbers there are."""
        return len(self._seen[type])

    def mark(self, type: BlobType, id: bytes) -> int:
        """Return the number of a blob, which is counted if it is met for the first time."""
        first = 0
        for table, packs in zip(self._tables[type], self._packs[type], strict=True):
            position = table.locate(id)
            if position is not None:
                number = first + position
                if not self._seen[type][number]:
                    self._seen[type][number] = 1
                    _, pack, _, length, plain = table.fields(position)
                    packs[pack] = 1
                    self._add(type, length, plain or length - OVERHEAD)
                return number
            first += len(table)
        raise DamagedBlob(
            f"{type.word} blob {BlobId(id).hex()} is in no index of the repository, so these sizes"
            " would be wrong; `podlift check` says what is damaged"
        )

    def _add(self, type: BlobType, stored: int, plain: int) -> None:
        self._stats.stored_bytes += stored
        self._stats.plain_bytes += plain
        if type is BlobType.DATA:
            self._stats.data_blobs += 1
            self._stats.content_bytes += plain
        else:
            self._stats.tree_blobs += 1

    def packs(self) -> int:
        """Return how many packs hold a blob that was met; an old one may hold both types."""
        trees = set(self._pack_ids(BlobType.TREE))
        return len(trees) + sum(id not in trees for id in self._pack_ids(BlobType.DATA))

    def _pack_ids(self, type: BlobType) -> Iterator[PackId]:
        for table, packs in zip(self._tables[type], self._packs[type], strict=True):
            for number, used in enumerate(packs):
                if used:
                    yield table.pack(number)


class _Sums:
    """What one directory holds, all that is below it included, while it is being read."""

    __slots__ = ("entries", "linked", "number", "values")

    def __init__(self, number: int, entries: Iterable[Entry]) -> None:
        self.number = number
        self.entries = iter(entries)
        self.linked = False
        self.values = [0, 0, 0, 0]  # files, directories, others, bytes

    def add(self, values: Iterable[int]) -> None:
        """Add what a directory below holds."""
        self.values = [a + b for a, b in zip(self.values, values, strict=True)]


class _Walk:
    """Reads trees, and remembers the sums of those that every snapshot shares."""

    def __init__(self, load_tree: LoadTree, used: _Used, stats: Stats, cancel: CancelToken) -> None:
        self._load_tree = load_tree
        self.used = used
        self._stats = stats
        self._cancel = cancel
        count = used.count(BlobType.TREE)
        self._state = bytearray(count)
        self._sums = [array("Q", bytes(8 * count)) for _ in range(4)]
        self._links: set[tuple[int, int]] = set()

    def snapshot(self, tree: bytes) -> None:
        """Count one snapshot."""
        self._links = set()
        files, directories, others, size = self._below(tree)
        self._stats.snapshots += 1
        self._stats.files += files
        self._stats.directories += directories
        self._stats.others += others
        self._stats.restore_bytes += size

    def _below(self, tree: bytes) -> list[int]:
        root = self._enter(tree)
        if root is None:
            return self._known(tree)
        stack = [root]
        while stack:
            self._cancel.check()
            top = stack[-1]
            entry = next(top.entries, None)
            if entry is None:
                stack.pop()
                self._finish(top)
                if stack:
                    stack[-1].add(top.values)
                    stack[-1].linked |= top.linked
            elif entry.subtree is not None:
                top.values[1] += 1
                below = self._enter(entry.subtree)
                if below is None:
                    top.add(self._known(entry.subtree))
                else:
                    stack.append(below)
            else:
                self._count(top, entry)
        return root.values

    def _enter(self, tree: bytes) -> _Sums | None:
        """Begin a directory; None if its sums are known."""
        number = self.used.mark(BlobType.TREE, tree)
        if self._state[number] == _SUMMED:
            return None
        return _Sums(number, self._load_tree(tree))

    def _known(self, tree: bytes) -> list[int]:
        number = self.used.mark(BlobType.TREE, tree)
        return [sums[number] for sums in self._sums]

    def _finish(self, done: _Sums) -> None:
        self._state[done.number] = _LINKED if done.linked else _SUMMED
        for sums, value in zip(self._sums, done.values, strict=True):
            sums[done.number] = min(value, _MOST)  # a damaged size must not end the count

    def _count(self, folder: _Sums, entry: Entry) -> None:
        if entry.kind is not Kind.FILE:
            folder.values[2] += 1
            return
        folder.values[0] += 1
        if self._counts(folder, entry):
            folder.values[3] += entry.size
        if self._state[folder.number] == _UNSEEN:
            last = b""
            for id in entry.content or ():
                if id != last:
                    last = id
                    self.used.mark(BlobType.DATA, id)

    def _counts(self, folder: _Sums, entry: Entry) -> bool:
        """Tell whether a file's size counts: of several links the first does."""
        if entry.links < 2 or not entry.inode:
            return True
        folder.linked = True
        identity = (entry.device, entry.inode)
        if identity in self._links:
            return False
        self._links.add(identity)
        return True
