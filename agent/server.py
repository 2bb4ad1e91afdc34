"""What the outside may ask the agent: /metrics, /healthz, /readyz.

Healthy means that the event loop answers; an API server or a bucket that is down does not make
the agent unhealthy, because a restart would throw running backups away. Ready means that the
agent sees its work and takes it. Labels are few and fixed: no names of objects.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from agent.errors import UsageError

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of Prometheus' text format 0.0.4."""


class Metrics:
    """The counters of one agent, in the registry that it was given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.enqueued = Counter(
            "podlift_backups_enqueued", "PodVolumeBackups of this node seen new", registry=registry
        )
        self.dequeued = Counter(
            "podlift_backups_dequeued", "PodVolumeBackups taken up", registry=registry
        )
        self.claims = Counter(
            "podlift_claims", "Claims tried, by result", ["result"], registry=registry
        )
        self.backups = Counter(
            "podlift_backups", "PodVolumeBackups ended, by result", ["result"], registry=registry
        )
        self.bytes_read = Counter(
            "podlift_read_bytes", "Bytes read from volumes", registry=registry
        )
        self.bytes_uploaded = Counter(
            "podlift_uploaded_bytes", "Bytes uploaded and acknowledged", registry=registry
        )
        self.running = Gauge("podlift_backups_running", "Backups at work now", registry=registry)

    def follow_watch(self, ends: Mapping[str, int], lists: Callable[[], int]) -> None:
        """Expose how often watches ended, by reason, and how many lists were taken."""
        self.registry.register(_WatchCollector(ends, lists))


class _WatchCollector:
    def __init__(self, ends: Mapping[str, int], lists: Callable[[], int]) -> None:
        self._ends = ends
        self._lists = lists

    def collect(self) -> Iterator[Metric]:
        ends = CounterMetricFamily(
            "podlift_watch_ends", "Watches that ended, by reason", labels=["reason"]
        )
        for reason, count in self._ends.items():
            ends.add_metric([reason], count)
        yield ends
        yield CounterMetricFamily("podlift_lists", "Full lists taken", value=self._lists())

    def describe(self) -> Iterable[Metric]:
        return ()


@contextlib.asynccontextmanager
async def serve(
    address: tuple[str, int], registry: CollectorRegistry, not_ready: Callable[[], str]
) -> AsyncIterator[int]:
    """Serve while the scope lasts and yield the port; port 0 takes a free one.

    ``not_ready`` returns why the agent is not ready, or "". Raises ``UsageError`` if the
    address cannot be used.
    """

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": TEXT})

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = not_ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    app = web.Application()
    app.add_routes(
        [web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address[0], address[1])
        try:
            await site.start()
        except OSError as error:
            raise UsageError(
                f"metrics cannot be served at {address[0]}:{address[1]}: {error.strerror}; "
                "choose another --metrics-address"
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
