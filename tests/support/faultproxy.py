"""A proxy before an S3 server that does what networks and overloaded services do.

Faults are given out by method and path, the first that matches wins and is used up::

    with FaultProxy(server) as proxy:
        proxy.add(reply(503, "SlowDown"), "PUT", times=3)

``proxy.requests`` tells afterwards what arrived, and how much of it. ``proxy.down()`` takes the
server away: open lines are reset and new ones refused until ``proxy.up()``. With ``proxy.most = 2``,
uploads beyond two at a time are throttled, which is how an overloaded service behaves.
"""

import contextlib
import dataclasses
import enum
import http.client
import http.server
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from agent.demo.authority import make_certificates
from tests.support.s3servers import S3Server

STALL_SECONDS = 60  # nobody waits that long: the stall ends when the proxy is closed


class Kind(enum.Enum):
    REPLY_EARLY = enum.auto()  # before the body is sent
    REPLY_LATE = enum.auto()  # after the body, which goes nowhere
    RESET = enum.auto()  # after `at` bytes of the body
    STALL = enum.auto()  # the same, but the line stays open and silent
    LOST_REPLY = enum.auto()  # the server did it, the answer never arrives
    CORRUPT_UPLOAD = enum.auto()  # one bit at `at`
    CORRUPT_DOWNLOAD = enum.auto()
    TRUNCATE_DOWNLOAD = enum.auto()  # the line breaks after `at` bytes
    IGNORE_CONDITION = enum.auto()  # If-None-Match; for a server that checks no signatures
    IGNORE_RANGE = enum.auto()  # the same
    STALL_DOWNLOAD = enum.auto()  # the line falls silent after `at` bytes
    LONG_DOWNLOAD = enum.auto()  # `at` bytes more than are announced, since they come in a chunk
    SLOW = enum.auto()  # the body is taken at `rate` bytes a second


@dataclasses.dataclass(frozen=True)
class Fault:
    kind: Kind
    at: int = 0
    status: int = 503
    code: str = "SlowDown"
    headers: tuple[tuple[str, str], ...] = ()
    rate: float = 0.0


def reply(status: int, code: str, *, late: bool = False, **headers: str) -> Fault:
    """Answer with an error of our own; ``retry_after="3"`` becomes a header Retry-After."""
    named = tuple((name.replace("_", "-").title(), value) for name, value in headers.items())
    return Fault(Kind.REPLY_LATE if late else Kind.REPLY_EARLY, 0, status, code, named)


@dataclasses.dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    fault: Fault | None
    body_bytes: int = 0
    counted: bool = False  # among the uploads that ``most`` bounds


@dataclasses.dataclass
class _Rule:
    fault: Fault
    method: str
    path: str
    times: int
    skip: int
    header: str


class FaultProxy:
    """Listens on loopback with a certificate of its own, also for ``hosts``, and forwards to ``server``."""

    def __init__(self, server: S3Server, hosts: Sequence[str] = ()) -> None:
        folder = server.home / f"proxy-{secrets.token_hex(4)}"
        made = make_certificates(folder, hosts=hosts)
        self.ca = made.ca
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.most = 0
        self._uploads = 0
        self.upstream_host = server.host
        self.upstream_tls = ssl.create_default_context(cafile=str(server.ca))
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(made.certificate, made.key)
        self._port = 0
        self.up()

    @property
    def endpoint_url(self) -> str:
        return f"https://{self.host}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listen, always on the same port."""
        self._listener = _Listener(("127.0.0.1", self._port), _Handler)
        self._port = self._listener.server_address[1]
        self._listener.proxy = self
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,))
        self._thread.start()

    def down(self) -> None:
        """Refuse new lines and reset the open ones."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
        self._listener.reset_lines()

    def add(
        self,
        fault: Fault,
        method: str,
        path: str = "",
        *,
        times: int = 1,
        skip: int = 0,
        header: str = "",
    ) -> None:
        """Give ``fault`` to the next ``times`` requests after ``skip``.

        ``path`` is a regex; with ``header``, a regex too, only requests with such a header count.
        """
        with self._lock:
            self._rules.append(_Rule(fault, method, path, times, skip, header))

    def clear(self) -> None:
        """Let every request pass from now on."""
        with self._lock:
            self._rules.clear()

    def admit(self, request: Request) -> None:
        """Note a request and decide its fault."""
        with self._lock:
            self.requests.append(request)
            request.fault = self._fault_of(request)
            if request.method == "PUT" and request.fault is None:
                if self.most and self._uploads >= self.most:
                    request.fault = reply(503, "SlowDown")
                else:
                    self._uploads += 1
                    request.counted = True

    def _fault_of(self, request: Request) -> Fault | None:
        for rule in self._rules:
            if rule.method != request.method or not re.search(rule.path, request.path):
                continue
            if rule.header and not any(re.search(rule.header, each) for each in request.headers):
                continue
            if rule.skip > 0:
                rule.skip -= 1
            elif rule.times > 0:
                rule.times -= 1
                return rule.fault
        return None

    def leave(self, request: Request) -> None:
        """Note that a request was answered or given up."""
        with self._lock:
            self._uploads -= request.counted
            request.counted = False

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.down()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy

    def __init__(self, *how: Any) -> None:
        self.lines: set[socket.socket] = set()
        super().__init__(*how)

    def reset_lines(self) -> None:
        for line in list(self.lines):
            with contextlib.suppress(OSError):  # it has just ended by itself
                _reset_on_close(line)
                socket.socket.shutdown(line, socket.SHUT_RDWR)  # wakes its handler, which closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: broken lines are what this is for."""


