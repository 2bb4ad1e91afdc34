"""A file that is being restored: created by us, empty, written in any order, then finished.

It was created exclusively, so no range was ever written before: runs of zeros are left out
and become holes. Its inode is the only one that is ever written to; what the owner puts under its
name meanwhile is not touched.
"""

import dataclasses
import os
import stat as mode_bits
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from errno import EDQUOT, ENOSPC, EROFS
from typing import Protocol

from agent.entry import Entry
from agent.errors import SourceError, VolumeError
from agent.volume.descriptors import pinned, proc_path, reason
from agent.volume.held import Descriptors, Held
from agent.volume.metadata import apply_metadata

Problem = Callable[[SourceError], None]
"""Who hears about an entry that was not restored in full; called from any thread."""

_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FATAL = frozenset({ENOSPC, EDQUOT, EROFS})
_ZEROS = bytes(64 * 1024)
"""One run of zeros that is worth a hole; shorter ones cost less than the extent they split."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a restored file is, so that it can be linked to after it was closed."""

    path: bytes
    device: int
    inode: int


class Parent(Protocol):
    """The directory that a file was made in."""

    @property
    def descriptors(self) -> Descriptors:
        """Return where descriptors are held."""

    @property
    def problem(self) -> Problem:
        """Return who hears of metadata that could not be set."""

    def using(self) -> AbstractContextManager[int]:
        """Hold a descriptor of the directory for a scope."""


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


class TargetFile(Held):
    """One new file; closed by whoever made it. Threads may write different ranges at once.

    Its descriptor may be closed and opened again in between; see ``held``.
    """

    def __init__(self, descriptor: int, path: bytes, parent: Parent) -> None:
        """Take ``descriptor`` over; ``TargetDirectory.make_file`` is the way to make one."""
        super().__init__(parent.descriptors, descriptor)
        self.path = path
        self.place = Place(path, self.device, self.inode)
        self._parent = parent
        self._dense = False

    @classmethod
    def rewriting(cls, descriptor: int, path: bytes, parent: Parent) -> "TargetFile":
        """Take over a file that has content already: zeros are then written like anything else."""
        file = cls(descriptor, path, parent)
        file._dense = True
        return file

    def reopen(self) -> int:
        """Open the file again by its name, if it is still there; raises ``SourceError``."""
        name = self.path.rpartition(b"/")[2]
        with (
            target_errors(self.path),
            self._parent.using() as directory,
            pinned(name, directory) as found,
        ):
            # A device is not even opened, though it may have the number of a file that was removed.
            if not self.is_at(found) or not mode_bits.S_ISREG(os.fstat(found).st_mode):
                raise SourceError(self.path, "was replaced while it was restored; stop the pod")
            return os.open(proc_path(found), _WRITE)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``offset``; each range once, zeros become holes.

        Call ``truncate`` too: a hole at the end is not part of the file before.
        Raises ``SourceError``, or ``VolumeError`` when the volume is full or read-only.
        """
        view = memoryview(data)
        with target_errors(self.path), self.using() as descriptor:
            start = 0
            for position in () if self._dense else range(0, len(view), len(_ZEROS)):
                block = view[position : position + len(_ZEROS)]
                if len(block) == len(_ZEROS) and block[0] == 0 and bytes(block) == _ZEROS:
                    _write(descriptor, offset + start, view[start:position])
                    start = position + len(block)
            _write(descriptor, offset + start, view[start:])

    def truncate(self, size: int) -> None:
        """Set the size; what was not written below it is a hole. Raises as ``write_at``."""
        with target_errors(self.path), self.using() as descriptor:
            os.ftruncate(descriptor, size)

    def finish_metadata(self, entry: Entry) -> None:
        """Set owner, attributes, mode and times; what fails goes to the problem callback."""
        with target_errors(self.path), self.using() as descriptor:
            report(self.path, apply_metadata(descriptor, entry), self._parent.problem)

    def close(self) -> None:
        """Give the descriptor back; closing twice does nothing. Raises as ``write_at``."""
        with target_errors(self.path):  # network file systems refuse late
            super().close()


def _write(descriptor: int, offset: int, view: memoryview) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
