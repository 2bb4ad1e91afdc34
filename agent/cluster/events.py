"""Telling of orders in Kubernetes Events, beside the work, which never waits for them.

What is to be said goes into a bounded table, from which one task sends it, one request at a time.
A convenience must not become a burden: what is not sent yet is replaced by what is newer; a request
is tried three times and then forgotten; an API server that forbids Events is left alone for an hour.
An outage is said once, and so is a missing right, with the rule that gives it.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from agent.cluster import event, paths
from agent.cluster.event import Reason, Word
from agent.cluster.order import Order, Owner
from agent.cluster.status import Clock
from agent.errors import ApiError, ClusterError

LOG = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""The least time between two progress Events of an object (velero.md section 10, SHOULD 23)."""

ATTEMPTS = 3
LONGEST_PAUSE_SECONDS = 10.0
LONGEST_WISH_SECONDS = 60.0
"""How far a Retry-After is followed."""

FORBIDDEN_SECONDS = 3600.0
"""How long nothing is asked after a 403: a right that is given is noticed within that."""

MOST_WAITING = 256
"""Words that wait to be sent; what comes when the table is full is not told."""

MOST_REMEMBERED = 1024
"""Events that can be counted up; one that is forgotten is made again under its name, or left."""

CLOSING_SECONDS = 2.0
"""How long the end of the process waits for what is still to be sent."""

FORBIDDEN = (
    "Events cannot be written, so kubectl describe shows none for backups and restores, which go on: %s."
    ' Add to the agent\'s Role: apiGroups [""], resources [events], verbs [create, patch]'
)


class Api(Protocol):
    """What Events need of the API server."""

    async def create(self, path: str, body: Mapping[str, Any], *, attempts: int = 0) -> bytes:
        """Create an object."""

    async def patch(self, path: str, body: Mapping[str, Any], *, attempts: int = 0) -> bytes:
        """Merge a patch."""


class Events:
    """Takes what is to be said at any time, on the event loop; ``run`` sends it."""

    def __init__(self, api: Api, us: Owner, clock: Clock) -> None:
        self._api = api
        self._us = us
        self._clock = clock
        self._waiting: OrderedDict[tuple[str, Reason], Word] = OrderedDict()
        self._sent: OrderedDict[tuple[str, Reason], int] = OrderedDict()
        self._progress_at: OrderedDict[str, float] = OrderedDict()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._silent_until = 0.0
        self._forbidden = self._failing = False

    def tell(self, order: Order, reason: Reason, message: str, *, warning: bool = False) -> None:
        """Have something said; returns at once, and never fails."""
        word = Word(order, reason, message, warning)
        if self._clock.monotonic() < self._silent_until:
            return
        if word.key not in self._waiting and len(self._waiting) >= MOST_WAITING:
            return
        self._waiting[word.key] = word
        self._idle.clear()
        self._wake.set()

    def progress(self, order: Order, total_bytes: int, done_bytes: int) -> None:
        """Have progress said, unless that was done within the last ten seconds."""
        now = self._clock.monotonic()
        if now - self._progress_at.get(order.uid, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
            return
        _remember(self._progress_at, order.uid, now)
        self.tell(order, Reason.PROGRESS, event.progress_message(total_bytes, done_bytes))

    async def run(self) -> None:
        """Send what is to be said, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                _, word = self._waiting.popitem(last=False)
                await self._send(word)
            self._idle.set()

    async def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Give what is still to be sent a moment; nothing is tried again from now on."""
        self._closing = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _send(self, word: Word) -> None:
        """Send one word, or give it up."""
        for failures in range(1, ATTEMPTS + 1):
            if self._clock.monotonic() < self._silent_until:
                return
            try:
                await self._send_once(word)
            except ApiError as error:
                if not self._worth_another(error) or failures == ATTEMPTS:
                    return
                pause = self._clock.back_off(failures, LONGEST_PAUSE_SECONDS)
                wish = min(error.retry_after_seconds or 0.0, LONGEST_WISH_SECONDS)
                await self._clock.sleep(max(pause, wish))
            except ClusterError as error:
                LOG.info("%s: no Event: %s", word.order.name, error)
                return
            except Exception:
                # The edge of a task: a bug in what nothing depends on must not take the agent down.
                LOG.exception("%s: the Event %s broke; report this", word.order.name, word.reason)
                return
            else:
                if self._failing or self._forbidden:
                    LOG.info("Events are written again")
                self._failing = self._forbidden = False
                return

    async def _send_once(self, word: Word) -> None:
        count = self._sent.get(word.key, 0)
        now = self._clock.timestamp()
        folder = paths.core(word.order.namespace, "events")
        if count:
            path = f"{folder}/{event.name_of(word, self._us)}"
            try:
                await self._api.patch(path, event.repeated(word, count + 1, now), attempts=1)
            except ApiError as error:
                if error.status != 404:
                    raise
                count = 0  # it was old enough to be removed
        if not count:
            try:
                await self._api.create(folder, event.body(word, self._us, now), attempts=1)
            except ApiError as error:
                if error.status != 409:  # else the answer to an earlier try was lost
                    raise
        _remember(self._sent, word.key, count + 1)

    def _worth_another(self, error: ApiError) -> bool:
        """Say what went wrong, if that was not said before, and whether to try again."""
        if error.status == 403:
            self._silent_until = self._clock.monotonic() + FORBIDDEN_SECONDS
            self._waiting.clear()
            if not self._forbidden:
                LOG.warning(FORBIDDEN, error)
            self._forbidden = True
            return False
        if not self._failing:
            LOG.info("an Event could not be written, which is no harm: %s", error)
        self._failing = True
        return error.passing and not self._closing


def _remember(table: "OrderedDict[Any, Any]", key: object, value: object) -> None:
    """Put a value into a table of limited size, from which the oldest goes."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > MOST_REMEMBERED:
        table.popitem(last=False)
