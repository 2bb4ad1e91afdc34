"""An agent that kills itself at a given call to the storage or to the API server.

It is a local agent (``local_agent``) with short times.
"""

import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cluster import work
from agent.cluster.client import Kube
from agent.config import AgentSettings
from agent.repository import locking, opening, uploads
from agent.storage.contract import Storage
from agent.storage.faults import Fault, Faulty
from agent.transfer import checkpoint
from tests.faults import local_agent
from tests.faults.local_agent import FOREVER

if TYPE_CHECKING:
    from tests.cluster.stage import Stage

SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """An agent's settings, where its repository is, and at which call it dies (0: it lives).

    It dies before the call is made, or ``after`` it was made and before the answer is seen.
    """

    settings: AgentSettings
    place: Path
    nth: int = 0
    after: bool = False


class Steps:
    """Counts every call; the one that is meant ends the process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._count = itertools.count(1)
        self._lock = threading.Lock()
        self._mine = threading.local()

    def before(self) -> bool:
        """Count a call; return whether the process is to die after it."""
        with self._lock:
            number = next(self._count)
        last = self._plan.nth + self._plan.after  # one that failed, or was not heard to its end
        if self._plan.nth and number >= last:
            os.kill(os.getpid(), signal.SIGKILL)
        return number == self._plan.nth

    def end(self, meant: bool) -> None:
        """Die if the call was the one."""
        if meant:
            os.kill(os.getpid(), signal.SIGKILL)

    def storage(self, storage: Storage) -> Storage:
        """Return a storage whose calls count."""

        def before() -> None:
            self._mine.meant = self.before()

        def after() -> None:
            self.end(self._mine.meant)

        calls = Fault("*", before, times=FOREVER), Fault("*", after, times=FOREVER, after=True)
        return Faulty(storage, *calls)

    def watch(self) -> None:
        """Count the calls to the API server."""
        attempt = Kube._attempt

        @functools.wraps(attempt)
        async def counted(kube: Kube, *asked: Any) -> bytes:
            meant = self.before()
            try:
                return await attempt(kube, *asked)
            finally:
                self.end(meant)

        Kube._attempt = counted  # type: ignore[method-assign]


def _run(plan: Plan) -> None:
    steps = Steps(plan)
    steps.watch()
    opening._KEY_WAIT_SECONDS = (0.01,)  # type: ignore[assignment]
    locking.SETTLE_SECONDS = opening.ABANDONED_SECONDS = 0.0
    work.SETTLE_SECONDS = 0.5
    uploads.INDEX_SECONDS = 0.05
    checkpoint.SECONDS, checkpoint._LOOK_SECONDS = 0.1, 0.01
    local_agent.run(plan.settings, plan.place, steps.storage)


def start(plan: Plan) -> ForkServerProcess:
    """Start an agent."""
    return local_agent.start(_run, plan)


def until_ended(
    stage: "Stage", name: str, plan: Plan, meanwhile: Callable[[], None] = lambda: None
) -> bool:
    """Run an agent until an object has ended; return True if the agent was killed before."""
    process = start(plan)
    deadline = time.monotonic() + SECONDS
    while process.is_alive() and "completionTimestamp" not in stage.status(name):
        assert time.monotonic() < deadline, f"{name} does not end: {stage.status(name)}"
        meanwhile()
        time.sleep(0.02)
    process.terminate()  # an agent that lives ends in good order
    process.join(SECONDS)
    assert process.exitcode in (0, -9, -15), process.exitcode  # -15: all was done at the start
    return process.exitcode == -9