class _Broken(ConnectionError):
    """The line to the client is to be broken."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        self.request = self.server.proxy.tls.wrap_socket(self.request, server_side=True)
        self.server.lines.add(self.request)
        self._upstream: http.client.HTTPSConnection | None = None
        self._seen: Request | None = None
        super().setup()

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        try:
            super().finish()
        except OSError:
            pass
        finally:
            self.server.lines.discard(self.request)
            self.request.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; ``FaultProxy.requests`` is the log."""

    def handle_expect_100(self) -> bool:
        fault = self._admit().fault
        if fault is not None and fault.kind is Kind.REPLY_EARLY:
            self._reply(fault)
            self._seen = None
            return False
        return super().handle_expect_100()

    def do_GET(self) -> None:
        request = self._admit()
        try:
            self._serve(request)
        except _Broken:
            self._break()
        finally:
            self._seen = None
            self.server.proxy.leave(request)

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def _admit(self) -> Request:
        if self._seen is None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._seen = Request(self.command, self.path, headers, None)
            self.server.proxy.admit(self._seen)
        return self._seen

    def _serve(self, request: Request) -> None:
        fault = request.fault
        body = self._read_body(request)
        if fault is not None and fault.kind in (Kind.REPLY_EARLY, Kind.REPLY_LATE):
            self._reply(fault)
            return
        if fault is not None and fault.kind is Kind.CORRUPT_UPLOAD:
            body[fault.at] ^= 1
        if fault is not None and fault.kind is Kind.IGNORE_CONDITION:
            del self.headers["If-None-Match"]
        if fault is not None and fault.kind is Kind.IGNORE_RANGE:
            del self.headers["Range"]
        status, headers, answer = self._forward(bytes(body))
        if fault is not None and fault.kind is Kind.LOST_REPLY:
            raise _Broken
        if fault is not None and fault.kind is Kind.CORRUPT_DOWNLOAD:
            answer[fault.at] ^= 1
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if fault is not None and fault.kind is Kind.LONG_DOWNLOAD:
            self.send_header("Transfer-Encoding", "chunked")
            size = len(answer) + fault.at
            answer = bytearray(b"%x\r\n%b\r\n0\r\n\r\n" % (size, answer.ljust(size)))
        self.end_headers()
        if fault is not None and fault.kind in (Kind.TRUNCATE_DOWNLOAD, Kind.STALL_DOWNLOAD):
            self.wfile.write(answer[: fault.at])
            self.wfile.flush()
            if fault.kind is Kind.STALL_DOWNLOAD:
                self.server.proxy.closing.wait(STALL_SECONDS)
            raise _Broken
        self.wfile.write(answer)

    def _read_body(self, request: Request) -> bytearray:
        fault, began = request.fault, time.monotonic()
        stops = fault is not None and fault.kind in (Kind.RESET, Kind.STALL)
        parts = self._parts(request)
        body = bytearray()
        while True:
            if fault is not None and stops and len(body) >= fault.at:
                if fault.kind is Kind.STALL:
                    self.server.proxy.closing.wait(STALL_SECONDS)
                raise _Broken
            part = next(parts, b"")
            if not part:
                if stops:
                    raise _Broken
                return body
            body += part
            request.body_bytes = len(body)
            if fault is not None and fault.kind is Kind.SLOW:
                time.sleep(max(0.0, began + len(body) / fault.rate - time.monotonic()))

    def _parts(self, request: Request) -> Iterator[bytes]:
        """Yield the body as it arrives, without the chunks of HTTP that it may be framed in."""
        if "chunked" not in request.headers.get("transfer-encoding", ""):
            yield from self._exactly(int(request.headers.get("content-length", 0)))
            return
        while size := int(self.rfile.readline() or b"0", 16):
            yield from self._exactly(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _exactly(self, left: int) -> Iterator[bytes]:
        while left:
            part = self.rfile.read(min(left, 1 << 16))
            if not part:
                raise _Broken
            yield part
            left -= len(part)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytearray]:
        if self._upstream is None:
            proxy = self.server.proxy
            self._upstream = http.client.HTTPSConnection(
                proxy.upstream_host, context=proxy.upstream_tls, timeout=30
            )
        self._upstream.putrequest(
            self.command, self.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection", "transfer-encoding"):
                self._upstream.putheader(name, value)
        if (
            "transfer-encoding" in self.headers
        ):  # its chunks were taken apart; nobody signs these two
            self._upstream.putheader("Content-Length", str(len(body)))
        self._upstream.endheaders(body or None)
        answer = self._upstream.getresponse()
        content = bytearray(answer.read())
        hop = ("connection", "transfer-encoding", "keep-alive")
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in hop]
        if answer.getheader("content-length") is None and answer.status != 204:
            headers.append(("Content-Length", str(len(content))))
        return answer.status, headers, content

    def _reply(self, fault: Fault) -> None:
        body = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(fault.status)
        for name, value in (*fault.headers, ("Content-Type", "application/xml")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break(self) -> None:
        """Close with a reset instead of a farewell."""
        self.close_connection = True
        _reset_on_close(self.connection)
        self.rfile.close()
        self.connection.close()


def _reset_on_close(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
