"""Hard links of a restore: the first of several names is written, the others are linked to it.

Two names are one file if they have the same (device, inode), more than one link, and the same
content; a snapshot that says otherwise is not followed (restic-format.md section 18). Names that
come before the first one is finished wait for it. Content that the repository has lost is lost under
every name, and is not fetched for each. One entry is kept for each file with several
links, for as long as the restore runs.
"""

import threading
from collections.abc import Callable

from agent.entry import Entry
from agent.errors import DamagedBlob
from agent.transfer.target_folders import TargetFolder
from agent.volume.target_file import Place

Name = tuple[TargetFolder, Entry]


class _Linked:
    """What is known of one file: its content, then where it is, and who waits for that."""

    __slots__ = ("content", "place", "waiting")

    def __init__(self, content: tuple[bytes, ...] | None) -> None:
        self.content = content
        self.place: Place | DamagedBlob | None = None
        self.waiting: list[Name] = []


class TargetLinks:
    """All files with several links that were met in this run."""

    def __init__(self, link: Callable[[TargetFolder, Entry, Place | DamagedBlob], None]) -> None:
        """Call ``link`` for each name when it is known what to link, on the thread that finds out."""
        self._link = link
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], _Linked] = {}
        self._kept: set[tuple[int, int]] = set()

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

    def keep(self, place: Place) -> bool:
        """Tell whether a file that is there may be kept: the snapshot has two, the target one."""
        with self._lock:
            identity = (place.device, place.inode)
            if identity in self._kept:
                return False
            self._kept.add(identity)
            return True

    def written(self, entry: Entry, place: Place | DamagedBlob) -> None:
        """Say where a file with several links is now, or that it is lost, to those that waited."""
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
