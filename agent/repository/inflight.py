"""Calls in flight: told apart by when they began, so that one can wait for all earlier ones."""

import contextlib
import threading
from collections.abc import Callable, Iterator

_WAIT_SLICE_SECONDS = 0.5


class InFlight:
    """Counts calls; safe to use from many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._open: set[int] = set()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Be in flight for the length of a scope."""
        with self._changed:
            number, self._next = self._next, self._next + 1
            self._open.add(number)
        try:
            yield
        finally:
            with self._changed:
                self._open.discard(number)
                self._changed.notify_all()

    def wait_for_earlier(self, check: Callable[[], None]) -> None:
        """Wait until all calls have ended that began before this one; ``check`` may raise."""
        with self._changed:
            bound = self._next
            while self._open and min(self._open) < bound:
                check()
                self._changed.wait(_WAIT_SLICE_SECONDS)
