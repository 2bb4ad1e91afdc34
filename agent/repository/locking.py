"""A lock that is held: taken after looking twice, refreshed while the work goes on, given back.

The rule guarded here: whoever holds a ``HeldLock`` calls ``check`` before each write. If the lock
could not be refreshed for 22.5 minutes, or somebody removed it, others may act as if we were dead,
so ``check`` raises ``LockLost`` and nothing more is written (restic-format.md section 16). A lock
that was only begun settles in the first ``check``, so that what is read first costs no wait. Before
what makes packs count, an index or the snapshot, it is ``prove``: a young lock, since one write
may take as long as its retries do, and others take a lock of 30 minutes for left behind. So does
who waits here, once it has watched the lock for long enough (``rivals``).
"""

import contextlib
import logging
import os
import pwd
import socket
import threading
import time
from typing import Protocol

from agent.cancel import CancelToken, patience
from agent.errors import (
    AccessDenied,
    Canceled,
    LockLost,
    MalformedData,
    ObjectMissing,
    RepositoryLocked,
    StorageError,
)
from agent.repository.journal import Journal
from agent.repository.lockfile import Lock, conflicting, decode_lock, encode_lock
from agent.repository.objects import Folder, Objects, file_key, sizes
from agent.repository.rivals import Rivals
from agent.repository.zone import local_zone
from agent.threads import within_context

REFRESH_SECONDS = 5 * 60
RETRY_REFRESH_SECONDS = 30
LOST_AFTER_SECONDS = 22.5 * 60
YOUNG_SECONDS = 7.5 * 60
"""A write begun under a lock this young ends, with 15 min of retries, within 22.5 minutes."""

REMOVE_SECONDS = 30.0
SETTLE_SECONDS = 0.2
"""How long to wait before looking again for somebody who locked at the same moment."""

_UNREADABLE_PAUSES = (5.0, 10.0, 20.0)
_LOCK_WAITS = (5.0, 10.0, 20.0, 40.0, 60.0)

log = logging.getLogger(__name__)


