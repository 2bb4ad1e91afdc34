"""The agent as a process: connect, watch, work, and end in good order.

A start that cannot succeed (no access, no Velero) ends with its error, since nothing can be
lost yet. Once it runs, nothing that the API server does ends it. SIGTERM and SIGINT make it
not ready, stop it from claiming, and leave what runs to the next agent, all within the grace time.
"""

import asyncio
import contextlib
import functools
import logging
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from agent.allocator import return_memory
from agent.cluster import claim, paths
from agent.cluster.assignment import Movers
from agent.cluster.client import Kube
from agent.cluster.controller import Controller, KindSink
from agent.cluster.credentials import credentials
from agent.cluster.events import CLOSING_SECONDS, Events
from agent.cluster.order import OrderKind, Owner, parse
from agent.cluster.pods import parse_pod
from agent.cluster.preparation import Preparation, pod_alive
from agent.cluster.private import private_folder
from agent.cluster.secrets import PrivateFiles
from agent.cluster.shutdown import Shutdown
from agent.cluster.status import Clock, StatusDesk, discover
from agent.cluster.tuning import PACE, Tuning, parse_config_map
from agent.cluster.watch import Collection, Watcher
from agent.cluster.work import Bench
from agent.config import AgentSettings
from agent.errors import ApiError
from agent.metrics import Metrics
from agent.server import serve

LOG = logging.getLogger(__name__)

SILENCE_SECONDS = 2100.0
"""Without a sign of the API server for longer than any relist interval: not ready."""

STOPPED = "the agent on node {node} was stopped; the next one goes on from what is stored"


async def run_agent(settings: AgentSettings, movers: Movers) -> int:
    """Run until SIGTERM or SIGINT; returns 0.

    Raises ``ClusterError`` or ``UsageError`` if the agent cannot start.
    """
    kube = await Kube.connect(credentials(settings.access))
    try:
        subresources = await _first_contact(kube, settings.startup_seconds)
        with private_folder() as private:
            agent = Agent(kube, settings, movers, subresources, private)
            stop = asyncio.Event()
            with _signals(stop):
                await agent.run(stop)
    finally:
        await kube.close()
    return 0


async def _first_contact(kube: Kube, patience_seconds: float) -> frozenset[OrderKind]:
    """Ask discovery until the API server answers; an answer that says no is final."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return await discover(kube)
        except ApiError as error:
            refused = error.status == 401 or not error.passing
            if refused or time.monotonic() >= deadline:
                raise
            LOG.warning("%s", error)
            await asyncio.sleep(min(2.0, max(0.0, deadline - time.monotonic())))


class Agent:
    """All parts of one running agent."""

    def __init__(
        self,
        kube: Kube,
        settings: AgentSettings,
        movers: Movers,
        subresources: frozenset[OrderKind],
        private: Path,
    ) -> None:
        self._settings = settings
        self.port = 0
        """Where metrics are served, once they are."""
        self._registry = CollectorRegistry()
        metrics, us, clock = Metrics(self._registry, settings.node_name), _owner(settings), Clock()
        self._shutdown = Shutdown(clock, settings.grace_seconds)
        self._events = Events(kube, us, clock)
        preparation = Preparation(kube, settings, PrivateFiles(private))
        bench = Bench(
            desk=StatusDesk(kube, settings.namespace, us, subresources, clock),
            events=self._events,
            us=us,
            prepare=preparation.assignment,
            refresh=preparation.refresh,
            movers=movers,
            look_up=preparation.site,
            owner_alive=lambda owner: pod_alive(kube, settings.namespace, owner.pod, owner.pod_uid),
            clock=clock,
            shutdown=self._shutdown,
            rest=return_memory,
            deadline_seconds=settings.deadline_seconds,
        )
        policy = claim.Policy(settings.uploader_types, settings.other_uploader_types)
        self._controller = Controller(bench, policy, settings.concurrency, metrics)
        self._follow(kube, metrics)

    def _follow(self, kube: Kube, metrics: Metrics) -> None:
        self._watchers = self._followed(kube)
        otherwise = self._settings.concurrency
        node = self._settings.node_name
        self._tuning = Tuning(kube, node, otherwise, self._controller.allow)
        self._tuned_by = self._config_map_watcher(kube)
        for resource, watcher in {**self._watchers, "configmaps": self._tuned_by}.items():
            metrics.follow_watch(resource, watcher.counts)
        metrics.follow_ready(self._not_ready)

    def _followed(self, kube: Kube) -> dict[str, Watcher[Any]]:
        """Return the watches that readiness depends on, by what they follow."""
        if self._settings.restores == "ignore":
            LOG.info("restores are left to others (--restores)")
            return {OrderKind.BACKUP.plural: self._order_watcher(kube, OrderKind.BACKUP)}
        orders = {kind.plural: self._order_watcher(kube, kind) for kind in OrderKind}
        return {"pods": self._pod_watcher(kube), **orders}

    def _order_watcher(self, kube: Kube, kind: OrderKind) -> Watcher[Any]:
        path = paths.velero(self._settings.namespace, kind.plural)
        selector = f"spec.node={self._settings.node_name}" if kind is OrderKind.BACKUP else ""
        collection = Collection(path, functools.partial(parse, kind), selector)
        return Watcher(kube, collection, KindSink(self._controller, kind))

    def _pod_watcher(self, kube: Kube) -> Watcher[Any]:
        selector = f"spec.nodeName={self._settings.node_name}"
        return Watcher(kube, Collection(paths.PODS, parse_pod, selector), self._controller.pods)

    def _config_map_watcher(self, kube: Kube) -> Watcher[Any]:
        """Return a watch that readiness does not depend on: nothing is lost without it."""
        name = paths.checked(self._settings.node_agent_configmap, "ConfigMap")
        path = paths.core(self._settings.namespace, "configmaps")
        collection = Collection(path, parse_config_map, f"metadata.name={name}")
        return Watcher(kube, collection, self._tuning, PACE)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set, then end within the grace time."""
        address = self._settings.metrics_address
        async with serve(address, self._registry, self._not_ready) as port:
            LOG.info("node %s: serving metrics on port %d", self._settings.node_name, port)
            self.port = port
            await self._until(stop)

    async def _until(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            following = [*self._watchers.values(), self._tuned_by]
            watching = [tasks.create_task(each.run()) for each in following]
            watching.append(tasks.create_task(self._tuning.run()))
            watching.append(tasks.create_task(self._events.run()))
            working = tasks.create_task(self._controller.run())
            await stop.wait()
            LOG.info("stopping: what runs is left to the next agent, backups with a checkpoint")
            self._controller.shut_down(STOPPED.format(node=self._settings.node_name))
            _, late = await asyncio.wait({working}, timeout=self._settings.grace_seconds)
            if late:
                LOG.error("the grace time is over before every final state was stored")
                working.cancel()
            await self._events.close(self._shutdown.left(CLOSING_SECONDS))
            for each in watching:
                each.cancel()

    def _not_ready(self) -> str:
        if self._shutdown.asked:
            return "stopping"
        for resource, watcher in self._watchers.items():
            if watcher.progress_at is None:
                return f"the first list of {resource} has not been read yet"
            if time.monotonic() - watcher.progress_at > SILENCE_SECONDS:
                return f"the API server has been silent about {resource} for too long"
        return ""


def _owner(settings: AgentSettings) -> Owner:
    return Owner(
        node=settings.node_name,
        pod=settings.pod_name,
        pod_uid=settings.pod_uid,
        attempt=uuid.uuid4().hex,
    )


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
