"""Removal of what a snapshot does not have: by descriptors, never through a symlink or a mount."""

import os
from collections.abc import Callable

from agent.errors import SourceError
from agent.volume.descriptors import DIRECTORY, join


def remove_entry(directory: int, name: bytes, path: bytes, admits: Callable[[int], bool]) -> int:
    """Remove an entry of an open directory and all that is below it; return how many they were.

    ``admits`` tells whether an open directory lies on the volume's own mount. Raises ``OSError``,
    or ``SourceError`` for a mount point, at the first that cannot be removed; what was there
    before stays removed. What vanishes meanwhile is as good as removed.
    """
    removed = 0
    # Opened directories from the outermost in, each with its name, its path, and what is left in it.
    stack: list[tuple[int, bytes, bytes, list[bytes]]] = []
    todo = (directory, name, path)
    try:
        while True:
            here, name, path = todo
            inner = _unlink_or_enter(here, name, path, admits)
            if inner is not None:
                names = [os.fsencode(found) for found in os.listdir(inner)]
                stack.append((inner, name, path, names))
            else:
                removed += 1
            while stack and not stack[-1][3]:
                done, name, _, _ = stack.pop()
                os.close(done)
                os.rmdir(name, dir_fd=stack[-1][0] if stack else directory)
                removed += 1
            if not stack:
                return removed
            opened, _, above, names = stack[-1]
            below = names.pop()
            todo = (opened, below, join(above, below))
    finally:
        for opened, _, _, _ in stack:
            os.close(opened)


def _unlink_or_enter(
    directory: int, name: bytes, path: bytes, admits: Callable[[int], bool]
) -> int | None:
    """Remove what is no directory and return None, or return the directory, opened."""
    try:
        os.unlink(name, dir_fd=directory)
        return None
    except FileNotFoundError:
        return None
    except (IsADirectoryError, PermissionError):
        pass  # POSIX names EPERM for a directory, Linux EISDIR
    descriptor = os.open(name, DIRECTORY, dir_fd=directory)
    if not admits(descriptor):
        os.close(descriptor)
        raise SourceError(path, "is a mount point in the target; unmount it to remove it")
    return descriptor
