"""A volume that is open for reading: a root directory, pinned once.

The path of the root is resolved when the volume is opened, symlinks and all: it comes from
the operator or the cluster. From then on the root is a descriptor, and nothing is reached but
through it.
"""

import errno
import os

from agent.errors import VolumeError
from agent.volume.descriptors import last_descriptor, proc_path, reason
from agent.volume.directory import Directory, Surroundings
from agent.volume.mounts import holds_mounts, mount_id
from agent.volume.names import NameCache
from agent.volume.scope import Scoped

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC


class Volume(Scoped):
    """The directory of a volume, open until ``close``; a context manager."""

    def __init__(self, descriptor: int, path: bytes) -> None:
        """Take ``descriptor`` over; ``open`` is the way to make one."""
        self.path = path
        self.device = os.fstat(descriptor).st_dev
        mount = mount_id(descriptor)
        around = Surroundings(
            self.device, mount, holds_mounts(mount), NameCache(), last_descriptor()
        )
        self.root = Directory(descriptor, b"", around)

    @classmethod
    def open(cls, path: str | bytes | os.PathLike[str]) -> "Volume":
        """Open the directory ``path``; raises ``VolumeError`` that says why it cannot be."""
        descriptor = open_root(path)
        try:
            return cls(descriptor, os.fsencode(path))
        except OSError as error:
            os.close(descriptor)
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            raise VolumeError(_explain(shown, error)) from error

    def close(self) -> None:
        """Give the root back; directories below live until they are closed themselves."""
        self.root.close()


def open_root(path: str | bytes | os.PathLike[str]) -> int:
    """Return a descriptor of the directory ``path``; raises ``VolumeError`` with advice."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        descriptor = os.open(path, _ROOT)
    except ValueError as error:
        raise VolumeError(f"volume {shown!r} cannot be opened: {error}; check the path") from error
    except OSError as error:
        raise VolumeError(_explain(shown, error)) from error
    if not os.path.exists(proc_path(descriptor)):
        os.close(descriptor)
        raise VolumeError(f"volume {shown} cannot be read: /proc is not mounted; mount it")
    return descriptor


def _explain(shown: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"volume {shown} does not exist; check the path, and that its volume is mounted here"
    if error.errno == errno.ENOTDIR:
        return f"volume {shown} is not a directory; name the directory to read"
    if error.errno == errno.ELOOP:
        return f"volume {shown} is a loop of symlinks; name the directory itself"
    return f"volume {shown} cannot be opened: {reason(error)}"
