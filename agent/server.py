"""What the outside may ask the agent: /metrics, /healthz, /readyz.

Healthy means that the event loop answers; an API server or a bucket that is down does not make
the agent unhealthy, because a restart would throw running backups away. Ready means that the
agent sees its work and takes it. What is counted is ``metrics``' business.
"""

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from agent.errors import UsageError

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of Prometheus' text format 0.0.4."""


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
