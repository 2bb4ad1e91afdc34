"""The only place that repeats a call to a storage.

It decides by the kind of error alone: ``Unreachable`` and ``IntegrityRefused`` are tried again
after a pause, ``Throttled`` when all threads may go on (``throttle.py``), ``CredentialsExpired``
with a renewed client; everything else is final. Repeating blindly is safe because an object never
changes (``contract.py``). Pauses have full jitter: a random part of a limit that doubles, so
that many agents that failed together do not return together.

Each operation has one budget of seconds; when the next pause would end beyond it, the last
error is raised as it is.
"""

import dataclasses
import functools
import logging
import random
from collections.abc import Callable, Iterator
from typing import TypeVar

from agent.cancel import NEVER, CancelToken
from agent.errors import (
    CredentialsExpired,
    IntegrityRefused,
    StorageError,
    Throttled,
    Unreachable,
)
from agent.monitor import Count, Monitor
from agent.storage.clock import Clock, SystemClock
from agent.storage.contract import (
    WHATEVER_BYTES,
    Buffer,
    Listed,
    Page,
    Paged,
    Renewable,
    Room,
    Storage,
)
from agent.storage.throttle import Throttle

T = TypeVar("T")
_log = logging.getLogger(__name__)

_COUNTED = (
    (CredentialsExpired, "retries_credentials"),
    (Throttled, "retries_throttled"),
    (IntegrityRefused, "retries_integrity"),
    (Unreachable, "retries_unreachable"),
)
"""As what a repeated call is counted, by why."""


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """How patient to be; all in seconds.

    The limit of the n-th pause is ``first_seconds * 2**n`` up to ``longest_seconds``; when all are
    throttled, from and up to the values with that name, of which the longest is about the time by
    which we notice too late that the storage serves again. Until the storage has answered
    once, the budget is ``first_contact_seconds`` if that is given: a person who mistyped a host wants to hear it.

    Expired credentials are read again after each of ``renewal_seconds``, which together are as long as
    a changed Secret takes to reach a pod; at once if they never worked.
    """

    budget_seconds: float = 900.0
    first_contact_seconds: float | None = None
    first_seconds: float = 0.25
    longest_seconds: float = 8.0
    throttled_first_seconds: float = 0.5
    throttled_longest_seconds: float = 5.0
    renewal_seconds: tuple[float, ...] = (0.0, 15.0, 75.0)


