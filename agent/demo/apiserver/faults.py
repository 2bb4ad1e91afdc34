"""Faults: what goes wrong between an agent and an API server, on request.

A fault waits for the next request that it is meant for, acts once (or ``times``), and is gone.
Methods may be called from any thread; those on watches act at once and return when done.
"""

import dataclasses
import enum
import json
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from agent.demo.apiserver.refusal import throttled
from agent.demo.apiserver.store import Snapshot, Store


class Kind(enum.Enum):
    """What happens to a request."""

    ANSWER = "answered by the fault, not carried out"
    LOSE_REPLY = "carried out, and the connection is reset in place of the reply"
    RESET = "the connection is reset, nothing is carried out"
    HOLD = "carried out, the reply waits until it is released"


class Cut(enum.Enum):
    """How a watch ends before its time."""

    END = "the stream ends as if its time were over"
    RESET = "half a line, then the connection is reset"
    TRUNCATE = "half a line, then a clean end"


@dataclasses.dataclass
class Fault:
    """One thing to go wrong with requests of ``method`` whose path contains ``path``."""

    kind: Kind
    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    released: threading.Event = dataclasses.field(default_factory=threading.Event)
    taken: threading.Event = dataclasses.field(default_factory=threading.Event)

    def meant_for(self, method: str, path: str) -> bool:
        """Tell whether a request is one of those."""
        return self.times > 0 and self.method in ("", method) and self.path in path


class WatchControl(Protocol):
    """An open watch, as far as faults are concerned."""

    def cut(self, how: Cut) -> None:
        """End the stream."""

    def bookmark(self) -> None:
        """Send a bookmark now, if bookmarks were asked for."""

    def freeze(self, frozen: bool) -> None:
        """Stop sending anything, or go on."""


Runner = Callable[[Callable[[], None]], None]


class Faults:
    """The faults of one server; ``run`` carries a call over to the server's own thread."""

    def __init__(self, store: Store, watches: Iterable[WatchControl], run: Runner) -> None:
        self._store = store
        self._watches = watches
        self._run = run
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self._denied: set[tuple[str, str]] = set()
        self.watches_frozen = False
        self.tokens: set[str] = set()

    def add(self, fault: Fault) -> Fault:
        """Let a fault wait for its request."""
        with self._lock:
            self._waiting.append(fault)
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that this request meets, and count it off."""
        with self._lock:
            for fault in self._waiting:
                if fault.meant_for(method, path):
                    fault.times -= 1
                    fault.taken.set()
                    self._waiting = [waiting for waiting in self._waiting if waiting.times > 0]
                    return fault
        return None

    def clear(self) -> None:
        """Forget every fault that has not happened yet, and thaw watches."""
        with self._lock:
            self._waiting.clear()
            self._denied.clear()
        self.freeze_watches(frozen=False)

    def throttle(
        self, times: int = 1, *, retry_after_seconds: int = 1, method: str = "", path: str = ""
    ) -> Fault:
        """Answer 429 in plain text, as a server with too many requests in flight does."""
        headers = {
            "Retry-After": str(retry_after_seconds),
            "Content-Type": "text/plain; charset=utf-8",
        }
        body = b"Too many requests, please try again later.\n"
        return self.add(Fault(Kind.ANSWER, method, path, times, 429, headers, body))

    def initializing(self, times: int = 1, *, method: str = "", path: str = "") -> Fault:
        """Answer 429 as a Status, as a fresh server does to the first requests for a type."""
        refused = throttled(retry_after_seconds=1)
        headers = {"Retry-After": "1", "Content-Type": "application/json"}
        body = json.dumps(refused.status).encode()
        return self.add(Fault(Kind.ANSWER, method, path, times, 429, headers, body))

    def html_error(
        self, status: int = 503, times: int = 1, *, method: str = "", path: str = ""
    ) -> Fault:
        """Answer with a load balancer's HTML page."""
        body = (
            f"<html>\n<head><title>{status}</title></head>\n"
            f"<body><h1>{status}</h1></body>\n</html>\n"
        ).encode()
        headers = {"Content-Type": "text/html"}
        return self.add(Fault(Kind.ANSWER, method, path, times, status, headers, body))

    def lose_reply(self, times: int = 1, *, method: str = "PATCH", path: str = "") -> Fault:
        """Carry the write out and reset the connection in place of the reply."""
        return self.add(Fault(Kind.LOSE_REPLY, method, path, times))

    def reset(self, times: int = 1, *, method: str = "", path: str = "") -> Fault:
        """Reset the connection without carrying anything out."""
        return self.add(Fault(Kind.RESET, method, path, times))

    def hold(self, *, method: str = "", path: str = "") -> Fault:
        """Carry a request out and keep its reply until ``fault.released.set()``."""
        return self.add(Fault(Kind.HOLD, method, path))

    def deny(self, verb: str, plural: str) -> None:
        """Take a right away: ``verb`` as in RBAC (get, list, watch, create, patch, ...)."""
        with self._lock:
            self._denied.add((verb, plural))

    def denies(self, verb: str, plural: str) -> bool:
        """Tell whether a right was taken away."""
        with self._lock:
            return (verb, plural) in self._denied

    def cut_watches(self, how: Cut = Cut.END) -> None:
        """End every open watch."""
        self._on_watches(lambda watch: watch.cut(how))

    def bookmark(self) -> None:
        """Send a bookmark on every open watch that asked for them."""
        self._on_watches(lambda watch: watch.bookmark())

    def freeze_watches(self, *, frozen: bool = True) -> None:
        """Make watches half-open: connected, and silent; also those that are opened from now."""
        self.watches_frozen = frozen
        self._on_watches(lambda watch: watch.freeze(frozen))

    def _on_watches(self, act: Callable[[WatchControl], None]) -> None:
        def on_each() -> None:
            for watch in tuple(self._watches):
                act(watch)

        self._run(on_each)

    def compact(self) -> None:
        """Forget the history: old watches and pages are expired (410)."""
        self._run(self._store.compact)

    def snapshot(self) -> Snapshot:
        """Return the present state, to go back to with ``restore``."""
        taken: list[Snapshot] = []
        self._run(lambda: taken.append(self._store.snapshot()))
        return taken[0]

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to an earlier state and resource version, as an etcd restore does.

        Open watches end; one that resumes from its last version is then in the future.
        """
        self._run(lambda: self._store.restore(snapshot))
        self.cut_watches()

    def rotate_tokens(self, *tokens: str) -> None:
        """Accept these bearer tokens and no others."""
        self.tokens = set(tokens)
