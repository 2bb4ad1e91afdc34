"""An agent that runs in the test's own event loop, with a mover that is a fake."""

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agent.cluster.assignment import Movers
from agent.cluster.client import Kube
from agent.cluster.credentials import KubeconfigCredentials
from agent.cluster.run import Agent
from agent.cluster.status import discover
from tests.cluster.fakemover import FakeMover
from tests.cluster.scene import NO_TIME, until
from tests.cluster.stage import Stage


class Running:
    def __init__(self, agent: Agent, stop: asyncio.Event) -> None:
        self.agent = agent
        self.stop = stop

    def ask(self, what: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.agent.port}/{what}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextlib.asynccontextmanager
async def agent_on(stage: Stage, mover: FakeMover, **changes: Any) -> AsyncIterator[Running]:
    settings = stage.settings(**changes)
    kube = await Kube.connect(KubeconfigCredentials(Path(stage.server.kubeconfig)), NO_TIME)
    private = stage.cache / "private"
    try:
        agent = Agent(kube, settings, Movers(mover, mover), await discover(kube), private)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.run(stop))
            try:
                yield Running(agent, stop)
            finally:
                mover.go_on.set()
                stop.set()
    finally:
        await kube.close()


async def ready(running: Running) -> None:
    await until(lambda: running.agent.port and running.ask("readyz")[0] == 200, "readiness")
