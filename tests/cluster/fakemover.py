"""A mover that does what a test tells it: the data path of an agent that only the cluster sees."""

import threading
from collections.abc import Callable
from typing import Any

from agent.cancel import CancelToken
from agent.cluster.assignment import Assignment, Outcome
from agent.monitor import Monitor

SNAPSHOT = "5a" * 32


class FakeMover:
    """Does what a test tells it, on the thread that the agent gave it."""

    def __init__(self) -> None:
        self.assignments: list[Any] = []
        self.threads: set[int] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        self.act: Callable[[Assignment, Monitor, CancelToken], Outcome] = self.succeed
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def __call__(self, assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
        with self._lock:
            self.assignments.append(assignment)
            self.threads.add(threading.get_ident())
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            while not self.go_on.wait(0.01):
                cancel.check()
            return self.act(assignment, monitor, cancel)
        finally:
            with self._lock:
                self.running -= 1

    def succeed(self, _assignment: Assignment, monitor: Monitor, _cancel: CancelToken) -> Outcome:
        monitor.add(bytes_total=4096, bytes_done=4096, bytes_read=4096, bytes_uploaded=1000)
        return Outcome(snapshot_id=SNAPSHOT, size_bytes=4096)


def raising(error: Exception) -> Callable[..., Outcome]:
    def act(*_: Any) -> Outcome:
        raise error

    return act
