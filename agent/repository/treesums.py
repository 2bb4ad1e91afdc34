"""Sums over trees: a number for each directory with all that lies below it.

Each tree is measured once, however many snapshots share it, and a sum is eight bytes. So a search
for something rare needs to enter only those directories below which it is. Trees that no index
names count nothing here: whoever measures the directory above counts them.
"""

from array import array
from collections.abc import Callable

from agent.cancel import CancelToken
from agent.repository.health import Health
from agent.repository.identity import BlobType

Measure = Callable[[bytes], tuple[int, list[bytes]]]
"""Returns the number of one directory by the id of its tree, and the ids of those in it."""

_UNKNOWN = -1
_MOST = 1 << 62
"""Trees that share their subtrees may stand for more entries than any number counts."""


class TreeSums:
    """The sums of one measure."""

    def __init__(self, health: Health, measure: Measure, cancel: CancelToken) -> None:
        self._health = health
        self._measure = measure
        self._cancel = cancel
        self._sums = array("q", [_UNKNOWN]) * health.count(BlobType.TREE)

    def sum(self, tree: bytes) -> int:
        """Return the sum of a tree, in the order of a walk on the first visit."""
        position = self._health.position(BlobType.TREE, tree)
        if position is None:
            return 0
        if self._sums[position] == _UNKNOWN:
            self._add_up(position, tree)
        return self._sums[position]

    def _add_up(self, position: int, tree: bytes) -> None:
        stack = [self._frame(position, tree)]
        while stack:
            frame = stack[-1]
            if not frame.children:
                stack.pop()
                self._sums[frame.position] = min(frame.total, _MOST)
                if stack:
                    stack[-1].total += frame.total
                continue
            child = frame.children.pop()
            below = self._health.position(BlobType.TREE, child)
            if below is None:
                continue
            if self._sums[below] == _UNKNOWN:
                stack.append(self._frame(below, child))
            else:
                frame.total += self._sums[below]

    def _frame(self, position: int, tree: bytes) -> "_Frame":
        self._cancel.check()
        total, children = self._measure(tree)
        children.reverse()
        return _Frame(position, total, children)


class _Frame:
    """A directory whose sum is being made; ``children`` are still to be added, the next one last."""

    __slots__ = ("children", "position", "total")

    def __init__(self, position: int, total: int, children: list[bytes]) -> None:
        self.position = position
        self.total = total
        self.children = children
