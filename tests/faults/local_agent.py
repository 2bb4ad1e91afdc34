"""A whole agent in a process of its own, but that its S3 is a local directory and its packs are small.

A fork server has imported everything, so that a run costs a fork and no start of Python.
"""

import asyncio
import functools
import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar

from agent.budget import Rates
from agent.cluster import mover, restorer
from agent.cluster.assignment import Movers
from agent.cluster.mover import Means
from agent.cluster.restorer import give_back
from agent.cluster.run import run_agent
from agent.config import AgentSettings, CacheDir
from agent.monitor import Count
from agent.repository import opening, pack, writer
from agent.repository.scrypt import ScryptCost
from agent.storage.contract import Storage
from agent.storage.local import LocalStorage
from agent.storage.settings import S3Settings

PACK_BYTES = 128 << 10
FOREVER = 1 << 30

T = TypeVar("T")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def run(settings: AgentSettings, place: Path, wrapped: Callable[[Storage], Storage]) -> None:
    """Run until SIGTERM; what each repository is stored in is ``wrapped``."""

    def open_local(_: S3Settings, rates: Rates, count: Count) -> Storage:
        return wrapped(LocalStorage.create(place, rates))

    mover.open_s3 = restorer.open_s3 = open_local  # type: ignore[assignment]
    opening.ScryptCost = functools.partial(ScryptCost, n=16, r=1, p=1)  # type: ignore[misc, assignment]
    pack.TARGET_BYTES = writer.TARGET_BYTES = PACK_BYTES  # type: ignore[attr-defined]
    means = Means(CacheDir(settings.cache_dir, 64))
    back_up = functools.partial(mover.move, means=means)
    asyncio.run(run_agent(settings, Movers(back_up, functools.partial(give_back, means=means))))


def start(target: Callable[[T], None], plan: T) -> ForkServerProcess:
    """Call ``target`` with its plan in a new process."""
    process = _processes.Process(target=target, args=(plan,), daemon=True)
    process.start()
    return process
