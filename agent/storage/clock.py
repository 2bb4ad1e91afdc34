"""Where the pauses of a storage are spent; tests bring a clock of their own."""

import time
from typing import Protocol

from agent.cancel import CancelToken


class Clock(Protocol):
    """Time, and the passing of it."""

    def now(self) -> float:
        """Return seconds that only grow."""

    def pause(self, seconds: float, cancel: CancelToken) -> None:
        """Wait; raises ``Canceled`` as soon as that is asked for."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """Return the monotonic time."""
        return time.monotonic()

    def pause(self, seconds: float, cancel: CancelToken) -> None:
        """Sleep on the token."""
        cancel.pause(seconds)
