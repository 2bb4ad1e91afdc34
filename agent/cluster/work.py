"""One claimed order, from the claim to its final state.

The bytes move in a thread of their own; here the event loop waits for it, reports progress and
hears of cancellation. Whatever happens in between, a claim that is still ours ends in exactly
one final state, which is written until it is stored. There is one exception: what the agent's own end
interrupts is left as it is, for the next agent. A backup makes a checkpoint first, from which it
will go on; a restore begins anew, and its pod waits for that.
"""

import asyncio
import contextlib
import enum
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.cancel import CancelToken
from agent.cluster import claim, patches
from agent.cluster.assignment import Assignment, BackupAssignment, Movers, Outcome
from agent.cluster.event import Reason
from agent.cluster.events import Events
from agent.cluster.order import Order, OrderKind, Owner
from agent.cluster.patches import Final
from agent.cluster.progress import LEAST_SECONDS, ProgressRule
from agent.cluster.shutdown import RESERVED_SECONDS, Shutdown
from agent.cluster.site import HERE, Site, Where
from agent.cluster.status import Clock, StatusDesk
from agent.errors import ApiError, Canceled, ClusterError, PodliftError
from agent.monitor import Monitor
from agent.threads import within_context

LOG = logging.getLogger(__name__)

SETTLE_SECONDS = 3.0
"""Before a restore is begun again. The kubelet looks at containers every second and tells at once that
one has ended; into the volume of a pod that was let go nothing may be written."""

REFRESH_SECONDS = 60.0
"""How often a Secret is looked at while its credentials are in use, as the kubelet does for mounts."""

PREPARE_SECONDS = 5.0
"""The longest pause between two tries to begin while the API server is away."""


class Result(enum.StrEnum):
    """How one order ended, as a metric's label."""

    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"  # the claim went to somebody else, or the object is gone
    LEFT = "left"  # to the next agent, by one that was stopped
    REFUSED = "refused"  # nothing was done: it cannot be served, or was given up


REASONS = {
    Result.COMPLETED: Reason.COMPLETED,
    Result.PARTIAL: Reason.COMPLETED,
    Result.FAILED: Reason.FAILED,
    Result.CANCELED: Reason.CANCELED,
}
"""What is told of an end that was stored."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every order is worked on with.

    ``refresh`` brings newer credentials to whoever works on an assignment. ``look_up`` asks the API
    server for the site of a restore whose pod was never seen here. ``rest`` is called on the event
    loop when work has ended and nothing more waits for its turn.
    """

    desk: StatusDesk
    events: Events
    us: Owner
    prepare: Callable[[Order], Awaitable[Assignment]]
    refresh: Callable[[Assignment], Awaitable[None]]
    movers: Movers
    look_up: Callable[[Order], Awaitable[Site]]
    owner_alive: Callable[[Owner], Awaitable[bool]]
    clock: Clock
    shutdown: Shutdown
    tick_seconds: float = LEAST_SECONDS
    rest: Callable[[], None] = lambda: None
    deadline_seconds: float = float("inf")


