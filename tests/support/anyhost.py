"""A forward proxy that leads to one server whatever host is asked for.

Amazon's endpoints, and buckets that are part of a host's name, are reached that way without a
resolver: the client asks the proxy for a tunnel to the name, and TLS and the ``Host`` header are those
of the name, which the server at the other end sees and checks.
"""

import http.server
import select
import socket
import threading


class AnyHost:
    """Listens on loopback; ``hosts`` are the names that tunnels were asked for."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.target = (host, int(port))
        self.hosts: list[str] = []
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.proxy = self
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self) -> "AnyHost":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    proxy: AnyHost


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; ``AnyHost.hosts`` is the log."""

    def do_CONNECT(self) -> None:
        self.server.proxy.hosts.append(self.path)
        with socket.create_connection(self.server.proxy.target) as there:
            self.send_response_only(200)
            self.end_headers()
            here = self.connection
            while True:
                for ready in select.select([here, there], [], [])[0]:
                    part = ready.recv(1 << 16)
                    if not part:
                        return
                    (there if ready is here else here).sendall(part)
