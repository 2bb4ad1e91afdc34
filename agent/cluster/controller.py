"""Observe, decide, act: the agent's loop over all orders that may be for its node.

What was observed is kept in one table; whenever it changes, or something ends, each object is
decided upon afresh by ``claim.decide`` and the decision is carried out by one task an object.
Nothing is remembered that the API server does not say, but which objects are being worked on.
Objects that wait for room, or for their pod, are simply left new, so that they stay free for
another attempt. Backups and restores share the room.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Sequence

from agent.cluster import claim, patches
from agent.cluster.ended import EndedTable
from agent.cluster.event import Reason
from agent.cluster.order import Order, OrderKind, Owner
from agent.cluster.patches import Final
from agent.cluster.pods import PodTable
from agent.cluster.site import HERE, Site, Where
from agent.cluster.work import Bench, Result, Work
from agent.errors import ClusterError
from agent.logs import working_on
from agent.metrics import Metrics, OrderMetrics

LOG = logging.getLogger(__name__)

AGAIN_SECONDS = 15.0
"""After a failed request, and between two looks at another owner's pod."""

STRANGER_SECONDS = (60.0, 180.0)
"""How long an object of no living node, such as a copy from another cluster, may be held up in its
deletion before anybody releases it."""


class KindSink:
    """What the watch of one kind tells the controller."""

    def __init__(self, controller: "Controller", kind: OrderKind) -> None:
        self._controller = controller
        self._kind = kind

    def replace(self, objects: Sequence[Order]) -> None:
        """Take a full list of the kind."""
        self._controller.replace(self._kind, objects)

    def changed(self, order: Order) -> None:
        """Take one observation."""
        self._controller.changed(order)

    def deleted(self, order: Order) -> None:
        """Take a deletion."""
        self._controller.deleted(order)