class Clock(Protocol):
    """What locking knows of time; tests bring their own."""

    def now_ns(self) -> int:
        """Return the wall clock in nanoseconds since the epoch."""

    def running_seconds(self) -> float:
        """Return a clock that never jumps and does not stop while the machine sleeps."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the event; return whether it is set."""

    def pause(self, cancel: CancelToken, seconds: float) -> None:
        """Sleep, or raise ``Canceled``."""


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Return the wall clock."""
        return time.time_ns()

    def running_seconds(self) -> float:
        """Return the time since boot, suspensions included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait on the event."""
        return event.wait(seconds)

    def pause(self, cancel: CancelToken, seconds: float) -> None:
        """Sleep as the token allows."""
        cancel.pause(seconds)


SYSTEM_CLOCK = SystemClock()


class HeldLock:
    """One lock of ours in the repository, refreshed by a thread of its own."""

    def __init__(
        self,
        objects: Objects,
        exclusive: bool,
        clock: Clock = SYSTEM_CLOCK,
        journal: Journal | None = None,
    ) -> None:
        """Prepare a lock; ``journal`` is where it is noted, and packs that are sent under it."""
        self.journal = journal or Journal(None)
        self._objects = objects
        self._exclusive = exclusive
        self._clock = clock
        self._name = ""
        self._proven_at = 0.0
        self._lost = ""
        self._settles_at = 0.0
        self._cancel = CancelToken()
        self._settled = False
        self._given_up: BaseException | None = None
        self._settling = threading.Lock()
        self._rivals: dict[str, Lock] = {}  # what forbade this lock when we last looked
        self._leftovers: list[str] = []  # names of ours that may still be there
        self._refreshing = threading.Lock()
        self._stop = threading.Event()
        self._ending = CancelToken()
        self._thread: threading.Thread | None = None

    @property
    def exclusive(self) -> bool:
        """Tell whether nobody else may hold any lock meanwhile."""
        return self._exclusive

    def begin(self, cancel: CancelToken) -> None:
        """Write the lock; raise ``RepositoryLocked`` naming who forbids it.

        Until it has settled it is a promise: work that only reads may begin.
        """
        self._refuse_conflicts(self._others(cancel))
        try:
            self._write(cancel)
        except BaseException:
            self._remove_all()
            raise
        self._settles_at = self._clock.running_seconds() + SETTLE_SECONDS
        self._cancel = cancel
        self._lost, self._given_up = "", None
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=within_context(self._keep), args=[self._stop], name="lock-refresh", daemon=True
        )
        self._thread.start()

    def settle(self) -> None:
        """Look again for somebody who locked at the same moment, once; raise ``RepositoryLocked``.

        If that ends with an error, every thread that relies on the lock gets this very one.
        """
        with self._settling:
            if self._given_up is not None:
                raise self._given_up
            if self._settled or self._lost:
                return
            try:
                left = self._settles_at - self._clock.running_seconds()
                self._clock.pause(self._cancel, max(0.0, left))
                self._refuse_conflicts(self._others(self._cancel))
            except BaseException as error:
                self._lost, self._given_up = f"it was given up: {error}", error
                self._stop.set()
                self._remove_all()
                raise
            self._settled = True

    def acquire(self, cancel: CancelToken) -> None:
        """Take the lock once and have it settled; raise ``RepositoryLocked``."""
        self.begin(cancel)
        self.settle()

    def acquire_within(self, seconds: float, cancel: CancelToken) -> None:
        """Take the lock, trying again for up to ``seconds`` while others forbid it.

        What was left behind is removed when it was watched for long enough. Raises
        ``RepositoryLocked``, and the storage's errors.
        """
        end = self._clock.running_seconds() + seconds
        rivals = Rivals()
        attempt = 0
        while True:
            looked_at = self._clock.running_seconds()
            try:
                return self.acquire(cancel)
            except RepositoryLocked as error:
                if self._remove_left_behind(rivals, looked_at, cancel):
                    continue
                left = end - self._clock.running_seconds()
                if left <= 0:
                    raise
                wait = min(left, _LOCK_WAITS[min(attempt, len(_LOCK_WAITS) - 1)])
                log.info("waiting for the repository: %s", error)
                self._clock.pause(cancel, wait)
                attempt += 1

    def _remove_left_behind(self, rivals: Rivals, looked_at: float, cancel: CancelToken) -> bool:
        """Remove the locks in our way that nobody holds any more; return whether there were any."""
        now_ns = self._clock.now_ns()
        seconds = self._clock.running_seconds()
        gone = rivals.left_behind(self._rivals, looked_at, seconds, now_ns)
        for name in gone:
            self._objects.remove(Folder.LOCKS, name, cancel=cancel)
            log.warning(
                "removed a lock that was left behind in %s: %s",
                self._objects.storage.place,
                self._rivals[name].describe(now_ns),
            )
        return bool(gone)

    def check(self) -> None:
        """Raise ``LockLost`` unless the lock is known to stand; call it before each write.

        Raises ``RepositoryLocked`` if it was only begun and does not settle.
        """
        if not self._settled:
            self.settle()
        if not self._lost and self.age_seconds() > LOST_AFTER_SECONDS:
            self._lost = "it could not be refreshed for 22.5 minutes"
        if self._lost:
            raise LockLost(
                f"the lock on {self._objects.storage.place} is lost: {self._lost}; nothing more"
                " is written, start again when the storage answers"
            )

    def release(self) -> None:
        """Give the lock back; a storage that does not answer only leaves a stale lock behind."""
        self._stop.set()
        self._ending.cancel("the lock is given back")
        if self._thread is not None:
            self._thread.join()
        self._remove_all()

    def prove(self) -> None:
        """Refresh the lock unless it is young; raises ``LockLost`` and the storage's errors."""
        self.check()
        if self.age_seconds() > YOUNG_SECONDS:
            self.refresh()

    def age_seconds(self) -> float:
        """Return how long ago the lock was known to stand."""
        return self._clock.running_seconds() - self._proven_at

    def _remove_all(self) -> None:
        """Remove every lock of ours, with patience for seconds only: the run is over."""
        try:
            with patience(REMOVE_SECONDS) as cancel:
                for name in filter(None, (*self._leftovers, self._name)):
                    self._remove(name, cancel)
        except (StorageError, Canceled) as error:
            log.warning(
                "a lock stays behind in %s: %s; `podlift unlock` removes it when it is 30 min old",
                self._objects.storage.place,
                error,
            )

    def _remove(self, name: str, cancel: CancelToken) -> None:
        self._objects.remove(Folder.LOCKS, name, cancel=cancel)
        self.journal.unlocked(name)

    def _write(self, cancel: CancelToken) -> None:
        """Store a lock that is as old as this call; one that failed may be there all the same."""
        began = self._clock.running_seconds()
        file = self._objects.seal(encode_lock(self._content(), local_zone))
        self._leftovers.append(file.name)
        self.journal.lock(file.name)
        try:
            self._objects.put(Folder.LOCKS, file, cancel=cancel)
        except AccessDenied:  # refused, so it is not there
            self._leftovers.remove(file.name)
            self.journal.unlocked(file.name)
            raise
        self._leftovers.remove(file.name)
        self._name = file.name
        self._proven_at = began

    def _content(self) -> Lock:
        return Lock(
            time_ns=self._clock.now_ns(),
            exclusive=self._exclusive,
            hostname=socket.gethostname(),
            username=username(),
            pid=os.getpid(),
            uid=os.getuid(),
            gid=os.getgid(),
        )

    def _refuse_conflicts(self, others: dict[str, Lock]) -> None:
        self._rivals = conflicting(others, self._exclusive)
        if self._rivals:
            now = self._clock.now_ns()
            raise RepositoryLocked(
                f"{self._objects.storage.place} is locked: "
                + "; ".join(lock.describe(now) for lock in list(self._rivals.values())[:3])
                + ". Wait for it to end, or remove a lock that was left behind (podlift unlock)"
            )

    def _others(self, cancel: CancelToken) -> dict[str, Lock]:
        found = sizes(self._objects.storage, Folder.LOCKS, cancel)
        others = {}
        for name in [name for name, size in found if size and name != self._name]:
            with contextlib.suppress(ObjectMissing):
                others[name] = self._read(name, cancel)
        return others

    def _read(self, name: str, cancel: CancelToken) -> Lock:
        for seconds in (*_UNREADABLE_PAUSES, None):
            try:
                json = self._objects.load(Folder.LOCKS, name, cancel=cancel)
                return decode_lock(json, file_key(Folder.LOCKS, name))
            except MalformedData:
                if seconds is None:
                    raise
                self._clock.pause(cancel, seconds)
        raise AssertionError("unreachable")

    def _keep(self, stop: threading.Event) -> None:
        wait = float(REFRESH_SECONDS)
        while not self._clock.wait(stop, wait):
            try:
                self.refresh()
                wait = float(REFRESH_SECONDS)
            except (LockLost, RepositoryLocked) as error:
                log.error("%s", error)
                return
            except Canceled:
                return
            except StorageError as error:
                log.warning("the repository's lock could not be refreshed yet: %s", error)
                wait = float(RETRY_REFRESH_SECONDS)

    def refresh(self) -> None:
        """Replace the lock by a younger one; raise ``LockLost`` if ours was taken away."""
        with self._refreshing:
            self.check()
            old = self._name
            try:
                self._objects.storage.size(file_key(Folder.LOCKS, old), cancel=self._ending)
            except ObjectMissing:
                self._lost = "somebody removed it"
                self.check()
            self._write(self._ending)
            self._leftovers.append(old)
            self._remove(old, self._ending)
            self._leftovers.remove(old)


def username() -> str:
    """Return the name of the user that this process runs as."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
