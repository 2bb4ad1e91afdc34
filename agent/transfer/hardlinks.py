"""Hard links: one identity must mean one content.

A restore makes a hard link of every file that has the (device, inode) of an earlier one with
several links, whatever its own content says (restic-format.md section 18). Inodes are reused while
a backup runs, so the content that an identity had first is remembered, and a file that
contradicts it loses its identity and is kept as a file of its own.
"""

import threading

import msgspec

from agent.entry import Entry


class HardLinks:
    """The contents of all files with several links that were met in this run."""

    def __init__(self) -> None:
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
            elif entry.links > 1:
                self._contents[identity] = entry.content
        if known == entry.content:
            return entry
        return msgspec.structs.replace(entry, links=1, inode=0)
