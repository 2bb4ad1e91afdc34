"""The cache of snapshots: each as it lies in the repository, sealed, in a file of its id.

A backup looks at every snapshot to choose its parent, and there are thousands: fetched one by one they
would cost seconds and money each time. A snapshot never changes and its id is the hash of its file,
so what is read here is proven as if it had been fetched; a torn file is fetched again. Whether a
snapshot is still there is for the repository's listing alone to say.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from agent.repository.identity import is_object_name


class SnapshotCache:
    """Snapshots of one repository; ``make_room(bytes)`` tells whether so many may be written."""

    def __init__(self, folder: Path, make_room: Callable[[int], bool]) -> None:
        """Use a folder, which is made when something is kept."""
        self._folder = folder
        self._make_room = make_room

    def get(self, name: str) -> bytes | None:
        """Return a snapshot as it is stored, or None if it is not here whole."""
        path = self._folder / name
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(stored).hexdigest() == name:
            return stored
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def keep(self, name: str, stored: bytes) -> None:
        """Keep a snapshot that was fetched; a full or read-only disk is not an error."""
        temporary = self._folder / f".{name}.{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(exist_ok=True, mode=0o700)
            if self._make_room(len(stored)):
                temporary.write_bytes(stored)
                os.replace(temporary, self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def keep_only(self, names: set[str]) -> None:
        """Drop the snapshots that are no more."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if is_object_name(path.name) and path.name not in names:
                    path.unlink(missing_ok=True)
