"""Hard links of a restore: the first of several names is written, the others are linked to it.

Two names are one file if they have the same (device, inode), more than one link, and the same
content; a snapshot that says otherwise is not followed (restic-format.md section 18). Names that
come before the first one is finished wait for it. One entry is kept for each file with several
links, for as long as the restore runs.
"""

import threading
from collections.abc import Callable

from agent.entry import Entry
from agent.transfer.target_folders import TargetFolder
from agent.volume.target_file import Place

Name = tuple[TargetFolder, Entry]


class _Linked:
    """What is known of one file: its content, then where it is, and who waits for that."""

    __slots__ = ("content", "place", "waiting")

    def __init__(self, content: tuple[bytes, ...] | None) -> None:
        self.content = content
        self.place: Place | None = None
        self.waiting: list[Name] = []


class TargetLinks:
    """All files with several links that were met in this run."""

    def __init__(self, link: Callable[[TargetFolder, Entry, Place], None]) -> None:
        """Call ``link`` for each name that can be linked, on the thread that finds it out."""
        self._link = link
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], _Linked] = {}

    def first(self, folder: TargetFolder, entry: Entry) -> bool:
        """Tell whether this name has to be written itself; else it is linked, now or later."""
        identity = (entry.device, entry.inode)
        with self._lock:
            known = self._known.get(identity)
            if known is None:
                self._known[identity] = _Linked(entry.content)
                return True
            if known.content != entry.content:
                return True
            place = known.place
            if place is None:
                known.waiting.append((folder, entry))
        if place is not None:
            self._link(folder, entry, place)
        return False

    def written(self, entry: Entry, place: Place) -> None:
        """Say where a file with several links is now, and link those that waited for it."""
        with self._lock:
            known = self._known.get((entry.device, entry.inode))
            if known is None or known.place is not None or known.content != entry.content:
                return
            known.place = place
            waiting, known.waiting = known.waiting, []
        for folder, waiter in waiting:
            self._link(folder, waiter, place)

    def failed(self, entry: Entry) -> list[Name]:
        """Forget a file that could not be written; return the names that waited for it."""
        identity = (entry.device, entry.inode)
        with self._lock:
            known = self._known.get(identity)
            if known is None or known.place is not None or known.content != entry.content:
                return []
            del self._known[identity]
            return known.waiting
