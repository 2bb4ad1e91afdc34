"""List, reconcile, watch: the level-triggered view of all objects of one collection.

A watch is an optimisation of a list. Whenever the thread of events may be broken (410, a
restart, an API server whose versions went back and which then stays silent without an error)
the list is taken again, and in any case every 10 to 30 minutes. Versions are opaque: they are
handed back to the server and otherwise only compared for equality.

The server filters by a field where it can: pods by ``spec.nodeName`` always, PodVolumeBackups by
``spec.node`` where Velero's definition declares that field selectable. Elsewhere it answers 400
and everything is watched. Each list probes anew, because an upgrade of Velero may add or remove
the declaration.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import msgspec

from agent.cluster.client import Page, Query, decode
from agent.errors import ApiError, ClusterError

LOG = logging.getLogger(__name__)

FIELD_UNSUPPORTED = 400
EXPIRED = 410


class Versioned(Protocol):
    """What a watch needs of an object."""

    @property
    def resource_version(self) -> str:
        """Return the version to go on from."""


T = TypeVar("T", bound=Versioned)
_T_contra = TypeVar("_T_contra", contravariant=True)


class Source(Protocol):
    """What a watch needs of the API server."""

    async def list(self, path: str, query: Query | None = None) -> Page:
        """Return all objects."""

    def watch(
        self, path: str, query: Query, *, server_seconds: float, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        """Yield lines; raises ``TimeoutError`` after a silence."""


class Sink(Protocol[_T_contra]):
    """Who is told; called on the event loop, must not block."""

    def replace(self, objects: Sequence[_T_contra], /) -> None:
        """Take these as all objects that exist."""

    def changed(self, found: _T_contra, /) -> None:
        """Take one object that was added or modified."""

    def deleted(self, gone: _T_contra, /) -> None:
        """Forget one object."""


@dataclass(frozen=True, slots=True)
class Collection(Generic[T]):
    """What is watched: its path, how an object is read, and which field the server may filter by.

    ``selector`` is a field selector, or "" for none; ``parse`` raises ``ClusterError``.
    """

    path: str
    parse: Callable[[bytes | msgspec.Raw], T]
    selector: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """All times of a watch in seconds, and where clock, sleep and chance come from.

    Numbers: kubernetes.md section 6, practices 1, 2 and 4.
    """

    server_seconds: tuple[float, float] = (240.0, 360.0)
    idle_seconds: float = 150.0
    relist_seconds: tuple[float, float] = (600.0, 1800.0)
    healthy_seconds: float = 30.0
    first_delay_seconds: float = 0.8
    longest_delay_seconds: float = 30.0
    longest_wish_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[float, float], float] = random.uniform


@dataclass(slots=True)
class WatchCounts:
    """What happened so far; ``ends`` counts the reasons why watches ended."""

    lists: int = 0
    events: int = 0
    ends: dict[str, int] = field(default_factory=dict)

    def end(self, reason: str) -> None:
        """Count one end."""
        self.ends[reason] = self.ends.get(reason, 0) + 1


class _Event(msgspec.Struct):
    type: str = ""
    object: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class _Error(msgspec.Struct):
    code: int = 500
    reason: str = ""
    message: str = ""


class Watcher(Generic[T]):
    """Keeps one sink in step with one collection; ``run`` for ever, or ``iterate`` once."""

    def __init__(
        self, source: Source, collection: Collection[T], sink: Sink[T], pace: Pace | None = None
    ) -> None:
        self._source = source
        self._collection = collection
        self._path = collection.path
        self._sink = sink
        self._pace = pace or Pace()
        self._version: str | None = None
        self._selector: Mapping[str, str] = {}
        self._selectable: bool | None = None
        self._relist_at = 0.0
        self._failures = 0
        self.counts = WatchCounts()
        self.progress_at: float | None = None
        """When the API server was last heard (the pace's clock), or None."""

    @property
    def selectable(self) -> bool | None:
        """Tell whether the server filters; None before the first list."""
        return self._selectable

    async def run(self) -> None:
        """Follow the collection for ever."""
        while True:
            delay = await self.iterate()
            if delay > 0:
                await self._pace.sleep(delay)

    async def iterate(self) -> float:
        """List if that is due, then watch once; return the seconds to wait before the next."""
        began = self._pace.clock()
        before = self.counts.events
        try:
            if self._version is None or began >= self._relist_at:
                await self._list()
            began = self._pace.clock()
            await self._watch()
            reason, error = "eof", None
        except TimeoutError:
            reason, error = "idle", None
        except ClusterError as failure:
            reason, error = _kind(failure), failure
        self.counts.end(reason)
        lasted = self._pace.clock() - began
        healthy = self.counts.events > before or lasted >= self._pace.healthy_seconds
        return self._next(error, healthy)

    def _next(self, error: ClusterError | None, healthy: bool) -> float:
        """Return the pause: the server's wish, none after a healthy watch, else back-off."""
        if healthy:
            self._failures = 0
        if isinstance(error, ApiError):
            if error.status in (EXPIRED, FIELD_UNSUPPORTED):
                self._version = None
            if error.status == EXPIRED and healthy:
                return 0.0
            if error.retry_after_seconds is not None:
                return min(error.retry_after_seconds, self._pace.longest_wish_seconds)
        if error is None and healthy:
            return 0.0
        if error is not None:
            LOG.warning("watching %s: %s", self._path, error)
        ceiling = self._pace.first_delay_seconds * 2.0 ** min(self._failures, 16)
        self._failures += 1
        return self._pace.chance(0.0, min(self._pace.longest_delay_seconds, ceiling))

    async def _list(self) -> None:
        selector = self._collection.selector
        query = {"fieldSelector": selector} if selector else {}
        try:
            page = await self._source.list(self._path, query)
            selectable = True
        except ApiError as error:
            if error.status != FIELD_UNSUPPORTED or not selector:
                raise
            page = await self._source.list(self._path)
            selectable = False
        if selector and selectable is not self._selectable:
            how = "by the API server" if selectable else "by the agent (the server cannot)"
            LOG.info("%s: what is not %s is filtered out %s", self._path, selector, how)
        self._selectable = selectable
        self._selector = query if selectable else {}
        self._heard()
        self.counts.lists += 1
        self._sink.replace([self._collection.parse(item) for item in page.items])
        self._version = page.resource_version
        self._relist_at = self._pace.clock() + self._pace.chance(*self._pace.relist_seconds)

    async def _watch(self) -> None:
        query = {**self._selector, "allowWatchBookmarks": "true"}
        lines = self._source.watch(
            self._path,
            {**query, "resourceVersion": self._version or ""},
            server_seconds=self._pace.chance(*self._pace.server_seconds),
            idle_seconds=self._pace.idle_seconds,
        )
        async with contextlib.aclosing(lines):  # type: ignore[type-var]
            async for line in lines:
                self._take(decode(line, _Event, f"an event of {self._path}"))

    def _take(self, event: _Event) -> None:
        if event.type == "ERROR":
            error = decode(event.object, _Error, f"an error event of {self._path}")
            raise ApiError(
                f"the watch of {self._path} was ended: {error.reason}: {error.message}",
                status=error.code,
            )
        found = self._collection.parse(event.object)
        self._heard()
        if event.type in ("ADDED", "MODIFIED"):
            self._sink.changed(found)
        elif event.type == "DELETED":
            self._sink.deleted(found)
        elif event.type != "BOOKMARK":
            return
        self.counts.events += 1
        if found.resource_version:
            self._version = found.resource_version

    def _heard(self) -> None:
        self.progress_at = self._pace.clock()


def _kind(error: ClusterError) -> str:
    if not isinstance(error, ApiError):
        return "malformed"
    if error.status == EXPIRED:
        return "expired"
    return "broken" if error.status == 0 else f"http {error.status}"
