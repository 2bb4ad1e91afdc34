"""What all threads of a storage do together when it asks for fewer requests.

Two things can be meant by that, and each has its remedy. *Too many at a time*: some calls succeed
while others are refused. Then half as many are let through, and one more after each round of
successes, until there are as many as before (additive increase, multiplicative decrease). *Not
now*: nothing succeeds. Then everybody waits, a random part of a limit that doubles with each refusal;
how many go at a time makes no difference and stays. One success ends the doubling.

Calls that were under way together are refused together: that is one refusal. So each call belongs
to a round, and only the first refusal of the current round counts and begins the next one.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

from agent.cancel import CancelToken
from agent.errors import Throttled
from agent.storage.clock import Clock

LONGEST_WISH_SECONDS = 120.0
"""How long a storage may ask everybody to stay away; the call that was told more fails if it must."""

_WAIT_SLICE_SECONDS = 0.25


class Throttle:
    """The gate before a storage. Every call passes it; nobody waits while nothing was refused."""

    def __init__(
        self,
        first_seconds: float,
        longest_seconds: float,
        clock: Clock,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._clock = clock
        self._uniform = uniform
        self._changed = threading.Condition()
        self._quiet_until = float("-inf")
        self._limit = math.inf
        self._before = 0  # calls at a time when the limit was set: where it ends
        self._passing = 0
        self._round = 0
        self._successes = 0  # in this round
        self._refusals = 0  # since the last success

    @contextlib.contextmanager
    def passing(self, cancel: CancelToken) -> Iterator[float]:
        """Wait to be let through; the scope is the call, whose outcome is noted.

        Yields the seconds that it waited. Raises ``Canceled`` while it waits.
        """
        came = self._clock.now()
        round = self._enter(cancel)
        try:
            yield self._clock.now() - came
        except Throttled as error:
            with self._changed:
                self._refused(round, error.retry_after_seconds)
            raise
        else:
            with self._changed:
                self._succeeded()
        finally:
            with self._changed:
                self._passing -= 1
                self._changed.notify()

    def seconds_left(self) -> float:
        """Return for how long nobody is let through."""
        return max(0.0, self._quiet_until - self._clock.now())

    def _succeeded(self) -> None:
        self._successes += 1
        self._refusals = 0
        if self._limit < math.inf:
            self._limit += 1 / self._limit
            if self._limit >= self._before:
                self._limit = math.inf

    def _refused(self, round: int, wish_seconds: float | None) -> None:
        if round == self._round:
            self._begin_round(wish_seconds)
        elif wish_seconds is not None:
            self._keep_quiet(wish_seconds)

    def _begin_round(self, wish_seconds: float | None) -> None:
        if self._successes:
            self._before = max(self._before if self._limit < math.inf else 0, self._passing)
            self._limit = max(1, math.ceil(self._passing / 2))
        if wish_seconds is None:
            doubled = self._first_seconds * 2.0 ** min(self._refusals, 30)
            wish_seconds = self._uniform(0.0, min(self._longest_seconds, doubled))
        self._keep_quiet(wish_seconds)
        self._refusals += 1
        self._successes = 0
        self._round += 1

    def _keep_quiet(self, seconds: float) -> None:
        bounded = min(seconds, LONGEST_WISH_SECONDS)
        self._quiet_until = max(self._quiet_until, self._clock.now() + bounded)

    def _enter(self, cancel: CancelToken) -> int:
        while True:
            while (left := self.seconds_left()) > 0:
                self._clock.pause(left, cancel)
            with self._changed:
                if self._passing < self._limit:
                    self._passing += 1
                    return self._round
                self._changed.wait(_WAIT_SLICE_SECONDS)
            cancel.check()
