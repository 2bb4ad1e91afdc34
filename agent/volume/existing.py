"""A file that is in the target already: read, and perhaps kept, or written where it differs.

What is kept need not be fetched, which is what makes a restore resumable. Its owner may change it
meanwhile; whoever wants to know how it is in the end verifies it afterwards.
"""

import os

from agent.volume.descriptors import proc_path
from agent.volume.scope import OneDescriptor
from agent.volume.target_file import Parent, TargetFile, target_errors


class ExistingFile(OneDescriptor):
    """One regular file, open for reading; closed by whoever opened it."""

    def __init__(self, descriptor: int, path: bytes, parent: Parent) -> None:
        """Take ``descriptor`` over; ``TargetDirectory.open_existing`` is the way to make one."""
        super().__init__(descriptor)
        stat = os.fstat(descriptor)
        self.path = path
        self.size = stat.st_size
        self.links = stat.st_nlink
        self._parent = parent

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
        """Open the very same file as a target; None if it must not be written to.

        With ``keep`` only its metadata will be written. Otherwise it must have one link: another
        one may be a name that is to stay as it is. Raises ``SourceError``.
        """
        with target_errors(self.path):
            # By the magic link of the descriptor: whatever its name leads to by now.
            # Who owns a file may set metadata of it also where he may not write to it.
            how = os.O_RDONLY if keep else os.O_WRONLY
            descriptor = os.open(proc_path(self._descriptor), how | os.O_CLOEXEC)
            if os.fstat(descriptor).st_nlink > 1 and not keep:
                os.close(descriptor)
                return None
        return TargetFile.rewriting(descriptor, self.path, self._parent)
