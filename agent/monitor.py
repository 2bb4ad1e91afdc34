"""The progress contract: counters that workers add to and observers read.

Workers call ``add`` and ``problem`` from any thread, as often as once a file; neither blocks
on anything but a short lock. Observers (the terminal's bar, the PVB's status, the metrics)
never get called back: they read ``counters`` at their own pace. So no observer, however slow
or broken, can hold up a backup.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from agent.errors import SourceError

KEPT_PROBLEMS = 100
"""How many problems are kept by name; all of them are counted."""


@dataclasses.dataclass(slots=True)
class Counters:
    """What a run has done so far. Files count when they are finished, bytes as they flow."""

    bytes_total: int = 0  # of all files met so far; an estimate until the walk is over
    bytes_done: int = 0  # of them, read or taken from the parent
    bytes_read: int = 0  # read from the volume (holes and unchanged files cost none)
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    directories_new: int = 0
    directories_changed: int = 0
    directories_unmodified: int = 0
    others: int = 0  # symlinks, fifos, devices
    sockets_skipped: int = 0
    mounts_skipped: int = 0
    excluded: int = 0
    removed: int = 0  # by a restore that was asked to
    problems: int = 0
    data_blobs: int = 0  # new ones only
    tree_blobs: int = 0
    bytes_added: int = 0  # plaintext of new blobs
    bytes_stored: int = 0  # the same, sealed
    trees: int = 0  # directories that prune and check have looked at
    bytes_uploaded: int = 0  # everything that was sent to the storage and acknowledged
    bytes_read_back: int = 0  # of them, read again from the storage and compared
    checkpoints: int = 0
    retries_throttled: int = 0  # calls to the storage that were made again, by why
    retries_unreachable: int = 0
    retries_integrity: int = 0
    retries_credentials: int = 0
    throttled: int = 0  # calls that the storage refused because there were too many
    throttled_milliseconds: int = 0  # waited for that, by all threads together

    @property
    def files(self) -> int:
        """Return how many files are finished."""
        return self.files_new + self.files_changed + self.files_unmodified


class Count(Protocol):
    """Adds to counters by name, as ``Monitor.add`` does."""

    def __call__(self, **deltas: int) -> None:
        """Add; called from any thread."""


class Monitor:
    """Counts for one run; also the monitor to use when nobody looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()
        self._problems: list[SourceError] = []
        self._walked = False
        self._lock_age: Callable[[], float] | None = None

    def add(self, **deltas: int) -> None:
        """Add to counters by name; unknown names raise ``AttributeError``."""
        with self._lock:
            for name, delta in deltas.items():
                setattr(self._counters, name, getattr(self._counters, name) + delta)

    def problem(self, error: SourceError) -> None:
        """Count an entry that was left out, and keep its name if there is room."""
        with self._lock:
            self._counters.problems += 1
            if len(self._problems) < KEPT_PROBLEMS:
                self._problems.append(error)

    def walk_finished(self) -> None:
        """Say that ``bytes_total`` is no longer an estimate."""
        self._walked = True

    @property
    def walked(self) -> bool:
        """Tell whether ``bytes_total`` is final."""
        return self._walked

    @contextlib.contextmanager
    def holding(self, lock_age: Callable[[], float]) -> Iterator[None]:
        """Say for a scope that the run holds a repository's lock, and how to ask for its age."""
        self._lock_age = lock_age
        try:
            yield
        finally:
            self._lock_age = None

    @property
    def lock_age_seconds(self) -> float:
        """Return how long ago the lock that the run holds was proven; 0 if it holds none."""
        lock_age = self._lock_age
        return lock_age() if lock_age is not None else 0.0

    @property
    def counters(self) -> Counters:
        """Return a consistent copy of all counters."""
        with self._lock:
            return dataclasses.replace(self._counters)

    @property
    def problems(self) -> list[SourceError]:
        """Return the first ``KEPT_PROBLEMS`` problems."""
        with self._lock:
            return list(self._problems)
