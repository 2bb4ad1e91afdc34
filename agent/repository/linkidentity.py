"""Hard-link identity: files that a restore by restic would make one file, though they differ.

restic makes one file of all files of a snapshot that have the inode and device of one with several
links; the content of the others, even of those with one link, is ignored (restic-format.md
section 18). No check of restic's tells. The rule guarded here: within one snapshot one identity
means one content; two snapshots may well differ, since files change.

So the contents of all files with several links are noted in the one walk over all trees, and of
those with one link only that their identity occurred, in a filter of fixed size. What is in doubt
then is looked at again, snapshot by snapshot.
"""

from collections.abc import Iterator
from typing import NamedTuple

from agent.entry import Entry, Kind

Identity = tuple[int, int]
"""Inode and device."""

Content = tuple[bytes, ...] | None

FILTER_BITS = 1 << 25
"""4 MiB; a million files with one link put 3 % of the linked ones in doubt for nothing."""


def identity_of(entry: Entry) -> Identity:
    """Return what restic knows a file by."""
    return entry.inode, entry.device


class LinkCensus:
    """What all trees together say of identities."""

    def __init__(self) -> None:
        self._linked: dict[Identity, int] = {}
        self._doubtful: set[Identity] = set()
        self._single: bytearray | None = None

    def meet(self, entry: Entry) -> None:
        """Take note of a file."""
        identity = identity_of(entry)
        if entry.links > 1:
            content = hash(entry.content)
            if self._linked.setdefault(identity, content) != content:
                self._doubtful.add(identity)
        elif identity in self._linked:
            if self._linked[identity] != hash(entry.content):
                self._doubtful.add(identity)
        else:
            self._note(hash(identity) % FILTER_BITS)

    def _note(self, bit: int) -> None:
        if self._single is None:
            self._single = bytearray(FILTER_BITS // 8)
        self._single[bit >> 3] |= 1 << (bit & 7)

    def _noted(self, bit: int) -> bool:
        return self._single is not None and bool(self._single[bit >> 3] & 1 << (bit & 7))

    def doubtful(self) -> set[Identity]:
        """Return the identities that may mean two contents within one snapshot."""
        early = (i for i in self._linked if self._noted(hash(i) % FILTER_BITS))
        return self._doubtful.union(early)


class Mistaken(NamedTuple):
    """A file that restic makes a hard link to another; paths are absolute."""

    path: bytes
    linked_to: bytes


class LinkJudge:
    """Judges the files of one snapshot, in the order of a walk.

    The first file with several links decides, also of what came before it: restic makes its links
    when all files are written (tried with 0.19.1; older versions leave some of them out).
    """

    def __init__(self, doubtful: set[Identity]) -> None:
        self._doubtful = doubtful
        self._first: dict[Identity, tuple[bytes, Content]] = {}
        self._before: dict[Identity, list[tuple[bytes, Content]]] = {}

    def concerns(self, entry: Entry) -> bool:
        """Tell whether a file is worth judging."""
        return entry.kind is Kind.FILE and identity_of(entry) in self._doubtful

    def judge(self, path: bytes, entry: Entry) -> Iterator[Mistaken]:
        """Yield this file, or files before it, if restic would make another one of them."""
        identity = identity_of(entry)
        first = self._first.get(identity)
        if first is not None:
            if first[1] != entry.content:
                yield Mistaken(path, first[0])
        elif entry.links > 1:
            self._first[identity] = (path, entry.content)
            for early, content in self._before.pop(identity, ()):
                if content != entry.content:
                    yield Mistaken(early, path)
        else:
            self._before.setdefault(identity, []).append((path, entry.content))
