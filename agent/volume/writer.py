"""A volume that is open for writing: entries are made below a root, and nowhere else.

The target belongs to a hostile owner too, and the names come from a repository that anybody
may have written. So a name is one component or refused; a directory is entered by descriptor
and never through a symlink or a mount; anything but a directory is removed by name and made
anew, exclusively; and metadata is set through a descriptor of what was made, never by name.
"""

import errno
import os
import stat as mode_bits
from collections.abc import Callable
from typing import TypeVar

from agent.entry import Entry, Kind
from agent.errors import SourceError, VolumeError
from agent.volume.descriptors import DIRECTORY, join, pin, pinned, proc_path, reason
from agent.volume.metadata import apply_metadata
from agent.volume.mounts import mount_id
from agent.volume.reader import open_root
from agent.volume.scope import OneDescriptor, Scoped
from agent.volume.target_file import Place, Problem, TargetFile, report, target_errors

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 3
"""How often a name is cleared for what is made under it before its owner is held to fight us."""

_SPECIAL = {
    Kind.FIFO: mode_bits.S_IFIFO,
    Kind.BLOCK_DEVICE: mode_bits.S_IFBLK,
    Kind.CHARACTER_DEVICE: mode_bits.S_IFCHR,
}
_Made = TypeVar("_Made")


class TargetTree(Scoped):
    """The directory that a restore fills, open until ``close``; a context manager."""

    def __init__(self, descriptor: int, path: bytes, problem: Problem) -> None:
        """Take ``descriptor`` over; ``open`` is the way to make one."""
        self.path = path
        self.device = os.fstat(descriptor).st_dev
        self.problem = problem
        self._mount = mount_id(descriptor)
        self.root = TargetDirectory(descriptor, b"", self)

    @classmethod
    def open(
        cls, path: str | bytes | os.PathLike[str], problem: Problem, *, create: bool = False
    ) -> "TargetTree":
        """Open the directory ``path``, after making it if ``create``; raises ``VolumeError``.

        ``problem`` hears of each entry whose metadata could not be set in full.
        """
        if create:
            try:
                os.makedirs(path, mode=0o700, exist_ok=True)
            except OSError as error:
                shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                raise VolumeError(f"target {shown} cannot be made: {_no_target(error)}") from error
        return cls(open_root(path), os.fsencode(path), problem)

    def admits(self, descriptor: int) -> bool:
        """Tell whether an open directory lies on the target's own mount."""
        if os.fstat(descriptor).st_dev != self.device:
            return False
        return self._mount is None or mount_id(descriptor) == self._mount

    def close(self) -> None:
        """Give the root back; directories below live until they are closed themselves."""
        self.root.close()


def _no_target(error: OSError) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "something else than a directory is in the way; name a directory"
    if error.errno == errno.ENOENT:
        return "nothing can be made there; name a directory of a real file system"
    return reason(error)


