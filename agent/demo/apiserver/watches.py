"""A watch: the store's events as one JSON line each, for as long as the client reads.

A watch queues events without waiting for its client; one that falls ``queue_limit`` events
behind is ended, cleanly, as kube-apiserver does with slow watchers. What a selector takes is
decided before and after a write, so an object that leaves the selection arrives as DELETED.
"""

import asyncio
import collections
import json
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from agent.demo.apiserver import refusal
from agent.demo.apiserver.faults import Cut
from agent.demo.apiserver.resource import Json, Resource
from agent.demo.apiserver.selectors import Selector
from agent.demo.apiserver.store import Event, Expired, Store

QUEUE_EVENTS = 1000
BOOKMARK_SECONDS = 60.0
HALF_LINE = b'{"type":"MODIFIED","object":{"apiVersion":"v'


class Wish(NamedTuple):
    """What a watch is asked for; ``version`` is "" or "0" for "from now, with all there is"."""

    resource: Resource
    namespace: str
    selector: Selector
    version: str
    bookmarks: bool
    seconds: float | None
    show: Callable[[Json], Json]
    """How an object is sent: as it is, or as a table."""


class Limits(NamedTuple):
    """How patient the server is with watches."""

    queue_events: int = QUEUE_EVENTS
    bookmark_seconds: float = BOOKMARK_SECONDS


def reset(transport: asyncio.BaseTransport | None) -> None:
    """Close a connection with a TCP reset."""
    if not isinstance(transport, asyncio.Transport):
        return
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Watch:
    """One open watch; listens to the store from its construction until ``close``."""

    def __init__(self, store: Store, wish: Wish, limits: Limits) -> None:
        self._store = store
        self._wish = wish
        self._limits = limits
        self._lines: collections.deque[bytes] = collections.deque()
        self._wake = asyncio.Event()
        self._cut: Cut | None = None
        self._frozen = False
        self._after = int(wish.version or 0)
        self._told = 0
        """The last version that the client knows of, from an event or a bookmark."""
        try:
            self._replay()
        except Expired as gone:
            self._expire(gone)
        store.listen(self._on_event)

    def _replay(self) -> None:
        if self._after:
            for event in self._store.since(self._wish.resource.id, self._after):
                self._queue(event)
            self._told = self._after
            return
        for obj in self._store.list(self._wish.resource.id, self._wish.namespace):
            if self._wish.selector.takes(obj):
                self._lines.append(_line("ADDED", self._wish.show(obj)))

    def _expire(self, gone: Expired) -> None:
        status = refusal.watch_expired(self._after, gone.oldest).status
        self._lines.append(_line("ERROR", status))
        self._cut = Cut.END

    def _on_event(self, event: Event) -> None:
        if event.key.resource == self._wish.resource.id and event.version > self._after:
            self._queue(event)

    def _queue(self, event: Event) -> None:
        if self._cut or self._wish.namespace not in ("", event.key.namespace):
            return
        seen = _translated(event, self._wish.selector)
        if seen is None:
            return
        kind, obj = seen
        self._lines.append(_line(kind, self._wish.show(obj)))
        self._told = event.version
        if len(self._lines) > self._limits.queue_events:
            self._lines.clear()
            self.cut(Cut.END)
        self._wake.set()

    def cut(self, how: Cut) -> None:
        """End the stream in this way."""
        self._cut = how
        self._wake.set()

    def bookmark(self) -> None:
        """Queue a bookmark if they were asked for."""
        if not self._wish.bookmarks or self._cut:
            return
        resource, version = self._wish.resource, max(self._store.version, self._after)
        metadata = {"resourceVersion": str(version), "creationTimestamp": None}
        obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        self._lines.append(_line("BOOKMARK", self._wish.show(obj)))
        self._told = version
        self._wake.set()

    def freeze(self, frozen: bool) -> None:
        """Say nothing more, or go on."""
        self._frozen = frozen
        self._wake.set()

    def close(self) -> None:
        """Stop listening."""
        self._store.unlisten(self._on_event)

    async def stream(self, request: web.Request, response: web.StreamResponse) -> None:
        """Write lines to a prepared response until the watch's time is over or it is cut."""
        started = time.monotonic()
        end = started + self._wish.seconds if self._wish.seconds is not None else float("inf")
        next_bookmark = started + self._limits.bookmark_seconds
        while True:
            await self._drain(response)
            if self._frozen:
                await self._wake.wait()
                continue
            if self._cut:
                await self._finish(request, response)
                return
            now = time.monotonic()
            if now >= end:
                self._bookmark_if_moved()
                await self._drain(response)
                return
            if now >= next_bookmark:
                next_bookmark = now + self._limits.bookmark_seconds
                self._bookmark_if_moved()
                continue
            await self._sleep(min(end, next_bookmark) - now)

    def _bookmark_if_moved(self) -> None:
        if self._store.version > self._told:
            self.bookmark()

    async def _drain(self, response: web.StreamResponse) -> None:
        self._wake.clear()
        while self._lines and not self._frozen:
            await response.write(self._lines.popleft())

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._cut in (Cut.RESET, Cut.TRUNCATE):
            await response.write(HALF_LINE)
        if self._cut is Cut.RESET:
            reset(request.transport)


def _translated(event: Event, selector: Selector) -> tuple[str, Json] | None:
    """Return the event as a selecting client sees it, or None if it does not."""
    if event.type == "DELETED":
        return ("DELETED", event.object) if selector.takes(event.object) else None
    before = event.previous is not None and selector.takes(event.previous)
    if selector.takes(event.object):
        return ("MODIFIED" if before else "ADDED", event.object)
    if not before or event.previous is None:
        return None
    metadata = {**event.previous["metadata"], "resourceVersion": str(event.version)}
    return ("DELETED", {**event.previous, "metadata": metadata})


def _line(kind: str, obj: Json) -> bytes:
    text = json.dumps({"type": kind, "object": obj}, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"
