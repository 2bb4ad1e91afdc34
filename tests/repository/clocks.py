"""A clock that a test moves by hand; nobody sleeps."""

import threading
from collections.abc import Callable

from agent.cancel import CancelToken


class HandClock:
    """Stands still until told; each pause lets ``meanwhile`` happen and moves time by it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.pauses: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.waits: list[float] = []

    def now_ns(self) -> int:
        return int(self.seconds * 1e9) + 1_700_000_000_000_000_000

    def running_seconds(self) -> float:
        return self.seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Stop the refresher at once; tests call ``refresh`` themselves."""
        self.waits.append(seconds)
        return event.wait()

    def pause(self, cancel: CancelToken, seconds: float) -> None:
        cancel.check()
        self.pauses.append(seconds)
        self.seconds += seconds
        self.meanwhile()


class SteppingClock(HandClock):
    """Lets the refresher run a given number of rounds, each as long as it wants to wait."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._left = rounds
        self.done = threading.Event()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if self._left == 0:
            self.done.set()
            return event.wait()
        self._left -= 1
        self.waits.append(seconds)
        self.seconds += seconds
        return event.is_set()
