"""An agent whose storage fails at random: every kind of fault, before a call and after it."""

import random
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from agent.config import AgentSettings
from agent.errors import Throttled, Unreachable
from agent.repository import opening, uploads
from agent.storage.contract import Storage
from agent.storage.faults import Fault, Faulty
from agent.storage.retry import Retrying, RetryPolicy
from agent.transfer import checkpoint
from tests.faults import local_agent
from tests.faults.local_agent import FOREVER

PATIENCE = RetryPolicy(
    first_seconds=0.01,
    longest_seconds=0.1,
    throttled_first_seconds=0.02,
    throttled_longest_seconds=0.2,
)


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
    opening.ABANDONED_SECONDS, opening.ABANDONED_LOOK_SECONDS = 10.0, 0.2
    uploads.INDEX_SECONDS = 0.3
    checkpoint.SECONDS, checkpoint._LOOK_SECONDS = 0.3, 0.02
    local_agent.run(weather.settings, weather.place, lambda storage: stormy(storage, weather))


def start(weather: Weather) -> ForkServerProcess:
    """Start an agent."""
    return local_agent.start(_run, weather)
