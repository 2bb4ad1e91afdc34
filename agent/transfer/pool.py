"""Pools of threads behind a budget of bytes.

The one shape of concurrency in a transfer: whoever submits work says what it weighs, and waits
while the pool holds as much as it may. So memory is bounded by arithmetic, not by luck, and a
slow stage slows the stages before it. The first failure in any pool of a run ends the run.
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from agent.cancel import Run
from agent.threads import Threads

_WAIT_SLICE_SECONDS = 0.5

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """Threads that work off tasks; at most ``budget()`` bytes of tasks are queued or running.

    While fewer than ``at_least()`` tasks are queued or running, one more is taken whatever it weighs. That is for
    tasks whose memory is there anyhow, in the hands of who brings them.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        threads: int,
        budget: Callable[[], int],
        at_least: Callable[[], int] = lambda: 0,
    ) -> None:
        self._run = run
        self._budget = budget
        self._at_least = at_least
        self._held = 0
        self._tasks = 0
        self._freed = threading.Condition()
        self._executor = Threads(threads, name)

    def submit(
        self, weight: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Queue work; wait while there is no room. A task heavier than the budget weighs all of it.

        Every task weighs something: what is held tells whether any is left to wait for.
        """
        weight = max(weight, 1)
        with self._freed:
            while self._held + (weight := min(weight, budget := self._budget())) > budget:
                if self._tasks < self._at_least():
                    break
                self._run.check()
                self._freed.wait(_WAIT_SLICE_SECONDS)
            self._held += weight
            self._tasks += 1
        try:
            self._run.check()
            future = self._executor.submit(work, *args, **kwargs)
        except BaseException:
            self._free(weight)
            raise
        future.add_done_callback(lambda done: self._done(done, weight))
        return future

    def _done(self, future: concurrent.futures.Future[T], weight: int) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._run.fail(error)
        self._free(weight)

    def _free(self, weight: int) -> None:
        with self._freed:
            self._held -= weight
            self._tasks -= 1
            self._freed.notify_all()

    @property
    def idle(self) -> bool:
        """Tell whether every task has ended."""
        with self._freed:
            return not self._held

    def wait_idle(self) -> None:
        """Wait until every task has ended; raise the run's failure."""
        with self._freed:
            while self._held:
                self._run.check()
                self._freed.wait(_WAIT_SLICE_SECONDS)
        self._run.check()

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._executor.shutdown(wait=True, cancel_futures=True)
