"""The difference of two trees: both are walked in step, and what is the same is not read.

Equal subtrees have equal ids, so a directory in which nothing changed costs nothing. Names are
merged in the order of their raw bytes, and only the directories between the roots and where the
walk is are held. A change is what a restore would show: inode numbers and change times are not
looked at, since every restore makes new ones.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import NamedTuple

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry, Kind
from agent.repository.longtree import in_order
from agent.repository.paths import LoadTree

ChunkBytes = Callable[[bytes], int]
"""Returns the plain size of a chunk by its id."""


class Mark(enum.StrEnum):
    """What happened to an entry, in one letter."""

    ADDED = "+"
    REMOVED = "-"
    MODIFIED = "M"
    TYPE = "T"
    METADATA = "U"


class Change(NamedTuple):
    """One entry that is not the same; ``path`` of a directory ends in ``/``."""

    mark: Mark
    path: bytes


@dataclasses.dataclass(slots=True)
class Side:
    """What is on one side only; ``bytes`` are content of files, before deduplication."""

    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0

    def count(self, entry: Entry) -> None:
        """Count an entry that the other side does not have."""
        if entry.kind is Kind.FILE:
            self.files += 1
            self.bytes += entry.size
        elif entry.kind is Kind.DIRECTORY:
            self.directories += 1
        else:
            self.others += 1


class Difference:
    """Walks two trees once; its counts are final when the walk has ended."""

    def __init__(
        self, load_tree: LoadTree, chunk_bytes: ChunkBytes, cancel: CancelToken = NEVER
    ) -> None:
        self._load_tree = load_tree
        self._chunk_bytes = chunk_bytes
        self._cancel = cancel
        self.added = Side()
        self.removed = Side()
        self.changed_files = 0
        self.changed_others = 0

    def walk(self, before: bytes, after: bytes, *, metadata: bool = False) -> Iterator[Change]:
        """Yield each change from the tree ``before`` to the tree ``after``, in order of names.

        With ``metadata`` also what changed in nothing else. Raises what reading trees raises.
        """
        if before == after:
            return
        stack = [(b"/", self._pairs(before, after))]
        while stack:
            self._cancel.check()
            folder, pairs = stack[-1]
            pair = next(pairs, None)
            if pair is None:
                stack.pop()
                continue
            old, new = pair
            mark = self._mark(old, new)
            entry = new or old
            assert entry is not None
            path = folder + entry.name + (b"/" if entry.kind is Kind.DIRECTORY else b"")
            if mark is not None and (metadata or mark is not Mark.METADATA):
                yield Change(mark, path)
            left = old.subtree if old is not None else None
            right = new.subtree if new is not None else None
            if left != right:
                stack.append((folder + entry.name + b"/", self._pairs(left, right)))

    def _pairs(
        self, before: bytes | None, after: bytes | None
    ) -> Iterator[tuple[Entry | None, Entry | None]]:
        """Merge two directories by name; one that is not there is empty."""
        olds, news = self._entries(before), self._entries(after)
        old, new = next(olds, None), next(news, None)
        while old is not None or new is not None:
            if new is None or (old is not None and old.name < new.name):
                yield old, None
                old = next(olds, None)
            elif old is None or new.name < old.name:
                yield None, new
                new = next(news, None)
            else:
                yield old, new
                old, new = next(olds, None), next(news, None)

    def _entries(self, tree: bytes | None) -> Iterator[Entry]:
        entries = self._load_tree(tree) if tree is not None else []
        if not isinstance(entries, list):
            return in_order(entries)  # too many to be sorted here
        return iter(sorted(entries, key=lambda entry: entry.name))

    def _mark(self, old: Entry | None, new: Entry | None) -> Mark | None:
        if old is None or new is None or old.kind is not new.kind:
            if old is not None:
                self.removed.count(old)
            if new is not None:
                self.added.count(new)
            return Mark.ADDED if old is None else Mark.REMOVED if new is None else Mark.TYPE
        if old.kind is Kind.FILE and old.content != new.content:
            self._changed_file(old, new)
            return Mark.MODIFIED
        if (old.link_target, old.rdev) != (new.link_target, new.rdev):
            self.changed_others += 1
            return Mark.MODIFIED
        return Mark.METADATA if _metadata(old) != _metadata(new) else None

    def _changed_file(self, old: Entry, new: Entry) -> None:
        """Count the chunks that only one version of a file has."""
        self.changed_files += 1
        before = collections.Counter(old.content)
        after = collections.Counter(new.content)
        self.removed.bytes += self._sum(before - after)
        self.added.bytes += self._sum(after - before)

    def _sum(self, chunks: "collections.Counter[bytes]") -> int:
        return sum(self._chunk_bytes(id) * times for id, times in chunks.items())


def _metadata(entry: Entry) -> tuple[object, ...]:
    return (
        entry.permissions,
        entry.uid,
        entry.gid,
        entry.user,
        entry.group,
        entry.mtime_ns,
        sorted(entry.xattrs),
    )
