"""A transfer: a backup or restore as somebody sees it who waits for it. Pure: values in, values out.

Times of an object are the API server's text (RFC 3339); now is seconds since the epoch, by whoever looks.
The rate is what was done of late while it is being watched, and else the average since its start.
"""

import datetime
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.cluster.order import RUNNING_PHASE, Order

WINDOW_SECONDS = 60.0
"""Of late: an agent reports every ten seconds at least."""

Sample = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One backup or restore now. What is not known, or makes no sense, is None."""

    order: Order
    age_seconds: float | None
    seconds: float | None
    bytes_per_second: float | None
    left_seconds: float | None

    @property
    def node(self) -> str:
        """Return where it is worked on: a restore names no node before an agent has claimed it."""
        owner = self.order.owner
        return self.order.node or (owner.node if owner is not None else "")

    @property
    def running(self) -> bool:
        """Tell whether an agent has begun it and has not ended it."""
        return self.order.phase == RUNNING_PHASE

    @property
    def phase(self) -> str:
        """Return the phase in Velero's words; an object that nobody has touched has none."""
        return self.order.phase or "New"


class Transfers:
    """Makes transfers of orders that are looked at again and again."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def seen(self, orders: Iterable[Order], now: float) -> list[Transfer]:
        """Return all as they are now: what runs, what waits, then what ended, the last one first."""
        orders = list(orders)
        for gone in self._samples.keys() - {o.uid for o in orders if o.phase == RUNNING_PHASE}:
            del self._samples[gone]
        return sorted((self._seen(order, now) for order in orders), key=_place)

    def _seen(self, order: Order, now: float) -> Transfer:
        created, started, ended = map(seconds_of, (order.created, order.started, order.ended))
        spent = _between(started, ended if order.final else now)
        rate = order.done_bytes / spent if spent and order.done_bytes else None
        if order.phase == RUNNING_PHASE:
            rate = self._of_late(order, now) if order.uid in self._samples else rate
            self._take(order, now)
        left = order.total_bytes - order.done_bytes
        coming = order.phase == RUNNING_PHASE and left > 0
        return Transfer(
            order, _between(created, now), spent, rate, left / rate if coming and rate else None
        )

    def _take(self, order: Order, now: float) -> None:
        samples = self._samples.setdefault(order.uid, deque())
        samples.append((now, order.done_bytes))
        while len(samples) > 2 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()

    def _of_late(self, order: Order, now: float) -> float | None:
        then, done = self._samples[order.uid][0]
        more = order.done_bytes - done  # less after another agent has begun it again
        return more / (now - then) if now > then and more >= 0 else None


def seconds_of(text: str) -> float | None:
    """Return a time of the API server in seconds since the epoch, or None if it is none."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def recent(orders: Iterable[Order], now: float, since_seconds: float) -> list[Order]:
    """Return what has not ended, and what ended so lately; what has no time of its end is kept."""
    return [
        order
        for order in orders
        if not order.final or now - (seconds_of(order.ended) or now) <= since_seconds
    ]


def of_node(orders: Iterable[Order], node: str) -> list[Order]:
    """Return what is worked on by the agent of a node, or will be; "" is every node."""
    by = ((order, order.owner.node if order.owner else "") for order in orders)
    return [order for order, owner in by if node in ("", order.node or owner)]


def sums(transfers: Sequence[Transfer]) -> tuple[int, int, float]:
    """Return how many run, how many wait, and how many bytes a second all of them do."""
    running = [transfer for transfer in transfers if transfer.running]
    waiting = sum(not (t.running or t.order.final) for t in transfers)
    return len(running), waiting, sum(t.bytes_per_second or 0.0 for t in running)


def _between(earlier: float | None, later: float | None) -> float | None:
    """Return the seconds between; clocks that disagree make none of it."""
    return None if earlier is None or later is None else max(0.0, later - earlier)


def _place(transfer: Transfer) -> tuple[int, float, str]:
    order = transfer.order
    if transfer.running:
        return 0, seconds_of(order.started) or 0.0, order.name
    if not order.final:
        return 1, seconds_of(order.created) or 0.0, order.name
    return 2, -(seconds_of(order.ended) or 0.0), order.name
