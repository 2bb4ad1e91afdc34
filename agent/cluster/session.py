"""One conversation of a command with the API server: connect, work, and close whatever happens."""

from collections.abc import Awaitable, Callable

from agent.cluster.client import Kube, T
from agent.cluster.credentials import credentials
from agent.config import ClusterAccess


async def connected(access: ClusterAccess, work: Callable[[Kube], Awaitable[T]]) -> T:
    """Return what ``work`` makes of a connection; raises ``ClusterError``."""
    kube = await Kube.connect(credentials(access))
    try:
        return await work(kube)
    finally:
        await kube.close()
