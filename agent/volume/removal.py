"""Removal of what a snapshot does not have: by descriptors, never through a symlink or a mount.

What is to be spared stays, with the directories above it.
"""

import contextlib
import os
from collections.abc import Callable

from agent.errors import SourceError
from agent.volume.descriptors import DIRECTORY

Spares = Callable[[bytes], bool]
"""Tells whether what has this path from the target's root stays where it is."""


class _Level:
    """An opened directory that is being emptied: its name, and what is left to look at."""

    __slots__ = ("descriptor", "left", "name", "stays")

    def __init__(self, descriptor: int, name: bytes) -> None:
        self.descriptor = descriptor
        self.name = name
        self.left: list[bytes] = []
        self.stays = False


class Removal:
    """The removal of one entry of an open directory, with all that is below it.

    ``admits`` tells whether an open directory lies on the volume's own mount. ``removed`` counts,
    also when it ends early.
    """

    def __init__(
        self, directory: int, above: bytes, admits: Callable[[int], bool], spares: Spares | None
    ) -> None:
        self.removed = 0
        self._directory = directory
        self._above = above
        self._admits = admits
        self._spares = spares
        self._levels: list[_Level] = []  # from the outermost in; a path for each would cost memory

    def remove(self, name: bytes) -> None:
        """Remove it. Raises ``OSError``, or ``SourceError`` for a mount point, at the first failure.

        What was removed before that stays removed. What vanishes meanwhile is as good as removed.
        """
        try:
            self._look_at(name)
            while self._levels:
                level = self._levels[-1]
                if level.left:
                    self._look_at(level.left.pop())
                else:
                    self._leave()
        finally:
            for level in self._levels:
                os.close(level.descriptor)

    @property
    def _here(self) -> int:
        return self._levels[-1].descriptor if self._levels else self._directory

    def _path(self, name: bytes) -> bytes:
        parts = [self._above, *(level.name for level in self._levels), name]
        return b"/".join(parts if self._above else parts[1:])

    def _look_at(self, name: bytes) -> None:
        if self._spares is not None and self._spares(self._path(name)):
            self._keep_what_is_above()
            return
        try:
            os.unlink(name, dir_fd=self._here)
            self.removed += 1
        except FileNotFoundError:
            self.removed += 1
        except (
            IsADirectoryError,
            PermissionError,
        ):  # POSIX names EPERM for a directory, Linux EISDIR
            self._enter(name)

    def _enter(self, name: bytes) -> None:
        try:
            descriptor = os.open(name, DIRECTORY, dir_fd=self._here)
        except FileNotFoundError:
            self.removed += 1
            return
        level = _Level(descriptor, name)
        try:
            if not self._admits(descriptor):
                why = "is a mount point in the target; unmount it to remove it"
                raise SourceError(self._path(name), why)
            level.left = [os.fsencode(found) for found in os.listdir(descriptor)]
        except BaseException:
            os.close(descriptor)
            raise
        self._levels.append(level)

    def _leave(self) -> None:
        level = self._levels.pop()
        os.close(level.descriptor)
        if level.stays:
            self._keep_what_is_above()
            return
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(level.name, dir_fd=self._here)
        self.removed += 1

    def _keep_what_is_above(self) -> None:
        if self._levels:
            self._levels[-1].stays = True
