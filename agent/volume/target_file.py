"""A file that is being restored: created by us, empty, written in any order, then finished.

It was created exclusively, so no range was ever written before: runs of zeros are left out
and become holes. Its descriptor is the only way to it; what the owner puts under its name
meanwhile is not touched.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, EROFS

from agent.entry import Entry
from agent.errors import SourceError, VolumeError
from agent.volume.descriptors import reason
from agent.volume.metadata import apply_metadata
from agent.volume.scope import OneDescriptor

Problem = Callable[[SourceError], None]
"""Who hears about an entry that was not restored in full; called from any thread."""

_FATAL = frozenset({ENOSPC, EDQUOT, EROFS})
_ZEROS = bytes(64 * 1024)
"""One run of zeros that is worth a hole; shorter ones cost less than the extent they split."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a restored file is, so that it can be linked to after it was closed."""

    path: bytes
    device: int
    inode: int


@contextmanager
def target_errors(path: bytes) -> Iterator[None]:
    """Turn an ``OSError`` of the block into ``SourceError``, or ``VolumeError`` if all must fail."""
    try:
        yield
    except OSError as error:
        if error.errno in _FATAL:
            shown = path.decode("utf-8", "backslashreplace")
            raise VolumeError(f"restore stopped at {shown}: {reason(error)}") from error
        raise SourceError(path, reason(error)) from error


def report(path: bytes, failures: list[str], problem: Problem) -> None:
    """Tell ``problem`` once about all metadata of an entry that could not be set."""
    if failures:
        problem(SourceError(path, "; ".join(failures)))


class TargetFile(OneDescriptor):
    """One new file; closed by whoever made it. Threads may write different ranges at once."""

    def __init__(self, descriptor: int, path: bytes, problem: Problem) -> None:
        """Take ``descriptor`` over; ``TargetDirectory.make_file`` is the way to make one."""
        stat = os.fstat(descriptor)
        self.path = path
        self.place = Place(path, stat.st_dev, stat.st_ino)
        super().__init__(descriptor)
        self._problem = problem

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``; each range once, zeros become holes.

        Call ``truncate`` in the end: a hole at the end is not part of the file before.
        Raises ``SourceError``, or ``VolumeError`` when the volume is full or read-only.
        """
        view = memoryview(data)
        with target_errors(self.path):
            start = 0
            for position in range(0, len(view), len(_ZEROS)):
                block = view[position : position + len(_ZEROS)]
                if len(block) == len(_ZEROS) and block[0] == 0 and bytes(block) == _ZEROS:
                    self._write(offset + start, view[start:position])
                    start = position + len(block)
            self._write(offset + start, view[start:])

    def truncate(self, size: int) -> None:
        """Set the size; what was not written below it is a hole. Raises as ``write_at``."""
        with target_errors(self.path):
            os.ftruncate(self._descriptor, size)

    def finish_metadata(self, entry: Entry) -> None:
        """Set owner, attributes, mode and times; what fails goes to the problem callback."""
        report(self.path, apply_metadata(self._descriptor, entry), self._problem)

    def close(self) -> None:
        """Give the descriptor back; closing twice does nothing. Raises as ``write_at``."""
        with target_errors(self.path):  # network file systems refuse late
            super().close()

    def _write(self, offset: int, view: memoryview) -> None:
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view = view[count:]
            offset += count
