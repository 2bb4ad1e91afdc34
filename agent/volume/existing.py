"""A file that is in the target already: read, and perhaps kept, or written where it differs.

What is kept need not be fetched, which is what makes a restore resumable. Its owner may change it
meanwhile; whoever wants to know how it is in the end verifies it afterwards.
"""

import os
import stat as mode_bits

from agent.volume.scope import OneDescriptor
from agent.volume.target_file import Parent, TargetFile, target_errors


class ExistingFile(OneDescriptor):
    """One regular file, open for reading; closed by whoever opened it."""

    def __init__(self, descriptor: int, path: bytes, parent: Parent, stat: os.stat_result) -> None:
        super().__init__(descriptor)
        self.path = path
        self.size = stat.st_size
        self.links = stat.st_nlink
        self._identity = (stat.st_dev, stat.st_ino)
        self._parent = parent

    @classmethod
    def of(cls, descriptor: int, path: bytes, parent: Parent) -> "ExistingFile | None":
        """Take ``descriptor`` over if it is of a regular file; else close it and return None."""
        stat = os.fstat(descriptor)
        if mode_bits.S_ISREG(stat.st_mode):
            return cls(descriptor, path, parent, stat)
        os.close(descriptor)
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes; raises ``SourceError``."""
        with target_errors(self.path):
            parts = []
            while length > 0 and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def rewrite(self, *, keep: bool) -> TargetFile | None:
        """Open the same file as a target; None if its name leads elsewhere by now.

        With ``keep`` only its metadata will be written. Otherwise it must have one link: another
        one may be a name that is to stay as it is.
        """
        name = self.path.rpartition(b"/")[2]
        with target_errors(self.path), self._parent.using() as directory:
            try:
                descriptor = os.open(name, _WRITE, dir_fd=directory)
            except FileNotFoundError:
                return None
        stat = os.fstat(descriptor)
        shared = stat.st_nlink > 1 and not keep
        if (stat.st_dev, stat.st_ino) != self._identity or shared:
            os.close(descriptor)
            return None
        return TargetFile.rewriting(descriptor, self.path, self._parent)


_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
