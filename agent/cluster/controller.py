"""Observe, decide, act: the agent's loop over all PodVolumeBackups of its node.

What was observed is kept in one table; whenever it changes, or something ends, each object is
decided upon afresh by ``claim.decide`` and the decision is carried out by one task an object.
Nothing is remembered that the API server does not say, but which objects are being worked on.
Objects that wait for room are simply left new, so that they stay free for another attempt.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from agent.cluster import claim
from agent.cluster.backup import Backup, Bench
from agent.cluster.pvb import Owner, Pvb
from agent.errors import ClusterError
from agent.server import Metrics

LOG = logging.getLogger(__name__)

AGAIN_SECONDS = 15.0
"""After a failed request, and between two looks at another owner's pod."""


class Controller:
    """The table of objects and the tasks at work; a watch's sink."""

    def __init__(
        self, bench: Bench, policy: claim.Policy, concurrency: int, metrics: Metrics
    ) -> None:
        self._bench = bench
        self._policy = policy
        self._concurrency = concurrency
        self._metrics = metrics
        self._known: dict[str, Pvb] = {}
        self._ended: set[str] = set()
        self._counted: set[str] = set()
        self._backups: dict[str, Backup] = {}
        self._writing: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._alive: dict[str, tuple[str, bool]] = {}
        self._wake = asyncio.Event()

    def replace(self, objects: Sequence[Pvb]) -> None:
        """Take a full list; what is not in it exists no more."""
        present = {pvb.uid for pvb in objects}
        for uid in self._known.keys() - present:
            self._forget(uid)
        self._ended &= present
        for pvb in objects:
            self.changed(pvb)

    def changed(self, pvb: Pvb) -> None:
        """Take one observation."""
        if backup := self._backups.get(pvb.uid):
            backup.observe(pvb)
        if pvb.node != self._bench.us.node or pvb.final or pvb.uid in self._ended:
            self._drop(pvb.uid)
        else:
            self._known[pvb.uid] = pvb
            self._not_before.pop(pvb.uid, None)
        self._wake.set()

    def deleted(self, pvb: Pvb) -> None:
        """Take a deletion; work on the object is stopped."""
        self._forget(pvb.uid)
        self._ended.discard(pvb.uid)

    def _drop(self, uid: str) -> None:
        self._known.pop(uid, None)
        self._not_before.pop(uid, None)
        self._alive.pop(uid, None)
        self._counted.discard(uid)

    def _forget(self, uid: str) -> None:
        self._drop(uid)
        if backup := self._backups.get(uid):
            backup.abandon("the PodVolumeBackup was deleted")

    @property
    def idle(self) -> bool:
        """Tell whether no task is at work."""
        return not self._backups and not self._writing

    def shut_down(self, reason: str) -> None:
        """Claim nothing more, and ask everything at work to end."""
        self._bench.shutdown.ask()
        for backup in self._backups.values():
            backup.stop(reason)
        self._wake.set()

    async def run(self) -> None:
        """Decide and act until the shutdown was asked for and all work has ended."""
        async with asyncio.TaskGroup() as tasks:
            while not (self._bench.shutdown.asked and self.idle):
                self.dispatch(tasks)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_SECONDS):
                        await self._wake.wait()
                self._wake.clear()

    def dispatch(self, tasks: asyncio.TaskGroup) -> None:
        """Decide on every object once, the oldest first, and start what follows from it."""
        if self._bench.shutdown.asked:
            return
        now = self._bench.clock.monotonic()
        for pvb in sorted(self._known.values(), key=lambda pvb: (pvb.created, pvb.name)):
            free = pvb.uid not in self._backups and pvb.uid not in self._writing
            if free and self._not_before.get(pvb.uid, now) <= now:
                self._act(pvb, self._decide(pvb), tasks)

    def _decide(self, pvb: Pvb) -> claim.Decision:
        looked_up, alive = self._alive.get(pvb.uid, ("", False))
        known = pvb.owner is not None and looked_up == pvb.owner.attempt
        view = claim.View(owner_alive=alive if known else None)
        return claim.decide(pvb, self._bench.us, self._policy, view)

    def _act(self, pvb: Pvb, decision: claim.Decision, tasks: asyncio.TaskGroup) -> None:
        if isinstance(decision, claim.Claim):
            if pvb.uid not in self._counted:
                self._counted.add(pvb.uid)
                self._metrics.enqueued.inc()
            if len(self._backups) < self._concurrency:
                backup = self._backups[pvb.uid] = Backup(pvb, self._bench)
                tasks.create_task(self._back_up(backup), name=f"backup {pvb.name}")
        elif isinstance(decision, claim.FailAtOnce | claim.FailOrphan):
            self._writing.add(pvb.uid)
            tasks.create_task(self._refuse(pvb, decision.message), name=f"refuse {pvb.name}")
        elif isinstance(decision, claim.AskOwner):
            self._writing.add(pvb.uid)
            tasks.create_task(self._look_up(pvb), name=f"owner of {pvb.name}")
        elif isinstance(decision, claim.Ignore):
            self._alive.pop(pvb.uid, None)  # a living owner is looked up again after a while
            self._not_before[pvb.uid] = self._bench.clock.monotonic() + AGAIN_SECONDS

    async def _back_up(self, backup: Backup) -> None:
        uid, name = backup.pvb.uid, backup.pvb.name
        self._metrics.running.inc()
        try:
            won = await backup.claimed()
            self._metrics.claims.labels("won" if won else "lost").inc()
            if not won:
                await self._read_again(uid, name)
                return
            LOG.info("%s: claimed", name)
            self._metrics.dequeued.inc()
            result = await backup.run()
            self._metrics.backups.labels(result.value).inc()
            self._close(uid)
        except ClusterError as error:
            LOG.error("%s: %s", name, error)
            self._later(uid)
        finally:
            counters = backup.monitor.counters
            self._metrics.bytes_read.inc(counters.bytes_read)
            self._metrics.bytes_uploaded.inc(counters.bytes_uploaded)
            self._metrics.running.dec()
            self._backups.pop(uid, None)
            self._wake.set()

    async def _refuse(self, pvb: Pvb, message: str) -> None:
        try:
            if await self._bench.desk.refuse(pvb, message):
                LOG.warning("%s: Failed: %s", pvb.name, message)
                self._metrics.backups.labels("refused").inc()
                self._close(pvb.uid)
            else:
                await self._read_again(pvb.uid, pvb.name)
        except ClusterError as error:
            LOG.error("%s could not be ended: %s", pvb.name, error)
            self._later(pvb.uid)
        finally:
            self._writing.discard(pvb.uid)
            self._wake.set()

    async def _look_up(self, pvb: Pvb) -> None:
        owner = pvb.owner or Owner()
        try:
            alive = await self._bench.owner_alive(owner)
            self._alive[pvb.uid] = (owner.attempt, alive)
        except ClusterError as error:
            LOG.warning("%s: whether its agent still runs is not known: %s", pvb.name, error)
            self._later(pvb.uid)
        finally:
            self._writing.discard(pvb.uid)
            self._wake.set()

    async def _read_again(self, uid: str, name: str) -> None:
        """After a lost race: see how things are now, never write again blindly."""
        seen = await self._bench.desk.read(name)
        if seen is None or seen.uid != uid:
            self._drop(uid)
        else:
            self.changed(seen)

    def _close(self, uid: str) -> None:
        """Expect nothing more of an object, whatever late events say."""
        self._ended.add(uid)
        self._drop(uid)

    def _later(self, uid: str) -> None:
        self._not_before[uid] = self._bench.clock.monotonic() + AGAIN_SECONDS