class TargetDirectory(OneDescriptor):
    """One open directory of a target.

    Threads may make entries in it at once; it is closed when all of them are made, after
    ``finish_metadata`` (each entry made moves its mtime). All methods raise ``SourceError``
    about the entry, or ``VolumeError`` when the volume is full or read-only.
    """

    def __init__(self, descriptor: int, path: bytes, tree: TargetTree) -> None:
        """Take ``descriptor`` over; ``make_directory`` is the way to make one."""
        super().__init__(descriptor)
        self.path = path
        self._tree = tree

    def make_directory(self, entry: Entry) -> "TargetDirectory":
        """Make a directory, or enter the one that is there; the caller closes it.

        A new one is closed to all but its maker until ``finish_metadata``.
        """
        path = self._path_of(entry)
        with target_errors(path):
            descriptor = self._enter(entry.name)
            if descriptor is None:
                self._make(entry, lambda: os.mkdir(entry.name, 0o700, dir_fd=self._descriptor))
                descriptor = os.open(entry.name, DIRECTORY, dir_fd=self._descriptor)
            if not self._tree.admits(descriptor):
                os.close(descriptor)
                raise SourceError(path, "is a mount point in the target; unmount it to restore")
        return TargetDirectory(descriptor, path, self._tree)

    def make_file(self, entry: Entry) -> TargetFile:
        """Make an empty file in place of what is there; the caller writes, finishes, closes."""
        path = self._path_of(entry)
        with target_errors(path):
            descriptor = self._make(
                entry, lambda: os.open(entry.name, _CREATE, 0o600, dir_fd=self._descriptor)
            )
        return TargetFile(descriptor, path, self._tree.problem)

    def make_symlink(self, entry: Entry) -> None:
        """Make a symlink with its metadata in place of what is there; its target is not looked at."""
        path = self._path_of(entry)
        if not entry.link_target or b"\0" in entry.link_target:
            raise SourceError(path, "is a symlink to nowhere; the snapshot is not to be trusted")
        with target_errors(path):
            self._make(
                entry, lambda: os.symlink(entry.link_target, entry.name, dir_fd=self._descriptor)
            )
            with pinned(entry.name, self._descriptor) as made:
                stat = os.fstat(made)
                ours = mode_bits.S_ISLNK(stat.st_mode) and (
                    os.readlink(b"", dir_fd=made) == entry.link_target
                )
                self._finish(made, entry, ours)

    def make_special(self, entry: Entry) -> None:
        """Make a fifo or device with its metadata in place of what is there."""
        path = self._path_of(entry)
        file_type = _SPECIAL.get(entry.kind)
        if file_type is None:
            raise SourceError(
                path, f"is a {entry.kind.name.lower()}, which is not restored as such"
            )
        mode = file_type | 0o600
        with target_errors(path):
            try:
                self._make(
                    entry,
                    lambda: os.mknod(entry.name, mode, entry.rdev, dir_fd=self._descriptor),
                )
            except OverflowError as error:
                raise SourceError(path, f"has an impossible device number {entry.rdev}") from error
            with pinned(entry.name, self._descriptor) as made:
                stat = os.fstat(made)
                same_device = entry.kind is Kind.FIFO or stat.st_rdev == entry.rdev
                ours = mode_bits.S_IFMT(stat.st_mode) == file_type and same_device
                self._finish(made, entry, ours)

    def link(self, entry: Entry, existing: Place) -> None:
        """Make a hard link to a file that this restore made, in place of what is there.

        The file is found again from the root, component by component, and must still be a
        file of the same inode: the owner may have moved another one there.
        """
        path = self._path_of(entry)
        with target_errors(path):
            found = self._find(existing)
            try:
                stat = os.fstat(found)
                same = (stat.st_dev, stat.st_ino) == (existing.device, existing.inode)
                if not same or not mode_bits.S_ISREG(stat.st_mode):
                    raise SourceError(path, "the file that it links to was replaced; restore again")
                # From the pin's magic link, which linkat(2) is told to follow, to the inode.
                self._make(
                    entry,
                    lambda: os.link(
                        proc_path(found),
                        entry.name,
                        dst_dir_fd=self._descriptor,
                        follow_symlinks=True,
                    ),
                )
            finally:
                os.close(found)

    def finish_metadata(self, entry: Entry) -> None:
        """Set the directory's own metadata, after all its entries were made."""
        report(self.path, apply_metadata(self._descriptor, entry), self._tree.problem)

    def _path_of(self, entry: Entry) -> bytes:
        name = entry.name
        path = join(self.path, name)
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            why = f"{name!r} is not a name of one entry; the snapshot is not to be trusted"
            raise SourceError(path, why)
        return path

    def _enter(self, name: bytes) -> int | None:
        """Open the directory that is there, or return None if there is none."""
        try:
            return os.open(name, DIRECTORY, dir_fd=self._descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _make(self, entry: Entry, create: Callable[[], _Made]) -> _Made:
        """Call ``create`` under a cleared name; its owner may put things there meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return create()
            except FileExistsError:
                self._clear(entry)
        why = "something is put in its place again and again; stop the pod and restore again"
        raise SourceError(join(self.path, entry.name), why)

    def _clear(self, entry: Entry) -> None:
        try:
            os.unlink(entry.name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            try:
                os.rmdir(entry.name, dir_fd=self._descriptor)
            except OSError as error:
                why = f"a directory is in its place; remove it ({os.strerror(error.errno or 0)})"
                raise SourceError(join(self.path, entry.name), why) from error

    def _finish(self, made: int, entry: Entry, ours: bool) -> None:
        path = join(self.path, entry.name)
        if not ours:
            raise SourceError(path, "was replaced while it was restored; stop the pod")
        report(path, apply_metadata(made, entry), self._tree.problem)

    def _find(self, place: Place) -> int:
        """Pin what is at ``place`` now, from the root, through directories only."""
        *above, name = place.path.split(b"/")
        current = os.dup(self._tree.root._descriptor)
        try:
            for part in above:
                below = os.open(part, DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            return pin(name, current)
        finally:
            os.close(current)
