"""Objects, agents and waits that the cluster tests share."""

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from agent.cluster import paths
from agent.cluster.client import Kube, Patience
from agent.cluster.credentials import KubeconfigCredentials
from agent.cluster.order import Order, OrderKind, Owner, parse
from agent.cluster.shutdown import Shutdown
from agent.cluster.status import Clock, StatusDesk
from agent.cluster.watch import Collection
from tests.support.apihandle import ApiServer, Json

NODE = "node-1"
DEADLINE_SECONDS = 20.0
NO_TIME = Patience(first_seconds=0.01, longest_seconds=0.05)
_names = itertools.count(1)


def pvb_object(name: str = "", **changes: Any) -> Json:
    """A PodVolumeBackup as Velero's server writes it; ``spec`` fields by keyword."""
    spec = {
        "node": NODE,
        "pod": {"kind": "Pod", "namespace": "app", "name": "db-0", "uid": "pod-uid-1"},
        "volume": "data",
        "backupStorageLocation": "default",
        "repoIdentifier": "s3:https://s3.example.org/bucket/velero/restic/app",
        "uploaderType": "restic",
        "tags": {"backup": "nightly", "ns": "app"},
        **changes,
    }
    return {
        "apiVersion": "velero.io/v1",
        "kind": "PodVolumeBackup",
        "metadata": {"name": name or f"nightly-{next(_names)}"},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def pvr_object(name: str = "", **changes: Any) -> Json:
    """A PodVolumeRestore as Velero's server writes it; ``spec`` fields by keyword."""
    obj = pvb_object(name, **{"snapshotID": "5a" * 32, "sourceNamespace": "app", **changes})
    for of_backups in ("node", "tags"):
        del obj["spec"][of_backups]
    reference = {"apiVersion": "velero.io/v1", "kind": "Restore", "name": "back"}
    owners = [{**reference, "uid": "restore-uid", "controller": True}]
    return {
        **obj,
        "kind": "PodVolumeRestore",
        "metadata": {**obj["metadata"], "ownerReferences": owners},
    }


def create_pvb(server: ApiServer, name: str = "", **changes: Any) -> Json:
    return server.create(server.path("podvolumebackups"), pvb_object(name, **changes))


def read_pvb(server: ApiServer, name: str) -> Json:
    return server.get(server.path("podvolumebackups", name))


def owner(number: int = 1, node: str = NODE) -> Owner:
    return Owner(node=node, pod=f"agent-{number}", pod_uid=f"uid-{number}", attempt=f"try-{number}")


@contextlib.asynccontextmanager
async def connection(server: ApiServer, patience: Patience = NO_TIME) -> AsyncIterator[Kube]:
    kube = await Kube.connect(KubeconfigCredentials(Path(server.kubeconfig)), patience)
    try:
        yield kube
    finally:
        await kube.close()


def desk(kube: Kube, server: ApiServer, us: Owner, *, subresource: bool) -> StatusDesk:
    quick = Clock(chance=lambda low, high: min(high, 0.02))
    kinds = frozenset(OrderKind) if subresource else frozenset[OrderKind]()
    return StatusDesk(kube, server.namespace, us, kinds, clock=quick)


def ending(grace_seconds: float = 60.0, *, asked: bool = False) -> Shutdown:
    """The end of a process, which nobody has asked for yet."""
    shutdown = Shutdown(Clock(), grace_seconds)
    if asked:
        shutdown.ask()
    return shutdown


def backups_of(server: ApiServer) -> Collection[Order]:
    """What the agent watches for backups."""
    path = paths.velero(server.namespace, OrderKind.BACKUP.plural)
    return Collection(path, functools.partial(parse, OrderKind.BACKUP), f"spec.node={NODE}")


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition that another process brings about; blocking calls are fine in it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = await asyncio.to_thread(condition)
        if found:
            return found
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


class Ledger:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.events: list[tuple[str, str]] = []

    def replace(self, objects: Sequence[Order]) -> None:
        self.lists.append(sorted(pvb.name for pvb in objects))

    def changed(self, pvb: Order) -> None:
        self.events.append(("changed", pvb.name))

    def deleted(self, pvb: Order) -> None:
        self.events.append(("deleted", pvb.name))
