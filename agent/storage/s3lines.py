"""The TCP connections of an S3 client, which a cancel cuts.

A thread that waits for a stalled peer looks at no token: it sits in a system call until a time-out,
which must be long enough for a slow service (s3.md section 2). So whoever cancels shuts the socket
down, the system call returns, and the thread finds out why. Each call watches the sockets that it
uses through descriptors of its own: urllib3 closes, wraps and hands on its sockets as it likes, and
a descriptor's number soon means something else. What cannot be cut is the resolving of a name.
"""

import contextlib
import contextvars
import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from agent.cancel import CancelToken

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


class _Call:
    """The sockets of one call. ``cut`` may come from any thread, and from a signal handler."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._descriptors: list[int] = []
        self._cut = False

    def watch(self, line: socket.socket) -> None:
        with self._lock:
            self._descriptors.append(os.dup(line.fileno()))
            if self._cut:
                self.cut()

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for descriptor in self._descriptors:
                _shut_down(descriptor)

    def end(self) -> None:
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.pop())


_CALL: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("call", default=None)


@contextlib.contextmanager
def cut_by(cancel: CancelToken) -> Iterator[None]:
    """Cut every line that this thread uses within the scope as soon as the stop is asked for."""
    call = _Call()
    before = _CALL.set(call)
    try:
        with cancel.acting(call.cut):
            yield
    finally:
        _CALL.reset(before)
        call.end()


def make_cuttable(client: "S3Client") -> None:
    """Let a new client make connections that can be cut."""
    session = client._endpoint.http_session  # type: ignore[attr-defined] # botocore has no other way
    session._pool_classes_by_scheme.update(http=_Pool, https=_TlsPool)


class _Line:
    """What both kinds of connection do differently; the base is the next class in the order."""

    def _new_conn(self: Any) -> socket.socket:
        try:
            return _connect(self)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(
                self, f"no connection to {self.host} within {self.timeout} s"
            ) from error
        except OSError as error:
            raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _watch(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]


class _PlainLine(_Line, AWSHTTPConnection):  # type: ignore[misc] # botocore's mixin is typed so
    pass


class _TlsLine(_Line, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _PlainLine


class _TlsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _TlsLine


def _connect(line: Any) -> socket.socket:
    """Return a connected socket, as ``socket.create_connection`` does, watched from the start."""
    failure: OSError = OSError("the name has no address")
    host = line._dns_host.strip("[]")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, line.port, type=socket.SOCK_STREAM
    ):
        made = socket.socket(family, kind, protocol)
        try:
            for option in line.socket_options or ():
                made.setsockopt(*option)
            made.settimeout(line.timeout)
            _watch(made)
            made.connect(address)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    raise failure


def _watch(line: socket.socket) -> None:
    call = _CALL.get()
    if call is not None:
        call.watch(line)


def _shut_down(descriptor: int) -> None:
    """Shut a connection down below TLS, which has state that belongs to the thread that waits."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as line:
        line.shutdown(socket.SHUT_RDWR)
