"""Follows the node-agent ConfigMap, and tells the controller how many volumes to move at a time.

Velero's node-agent reads it when it starts; here a change takes effect at once, for what is claimed
from then on. A ConfigMap that cannot be read changes nothing, and is said. Without one, or without
the right to read it, the agent's own setting holds.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent.cluster import paths
from agent.cluster.client import decode
from agent.cluster.concurrency import LoadConcurrency, read_concurrency
from agent.cluster.objects import ConfigMap, Named
from agent.cluster.secrets import Getter
from agent.cluster.watch import Pace
from agent.errors import ApiError, ClusterError

LOG = logging.getLogger(__name__)

PACE = Pace(first_delay_seconds=10.0, longest_delay_seconds=900.0)
"""An agent without the right to read it is refused for ever: seldom enough not to fill a log."""


def parse_config_map(body: bytes | msgspec.Raw) -> ConfigMap:
    """Read a ConfigMap; raises ``ClusterError``."""
    return decode(body, ConfigMap, "a ConfigMap")


class Tuning:
    """The sink of the ConfigMap's watch; ``run`` carries out what follows from it."""

    def __init__(
        self, api: Getter, node: str, otherwise: int, allow: Callable[[int], None]
    ) -> None:
        """Serve ``node``; ``otherwise`` volumes at a time where nothing says more."""
        self._api = api
        self._node = node
        self._otherwise = otherwise
        self._allow = allow
        self._wanted = LoadConcurrency()
        self._allowed = otherwise
        self._moved = asyncio.Event()

    def replace(self, objects: Sequence[ConfigMap]) -> None:
        """Take the ConfigMap, or that there is none."""
        if objects:
            self.changed(objects[0])
        else:
            self._take(LoadConcurrency())

    def changed(self, found: ConfigMap) -> None:
        """Take a new content of the ConfigMap."""
        what = f"ConfigMap {found.metadata.namespace}/{found.metadata.name}"
        try:
            self._take(read_concurrency(found, what))
        except ClusterError as error:
            LOG.error("%s; %d at a time as before", error, self._allowed)

    def deleted(self, _gone: ConfigMap) -> None:
        """Return to the agent's own setting."""
        self._take(LoadConcurrency())

    def _take(self, wanted: LoadConcurrency) -> None:
        self._wanted = wanted
        self._moved.set()  # also if it is what it was: the node's labels may have changed

    async def run(self) -> None:
        """Carry out what was observed, for ever."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            wanted = self._wanted
            labels = await self._labels() if wanted.rules else None
            volumes = wanted.volumes(labels, self._otherwise)
            if volumes != self._allowed:
                LOG.info("%d volumes at a time from now on (were %d)", volumes, self._allowed)
            self._allowed = volumes
            self._allow(volumes)

    async def _labels(self) -> Mapping[str, str] | None:
        """Return the node's labels, or None if they cannot be had: rules then mean nothing."""
        try:
            path = paths.node(self._node)
            node = decode(await self._api.get(path), Named, f"node {self._node}")
        except (ApiError, ClusterError) as error:
            LOG.warning("loadConcurrency's rules for nodes are left out: %s", error)
            return None
        return node.metadata.labels or {}