class Controller:
    """The table of objects and the tasks at work; each kind's watch has a sink of it."""

    def __init__(
        self, bench: Bench, policy: claim.Policy, concurrency: int, metrics: Metrics
    ) -> None:
        self._bench = bench
        self._policy = policy
        self._metrics = metrics
        metrics.expect(Result)
        self.pods = PodTable(bench.us.node, bench.clock, self._pods_moved)
        self._known: dict[str, Order] = {}
        self._ended = EndedTable()
        self._counted: set[str] = set()
        self._waiting: dict[str, OrderKind] = {}  # ready, and not claimed yet
        self._works: dict[str, Work] = {}
        self._worked = False
        self._writing: set[str] = set()
        self._strangers: set[str] = set()  # detained restores whose pods have not been seen here
        self._not_before: dict[str, float] = {}
        self._alive: dict[str, tuple[str, bool]] = {}
        self._words: dict[str, str] = {}
        self._wake = asyncio.Event()
        self.allow(concurrency)

    def replace(self, kind: OrderKind, objects: Sequence[Order]) -> None:
        """Take a full list of one kind; what is not in it exists no more."""
        present = {order.uid for order in objects}
        known = {uid for uid, order in self._known.items() if order.kind is kind}
        working = {uid for uid, work in self._works.items() if work.order.kind is kind}
        for uid in (known | working) - present:
            self._forget(uid)
        for order in objects:
            self.changed(order)

    def changed(self, order: Order) -> None:
        """Take one observation."""
        if work := self._works.get(order.uid):
            with self._guarded(order):
                work.observe(order, self._site(order))
        theirs = order.kind is OrderKind.BACKUP and order.node != self._bench.us.node
        if order.detained:
            self._detained(order, theirs)
        elif theirs or order.final:
            self._drop(order.uid)
        else:
            self._known[order.uid] = order
            if order.uid not in self._ended:
                self._not_before.pop(order.uid, None)
            elif order.uid not in self._not_before:
                self._later(order.uid)  # late events are over by then
        self._wake.set()

    def _detained(self, order: Order, theirs: bool) -> None:
        """Have an object that has ended released: at once if it is ours, else by one of many."""
        self._known[order.uid] = order
        unseen = not theirs and self._site(order).where in (Where.ELSEWHERE, Where.ASK)
        if unseen:
            self._strangers.add(order.uid)
        else:
            self._strangers.discard(order.uid)
        if not (theirs or unseen):
            self._not_before.pop(order.uid, None)
        elif order.uid not in self._not_before:
            clock = self._bench.clock
            self._not_before[order.uid] = clock.monotonic() + clock.chance(*STRANGER_SECONDS)

    def deleted(self, order: Order) -> None:
        """Take a deletion; work on the object is stopped."""
        self._forget(order.uid)
        self._ended.take(order.uid)

    def _drop(self, uid: str) -> None:
        self._known.pop(uid, None)
        self._not_before.pop(uid, None)
        self._alive.pop(uid, None)
        self._words.pop(uid, None)
        self._counted.discard(uid)
        self._waits_no_more(uid)
        self._strangers.discard(uid)
        self.pods.forget(uid)

    def _forget(self, uid: str) -> None:
        self._drop(uid)
        if work := self._works.get(uid):
            work.abandon(f"the {work.order.kind.value} was deleted")

    def _site(self, order: Order) -> Site:
        return self.pods.site(order) if order.kind is OrderKind.RESTORE else HERE

    def _pods_moved(self) -> None:
        """Look at every restore again: its pod may have come, or gone."""
        for work in self._works.values():
            with self._guarded(work.order):
                work.observe(work.order, self._site(work.order))
        for uid in self._strangers & self._known.keys():
            with self._guarded(order := self._known[uid]):
                self._detained(order, theirs=False)
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Tell whether no task is at work."""
        return not self._works and not self._writing

    def allow(self, volumes: int) -> None:
        """Have so many volumes at work at a time from now on; what runs beyond that goes on."""
        self._concurrency = volumes
        self._metrics.at_a_time.set(volumes)
        self._wake.set()

    def shut_down(self, reason: str) -> None:
        """Claim nothing more, and ask everything at work to end."""
        self._bench.shutdown.ask()
        for work in self._works.values():
            work.shut_down(reason)
        self._wake.set()

    async def run(self) -> None:
        """Decide and act until the shutdown was asked for and all work has ended."""
        async with asyncio.TaskGroup() as tasks:
            while not (self._bench.shutdown.asked and self.idle):
                self.dispatch(tasks)
                if self._worked and not self._works:
                    self._worked = False
                    self._bench.rest()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_SECONDS):
                        await self._wake.wait()
                self._wake.clear()

    def dispatch(self, tasks: asyncio.TaskGroup) -> None:
        """Decide on every object once, the oldest first, and start what follows from it."""
        if self._bench.shutdown.asked:
            return
        now = self._bench.clock.monotonic()
        for order in sorted(self._known.values(), key=lambda order: (order.created, order.name)):
            free = order.uid not in self._works and order.uid not in self._writing
            if free and self._not_before.get(order.uid, now) <= now:
                with self._guarded(order):
                    self._act(order, tasks)

    def _decide(self, order: Order) -> claim.Decision:
        looked_up, alive = self._alive.get(order.uid, ("", False))
        known = order.owner is not None and looked_up == order.owner.attempt
        view = claim.View(owner_alive=alive if known else None, site=self._site(order))
        return claim.decide(order, self._bench.us, self._policy, view)

    def _act(self, order: Order, tasks: asyncio.TaskGroup) -> None:
        self._waits_no_more(order.uid)
        if order.uid in self._ended and not order.final:
            self._start(tasks, order, self._end_again(order), "end again")
            return
        decision = self._decide(order)
        if isinstance(decision, claim.Claim):
            self._begin(order, tasks)
        elif isinstance(decision, claim.FailAtOnce | claim.FailOrphan):
            end = patches.failed(decision.message)
            self._start(tasks, order, self._settle(order, end, Result.REFUSED), "refuse")
        elif isinstance(decision, claim.CompleteOrphan):
            end = patches.restored_before(order)
            self._start(tasks, order, self._settle(order, end, Result.COMPLETED), "complete")
        elif isinstance(decision, claim.Release):
            self._start(tasks, order, self._release(order), "release")
        elif isinstance(decision, claim.AskOwner):
            self._start(tasks, order, self._look_up(order), "owner of")
        elif isinstance(decision, claim.AskPod):
            self._start(tasks, order, self._look_up_pod(order), "pod of")
        elif isinstance(decision, claim.Wait):
            self._word(order, f"waits: {decision.reason}")
        elif isinstance(decision, claim.Ignore):
            self._leave(order, decision.reason)

    def _begin(self, order: Order, tasks: asyncio.TaskGroup) -> None:
        """Start the work if there is room; what only tells its end takes none."""
        if order.uid not in self._counted:
            self._counted.add(order.uid)
            self._metrics.enqueued(order.kind.noun)
        self._waiting[order.uid] = order.kind
        self._counts(order).waiting.inc()
        if sum(work.end is None for work in self._works.values()) < self._concurrency:
            work = self._works[order.uid] = Work(order, self._bench)
            tasks.create_task(self._work_on(work), name=f"work on {order.name}")
        else:
            self._word(order, "waits: for room (--concurrency, loadConcurrency)")

    def _waits_no_more(self, uid: str) -> None:
        if kind := self._waiting.pop(uid, None):
            self._metrics.of[kind.noun].waiting.dec()

    def _leave(self, order: Order, reason: str) -> None:
        """Leave an object as it is; if it is this node's and has not ended, say why."""
        if not order.final and self._site(order).where is not Where.ELSEWHERE:
            self._word(order, f"is left as it is: {reason}")
        if order.uid in self._alive:
            del self._alive[order.uid]  # a living owner is looked up again after a while
            self._later(order.uid)

    def _word(self, order: Order, words: str) -> None:
        """Say once why nothing is done about an object."""
        if self._words.get(order.uid) != words:
            self._words[order.uid] = words
            LOG.info("%s: %s", order.name, words)

    def _start(
        self, tasks: asyncio.TaskGroup, order: Order, act: Coroutine[None, None, None], what: str
    ) -> None:
        """Do something short for an object, about which nothing is decided meanwhile."""

        async def guarded() -> None:
            try:
                with self._guarded(order):
                    await act
            finally:
                self._writing.discard(order.uid)
                self._wake.set()

        self._writing.add(order.uid)
        tasks.create_task(guarded(), name=f"{what} {order.name}")

    @contextlib.contextmanager
    def _guarded(self, order: Order) -> Iterator[None]:
        """Let what fails for one object be tried again later, and the others go on."""
        with working_on(order.kind.value, order.name):
            try:
                yield
            except ClusterError as error:
                LOG.error("%s: %s", order.name, error)
                self._later(order.uid)
            except Exception:
                # The edge of what is done for one object: a bug in it must not take others down.
                LOG.exception("%s: internal error; report this", order.name)
                self._metrics.internal_errors.inc()
                self._later(order.uid)

    def _counts(self, order: Order) -> OrderMetrics:
        return self._metrics.of[order.kind.noun]

    async def _work_on(self, work: Work) -> None:
        order = work.order
        try:
            with self._metrics.at_work(order.kind.noun, work.monitor), self._guarded(order):
                await self._worked_on(work)
        finally:
            work.abandon("its task has ended")  # whatever a bug has left running
            self._works.pop(order.uid, None)
            self._worked = True
            self._wake.set()

    async def _worked_on(self, work: Work) -> None:
        order, counts = work.order, self._counts(work.order)
        won = await work.claimed()
        self._metrics.claims.labels("won" if won else "lost").inc()
        self._waits_no_more(order.uid)
        if not won:
            await self._read_again(order)
            return
        again = claim.standing(order) is claim.Standing.RUNNING
        LOG.info("%s: claimed%s", order.name, " again" if again else "")
        counts.dequeued.inc()
        counts.resumed.inc(again)
        result = await work.run()
        counts.ended.labels(result.value).inc()
        if result in (Result.COMPLETED, Result.PARTIAL):
            self._metrics.completed(order.kind.noun, work.seconds)
        if result is Result.LOST:
            await self._read_again(order)
        elif result is not Result.LEFT:
            self._close(work.order, work.end)

    async def _settle(self, order: Order, end: Final, result: Result) -> None:
        if await self._bench.desk.settle(order, end):
            LOG.warning("%s: %s: %s", order.name, end.phase, end.message)
            self._told(order, end)
            self._counts(order).ended.labels(result.value).inc()
            self._close(order, None)
        else:
            await self._read_again(order)

    def _told(self, order: Order, end: Final) -> None:
        failed = end.phase == "Failed"
        reason = Reason.FAILED if failed else Reason.COMPLETED
        self._bench.events.tell(order, reason, end.words, warning=failed)

    async def _release(self, order: Order) -> None:
        if await self._bench.desk.release(order):
            LOG.info("%s: Velero's finalizer is off, its deletion goes on", order.name)
            self._drop(order.uid)
        else:
            await self._read_again(order)

    async def _end_again(self, order: Order) -> None:
        """Look whether what had ended is unfinished indeed, and if so, end it as before."""
        seen = await self._bench.desk.read(order)
        if seen is None or seen.uid != order.uid:
            self._drop(order.uid)
            return
        if seen.final:
            self.changed(seen)
            return
        ended = self._ended.take(order.uid)
        if ended is not None and ended.end is not None:
            LOG.warning("%s: it had ended and has not any more: its end is told again", order.name)
            done = await self._bench.desk.finish(ended.order, ended.end, self._bench.shutdown)
            if done:
                self._close(ended.order, ended.end)
                return
        await self._read_again(order)

    async def _look_up(self, order: Order) -> None:
        owner = order.owner or Owner()
        self._alive[order.uid] = (owner.attempt, await self._bench.owner_alive(owner))

    async def _look_up_pod(self, order: Order) -> None:
        self.pods.learn(order, await self._bench.look_up(order))

    async def _read_again(self, order: Order) -> None:
        """After a lost race: see how things are now, never write again blindly."""
        seen = await self._bench.desk.read(order)
        if seen is None or seen.uid != order.uid:
            self._drop(order.uid)
        else:
            self.changed(seen)

    def _close(self, order: Order, end: Final | None) -> None:
        """Expect nothing more of an object, whatever late events say."""
        self._ended.add(order, end)
        known = self._known.get(order.uid)
        if known is None or not known.final:  # one that is final is seen as it ended, and detained
            self._drop(order.uid)

    def _later(self, uid: str) -> None:
        self._not_before[uid] = self._bench.clock.monotonic() + AGAIN_SECONDS
