"""Writing a PodVolumeBackup's state, through whichever door the API server has.

Velero's own definition has no status subresource: there ``/status`` answers 404, with the same
words as for a deleted object (kubernetes.md section 0.2). Where somebody declared it, a status
in a patch of the main resource is dropped in silence. So discovery is asked first, and each
answer is checked: a phase that did not arrive, or a 404 for an object that is there, means that
the definition was changed meanwhile, and discovery is asked again.

Every write is a compare-and-swap. After an answer that was lost the object is read and looked
at, never written again blindly.
"""

import asyncio
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
from agent.cluster.patches import Final, Patch
from agent.cluster.pvb import PLURAL, Owner, Pvb, parse
from agent.errors import ApiError, ClusterError

LOG = logging.getLogger(__name__)

CONFLICT, GONE = 409, 404
REFUSED_FOR_GOOD = frozenset({400, 403, 405, 415, 422})


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


class _Resource(msgspec.Struct):
    name: str = ""


class _Resources(msgspec.Struct):
    resources: list[_Resource] = msgspec.field(default_factory=list)


async def discover(api: Api) -> bool:
    """Tell whether ``podvolumebackups/status`` is served.

    Raises ``ClusterError`` if Velero's definitions are not installed at all.
    """
    try:
        body = await api.get(paths.VELERO)
    except ApiError as error:
        if error.status != GONE:
            raise
        raise _not_installed() from error
    names = {resource.name for resource in decode(body, _Resources, paths.VELERO).resources}
    if PLURAL not in names:
        raise _not_installed()
    return f"{PLURAL}/status" in names


def _not_installed() -> ClusterError:
    return ClusterError(
        "the API server does not serve velero.io/v1 PodVolumeBackups: install Velero "
        "(velero install --crds-only) before the agent"
    )


class StatusDesk:
    """Claims, reports and ends PodVolumeBackups of one namespace."""

    def __init__(
        self, api: Api, namespace: str, us: Owner, *, subresource: bool, clock: Clock | None = None
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._us = us
        self._subresource = subresource
        self._clock = clock or Clock()

    async def read(self, name: str) -> Pvb | None:
        """Return the object as it is now, or None if it is gone; raises ``ApiError``."""
        try:
            return parse(await self._api.get(self._path(name)))
        except ApiError as error:
            if error.status == GONE:
                return None
            raise

    async def claim(self, pvb: Pvb) -> Pvb | None:
        """Try to make a new object ours; return it as claimed, or None if it was lost.

        Raises ``ApiError`` when the API server cannot be asked, or forbids it.
        """
        now = self._clock.timestamp()
        try:
            if not self._subresource:
                return await self._write(pvb, patches.claim(pvb, self._us, now), "InProgress")
            marked = parse(
                await self._api.patch(self._path(pvb.name), patches.owner(pvb, self._us))
            )
            return await self._write(marked, patches.start(marked, now), "InProgress")
        except ApiError as error:
            if error.status not in (CONFLICT, GONE, 0):
                raise
            return await self._ours_after_all(pvb)

    async def _ours_after_all(self, pvb: Pvb) -> Pvb | None:
        """Look whether a claim whose answer was lost has arrived."""
        seen = await self.read(pvb.name)
        ours = seen is not None and seen.uid == pvb.uid and seen.owner == self._us
        return seen if ours and seen is not None and seen.phase == "InProgress" else None

    async def progress(self, pvb: Pvb, total_bytes: int, done_bytes: int) -> Pvb | None:
        """Report; return the object as written, or as it is if it is not ours; None if gone.

        An object that somebody else has written to meanwhile is read and tried once more.
        Raises ``ApiError``: a report that could not be sent is not worth waiting for.
        """
        for _ in range(2):
            path = self._path(pvb.name, self._subresource)
            patch = patches.progress(pvb, total_bytes, done_bytes)
            try:
                return parse(await self._api.patch(path, patch, attempts=1))
            except ApiError as error:
                if error.status not in (CONFLICT, GONE):
                    raise
            seen = await self.read(pvb.name)
            if seen is None or seen.uid != pvb.uid:
                return None
            pvb = seen
            if pvb.owner != self._us or pvb.phase != "InProgress":
                break
        return pvb

    async def refuse(self, pvb: Pvb, message: str) -> bool:
        """End an object that nobody works on as Failed, if it has not changed since it was seen.

        Returns whether it is written; raises ``ApiError``.
        """
        patch = patches.final(pvb, patches.failed(message), self._clock.timestamp())
        try:
            await self._write(pvb, patch, "Failed")
        except ApiError as error:
            if error.status not in (CONFLICT, GONE, 0):
                raise
            return False
        return True

    async def finish(self, pvb: Pvb, end: Final, *, until: Callable[[], float]) -> bool:
        """Write the final state of our own claim, again and again until it is stored.

        ``until`` is asked each time for the deadline on the monotonic clock. Returns False if
        the object is gone or somebody else's by now; raises ``ApiError`` when the deadline is
        over or the state is refused for good.
        """
        now = self._clock.timestamp()
        failures = 0
        while True:
            try:
                done = await self._finish_once(pvb, end, now)
                if done is not None:
                    return done
            except ApiError as error:
                failures += 1
                if error.status in REFUSED_FOR_GOOD or self._clock.monotonic() >= until():
                    raise
                LOG.warning("the final state of %s is not stored yet: %s", pvb.name, error)
                pause = self._clock.chance(0.0, min(30.0, 0.5 * 2.0 ** min(failures, 10)))
                await self._clock.sleep(min(pause, max(0.0, until() - self._clock.monotonic())))

    async def _finish_once(self, pvb: Pvb, end: Final, now: str) -> bool | None:
        """Look, then write; None if it must be looked at again."""
        seen = await self.read(pvb.name)
        if seen is None or seen.uid != pvb.uid:
            return False
        if seen.final:
            stored = (seen.phase, seen.snapshot_id) == (end.phase, end.snapshot_id)
            return stored and seen.owner in (self._us, None)
        if seen.owner not in (self._us, None):
            return False
        try:
            await self._write(seen, patches.final(seen, end, now), end.phase)
        except ApiError as error:
            if error.status in (CONFLICT, GONE):
                return None
            raise
        return True

    async def _write(self, pvb: Pvb, patch: Patch, phase: str) -> Pvb:
        """Send a patch that sets the phase and make sure that it arrived."""
        for _ in range(2):
            try:
                path = self._path(pvb.name, self._subresource)
                written = parse(await self._api.patch(path, patch))
            except ApiError as error:
                if error.status != GONE or not self._subresource or await self._same_door():
                    raise
                continue
            if written.phase == phase:
                return written
            if await self._same_door():
                break
            patch = {
                **patch,
                "metadata": {**patch["metadata"], "resourceVersion": written.resource_version},
            }
        raise ClusterError(
            f"PodVolumeBackup {pvb.name}: the API server accepted phase {phase} but did not store "
            "it; look for an admission webhook that changes its status"
        )

    async def _same_door(self) -> bool:
        """Ask discovery again; return whether it still says the same."""
        before, self._subresource = self._subresource, await discover(self._api)
        return before is self._subresource

    def _path(self, name: str, subresource: bool = False) -> str:
        return paths.velero(self._namespace, PLURAL, name, "status" if subresource else "")
