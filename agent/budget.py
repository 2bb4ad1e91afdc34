"""What all runs of a process share: how fast they may go together, and the memory that each may take.

A run alone has all of it. Of two at a time each has half: a budget of bytes, or of packs in flight, is
asked for its share again and again, so that a run that begins or ends counts at once.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from agent.cancel import CancelToken

CONNECTIONS = 4
"""Packs in flight: a choice (s3.md section 1); each costs its 16 MiB while it lasts."""

NEAR_CONNECTIONS = 2
"""As many at most to a storage that is no network away: more take memory there, and no less time."""


class Rate:
    """How many bytes a second all threads together may move; None is no limit."""

    def __init__(
        self, bytes_per_second: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._due = 0.0

    @property
    def limited(self) -> bool:
        """Tell whether anybody ever waits."""
        return self._per_second is not None

    def take(self, amount: int, cancel: CancelToken) -> float:
        """Wait until what others took before is due; return the seconds waited.

        Who moves ``amount`` bytes passes first and is paid for by the next one: so it is called
        before or after, at every slice of what is moved. Raises ``Canceled``.
        """
        if self._per_second is None:
            return 0.0
        with self._lock:
            now = self._clock()
            due = max(self._due, now)
            self._due = due + amount / self._per_second
        if due > now:
            cancel.pause(due - now)
        return due - now


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of sending to storages, of fetching from them, and of reading volumes."""

    upload: Rate = field(default_factory=Rate)
    download: Rate = field(default_factory=Rate)
    reading: Rate = field(default_factory=Rate)


class Budgets:
    """What the runs of one process share; used by many threads.

    ``connections`` is how many packs they have in flight together, but each one at least.
    """

    def __init__(self, rates: Rates | None = None, connections: int = CONNECTIONS) -> None:
        self.rates = rates or Rates()
        self.connections = connections
        self._runs = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Count a run for a scope."""
        with self._lock:
            self._runs += 1
        try:
            yield
        finally:
            with self._lock:
                self._runs -= 1

    def share_of(self, whole: int) -> Callable[[], int]:
        """Return what tells, whenever it is asked, what one run may have of a whole: 1 at least."""
        return lambda: max(1, whole // max(1, self._runs))
