"""A backup of long directories in a process that kills itself at a given call of its storage.

Imported once by a fork server, so that a run costs a fork and no start of Python.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from agent.cancel import NEVER
from agent.config import CacheDir
from agent.monitor import Monitor
from agent.repository import locking, pack, writer
from agent.repository.opening import open_repository
from agent.storage.faults import Fault, Faulty
from agent.storage.local import LocalStorage
from agent.transfer.job import Request, Result, run_backup
from tests.repository.making import PASSWORD
from tests.support.longdirs import lower_limits

PACK_BYTES = 32 << 10
SECONDS = 60.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


class Places(NamedTuple):
    """What a run works with."""

    volume: Path
    repository: Path
    cache: Path


def back_up(places: Places, *faults: Fault) -> Result:
    """Back up with low limits and small packs; for a process of its own."""
    lower_limits()
    locking.SETTLE_SECONDS = 0.0
    pack.TARGET_BYTES = writer.TARGET_BYTES = PACK_BYTES  # type: ignore[attr-defined]
    storage = Faulty(LocalStorage(places.repository), *faults)
    repository = open_repository(storage, PASSWORD, cache=CacheDir(places.cache))
    path = str(places.volume)
    monitor = Monitor()
    result = run_backup(
        repository, Request(path, (path,), "host", {}, lambda *_: None), monitor, NEVER
    )
    assert monitor.problems == []
    return result


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run(places: Places, nth: int, after: bool) -> None:
    back_up(places, *([Fault("put", _die, nth=nth, after=after)] if nth else []))
    sys.exit(0)


def killed_at(places: Places, nth: int, *, after: bool = False) -> bool:
    """Run with a kill at the n-th object that is stored, 0 for none; tell whether there was one."""
    process = _processes.Process(target=_run, args=(places, nth, after))
    process.start()
    process.join(SECONDS)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0
