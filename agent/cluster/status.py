"""Writing an order's state, through whichever door the API server has for its kind.

Velero's own definitions have no status subresource: there ``/status`` answers 404, with the same
words as for a deleted object (kubernetes.md section 0.2). Where somebody declared it, a status
in a patch of the main resource is dropped in silence. So discovery is asked first, and each
answer is checked: a phase that did not arrive, or a 404 for an object that is there, means that
the definition was changed meanwhile, and discovery is asked again.

Every write is a compare-and-swap. After an answer that was lost the object is read and looked
at, never written again blindly.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from agent.cluster import patches, paths
from agent.cluster.client import Query, decode
from agent.cluster.order import NEW_PHASES, RUNNING_PHASE, Order, OrderKind, Owner, parse
from agent.cluster.patches import Final, Patch
from agent.errors import ApiError, ClusterError

LOG = logging.getLogger(__name__)

CONFLICT, GONE = 409, 404
OPEN_PHASES = NEW_PHASES | {RUNNING_PHASE}

LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries of a final state: how late it may come after the API server is back."""

LONGEST_WISH_SECONDS = 60.0
"""How far a Retry-After is followed."""


class Ending(Protocol):
    """The end of this process, as far as it limits what is tried again and again."""

    @property
    def over(self) -> bool:
        """Tell whether the time that is left for it has run out."""

    async def pause(self, seconds: float) -> None:
        """Sleep, but not past the moment when the end is asked for."""