class Retrying:
    """A storage that tries again. It owns the one it wraps and closes it."""

    def __init__(
        self,
        storage: Storage,
        policy: RetryPolicy | None = None,
        *,
        clock: Clock | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        count: Count | None = None,
    ) -> None:
        """Count refusals, retries and waits by ``count``."""
        self._storage = storage
        self._policy = policy or RetryPolicy()
        self._clock = clock or SystemClock()
        self._uniform = uniform
        self._throttle = Throttle(
            self._policy.throttled_first_seconds,
            self._policy.throttled_longest_seconds,
            self._clock,
            uniform,
        )
        self._count: Count = count or Monitor().add
        self._answered = False

    @property
    def place(self) -> str:
        """Return the wrapped storage's place."""
        return self._storage.place

    @property
    def waits(self) -> bool:
        """Ask the wrapped storage."""
        return self._storage.waits

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        """Store ``body``; an attempt whose answer was lost is simply repeated."""
        self._run(
            "put", key, lambda: self._storage.put(key, body, sha256=sha256, cancel=cancel), cancel
        )

    def put_new(self, key: str, body: Buffer, *, cancel: CancelToken = NEVER) -> bool:
        """Store ``body`` unless the key exists; the storage knows its own earlier attempt."""
        return self._run(
            "put", key, lambda: self._storage.put_new(key, body, cancel=cancel), cancel
        )

    def get(
        self, key: str, *, most_bytes: int = WHATEVER_BYTES, cancel: CancelToken = NEVER
    ) -> bytes:
        """Return the whole object."""
        get = functools.partial(self._storage.get, key, most_bytes=most_bytes, cancel=cancel)
        return self._run("get", key, get, cancel)

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        """Fill ``out`` with the bytes from ``offset``."""
        self._run(
            "get", key, lambda: self._storage.get_range(key, offset, out, cancel=cancel), cancel
        )

    def size(self, key: str, *, cancel: CancelToken = NEVER) -> int:
        """Return the object's size in bytes."""
        return self._run("size", key, lambda: self._storage.size(key, cancel=cancel), cancel)

    def list(self, prefix: str, *, cancel: CancelToken = NEVER) -> Iterator[Listed]:
        """Yield each object once: a page, or else the whole listing, is repeated as a unit."""
        token: str | None = None
        while True:
            page = self._page(prefix, token, cancel)
            yield from page.listed
            if (token := page.next_token) is None:
                return

    def folders(self, prefix: str, *, cancel: CancelToken = NEVER) -> tuple[str, ...]:
        """Return the folders right below ``prefix``; the whole listing is repeated as a unit."""
        return self._run(
            "list", prefix, lambda: self._storage.folders(prefix, cancel=cancel), cancel
        )

    def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove the object."""
        self._run("delete", key, lambda: self._storage.delete(key, cancel=cancel), cancel)

    def close(self) -> None:
        """Close the wrapped storage."""
        self._storage.close()

    def _page(self, prefix: str, token: str | None, cancel: CancelToken) -> Page:
        def ask() -> Page:
            if isinstance(self._storage, Paged):
                return self._storage.page(prefix, token, cancel=cancel)
            return Page([*self._storage.list(prefix, cancel=cancel)], None)

        return self._run("list", prefix, ask, cancel)

    def _run(self, operation: str, key: str, call: Callable[[], T], cancel: CancelToken) -> T:
        end = self._clock.now() + self._budget()
        attempt = renewals = 0
        while True:
            try:
                with self._throttle.passing(cancel) as waited_seconds:
                    if milliseconds := int(waited_seconds * 1000):
                        self._count(throttled_milliseconds=milliseconds)
                    result = call()
                self._answered = True
                return result
            except CredentialsExpired as error:
                pause = self._pause_before_renewal(renewals)
                if not isinstance(self._storage, Renewable) or self._clock.now() + pause > end:
                    raise
                self._report(operation, key, error, pause)
                self._clock.pause(pause, cancel)
                self._storage.renew()
                renewals += 1
            except Throttled as error:  # the pause is made at the gate, by everybody
                self._count(throttled=1)
                pause = max(self._throttle.seconds_left(), error.retry_after_seconds or 0.0)
                if self._clock.now() + pause > end:
                    raise
                self._report(operation, key, error, pause)
            except (Unreachable, IntegrityRefused) as error:
                pause = self._pause_after(attempt)
                if self._clock.now() + pause > end:
                    raise
                self._report(operation, key, error, pause)
                self._clock.pause(pause, cancel)
            attempt += 1

    def _budget(self) -> float:
        first = self._policy.first_contact_seconds
        return self._policy.budget_seconds if self._answered or first is None else first

    def _pause_before_renewal(self, renewals: int) -> float:
        if renewals >= len(self._policy.renewal_seconds):
            return float("inf")
        return self._policy.renewal_seconds[renewals] if self._answered else 0.0

    def _pause_after(self, attempt: int) -> float:
        doubled = self._policy.first_seconds * 2.0 ** min(attempt, 30)
        return self._uniform(0.0, min(self._policy.longest_seconds, doubled))

    def _report(self, operation: str, key: str, error: StorageError, pause: float) -> None:
        self._count(**{next(field for kind, field in _COUNTED if isinstance(error, kind)): 1})
        what, why = f"{operation} {key or '(all)'}", str(error)
        told = why if why.startswith(what) else f"{what}: {why}"
        _log.warning("%s; trying again in %.1f s", told, pause)
