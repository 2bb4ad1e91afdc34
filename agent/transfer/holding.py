"""What unfinished directories hold in memory, within one budget.

A directory is one tree, so its entries, with their attributes, are held until it is stored. That costs
the volume's owner next to nothing, and without a bound would cost the node's memory: a million empty
files take 1.1 GB, and attributes six times their bytes (measured: listed, as JSON, and sealed). So of
a directory that has too many only the names are held, and some of its entries (``stretches``). And what
is held is weighed. The walk waits while other directories hold too much; what does not fit beside the
directories above it is left out and named, and attributes are left off. It is better to say what is
missing than to be killed, and then to have nothing.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from agent.footprint import limit_bytes, machine_bytes
from agent.volume.looking import names_bytes
from agent.volume.xattrs import Attributes

ENTRY_BYTES = 1280
"""What one entry takes until its directory is stored, its node in the tree included (measured)."""

SHORT_NAME_BYTES = 64
NAME_WEIGHT = 12
"""What a byte of a longer name takes: names of 255 bytes that are no UTF-8 took 3.8 KB an entry."""

ATTRIBUTE_WEIGHT = 6
LIGHT_BYTES = 512
"""Attributes of so many bytes are taken to be in the weight of their entry: labels, an ACL."""

AT_ONCE_BYTES = 50_000 * ENTRY_BYTES
"""Directories that take more are worked on in stretches."""

STRETCH_NAMES = 2048
STRETCH_BYTES = STRETCH_NAMES * ENTRY_BYTES
STRETCHES = 8
"""What a stretch has at most, and how many of a directory are held at a time: while a file of the
first is read, the walk goes on in the others."""

RESERVED_BYTES = 288 << 20
"""What a run takes beside: buffers, packs, the index."""

LEAST_BYTES = 64 << 20

_WAIT_SLICE_SECONDS = 0.5


class Holder(Protocol):
    """A directory that is not stored yet."""

    @property
    def parent(self) -> "Holder | None":
        """Return the directory above it."""


class Holding:
    """The account of one run; used by many threads.

    ``share`` is what it may have beside other runs, all of ``budget`` without one. It decides who
    waits and what is worked on in stretches; nothing is left out for it.
    """

    def __init__(self, budget: int, share: Callable[[], int] | None = None) -> None:
        self._budget = budget
        self._share = share or (lambda: budget)
        self._total = 0
        self._held: dict[Holder, int] = {}
        self._freed = threading.Condition()

    def room(self, holder: Holder) -> int:
        """Return how many bytes a directory may hold beside what those above it hold."""
        with self._freed:
            return max(0, self._share() - self._above(holder))

    def hold(self, holder: Holder, size: int, check: Callable[[], None]) -> bool:
        """Account for bytes; return False if they do not fit beside what directories above hold.

        Else they get room in the end: other directories only wait for their files. ``check`` may
        raise meanwhile.
        """
        with self._freed:
            while (above := self._above(holder)) + size <= self._budget:
                if self._total <= above or self._total + size <= self._share():
                    self._add(holder, size)
                    return True
                check()  # what is above may grow meanwhile
                self._freed.wait(_WAIT_SLICE_SECONDS)
            return False

    def try_hold(self, holder: Holder, size: int) -> bool:
        """Account for bytes if there is room now."""
        with self._freed:
            if self._total + size > self._budget:
                return False
            self._add(holder, size)
            return True

    def release(self, holder: Holder) -> None:
        """Give back all that is accounted to a directory."""
        with self._freed:
            self._total -= self._held.pop(holder, 0)
            self._freed.notify_all()

    def _add(self, holder: Holder, size: int) -> None:
        self._held[holder] = self._held.get(holder, 0) + size
        self._total += size

    def _above(self, holder: Holder) -> int:
        size, above = 0, holder.parent
        while above is not None:
            size += self._held.get(above, 0)
            above = above.parent
        return size


def names_weight(names: Sequence[bytes]) -> int:
    """Return what the entries of a directory take, in bytes; a long name may be escapes throughout."""
    beyond = sum(map(len, names)) - SHORT_NAME_BYTES * len(names)
    return len(names) * ENTRY_BYTES + max(0, beyond) * NAME_WEIGHT


def stretches_weight(names: Sequence[bytes]) -> int:
    """Return what a directory takes that is worked on in stretches: its names, and some of its entries."""
    return names_bytes(names) + min(names_weight(names), STRETCHES * STRETCH_BYTES)


def attributes_weight(attributes: Attributes) -> int:
    """Return what attributes take beyond the weight of their entry, in bytes."""
    size = sum(len(name) + len(value) for name, value in attributes)
    return max(0, size - LIGHT_BYTES) * ATTRIBUTE_WEIGHT


def budget_bytes() -> int:
    """Return what directories may hold: two thirds of what the container's limit leaves.

    Without a limit it is half of the machine's memory. The last third is for their parents.
    """
    budget = machine_bytes() // 2
    if (limit := limit_bytes()) is not None:
        budget = min(budget, (limit - RESERVED_BYTES) * 2 // 3)
    return max(budget, LEAST_BYTES)
