"""Directories of very many entries, which are worked on and written in stretches.

Only the names of such a directory are held. They are sorted, and so are trees; so its entries are looked
at, compared with the parent's, read and written into the tree a stretch at a time, in order. A stretch
is a directory to those who finish its entries, and is written by whoever brings the last of them, unless
one before it is not complete. A few are held at a time, and the walk waits for the first of them.
"""

import collections
import threading
from collections.abc import Callable, Iterator, Sequence

from agent.entry import Entry
from agent.errors import TreeTooLarge
from agent.repository.contract import TreeWriter
from agent.transfer.folder import Folder
from agent.transfer.holding import STRETCH_BYTES, STRETCH_NAMES, STRETCHES, names_weight

_WAIT_SLICE_SECONDS = 0.5


def divided(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Divide the names of a directory into stretches; of long names fewer are one."""
    start = 0
    while start < len(names):
        some = names[start : start + STRETCH_NAMES]
        while len(some) > 1 and names_weight(some) > STRETCH_BYTES:
            some = some[: len(some) // 2]
        start += len(some)
        yield some


class Stretch(Folder):
    """Some entries of a directory; ``parent`` is the directory itself."""

    __slots__ = ("complete",)

    def __init__(self, directory: Folder, count: int) -> None:
        super().__init__(None, 0, None, None)  # no child: no checkpoint enters it
        self.parent = directory
        self.complete = False
        self.expect(count)

    def write(self) -> Folder | None:
        """Write it when its turn comes; return the directory if that is complete by this."""
        assert self.parent is not None
        assert self.parent.stretches is not None
        return self.parent if self.parent.stretches.take(self) else None


class Stretches:
    """Those of one directory, on their way into its tree; used by many threads."""

    def __init__(
        self,
        directory: Folder,
        tree: TreeWriter,
        written: Callable[[Folder, Sequence[Entry]], None],
    ) -> None:
        """Write into ``tree``; ``written`` hears of the entries of each stretch that are not held any more."""
        self._directory = directory
        self._tree = tree
        self._written = written
        self._changed = threading.Condition()
        self._held: collections.deque[Stretch] = collections.deque()
        self._ended = False
        self._refused: TreeTooLarge | None = None
        self.whole = True
        """Whether nothing was left out."""
        self.entries = 0
        self.content_bytes = 0

    @property
    def refused(self) -> bool:
        """Tell whether the tree has become too large, so that it is of no use to go on."""
        return self._refused is not None

    def begin(self, count: int, check: Callable[[], None]) -> Stretch:
        """Begin a stretch of some entries, as soon as there is room; ``check`` may raise meanwhile."""
        stretch = Stretch(self._directory, count)
        with self._changed:
            while len(self._held) >= STRETCHES:
                check()
                self._changed.wait(_WAIT_SLICE_SECONDS)
            self._held.append(stretch)
        return stretch

    def take(self, stretch: Stretch) -> bool:
        """Take a complete stretch, and write what can be; tell whether it was all of the directory."""
        with self._changed:
            stretch.complete = True
            wrote = False
            while self._held and self._held[0].complete:
                self._write(self._held.popleft())
                wrote = True
            self._changed.notify_all()
            return wrote and self._ended and not self._held

    def end(self) -> bool:
        """Expect no more; tell whether all is written."""
        with self._changed:
            self._ended = True
            return not self._held

    def finish(self) -> bytes:
        """Store the tree and return its id; raises ``TreeTooLarge``."""
        if self._refused is not None:
            raise self._refused
        return self._tree.finish()

    def close(self) -> None:
        """Give up: what still finishes is not written."""
        with self._changed:
            self._refuse(TreeTooLarge("given up"))

    def _write(self, stretch: Stretch) -> None:
        entries = [entry for entry in stretch.slots if entry is not None]
        self.whole = self.whole and len(entries) == len(stretch.slots)
        stretch.slots = []
        self.entries += len(entries)
        self.content_bytes += sum(entry.size for entry in entries)
        if self._refused is None:
            try:
                self._tree.add(entries)
            except TreeTooLarge as error:
                self._refuse(error)
        self._written(stretch, entries)

    def _refuse(self, error: TreeTooLarge) -> None:
        self._refused = error
        self._tree.close()


class Earlier:
    """The entries of a directory in the parent, which are met in the order of their names."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self._next = next(entries, None)

    def of(self, names: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return those of some names, which come after all names that were asked for before."""
        wanted = frozenset(names)
        found = {}
        while self._next is not None and self._next.name <= names[-1]:
            if self._next.name in wanted:
                found[self._next.name] = self._next
            self._next = next(self._entries, None)
        return found
