"""What the outside may ask the agent: /metrics, /healthz, /readyz.

Healthy means that the event loop answers; an API server or a bucket that is down does not make
the agent unhealthy, because a restart would throw running backups away. Ready means that the
agent sees its work and takes it. Labels are few and fixed: no names of objects.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from agent.errors import UsageError
from agent.monitor import Counters

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of Prometheus' text format 0.0.4."""


class WatchCounts(Protocol):
    """What is counted of one watch; it is read whenever somebody asks."""

    @property
    def lists(self) -> int:
        """Return how many lists were taken."""

    @property
    def ends(self) -> Mapping[str, int]:
        """Return how many watches ended, by reason."""


class OrderMetrics:
    """What is counted of one kind of order; ``noun`` is backup or restore."""

    def __init__(self, registry: CollectorRegistry, noun: str) -> None:
        kind = f"PodVolume{noun.capitalize()}s"
        name = f"podlift_{noun}s"
        self.enqueued = Counter(
            f"{name}_enqueued", f"{kind} of this node seen ready to begin", registry=registry
        )
        self.dequeued = Counter(f"{name}_dequeued", f"{kind} taken up", registry=registry)
        self.ended = Counter(name, f"{kind} ended, by result", ["result"], registry=registry)
        self.running = Gauge(f"{name}_running", f"{kind} at work now", registry=registry)


class Metrics:
    """The counters of one agent, in the registry that it was given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._watches = _WatchCollector()
        registry.register(self._watches)
        self.of = {noun: OrderMetrics(registry, noun) for noun in ("backup", "restore")}
        self.claims = Counter(
            "podlift_claims", "Claims tried, by result", ["result"], registry=registry
        )
        self.at_a_time = Gauge(
            "podlift_volumes_at_a_time", "Volumes that may be moved at a time", registry=registry
        )
        self.internal_errors = Counter(
            "podlift_internal_errors", "Bugs that one object met; see the log", registry=registry
        )
        self._bytes_read = Counter(
            "podlift_read_bytes", "Bytes read from volumes", registry=registry
        )
        self._bytes_uploaded = Counter(
            "podlift_uploaded_bytes", "Bytes uploaded and acknowledged", registry=registry
        )
        self._bytes_fetched = Counter(
            "podlift_fetched_bytes", "Bytes fetched from repositories to restore", registry=registry
        )
        self._bytes_restored = Counter(
            "podlift_restored_bytes", "Bytes of files given back to volumes", registry=registry
        )

    def count(self, noun: str, counters: Counters) -> None:
        """Add what one run has moved."""
        if noun == "restore":
            self._bytes_fetched.inc(counters.bytes_read)
            self._bytes_restored.inc(counters.bytes_done)
        else:
            self._bytes_read.inc(counters.bytes_read)
            self._bytes_uploaded.inc(counters.bytes_uploaded)

    def follow_watch(self, resource: str, counts: WatchCounts) -> None:
        """Expose how often watches of a resource ended, by reason, and how often it was listed."""
        self._watches.followed[resource] = counts


class _WatchCollector:
    def __init__(self) -> None:
        self.followed: dict[str, WatchCounts] = {}

    def collect(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "podlift_watch_ends", "Watches that ended, by reason", labels=["resource", "reason"]
        )
        listed = CounterMetricFamily("podlift_lists", "Full lists taken", labels=["resource"])
        for resource, counts in self.followed.items():
            for reason, count in counts.ends.items():
                ended.add_metric([resource, reason], count)
            listed.add_metric([resource], counts.lists)
        yield ended
        yield listed

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
