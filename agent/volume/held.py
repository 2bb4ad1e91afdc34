"""Held descriptors: what a restore has open, without holding more of it than it may.

A restore goes back to a directory or file as its chunks arrive, and there may be any number of
both. A bounded number of descriptors is kept; what was not used for longest is closed, and opened
again when it is wanted. Opening again never trusts a name: it goes from the directory above, which
is held or opened again in the same way, never through a symlink, and what it finds must be the very
inode that was there before.
"""

import collections
import contextlib
import errno
import os
import threading
from collections.abc import Iterator

from agent.volume.scope import Scoped


class Descriptors:
    """The descriptors of one restore, at most ``limit`` of them while not more are in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[Held, _Open] = collections.OrderedDict()

    def put(self, owner: "Held", descriptor: int) -> None:
        """Take over the descriptor of what was just opened."""
        with self._lock:
            self._open[owner] = _Open(descriptor)
            idle = self._idle()
        _close(idle)

    def acquire(self, owner: "Held") -> int:
        """Return a descriptor of ``owner`` that stays open until ``release``; ``OSError``."""
        with self._lock:
            found = self._open.get(owner)
            if found is not None:
                found.users += 1
                self._open.move_to_end(owner)
                return found.descriptor
        if owner.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fresh = owner.reopen()
        with self._lock:
            found = self._open.setdefault(owner, _Open(fresh))
            found.users += 1
            idle = self._idle()
        if found.descriptor != fresh:  # another thread was faster
            os.close(fresh)
        _close(idle)
        return found.descriptor

    def has(self, owner: "Held") -> bool:
        """Tell whether ``owner`` is open now."""
        with self._lock:
            return owner in self._open

    def release(self, owner: "Held") -> None:
        """End a use that ``acquire`` began."""
        with self._lock:
            self._open[owner].users -= 1

    def drop(self, owner: "Held") -> None:
        """Close what ``owner`` has open, if anything; raises ``OSError`` of the close."""
        with self._lock:
            found = self._open.pop(owner, None)
        if found is not None:
            os.close(found.descriptor)

    def close(self) -> None:
        """Close whatever is still open; nothing may be in use any more."""
        with self._lock:
            left, self._open = self._open, collections.OrderedDict()
        _close([(owner, found.descriptor) for owner, found in left.items()])

    def _idle(self) -> list[tuple["Held", int]]:
        """Take out what has to go, the longest unused first."""
        excess = len(self._open) - self._limit
        if excess <= 0:
            return []
        unused = [owner for owner, found in self._open.items() if not found.users][:excess]
        return [(owner, self._open.pop(owner).descriptor) for owner in unused]


class _Open:
    __slots__ = ("descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0


def _close(idle: list[tuple["Held", int]]) -> None:
    for owner, descriptor in idle:
        try:
            os.close(descriptor)
        except OSError as error:
            owner.closed_with = error  # network file systems refuse late: told when it is finished


class Held(Scoped):
    """Something that has a descriptor whenever it is used."""

    closed = False
    closed_with: OSError | None = None
    """What went wrong when its descriptor was closed to make room."""

    def __init__(self, descriptors: Descriptors, descriptor: int) -> None:
        """Take ``descriptor`` over."""
        stat = os.fstat(descriptor)
        self.device = stat.st_dev
        self.inode = stat.st_ino
        self._descriptors = descriptors
        descriptors.put(self, descriptor)

    def reopen(self) -> int:
        """Return a new descriptor of the same inode; raises ``OSError`` or ``SourceError``."""
        raise NotImplementedError

    @contextlib.contextmanager
    def using(self) -> Iterator[int]:
        """Hold a descriptor for the length of a scope."""
        descriptor = self._descriptors.acquire(self)
        try:
            yield descriptor
        finally:
            self._descriptors.release(self)

    def is_at(self, descriptor: int) -> bool:
        """Tell whether ``descriptor`` is of this very inode."""
        stat = os.fstat(descriptor)
        return (stat.st_dev, stat.st_ino) == (self.device, self.inode)

    def close(self) -> None:
        """Give the descriptor back; closing twice does nothing. ``OSError`` if that fails."""
        self.closed = True
        self._descriptors.drop(self)
        late, self.closed_with = self.closed_with, None
        if late is not None:
            raise late
