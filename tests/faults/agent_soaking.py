"""An agent whose storage fails at random: every kind of fault, before a call and after it."""

import asyncio
import functools
import multiprocessing
import random
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from agent.cluster import mover
from agent.cluster.assignment import Movers
from agent.cluster.restorer import give_back
from agent.cluster.run import run_agent
from agent.config import AgentSettings, CacheDir
from agent.errors import Throttled, Unreachable
from agent.repository import opening, pack, uploads, writer
from agent.repository.keyfile import ScryptCost
from agent.storage.contract import Storage
from agent.storage.faults import Fault, Faulty
from agent.storage.local import LocalStorage
from agent.storage.retry import Retrying, RetryPolicy
from agent.storage.settings import S3Settings
from agent.transfer import checkpoint

FOREVER = 1 << 30
PATIENCE = RetryPolicy(
    first_seconds=0.01,
    longest_seconds=0.1,
    throttled_first_seconds=0.02,
    throttled_longest_seconds=0.2,
)

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Weather:
    """An agent's settings, where the repository is, and how much goes wrong, from a seed."""

    settings: AgentSettings
    place: Path
    seed: int
    part: float = 0.04


def stormy(storage: Storage, weather: Weather) -> Storage:
    """Return a storage of which a part of the calls fails, stalls, or loses its reply."""
    draw = random.Random(weather.seed)

    def strike() -> None:
        if draw.random() < weather.part:
            kind = draw.randrange(4)
            if kind == 0:
                raise Throttled("a test: slow down")
            if kind == 1:
                time.sleep(0.2)
            else:
                raise Unreachable("a test: the connection was reset")

    before = Fault("*", strike, times=FOREVER)
    after = Fault("*", strike, times=FOREVER, after=True)
    return Retrying(Faulty(storage, before, after), PATIENCE)


def _run(weather: Weather) -> None:
    def open_stormy(_: S3Settings) -> Storage:
        return stormy(LocalStorage.create(weather.place), weather)

    mover.open_s3 = open_stormy  # type: ignore[assignment]
    opening.ScryptCost = functools.partial(ScryptCost, n=16, r=1, p=1)  # type: ignore[misc, assignment]
    opening.ABANDONED_SECONDS, opening.ABANDONED_LOOK_SECONDS = 10.0, 0.2
    pack.TARGET_BYTES = writer.TARGET_BYTES = 128 << 10  # type: ignore[attr-defined]
    uploads.INDEX_SECONDS = 0.3
    checkpoint.SECONDS, checkpoint._LOOK_SECONDS = 0.3, 0.02
    back_up = functools.partial(mover.move, cache=CacheDir(weather.settings.cache_dir, 64))
    asyncio.run(run_agent(weather.settings, Movers(back_up, give_back)))


def start(weather: Weather) -> ForkServerProcess:
    """Start an agent."""
    process = _processes.Process(target=_run, args=(weather,), daemon=True)
    process.start()
    return process
