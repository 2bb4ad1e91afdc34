"""A storage that fails when told to: how tests and drills break every step on purpose.

An action runs at the n-th call that matches, before the call has its effect or after it; it
raises an error (the call fails), ends the process (a crash between two steps), or only looks.
"""

import dataclasses
import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NoReturn

from agent.cancel import NEVER, CancelToken
from agent.storage.contract import WHATEVER_BYTES, Buffer, Listed, Room, Storage

Operation = Literal["put", "put_new", "get", "get_range", "size", "list", "folders", "delete", "*"]


@dataclasses.dataclass
class Fault:
    """What happens at calls ``nth`` to ``nth + times - 1`` (from 1) of those that match.

    ``key`` is a shell pattern in which ``*`` crosses slashes.
    """

    operation: Operation
    action: Callable[[], object]
    key: str = "*"
    nth: int = 1
    times: int = 1
    after: bool = False
    seen: int = 0

    def due(self, operation: str, key: str) -> bool:
        """Count a call if it matches, and tell whether it is one to act on."""
        if self.operation not in ("*", operation) or not fnmatch.fnmatchcase(key, self.key):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


def failing(error: Exception) -> Callable[[], NoReturn]:
    """Return the action that raises ``error``."""

    def act() -> NoReturn:
        raise error

    return act


class Faulty:
    """Wraps a storage; ``calls`` lists every (operation, key) in the order of arrival."""

    def __init__(self, storage: Storage, *faults: Fault) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self.faults = list(faults)
        self.calls: list[tuple[str, str]] = []

    @property
    def place(self) -> str:
        """Return the wrapped storage's place."""
        return self._storage.place

    @property
    def waits(self) -> bool:
        """Ask the wrapped storage."""
        return self._storage.waits

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        """Store ``body``, unless a fault is due."""
        after = self._before("put", key)
        self._storage.put(key, body, sha256=sha256, cancel=cancel)
        _act(after)

    def put_new(self, key: str, body: Buffer, *, cancel: CancelToken = NEVER) -> bool:
        """Store ``body`` unless the key exists or a fault is due."""
        after = self._before("put_new", key)
        ours = self._storage.put_new(key, body, cancel=cancel)
        _act(after)
        return ours

    def get(
        self, key: str, *, most_bytes: int = WHATEVER_BYTES, cancel: CancelToken = NEVER
    ) -> bytes:
        """Return the whole object, unless a fault is due."""
        after = self._before("get", key)
        body = self._storage.get(key, most_bytes=most_bytes, cancel=cancel)
        _act(after)
        return body

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        """Fill ``out`` with a part of the object, unless a fault is due."""
        after = self._before("get_range", key)
        self._storage.get_range(key, offset, out, cancel=cancel)
        _act(after)

    def size(self, key: str, *, cancel: CancelToken = NEVER) -> int:
        """Return the object's size, unless a fault is due."""
        after = self._before("size", key)
        size = self._storage.size(key, cancel=cancel)
        _act(after)
        return size

    def list(self, prefix: str, *, cancel: CancelToken = NEVER) -> Iterator[Listed]:
        """Yield the listing; a fault after it comes when everything was yielded."""
        after = self._before("list", prefix)
        yield from self._storage.list(prefix, cancel=cancel)
        _act(after)

    def folders(self, prefix: str, *, cancel: CancelToken = NEVER) -> tuple[str, ...]:
        """Return the folders, unless a fault is due."""
        after = self._before("folders", prefix)
        found = self._storage.folders(prefix, cancel=cancel)
        _act(after)
        return found

    def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove the object, unless a fault is due."""
        after = self._before("delete", key)
        self._storage.delete(key, cancel=cancel)
        _act(after)

    def close(self) -> None:
        """Close the wrapped storage."""
        self._storage.close()

    def _before(self, operation: str, key: str) -> Sequence[Fault]:
        """Note the call, act on what is due before it, and return what is due after it."""
        with self._lock:
            self.calls.append((operation, key))
            due = [fault for fault in self.faults if fault.due(operation, key)]
        _act([fault for fault in due if not fault.after])
        return [fault for fault in due if fault.after]


def _act(faults: Sequence[Fault]) -> None:
    for fault in faults:
        fault.action()