class Api(Protocol):
    """What status needs of the API server."""

    async def get(self, path: str, query: Query | None = None) -> bytes:
        """Return an object."""

    async def patch(self, path: str, body: Patch, *, attempts: int = 0) -> bytes:
        """Merge a patch and return the object."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time, sleep and chance come from."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[float, float], float] = random.uniform

    def timestamp(self) -> str:
        """Return now in RFC 3339, UTC, whole seconds (as Kubernetes writes times)."""
        return datetime.fromtimestamp(self.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def back_off(self, failures: int, longest_seconds: float) -> float:
        """Return the pause after the n-th failure: a random part of a limit that doubles."""
        return self.chance(0.0, min(longest_seconds, 0.5 * 2.0 ** min(failures, 10)))


class _Resource(msgspec.Struct):
    name: str = ""


class _Resources(msgspec.Struct):
    resources: list[_Resource] = msgspec.field(default_factory=list)


async def discover(api: Api) -> frozenset[OrderKind]:
    """Return the kinds whose status is a subresource (``podvolumebackups/status`` is served).

    Raises ``ClusterError`` if Velero's definitions are not installed at all.
    """
    try:
        body = await api.get(paths.VELERO)
    except ApiError as error:
        if error.status != GONE:
            raise
        raise _not_installed() from error
    names = {resource.name for resource in decode(body, _Resources, paths.VELERO).resources}
    if not {kind.plural for kind in OrderKind} <= names:
        raise _not_installed()
    return frozenset(kind for kind in OrderKind if f"{kind.plural}/status" in names)


def _not_installed() -> ClusterError:
    return ClusterError(
        "the API server does not serve velero.io/v1 PodVolumeBackups and -Restores: install Velero "
        "(velero install --crds-only) before the agent"
    )


class StatusDesk:
    """Claims, reports and ends the orders of one namespace.

    ``subresources`` are the kinds whose status has a door of its own (``discover``).
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        us: Owner,
        subresources: frozenset[OrderKind],
        clock: Clock | None = None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._us = us
        self._subresources = subresources
        self._clock = clock or Clock()

    async def read(self, order: Order) -> Order | None:
        """Return the object of that name as it is now, or None; raises ``ApiError``.

        A server that has just started serves no kinds of Velero's yet; no object is gone by that.
        """
        try:
            return parse(order.kind, await self._api.get(self._path(order)))
        except ApiError as error:
            if error.status == GONE and not error.unserved:
                return None
            raise

    async def claim(self, order: Order) -> Order | None:
        """Try to make an object ours; return it as claimed, or None if it was lost.

        Raises ``ApiError`` when the API server cannot be asked, or forbids it.
        """
        now = self._clock.timestamp()
        try:
            if order.kind not in self._subresources:
                return await self._write(order, patches.claim(order, self._us, now), RUNNING_PHASE)
            mark = patches.owner(order, self._us, now)
            marked = parse(order.kind, await self._api.patch(self._path(order), mark))
            return await self._write(marked, patches.start(marked, now), RUNNING_PHASE)
        except ApiError as error:
            if error.status not in (CONFLICT, GONE, 0):
                raise
            return await self._ours_after_all(order)

    async def _ours_after_all(self, order: Order) -> Order | None:
        """Look whether a claim whose answer was lost has arrived."""
        seen = await self.read(order)
        ours = seen is not None and seen.uid == order.uid and self._us.same(seen.owner)
        return seen if ours and seen is not None and seen.phase == RUNNING_PHASE else None

    async def progress(self, order: Order, total_bytes: int, done_bytes: int) -> Order | None:
        """Report; return the object as written, or as it is if it is not ours; None if gone.

        An object that somebody else has written to meanwhile is read and tried once more. One that
        has lost our claim, as after a restore of the API server's store, is claimed again.
        Raises ``ApiError``: a report that could not be sent is not worth waiting for.
        """
        for _ in range(2):
            path = self._path(order, status=True)
            patch = patches.progress(order, total_bytes, done_bytes)
            try:
                return parse(order.kind, await self._api.patch(path, patch, attempts=1))
            except ApiError as error:
                if error.status not in (CONFLICT, GONE):
                    raise
            seen = await self.read(order)
            if seen is None or seen.uid != order.uid:
                return None
            claimed, order = order, seen
            if not self._us.same(seen.owner) or seen.phase != RUNNING_PHASE:
                if self._ours(seen, claimed) and seen.phase in OPEN_PHASES:
                    order = await self.claim(seen) or seen
                break
        return order

    async def settle(self, order: Order, end: Final) -> bool:
        """End an object that nobody works on, if it has not changed since it was seen.

        Returns whether it is written; raises ``ApiError``.
        """
        patch = patches.final(order, end, self._clock.timestamp())
        return await _done(self._write(order, patch, end.phase))

    async def release(self, order: Order) -> bool:
        """Let the deletion of an object that has ended go on, if it is as it was seen.

        Returns whether Velero's finalizer is off; raises ``ApiError``.
        """
        return await _done(self._api.patch(self._path(order), patches.release(order)))

    async def finish(self, order: Order, end: Final, ending: Ending) -> bool | None:
        """Write the final state of our own claim, again and again until it is stored.

        Whatever stands in the way may be taken away: the API server comes back, a right is given,
        a webhook mended. So only the end of this process ends the trying. Returns False if the
        object is gone or somebody else's by now, None if the process's end came first: the object
        is then left for the next one.
        """
        now = self._clock.timestamp()
        for failures in itertools.count(1):
            wish = 0.0
            try:
                done = await self._finish_once(order, end, now)
                if done is not None:
                    return done
                why = "somebody else is writing to it"
            except ClusterError as error:
                why = str(error)
                wish = (isinstance(error, ApiError) and error.retry_after_seconds) or 0.0
            if ending.over:
                break
            LOG.warning("the final state of %s is not stored yet: %s", order.name, why)
            pause = self._clock.back_off(failures, LONGEST_PAUSE_SECONDS)
            await ending.pause(max(pause, min(wish, LONGEST_WISH_SECONDS)))
        return None

    async def _finish_once(self, order: Order, end: Final, now: str) -> bool | None:
        """Look, then write; None if it must be looked at again."""
        seen = await self.read(order)
        if seen is None or seen.uid != order.uid:
            return False
        if seen.final:
            stored = (seen.phase, seen.snapshot_id) == (end.phase, end.snapshot_id)
            return stored and self._ours(seen, order)
        if not self._ours(seen, order):
            return False
        try:
            await self._write(seen, patches.final(seen, end, now), end.phase)
        except ApiError as error:
            if error.status in (CONFLICT, GONE):
                return None
            raise
        return True

    def _ours(self, seen: Order, claimed: Order) -> bool:
        """Tell whether it is our claim that is seen, or what was there before it.

        A store that was restored has forgotten the claim: nobody's mark is there then, or that of
        the process that we had taken over from.
        """
        if seen.owner is None or self._us.same(seen.owner):
            return True
        return claimed.owner is not None and claimed.owner.succeeds(seen.owner)

    async def _write(self, order: Order, patch: Patch, phase: str) -> Order:
        """Send a patch that sets the phase and make sure that it arrived."""
        for _ in range(2):
            try:
                path = self._path(order, status=True)
                written = parse(order.kind, await self._api.patch(path, patch))
            except ApiError as error:
                behind = order.kind in self._subresources
                if error.status != GONE or not behind or await self._same_door(order.kind):
                    raise
                continue
            if written.phase == phase:
                return written
            if await self._same_door(order.kind):
                break
            patch = {
                **patch,
                "metadata": {**patch["metadata"], "resourceVersion": written.resource_version},
            }
        raise ClusterError(
            f"{order.kind.value} {order.name}: the API server accepted phase {phase} but did not store "
            "it; look for an admission webhook that changes its status"
        )

    async def _same_door(self, kind: OrderKind) -> bool:
        """Ask discovery again; return whether it still says the same of the kind."""
        before, self._subresources = self._subresources, await discover(self._api)
        return (kind in before) is (kind in self._subresources)

    def _path(self, order: Order, *, status: bool = False) -> str:
        """Return the object's path, or the one through which its status is written."""
        door = "status" if status and order.kind in self._subresources else ""
        return paths.velero(self._namespace, order.kind.plural, order.name, door)


async def _done(write: Awaitable[object]) -> bool:
    """Return whether a write is known to have arrived; not if the object was not as it was seen."""
    try:
        await write
    except ApiError as error:
        if error.status not in (CONFLICT, GONE, 0):
            raise
        return False
    return True
