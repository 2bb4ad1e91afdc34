"""The one place that knows the kubernetes library: requests in, bytes out.

Of the library only ``kubernetes.aio``'s ApiClient, configuration and exceptions are used; its
Watch and its typed APIs are not (kubernetes.md section 1). The rule guarded here: only what is
safe is sent again. A GET always is; 429 and 503 mean that nothing was done; a connection that
never stood carried nothing. A write whose answer was lost is *not* repeated: it ends as an
``ApiError`` with status 0, and the caller reads the object and looks.

Answers are returned as bytes and never put into a message: they may be Secrets. Only the
``message`` of a Kubernetes Status, which the API server words itself, is passed on.
"""

import asyncio
import contextlib
import random
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

from agent.cluster.credentials import Credentials
from agent.cluster.objects import UNREADABLE
from agent.cluster.sdk import ApiClient, ConfigException, Configuration, rest
from agent.errors import ApiError, ClusterError

Query = Mapping[str, str]
T = TypeVar("T")

FIELD_MANAGER = "podlift"
PAGE = 500
"""Objects a page of a list (kubernetes.md section 5: bounds the memory of one answer)."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
)
"""A dead peer is noticed within about a minute (kubernetes.md section 6, practice 2)."""

_RETRY_AFTER_LIMIT_SECONDS = 60.0

CLOSING_STEPS, CLOSING_STEP_SECONDS = 50, 0.01


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often one request is tried; clock and chance come from outside."""

    attempts: int = 5
    first_seconds: float = 0.4
    longest_seconds: float = 10.0
    request_seconds: float = 30.0
    connect_seconds: float = 10.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[float, float], float] = random.uniform

    def delay(self, failures: int, error: ApiError) -> float:
        """Return the pause after the n-th failure: the server's wish, else full jitter."""
        if error.retry_after_seconds is not None:
            return min(error.retry_after_seconds, _RETRY_AFTER_LIMIT_SECONDS)
        ceiling = min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1))
        return self.chance(0.0, ceiling)


@dataclass(frozen=True, slots=True)
class Page:
    """All objects of one list, still as JSON, and the version to watch from."""

    items: list[bytes]
    resource_version: str


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[msgspec.Raw] | None = None


class _Status(msgspec.Struct):
    message: str = ""


