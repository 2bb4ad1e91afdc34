"""The handover of a restored volume: the file that tells its pod that the data are there.

Velero's init container polls for ``.velero/NAME`` in the volume and lets the pod start when it is
there (velero.md section 7). So it is made last, after everything else is on the disk, and readable
by anybody, since that container is seldom root. Its folder is taken away first, whatever it is:
the snapshot, or the volume's owner, may have put one there.

The owner may put anything under the name at any moment: a symlink, a fifo, a deep tree. So the
folder is reached from the volume's own descriptor, never through a symlink, and the file is made
exclusively in the very directory that we made. The descriptor is held from before the restore, so
that a volume which is unmounted meanwhile is noticed; and so is its lock, which the kernel drops
with the process: of two agents that restore the same volume, the second waits for the first.
"""

import ctypes
import errno
import fcntl
import itertools
import os
import re
import secrets
import stat
from pathlib import Path

from agent.cancel import CancelToken
from agent.errors import VolumeError
from agent.volume.descriptors import DIRECTORY, reason
from agent.volume.mounts import mount_id
from agent.volume.reader import open_root
from agent.volume.scope import OneDescriptor

FOLDER = b".velero"
FOLDER_MODE, FILE_MODE = 0o755, 0o644

ATTEMPTS = 3
"""How often the folder is cleared away before its owner is held to fight us."""

LOCK_SECONDS = 60
"""Longer than an agent that was told to end takes (terminationGracePeriodSeconds: 45)."""

NAMES = 1000
"""How many names of a directory are held at a time while it is cleared away."""

_RACES = frozenset(
    {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EISDIR}
)
"""What happens when somebody else works on the same names."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,252}")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_UNLOCKABLE = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""What file systems answer that cannot lock a directory (NFS asks for one open for writing)."""


