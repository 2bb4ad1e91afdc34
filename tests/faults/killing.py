"""Forget and prune in a process that kills itself at a given call of its storage.

Imported once by a fork server, so that a run costs a fork and no start of Python.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository import locking
from agent.repository.forget import remove_named
from agent.repository.opening import open_repository
from agent.repository.prune import plan_prune, run_prune
from agent.repository.pruneplan import PruneOptions, Tolerance
from agent.storage.faults import Fault, Faulty, Operation
from agent.storage.local import LocalStorage
from tests.repository.making import PASSWORD

TIDY = PruneOptions(max_unused=Tolerance(bytes=0))
SECONDS = 60.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forget_and_prune(place: Path, ids: list[str], *faults: Fault) -> list[tuple[str, str]]:
    """Do what `podlift forget --prune` does; return the storage's calls."""
    locking.SETTLE_SECONDS = 0.0
    storage = Faulty(LocalStorage(place), *faults)
    repository = open_repository(storage, PASSWORD)
    with repository.locked(exclusive=True) as lock:
        remove_named(repository, lock, ids, NEVER)
        plan = plan_prune(repository, TIDY, Monitor(), NEVER)
        run_prune(repository, lock, plan, Monitor(), NEVER)
    return storage.calls


def _run(place: Path, ids: list[str], operation: Operation, nth: int, after: bool) -> None:
    forget_and_prune(place, ids, Fault(operation, _die, nth=nth, after=after))
    sys.exit(0)


def killed_at(
    place: Path, ids: list[str], operation: Operation, nth: int, *, after: bool = False
) -> bool:
    """Run with a kill at the n-th call; return False if it ended before there was one."""
    process = _processes.Process(target=_run, args=(place, ids, operation, nth, after))
    process.start()
    process.join(SECONDS)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0
