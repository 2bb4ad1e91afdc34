"""A file that is in the target already: read, and perhaps kept, or written where it differs.

What is kept need not be fetched, which is what makes a restore resumable. Its owner may change it
meanwhile; whoever wants to know how it is in the end verifies it afterwards.
"""

import os

from agent.entry import Entry
from agent.volume.descriptors import proc_path
from agent.volume.found import has_only_this_name
from agent.volume.metadata import has_metadata
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
        self.identity = (stat.st_dev, stat.st_ino)
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

    def rewrite(self) -> TargetFile | None:
        """Open the very same file to be written to; None if it has another name than its own.

        That may be one that is to stay as it is. Raises ``SourceError``.
        """
        with target_errors(self.path):
            descriptor = self._open(os.O_WRONLY)
            if not self._is_alone(descriptor):
                os.close(descriptor)
                return None
        return TargetFile.rewriting(descriptor, self.path, self._parent)

    def keep(self, entry: Entry) -> TargetFile | None:
        """Open the very same file to be given metadata; None if another name would get it too.

        With another name it is kept only if it lacks nothing. Raises ``SourceError``.
        """
        with target_errors(self.path):
            # Who owns a file may set metadata of it also where he may not write to it.
            descriptor = self._open(os.O_RDONLY)
            if not self._is_alone(descriptor) and not has_metadata(descriptor, entry):
                os.close(descriptor)
                return None
        return TargetFile.rewriting(descriptor, self.path, self._parent)

    def _is_alone(self, descriptor: int) -> bool:
        name = self.path.rpartition(b"/")[2]
        with self._parent.using() as directory:
            return has_only_this_name(descriptor, name, directory)

    def _open(self, how: int) -> int:
        """Open it again, by the magic link of its descriptor: whatever its name leads to by now.

        Without waiting: whoever holds a lease on the file could make each open last 45 seconds.
        """
        return os.open(proc_path(self._descriptor), how | os.O_NONBLOCK | os.O_CLOEXEC)
