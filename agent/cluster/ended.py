"""What this process has ended, so that it is not begun again by mistake.

An object that has ended may be seen unfinished once more: an event is late, or the API server's store
was restored from a copy of before. Late events are over within seconds. What then still is
unfinished gets the same end again, without the work.
"""

from collections import OrderedDict
from dataclasses import dataclass

from agent.cluster.order import Order
from agent.cluster.patches import Final

REMEMBERED = 1000
"""How many ends are kept (1 KB each); of what is older, a restored one is worked on again."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An object as it was claimed last, and how it ended; None for one that was only refused."""

    order: Order
    end: Final | None


class EndedTable:
    """The latest ends, by uid."""

    def __init__(self) -> None:
        self._ends: OrderedDict[str, Ended] = OrderedDict()

    def __contains__(self, uid: object) -> bool:
        return uid in self._ends

    def add(self, order: Order, end: Final | None) -> None:
        """Remember an end."""
        self._ends[order.uid] = Ended(order, end)
        while len(self._ends) > REMEMBERED:
            self._ends.popitem(last=False)

    def take(self, uid: str) -> Ended | None:
        """Forget an end and return it."""
        return self._ends.pop(uid, None)
