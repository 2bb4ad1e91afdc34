"""Hard links: one identity must mean one content.

A restore makes a hard link of every file that has the (device, inode) of an earlier one with
several links, whatever its own content says (restic-format.md section 18). Inodes are reused while
a backup runs, so the content that an identity had first is remembered, and a file that
contradicts it loses its identity and is kept as a file of its own.

Files with one link are too many to remember. One of them may have had the inode before, and may
come after the new holder in the order of a restore. So a file with several links that was made
or changed since the run began is kept without its identity as well: its links come back as
files of their own, which costs room, but never content.
"""

import threading
import time

import msgspec

from agent.entry import Entry

_COARSE_CLOCK = 5
"""``CLOCK_REALTIME_COARSE`` of linux/time.h, for which Python has no name."""


_TICK_LOOKS, _TICK_LOOK_SECONDS = 40, 0.0005


class HardLinks:
    """The contents of all files with several links that were met in this run.

    ``began_ns`` is a time that no file bears which was changed before the walk, and that every one bears, or
    a later one, which is changed from now on.
    """

    def __init__(self, began_ns: int | None = None) -> None:
        self._began_ns = _tick() if began_ns is None else began_ns
        self._lock = threading.Lock()
        self._contents: dict[tuple[int, int], tuple[bytes, ...] | None] = {}

    def settle(self, entry: Entry) -> Entry:
        """Return the finished file, without its identity if that belongs to another content."""
        if entry.links < 2 and not self._contents:
            return entry
        identity = (entry.device, entry.inode)
        with self._lock:
            known = entry.content
            if identity in self._contents:
                known = self._contents[identity]
            elif entry.links > 1 and entry.ctime_ns >= self._began_ns:
                known = None
            elif entry.links > 1:
                self._contents[identity] = entry.content
        if known == entry.content:
            return entry
        return msgspec.structs.replace(entry, links=1, inode=0)


def _tick() -> int:
    """Return the next tick of the kernel's coarse clock; it comes within 10 ms.

    Files are stamped by that clock, or (Linux from 6.13 on, where somebody has looked at the last
    stamp) by the exact one, which is ahead of it by less than a tick.
    """
    now = coarse = time.time_ns()
    for _ in range(_TICK_LOOKS):
        if (coarse := time.clock_gettime_ns(_COARSE_CLOCK)) > now:
            break
        time.sleep(_TICK_LOOK_SECONDS)
    return coarse  # not reached if the clock was set back: young links then come back as files