class Work:
    """Runs once; ``observe`` and ``stop`` may be called at any time on the event loop."""

    def __init__(self, order: Order, bench: Bench) -> None:
        self._order = order
        self._bench = bench
        self._token = CancelToken()
        self._abandoned = False
        self._leaving = False
        self._moving = False
        self._late = False
        self._began = bench.clock.monotonic()
        self._end: Final | None = None
        self.monitor = Monitor()

    @property
    def order(self) -> Order:
        """Return the object as it was seen last."""
        return self._order

    @property
    def seconds(self) -> float:
        """Return how long ago the work began."""
        return self._bench.clock.monotonic() - self._began

    @property
    def end(self) -> Final | None:
        """Return how it ended, which may not be stored yet; None while it is at work."""
        return self._end

    def stop(self, reason: str) -> None:
        """Ask the work to end as canceled."""
        self._token.cancel(reason)

    def shut_down(self, reason: str) -> None:
        """Ask the work to end because the agent does; a backup gets time for a checkpoint."""
        self._leaving = not self._token.canceled
        if self._order.kind is OrderKind.BACKUP and self._moving:
            self._token.wind_down(reason)
        else:
            self.stop(reason)

    def observe(self, order: Order, site: Site = HERE) -> None:
        """Act on a new observation of our own object, or of a restore's pod."""
        view = claim.View(held=True, site=site)
        decision = claim.decide(order, self._bench.us, claim.Policy(), view)
        if isinstance(decision, claim.Cancel):
            if not self._token.canceled:
                self._tell(Reason.CANCELING, decision.reason)
            self.stop(decision.reason)
        elif isinstance(decision, claim.Abandon):
            self.abandon(decision.reason)

    def abandon(self, reason: str) -> None:
        """Stop the work and leave the object alone: it is not ours any more."""
        self._abandoned = True
        self._token.cancel(reason)

    async def run(self) -> Result:
        """Work on the claimed object and end it."""
        end, result = await self._work()
        if self._abandoned:
            LOG.warning("%s: stopped: %s", self._order.name, self._token.reason)
            return Result.LOST
        if self._leaving and result is Result.CANCELED:
            LOG.info("%s: left in progress for the next agent", self._order.name)
            self._tell(Reason.STOPPED, self._token.reason)
            return Result.LEFT
        self._end = end
        stored = await self._bench.desk.finish(self._order, end, self._bench.shutdown)
        if stored is None:
            LOG.error("%s: its end is left for the next agent to tell", self._order.name)
            return Result.LEFT
        LOG.info("%s: %s %s %s", self._order.name, end.phase, end.snapshot_id, end.message)
        if not stored:
            return Result.LOST
        self._tell(REASONS[result], end.words, warning=result in (Result.PARTIAL, Result.FAILED))
        return result

    def _tell(self, reason: Reason, message: str, *, warning: bool = False) -> None:
        self._bench.events.tell(self._order, reason, message, warning=warning)

    async def claimed(self) -> bool:
        """Try to claim the object; raises ``ClusterError``."""
        won = await self._bench.desk.claim(self._order)
        if won is None:
            return False
        self._order = won
        return True

    async def _work(self) -> tuple[Final, Result]:
        try:
            if self._restores_again:
                await self._settled()
            assignment = await self._prepared()
            self._token.check()
            outcome = await self._move(assignment)
        except PodliftError as error:
            if self._restores_again and await self._was_done():
                return patches.restored_before(self._order), Result.COMPLETED
            if self._late:
                return self._failed(self._token.reason)
            if self._token.canceled or isinstance(error, Canceled):
                reason = self._token.reason or str(error)
                return patches.failed(f"canceled: {reason}"), Result.CANCELED
            return self._failed(str(error))
        if isinstance(assignment, BackupAssignment):
            if not outcome.snapshot_id:
                return self._failed("the data path returned no snapshot; report this")
            message = _problems(outcome, "left out")
            message = "; ".join(filter(None, (message, assignment.warning)))
            end = patches.completed(
                outcome.snapshot_id,
                assignment.reported_path,
                outcome.size_bytes,
                outcome.incremental_bytes,
                message,
            )
        else:
            end = patches.restored(outcome.size_bytes, _problems(outcome, "not restored in full"))
        return end, Result.PARTIAL if outcome.problems else Result.COMPLETED

    @property
    def _restores_again(self) -> bool:
        return self._order.kind is OrderKind.RESTORE and self._order.resumed

    async def _settled(self) -> None:
        """Wait until what is known of the pod is true."""
        clock = self._bench.clock
        until = clock.monotonic() + SETTLE_SECONDS
        while (left := until - clock.monotonic()) > 0:
            await self._bench.shutdown.pause(min(1.0, left))
            self._token.check()

    async def _was_done(self) -> bool:
        """Tell whether the pod was let go, so that who began the restore had come to its end."""
        while not (self._abandoned or self._bench.shutdown.asked):
            try:
                return (await self._bench.look_up(self._order)).where is Where.DONE
            except ApiError as error:
                if not error.passing:
                    return False
                LOG.warning("%s: its pod cannot be looked at yet: %s", self._order.name, error)
            await self._bench.shutdown.pause(self._bench.clock.chance(0.0, PREPARE_SECONDS))
        return False

    def _failed(self, why: str) -> tuple[Final, Result]:
        text = f"data path {self._order.kind.noun} failed: {why}"
        return patches.failed(text), Result.FAILED

    async def _prepared(self) -> Assignment:
        """Prepare, and wait for an API server that is away: it says nothing against the work."""
        for failures in itertools.count(1):
            try:
                return await self._bench.prepare(self._order)
            except PodliftError as error:
                if not (isinstance(error, ApiError) and error.passing):
                    raise
                LOG.warning("%s: cannot be begun yet: %s", self._order.name, error)
            except Exception as error:
                # The edge of a task: a bug in one order must not take the others down.
                LOG.exception("%s: the preparation broke", self._order.name)
                raise _internal(error) from error
            pause = self._bench.clock.back_off(failures, PREPARE_SECONDS)
            await self._bench.shutdown.pause(pause)
            self._end_if_late()
            self._token.check()
        raise AssertionError("unreachable")

    async def _move(self, assignment: Assignment) -> Outcome:
        running = _in_thread(self._bench.movers, assignment, self.monitor, self._token)
        self._moving = True
        again = " again, where an earlier agent has left it" if self._order.resumed else ""
        self._tell(
            Reason.STARTED,
            f"{self._order.kind.noun} of volume {self._order.volume} of "
            f"{self._order.pod} begins{again}",
        )
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._accompany(assignment))
            in_time = await self._ended(running)
            telling.cancel()
        if not in_time:
            running.cancel()
            raise Canceled(self._token.reason)
        return running.result()

    async def _ended(self, running: asyncio.Future[Outcome]) -> bool:
        """Wait for the mover; return False if the grace time does not suffice for that."""
        while True:
            done, _ = await asyncio.wait({running}, timeout=self._bench.tick_seconds)
            if done:
                return True
            deadline, patience = self._bench.shutdown.deadline(), self._bench.shutdown.patience()
            if deadline is None or patience is None:
                self._end_if_late()
                continue
            now = self._bench.clock.monotonic()
            if now >= patience:
                self.stop(self._token.reason)
            if now >= deadline - RESERVED_SECONDS:
                return False

    async def _accompany(self, assignment: Assignment) -> None:
        """Report and refresh beside the mover, whose end no slow API server may hold up."""
        rule = ProgressRule()
        clock = self._bench.clock
        refresh_at = clock.monotonic() + REFRESH_SECONDS
        while True:
            await asyncio.sleep(self._bench.tick_seconds)
            if self._token.canceled or self._bench.shutdown.asked:
                return
            await self._report(rule)
            if clock.monotonic() >= refresh_at:
                await self._refresh(assignment)
                refresh_at = clock.monotonic() + REFRESH_SECONDS

    def _end_if_late(self) -> None:
        seconds = self._bench.deadline_seconds
        if self.seconds > seconds and not self._token.canceled:
            self._late = True
            self._token.cancel(
                f"not done within {seconds:g} seconds (--deadline-seconds); what is stored already"
                " is not sent again, so look at the speed of storage and volume and start again"
            )

    async def _refresh(self, assignment: Assignment) -> None:
        try:
            await self._bench.refresh(assignment)
        except ClusterError as error:
            LOG.info("%s: credentials were not refreshed: %s", self._order.name, error)

    async def _report(self, rule: ProgressRule) -> None:
        counters = self.monitor.counters
        now = self._bench.clock.monotonic()
        report = rule.due(now, counters.bytes_total, counters.bytes_done)
        if report is None:
            return
        self._bench.events.progress(self._order, report.total_bytes, report.done_bytes)
        try:
            seen = await self._bench.desk.progress(
                self._order, report.total_bytes, report.done_bytes
            )
        except ClusterError as error:
            LOG.info("%s: progress was not reported: %s", self._order.name, error)
            return
        if seen is None:
            self.abandon(f"the {self._order.kind.value} was deleted")
            return
        self._order = seen
        self.observe(seen)


def _problems(outcome: Outcome, what: str) -> str:
    names = outcome.problem_names
    return patches.problems_message(outcome.problems, names, outcome.message, what=what)


def _internal(error: BaseException) -> ClusterError:
    return ClusterError(f"internal error {type(error).__name__}: {error}; report this")


def _in_thread(
    movers: Movers, assignment: Assignment, monitor: Monitor, token: CancelToken
) -> asyncio.Future[Outcome]:
    """Start the move in a daemon thread: a stalled one must not hold up the process's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def settle(outcome: Outcome | None, error: PodliftError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif outcome is not None:
            future.set_result(outcome)

    def work() -> None:
        outcome: Outcome | None = None
        failure: PodliftError | None = None
        try:
            outcome = movers.move(assignment, monitor, token)
        except PodliftError as error:
            failure = error
        except BaseException as error:
            # The edge of a thread: a bug in one order must not take the others down. A panic of
            # a library in Rust is no Exception; unheard, it would leave the order running for ever.
            LOG.exception("%s: the data path broke", assignment.name)
            failure = _internal(error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, outcome, failure)

    threading.Thread(
        target=within_context(work), name=f"move-{assignment.name}", daemon=True
    ).start()
    return future