class _Rest(rest.RESTClientObject):
    """The library's transport with TCP keepalive (its connector method is meant for this)."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    async def all_closed(self) -> None:
        """Wait until the sockets are closed: aborted TLS connections end a little later."""
        for _ in range(CLOSING_STEPS):
            if all(made.fileno() < 0 for made in self._sockets):
                return
            await asyncio.sleep(CLOSING_STEP_SECONDS)

    def _create_connector(self) -> aiohttp.TCPConnector:
        def keepalive_socket(address: Any) -> socket.socket:
            made = socket.socket(address[0], address[1], address[2])
            made.setblocking(False)
            for level, option, value in _KEEPALIVE:
                made.setsockopt(level, option, value)
            self._sockets.add(made)
            return made

        return aiohttp.TCPConnector(
            limit=self.maxsize, ssl=self.ssl_context, socket_factory=keepalive_socket
        )


class Kube:
    """A connection to one API server; ``connect`` opens, ``close`` ends it."""

    def __init__(
        self, configuration: Configuration, credentials: Credentials, patience: Patience
    ) -> None:
        self._api = ApiClient(configuration)
        self._rest = self._api.rest_client = _Rest(configuration)
        self._api.user_agent = FIELD_MANAGER
        self._credentials = credentials
        self._patience = patience
        self.host = str(configuration.host)

    @classmethod
    async def connect(cls, credentials: Credentials, patience: Patience | None = None) -> "Kube":
        """Prepare a client; raises ``ClusterError`` for a configuration that cannot work.

        Nothing is sent yet.
        """
        configuration = await credentials.configure()
        try:
            return cls(configuration, credentials, patience or Patience())
        except (ssl.SSLError, OSError) as error:
            raise ClusterError(
                f"the certificates of {credentials.origin} cannot be loaded: {error}; "
                "check its certificate-authority, client-certificate and client-key"
            ) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()  # type: ignore[no-untyped-call]
        await self._rest.all_closed()

    async def get(self, path: str, query: Query | None = None) -> bytes:
        """Return the answer's body; raises ``ApiError``."""
        return await self._call("GET", path, query or {}, None)

    async def patch(self, path: str, body: Mapping[str, Any], *, attempts: int = 0) -> bytes:
        """Send a JSON merge patch (RFC 7386) and return the new object; raises ``ApiError``.

        ``attempts`` overrides how often it is tried (0: the usual number).
        """
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", path, query, body, attempts=attempts)

    async def create(self, path: str, body: Mapping[str, Any], *, attempts: int = 0) -> bytes:
        """Create an object and return it; raises ``ApiError``. ``attempts`` as in ``patch``."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("POST", path, query, body, attempts=attempts)

    async def list(self, path: str, query: Query | None = None) -> Page:
        """Return every object of a list, fetched in pages; raises ``ApiError``.

        A page token that expired (410) starts the list again: half a list is no list.
        """
        for _ in range(self._patience.attempts):
            try:
                return await self._pages(path, query or {})
            except ApiError as error:
                if error.status != 410:
                    raise
        raise ApiError(f"the list {path} expired again and again while it was read", status=410)

    async def _pages(self, path: str, query: Query) -> Page:
        items: list[bytes] = []
        token = ""
        while True:
            more = {"continue": token} if token else {}
            body = await self.get(path, {**query, "limit": str(PAGE), **more})
            page = decode(body, _List, path)
            items += [bytes(item) for item in page.items or ()]
            token = page.metadata.continue_
            if not token:
                return Page(items, page.metadata.resource_version)

    async def watch(
        self, path: str, query: Query, *, server_seconds: float, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        """Yield the whole lines of one watch until the server ends it.

        Raises ``ApiError`` (a refusal, a broken or truncated stream) and ``TimeoutError``
        after ``idle_seconds`` of silence. Close the iterator to end the watch.
        """
        more = {"watch": "true", "timeoutSeconds": str(int(server_seconds))}
        total = aiohttp.ClientTimeout(
            total=server_seconds + 30, sock_connect=self._patience.connect_seconds
        )
        with self._translated("WATCH", path, idle_is_error=False):
            async with asyncio.timeout(idle_seconds):
                response = await self._open("GET", path, {**query, **more}, None, total)
        try:
            if response.status != 200:
                with self._translated("WATCH", path):
                    await response.read()  # type: ignore[no-untyped-call]
                if response.status == 401:
                    await self._credentials.renew(self._api.configuration)
                raise self._refusal("WATCH", path, response)
            while True:
                with self._translated("WATCH", path, idle_is_error=False):
                    async with asyncio.timeout(idle_seconds):
                        line = await response.response.content.readline()
                if not line:
                    return
                if not line.endswith(b"\n"):
                    raise ApiError(f"the watch of {path} was cut in the middle of a line", status=0)
                yield line
        finally:
            response.response.close()

    async def _call(
        self, verb: str, path: str, query: Query, body: Any, *, attempts: int = 0
    ) -> bytes:
        failures = 0
        renewed = False
        while True:
            try:
                return await self._attempt(verb, path, query, body)
            except ApiError as error:
                failures += 1
                if error.status == 401 and not renewed:
                    renewed = True
                    await self._credentials.renew(self._api.configuration)
                    continue
                if failures >= (attempts or self._patience.attempts) or not _safe(verb, error):
                    raise
                await self._patience.sleep(self._patience.delay(failures, error))

    async def _attempt(self, verb: str, path: str, query: Query, body: Any) -> bytes:
        total = aiohttp.ClientTimeout(
            total=self._patience.request_seconds, sock_connect=self._patience.connect_seconds
        )
        with self._translated(verb, path):
            response = await self._open(verb, path, query, body, total)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        if not 200 <= response.status < 300:
            raise self._refusal(verb, path, response)
        return data

    async def _open(
        self, verb: str, path: str, query: Query, body: Any, total: aiohttp.ClientTimeout
    ) -> rest.RESTResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            kind = "merge-patch+json" if verb == "PATCH" else "json"
            headers["Content-Type"] = f"application/{kind}"
        request = await self._api.param_serialize(
            verb,
            path,
            header_params=headers,
            query_params=list(query.items()),
            body=body,
            auth_settings=["BearerToken"],
        )
        return await self._api.call_api(*request, _request_timeout=total)

    @contextlib.contextmanager
    def _translated(self, verb: str, path: str, *, idle_is_error: bool = True) -> Iterator[None]:
        asked = f"{verb} {path}"
        try:
            yield
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise ApiError(
                f"the API server at {self.host} is not trusted ({asked}): {error}; check the "
                f"certificate-authority of {self._credentials.origin}",
                status=0,
                sent=False,
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(asked, error, sent=False) from error
        except TimeoutError as error:
            if not idle_is_error:
                raise
            raise self._unreachable(asked, error, sent=True) from error
        except (aiohttp.ClientError, OSError, ValueError, ConfigException) as error:
            raise self._unreachable(asked, error, sent=True) from error

    def _unreachable(self, asked: str, error: Exception, *, sent: bool) -> ApiError:
        why = str(error) or type(error).__name__
        return ApiError(
            f"the API server at {self.host} cannot be reached ({asked}): {why}; check the "
            f"address in {self._credentials.origin}, network policies and the server itself",
            status=0,
            sent=sent,
        )

    def _refusal(self, verb: str, path: str, response: rest.RESTResponse) -> ApiError:
        status = int(response.status)
        said = _status_message(response.data or b"")
        if status == 401:
            text = (
                f"the API server at {self.host} does not accept our credentials (401): renew "
                f"the token or certificate of {self._credentials.origin}"
            )
        elif status == 403:
            text = (
                f"the API server forbids {verb} {path}: {said or 'no reason given'}; "
                "grant it to the agent's service account (RBAC)"
            )
        elif status == 404:
            text = f"{path} does not exist: {said or 'the API server does not serve it'}"
        else:
            text = f"the API server answered {verb} {path} with {status}: {said or 'no reason'}"
        return ApiError(
            text,
            status=status,
            retry_after_seconds=_retry_after(response.headers.get("Retry-After")),
            unserved=status == 404 and not said,
        )


def decode(body: bytes | msgspec.Raw, into: type[T], what: str) -> T:
    """Decode an answer; raises ``ClusterError`` that names ``what`` and no value of it."""
    try:
        return msgspec.json.decode(body, type=into)
    except UNREADABLE as error:
        reason = str(error) if isinstance(error, msgspec.ValidationError) else "it is not JSON"
        raise ClusterError(f"{what} is not shaped as expected: {reason}") from None


def _safe(verb: str, error: ApiError) -> bool:
    if error.status in (429, 503) or not error.sent:
        return True
    return verb == "GET" and error.status in (0, 500, 502, 504)


def _status_message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Status).message[:500]
    except UNREADABLE:
        return ""


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header; dates (RFC 9110) are not used by Kubernetes."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return float(text)
