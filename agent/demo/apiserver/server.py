"""The stand-in as a whole: an API server on loopback with TLS, tokens and a kubeconfig.

``Server`` runs in the caller's event loop; ``Standin`` runs one in a thread of its own, so that
tests may block on it. Objects outlive ``stop`` and ``start``, which is what a restart is.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from agent.demo.apiserver import core, velero
from agent.demo.apiserver.faults import Faults
from agent.demo.apiserver.http import Api, Seen
from agent.demo.apiserver.registry import Registry
from agent.demo.apiserver.store import Store
from agent.demo.apiserver.watches import Limits
from agent.demo.apiserver.writes import Mode, Target, Writes
from agent.demo.authority import make_certificates
from agent.errors import ClusterError

HOST = "127.0.0.1"
TOKEN = "admin-token"  # noqa: S105 - of a server on loopback with made-up objects
NAMESPACES = ("default", "kube-system")
READY_SECONDS = 30.0


class Server:
    """One stand-in; ``directory`` receives ``ca.crt`` and, when it is ready, ``kubeconfig``."""

    def __init__(self, directory: Path, port: int = 0, *, status_subresource: bool = False) -> None:
        self.directory = directory
        self.port = port
        self.store = Store({core.EVENTS: core.EVENT_VIEW})
        self.registry = Registry()
        self.registry.serve_velero(velero.DEFAULT_VERSION, status_subresource=status_subresource)
        self.api = Api(self.store, self.registry)
        self.api.faults.tokens = {TOKEN}
        self._runner: web.AppRunner | None = None
        self._certificates = make_certificates(directory)
        self.ca = self._certificates.ca
        self._add_namespaces()

    def _add_namespaces(self) -> None:
        writes = Writes(self.store, self.registry)
        for name in NAMESPACES:
            target = Target(core.NAMESPACES, "", "")
            writes.create(target, {"metadata": {"name": name}}, Mode())

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"https://{HOST}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """Return the path of the kubeconfig of its administrator."""
        return self.directory / "kubeconfig"

    async def start(self) -> None:
        """Listen on its port (a free one the first time) and write the kubeconfig."""
        app = web.Application(client_max_size=16 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self.api.handle)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        await self._runner.setup()
        context = self._certificates.server_context()
        site = web.TCPSite(self._runner, HOST, self.port, ssl_context=context)
        await site.start()
        if not self.port:
            self.port = self._runner.addresses[0][1]
        self._write_kubeconfig()

    async def stop(self) -> None:
        """End every connection without notice and stop listening."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in list(runner.sites):
            await site.stop()
        if runner.server is not None:
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        await runner.cleanup()

    def _write_kubeconfig(self) -> None:
        cluster = {"server": self.url, "certificate-authority": str(self.ca.resolve())}
        context = {"cluster": "standin", "user": "admin"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "standin",
            "clusters": [{"name": "standin", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "standin", "context": context}],
        }
        part = self.directory / "kubeconfig.part"
        part.write_text(json.dumps(config, indent=2) + "\n")
        part.replace(self.kubeconfig)


class Standin:
    """A ``Server`` in a thread of its own; every method may be called from any thread."""

    token = TOKEN

    def __init__(self, directory: Path, port: int = 0, *, status_subresource: bool = False) -> None:
        self._server = Server(directory, port, status_subresource=status_subresource)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None
        api = self._server.api
        tokens = api.faults.tokens
        self.faults = api.faults = Faults(self._server.store, api.watches, self._call)
        self.faults.tokens = tokens

    @property
    def url(self) -> str:
        """Return where it listens."""
        return self._server.url

    @property
    def kubeconfig(self) -> Path:
        """Return the path of the administrator's kubeconfig."""
        return self._server.kubeconfig

    @property
    def ca(self) -> Path:
        """Return the path of the certificate authority's certificate."""
        return self._server.ca

    @property
    def requests(self) -> list[Seen]:
        """Return every request so far, oldest first."""
        return list(self._server.api.seen)

    @property
    def running(self) -> bool:
        """Tell whether it listens."""
        return self._thread is not None

    @property
    def open_watches(self) -> int:
        """Return how many watches are connected."""
        return len(self._server.api.watches)

    def start(self) -> None:
        """Start it and wait until it listens; raises ``ClusterError``."""
        self._ready.clear()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="apiserver-standin", daemon=True
        )
        self._thread.start()
        if not self._ready.wait(READY_SECONDS):
            raise ClusterError("the API server stand-in does not start; is the machine stuck?")
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            raise ClusterError(
                f"the API server stand-in cannot listen on port {self._server.port}: "
                f"{self._failure}; give it another one"
            ) from self._failure

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._failure = None
        try:
            await self._server.start()
        except OSError as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        await self._stop.wait()
        await self._server.stop()

    def stop(self) -> None:
        """End it without notice: connections are cut, objects are kept."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def restart(self) -> None:
        """Stop it and start it on the same port with the same objects."""
        self.stop()
        self.start()

    def serve_velero(
        self, version: str = velero.DEFAULT_VERSION, *, status_subresource: bool = False
    ) -> None:
        """Serve Velero's resources as of ``version``, with or without a ``/status``."""
        self._call(
            lambda: self._server.registry.serve_velero(
                version, status_subresource=status_subresource
            )
        )

    def set_selectable(self, plural: str, *paths: str) -> None:
        """Let field selectors of a Velero resource name these dotted paths."""
        self._call(lambda: self._server.registry.set_selectable(plural, paths))

    def limit_watches(self, limits: Limits) -> None:
        """Set how patient watches are that are opened from now on."""
        self._server.api.limits = limits

    def _call(self, act: Callable[[], None]) -> None:
        """Run ``act`` in the server's thread (or here while it is stopped) and wait for it."""
        if self._thread is None or self._loop is None:
            act()
            return

        async def there() -> None:
            act()

        asyncio.run_coroutine_threadsafe(there(), self._loop).result(READY_SECONDS)