class Handover(OneDescriptor):
    """The root of a volume that is being restored; a context manager."""

    def __init__(self, descriptor: int, path: Path, cancel: CancelToken) -> None:
        """Take ``descriptor`` over; ``open`` is the way to make one."""
        super().__init__(descriptor)
        self._path = path
        self._cancel = cancel
        self._mount = (os.fstat(descriptor).st_dev, mount_id(descriptor))

    @classmethod
    def open(cls, path: Path, cancel: CancelToken) -> "Handover":
        """Open the directory, which must exist, and keep others from restoring into it.

        Raises ``VolumeError``, also when another process does not let go of it, and ``Canceled``.
        """
        handover = cls(open_root(path), path, cancel)
        try:
            handover._lock()
        except BaseException:
            handover.close()
            raise
        return handover

    def _lock(self) -> None:
        for _ in range(LOCK_SECONDS):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._cancel.pause(1.0)
            except OSError as error:
                if error.errno in _UNLOCKABLE:
                    return
                raise self._failed("cannot be locked", error) from error
            else:
                return
        raise VolumeError(
            f"volume {self._path} is locked by another process, perhaps an agent that still restores "
            "into it; end that one and restore again"
        )

    def flush(self) -> None:
        """Wait until what was written to the volume is on the disk; raises ``VolumeError``."""
        try:
            _syncfs(self._descriptor)
        except OSError as error:
            raise self._failed("could not be written out to the disk", error) from error

    def finish(self, name: str) -> None:
        """Make the done file ``name`` in a folder of our own.

        From then on the pod may start, so nothing may be written to the volume any more.
        Raises ``VolumeError``, and ``Canceled`` as long as there is no such file.
        """
        if not _NAME.fullmatch(name):
            raise VolumeError(f"{name!r} is no Restore's uid: correct the ownerReferences")
        self._check_place()
        try:
            self._finish(name.encode())
        except OSError as error:
            raise self._failed("cannot be handed to its pod", error) from error

    def finished(self, name: str) -> bool:
        """Tell whether an earlier process has made the done file, and complete its modes.

        It makes the file only when everything else is on the disk. Raises ``VolumeError``.
        """
        if not _NAME.fullmatch(name):
            return False
        self._check_place()
        try:
            return self._finished(name.encode())
        except OSError as error:
            if error.errno in _RACES:
                return False
            raise self._failed("cannot be handed to its pod", error) from error

    def _finished(self, name: bytes) -> bool:
        folder = os.open(FOLDER, DIRECTORY, dir_fd=self._descriptor)
        try:
            self._check_mount(folder)
            file = os.open(name, _LOOK, dir_fd=folder)
            try:
                facts = os.fstat(file)
                if not (
                    stat.S_ISREG(facts.st_mode) and _is_ours(facts) and _is_ours(os.fstat(folder))
                ):
                    return False
                os.fchmod(file, FILE_MODE)
            finally:
                os.close(file)
            os.fchmod(folder, FOLDER_MODE)
            return True
        finally:
            os.close(folder)

    def _check_place(self) -> None:
        """Raise ``VolumeError`` if the path leads to another directory than when it was opened."""
        try:
            now = os.stat(self._path)
        except OSError as error:
            raise self._failed("has gone while it was restored", error) from error
        if not os.path.samestat(now, os.fstat(self._descriptor)):
            raise VolumeError(
                f"volume {self._path} was unmounted while it was restored, or mounted again; "
                "restore it again"
            )

    def _finish(self, name: bytes) -> None:
        for _ in range(ATTEMPTS):
            try:
                self._clear()
                self._cancel.check()
                os.mkdir(FOLDER, 0o700, dir_fd=self._descriptor)
                if self._make(name):
                    return
            except OSError as error:
                if error.errno not in _RACES:
                    raise
        raise VolumeError(
            f"volume {self._path}: something is put in the place of {FOLDER.decode()} again and "
            "again; stop what writes to the volume and restore it again"
        )

    def _make(self, name: bytes) -> bool:
        """Make the file; return whether its folder is still the one under that name."""
        folder = os.open(FOLDER, DIRECTORY, dir_fd=self._descriptor)
        try:
            self._check_mount(folder)
            file = os.open(name, _CREATE, 0o600, dir_fd=folder)
            try:
                os.fchmod(file, FILE_MODE)  # whatever the umask
            finally:
                os.close(file)
            os.fchmod(folder, FOLDER_MODE)
            now = os.stat(FOLDER, dir_fd=self._descriptor, follow_symlinks=False)
            return os.path.samestat(now, os.fstat(folder))
        finally:
            os.close(folder)

    def _clear(self) -> None:
        """Remove what is under the folder's name; raises ``OSError`` or ``VolumeError``."""
        try:
            os.unlink(FOLDER, dir_fd=self._descriptor)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
        folder = os.open(FOLDER, DIRECTORY, dir_fd=self._descriptor)
        try:
            self._check_mount(folder)
            self._empty(folder)
        finally:
            os.close(folder)
        os.rmdir(FOLDER, dir_fd=self._descriptor)

    def _empty(self, folder: int) -> None:
        """Remove everything in it, however deep, with two descriptors at most.

        The directories in a directory are moved up into ``folder`` before it is removed itself,
        so no path gets longer than two names.
        """
        while names := _some_names(folder):
            for name in names:
                self._cancel.check()
                if not self._unlinked(name, folder):
                    self._flatten(name, folder)
                    os.rmdir(name, dir_fd=folder)

    def _flatten(self, name: bytes, folder: int) -> None:
        """Empty one directory of ``folder``: what is a directory itself goes up."""
        below = os.open(name, DIRECTORY, dir_fd=folder)
        try:
            self._check_mount(below)
            while names := _some_names(below):
                for inner in names:
                    self._cancel.check()
                    if not self._unlinked(inner, below):
                        fresh = f"podlift-{secrets.token_hex(12)}"
                        os.rename(inner, fresh, src_dir_fd=below, dst_dir_fd=folder)
        finally:
            os.close(below)

    def _unlinked(self, name: bytes, folder: int) -> bool:
        """Remove anything but a directory; return whether it is gone."""
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            if not _is_directory(name, folder):
                raise  # immutable, or not ours to remove
            return False
        return True

    def _check_mount(self, descriptor: int) -> None:
        if (os.fstat(descriptor).st_dev, mount_id(descriptor)) != self._mount:
            raise VolumeError(
                f"volume {self._path}: something is mounted in {FOLDER.decode()}; unmount it and "
                "restore again"
            )

    def _failed(self, what: str, error: OSError) -> VolumeError:
        return VolumeError(f"volume {self._path} {what}: {reason(error)}")


def _is_ours(facts: os.stat_result) -> bool:
    """Tell whether it can be of our making: our user's, and a file under one name, and empty."""
    single = stat.S_ISDIR(facts.st_mode) or (facts.st_nlink == 1 and facts.st_size == 0)
    return facts.st_uid == os.geteuid() and single


def _is_directory(name: bytes, folder: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _some_names(folder: int) -> list[bytes]:
    """Return names of a directory, not all of them if there are many."""
    with os.scandir(folder) as entries:
        return [os.fsencode(entry.name) for entry in itertools.islice(entries, NAMES)]


def _syncfs(descriptor: int) -> None:
    """Call syncfs(2), which Python does not offer; raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
