"""Following: all PodVolumeBackups and -Restores of a cluster, listed once, or kept in step by watches."""

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence

from agent.cancel import CancelToken
from agent.cluster import paths
from agent.cluster.client import Kube
from agent.cluster.order import Order, OrderKind, parse
from agent.cluster.session import connected
from agent.cluster.watch import Collection, Watcher
from agent.config import ClusterSettings

LOOK_SECONDS = 0.1
"""How soon a request to stop is heard."""

Show = Callable[[Sequence[Order]], None]


class OrderTable:
    """The objects of one kind, as a watch tells of them."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}

    @property
    def orders(self) -> Sequence[Order]:
        """Return all of them."""
        return list(self._orders.values())

    def replace(self, objects: Sequence[Order]) -> None:
        """Take a full list."""
        self._orders = {order.uid: order for order in objects}

    def changed(self, order: Order) -> None:
        """Take one observation."""
        self._orders[order.uid] = order

    def deleted(self, order: Order) -> None:
        """Take a deletion."""
        self._orders.pop(order.uid, None)


def list_orders(settings: ClusterSettings) -> list[Order]:
    """Return every backup and restore of Velero's namespace; raises ``ClusterError``."""

    async def ask(kube: Kube) -> list[Order]:
        return _all((await _listed(settings.namespace, kube)).values())

    return asyncio.run(connected(settings.access, ask))


def follow_orders(
    settings: ClusterSettings, show: Show, cancel: CancelToken, every_seconds: float
) -> None:
    """Show all of them again and again until the token is canceled.

    Raises ``ClusterError`` if the first look fails; later ones wait for an API server that is away.
    """

    async def follow(kube: Kube) -> None:
        tables = await _listed(settings.namespace, kube)
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = [
                    tasks.create_task(_watcher(settings.namespace, kube, kind, table).run())
                    for kind, table in tables.items()
                ]
                await _shown(tables.values(), show, cancel, every_seconds)
                for each in watching:
                    each.cancel()
        except BaseExceptionGroup as failed:  # of output that is gone the command line knows more
            raise failed.exceptions[0] from None

    asyncio.run(connected(settings.access, follow))


async def _listed(namespace: str, kube: Kube) -> dict[OrderKind, OrderTable]:
    tables = {kind: OrderTable() for kind in OrderKind}
    for kind, table in tables.items():
        page = await kube.list(paths.velero(namespace, kind.plural))
        table.replace([parse(kind, item) for item in page.items])
    return tables


def _all(tables: Iterable[OrderTable]) -> list[Order]:
    return [order for table in tables for order in table.orders]


def _watcher(namespace: str, kube: Kube, kind: OrderKind, table: OrderTable) -> Watcher[Order]:
    path = paths.velero(namespace, kind.plural)
    return Watcher(kube, Collection(path, functools.partial(parse, kind)), table)


async def _shown(
    tables: Iterable[OrderTable], show: Show, cancel: CancelToken, every_seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not cancel.canceled:
        if loop.time() >= due:
            show(_all(tables))
            due = loop.time() + every_seconds
        await asyncio.sleep(LOOK_SECONDS)
