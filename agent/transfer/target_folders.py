"""Directories of a target in the making: each is finished when all that belongs in it is.

Entries are made in any order and on any thread, and every one of them moves its directory's time.
So a directory counts what it still waits for, and whoever brings the last piece gives it its own
metadata, and then accounts for it to the directory above. Only directories with something
outstanding exist at a time. A directory that is not wanted for itself is made when something in
it is.
"""

import threading

from agent.entry import Entry
from agent.errors import SourceError
from agent.volume.descriptors import join
from agent.volume.target_file import Problem
from agent.volume.writer import TargetDirectory


class TargetFolder:
    """One directory of the target; the root has neither ``entry`` nor parent.

    ``path`` is relative to the root, in raw bytes. ``wanted`` tells that it is restored for
    itself and not only for what is in it.
    """

    __slots__ = ("_directory", "_lock", "_problem", "_waiting", "entry", "parent", "path", "wanted")

    def __init__(
        self, parent: "TargetFolder | None", entry: Entry | None, problem: Problem, *, wanted: bool
    ) -> None:
        self.parent = parent
        self.entry = entry
        self.wanted = wanted
        self.path: bytes = join(parent.path, entry.name) if parent and entry else b""
        self._directory: TargetDirectory | None = None
        self._problem = problem
        self._lock = threading.Lock()
        self._waiting = 1  # for the walk itself
        if parent is not None:
            parent.expect()

    @classmethod
    def root(cls, directory: TargetDirectory, problem: Problem) -> "TargetFolder":
        """Return the folder of a target's root, whose metadata is left alone."""
        folder = cls(None, None, problem, wanted=True)
        folder._directory = directory
        return folder

    @property
    def directory(self) -> TargetDirectory:
        """Return the directory, after making it; raises ``SourceError``. For the walk only."""
        unmade = []
        folder: TargetFolder | None = self
        while folder is not None and folder._directory is None:
            unmade.append(folder)
            folder = folder.parent
        for folder in reversed(unmade):  # by a loop: a tree may be deeper than calls may be
            assert folder.parent is not None
            assert folder.entry is not None
            folder._directory = folder.parent.made.make_directory(folder.entry)
        return self.made

    @property
    def made(self) -> TargetDirectory:
        """Return the directory, which the walk has made."""
        assert self._directory is not None
        return self._directory

    def make(self) -> None:
        """Make the directory now; raises ``SourceError``."""
        _ = self.directory

    def expect(self, pieces: int = 1) -> None:
        """Wait for more pieces."""
        with self._lock:
            self._waiting += pieces

    def done(self, pieces: int = 1) -> None:
        """Account for pieces; the last one finishes this directory, and maybe its parents."""
        folder: TargetFolder | None = self
        while folder is not None and folder._last(pieces):
            folder._finish()
            folder, pieces = folder.parent, 1

    def _last(self, pieces: int) -> bool:
        with self._lock:
            self._waiting -= pieces
            return self._waiting == 0

    def _finish(self) -> None:
        if self.entry is None or self._directory is None:
            return
        try:
            if self.wanted or self._directory.fresh:
                self._directory.finish_metadata(self.entry)
        except SourceError as error:
            self._problem(error)
        finally:
            self._directory.close()
