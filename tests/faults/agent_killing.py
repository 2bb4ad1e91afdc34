"""An agent that kills itself at a given call to the storage or to the API server.

It is the whole agent, but that its S3 is a local directory and its times are short. A fork server has
imported everything, so that a run costs a fork and no start of Python.
"""

import asyncio
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from agent.cluster import mover
from agent.cluster.assignment import Movers
from agent.cluster.client import Kube
from agent.cluster.restorer import give_back
from agent.cluster.run import run_agent
from agent.config import AgentSettings, CacheDir
from agent.repository import locking, opening, pack, uploads, writer
from agent.repository.keyfile import ScryptCost
from agent.storage.contract import Storage
from agent.storage.faults import Fault, Faulty
from agent.storage.local import LocalStorage
from agent.storage.settings import S3Settings
from agent.transfer import checkpoint

PACK_BYTES = 128 << 10
FOREVER = 1 << 30

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


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

    def open_local(_: S3Settings) -> Storage:
        return steps.storage(LocalStorage.create(plan.place))

    mover.open_s3 = open_local  # type: ignore[assignment]
    opening.ScryptCost = functools.partial(ScryptCost, n=16, r=1, p=1)  # type: ignore[misc, assignment]
    pack.TARGET_BYTES = writer.TARGET_BYTES = PACK_BYTES  # type: ignore[attr-defined]
    uploads.INDEX_SECONDS = 0.05
    locking.SETTLE_SECONDS = opening.ABANDONED_SECONDS = 0.0
    opening._KEY_WAIT_SECONDS = (0.01,)  # type: ignore[assignment]
    checkpoint.SECONDS, checkpoint._LOOK_SECONDS = 0.1, 0.01
    back_up = functools.partial(mover.move, cache=CacheDir(plan.settings.cache_dir, 64))
    asyncio.run(run_agent(plan.settings, Movers(back_up, give_back)))


def start(plan: Plan) -> ForkServerProcess:
    """Start an agent."""
    process = _processes.Process(target=_run, args=(plan,), daemon=True)
    process.start()
    return process
