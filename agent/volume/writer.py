"""A volume that is open for writing: entries are made below a root, and nowhere else.

The target belongs to a hostile owner too, and the names come from a repository that anybody
may have written. So a name is one component or refused; a directory is entered by descriptor
and never through a symlink or a mount; anything but a directory is removed by name and made
anew, exclusively; and metadata is set through a descriptor of what was made, never by name.
"""

import errno
import os
import stat as mode_bits
from collections.abc import Callable, Sequence
from typing import TypeVar

from agent.entry import Entry
from agent.errors import SourceError, VolumeError
from agent.storage.contract import Buffer
from agent.volume.creation import create_batch
from agent.volume.descriptors import (
    DIRECTORY,
    join,
    last_descriptor,
    pin,
    pinned,
    proc_path,
    reason,
    reopen_to_read,
)
from agent.volume.existing import ExistingFile
from agent.volume.found import SPECIAL, has_only_this_name, is_as_wanted, is_link_to
from agent.volume.held import Descriptors, Held
from agent.volume.metadata import apply_metadata
from agent.volume.mounts import mount_id
from agent.volume.reader import open_root
from agent.volume.removal import Removal, Spares
from agent.volume.scope import Scoped
from agent.volume.target_file import Place, Problem, TargetFile, report, target_errors

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
HELD_DESCRIPTORS = 256
"""How many directories and files of a target are open at a time; others are opened again."""

_ATTEMPTS = 3
"""How often a name is cleared for what is made under it before its owner is held to fight us."""

_Made = TypeVar("_Made")


class TargetTree(Scoped):
    """The directory that a restore fills, open until ``close``; a context manager."""

    def __init__(self, descriptor: int, path: bytes, problem: Problem) -> None:
        """Take ``descriptor`` over; ``open`` is the way to make one."""
        self.path = path
        self.problem = problem
        self.descriptors = Descriptors(min(HELD_DESCRIPTORS, last_descriptor() // 2))
        self._mount = mount_id(descriptor)
        self._root = descriptor
        self.root = TargetDirectory(os.dup(descriptor), b"", self, None)
        self.device = self.root.device

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

    def reopen_root(self) -> int:
        """Return one more descriptor of the root, which stays open until ``close``."""
        return os.dup(self._root)

    def close(self) -> None:
        """Close everything in it that is still open; nothing may be at work any more."""
        self.root.close()
        self.descriptors.close()
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)


def _no_target(error: OSError) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "something else than a directory is in the way; name a directory"
    if error.errno == errno.ENOENT:
        return "nothing can be made there; name a directory of a real file system"
    return reason(error)


class TargetDirectory(Held):
    """One directory of a target; its descriptor is held, or opened again when it is used.

    Threads may make entries in it at once; it is closed when all of them are made, after
    ``finish_metadata`` (each entry made moves its mtime). All methods raise ``SourceError``
    about the entry, or ``VolumeError`` when the volume is full or read-only. ``fresh`` tells that
    this restore made it, so that nothing can be in it yet.
    """

    def __init__(
        self, descriptor: int, path: bytes, tree: TargetTree, parent: "TargetDirectory | None"
    ) -> None:
        """Take ``descriptor`` over; ``make_directory`` is the way to make one."""
        super().__init__(tree.descriptors, descriptor)
        self.path = path
        self.fresh = False
        self._tree = tree
        self._parent = parent

    @property
    def descriptors(self) -> Descriptors:
        """Return where descriptors are held."""
        return self._tree.descriptors

    @property
    def problem(self) -> Problem:
        """Return who hears of metadata that could not be set."""
        return self._tree.problem

    def reopen(self) -> int:
        """Open the directory again from the one above; raises ``SourceError``."""
        if self._parent is None:
            return self._tree.reopen_root()
        self._bring_in_what_is_above()
        with target_errors(self.path), self._parent.using() as above:
            descriptor = os.open(self.path.rpartition(b"/")[2], DIRECTORY, dir_fd=above)
        if not self.is_at(descriptor):
            os.close(descriptor)
            raise SourceError(self.path, "was replaced while it was restored; stop the pod")
        return descriptor

    def _bring_in_what_is_above(self) -> None:
        """Open the directories above from the outermost in, each from the one before it.

        Left to themselves they would call each other, as deep as the tree is, all of them open.
        """
        missing = []
        above = self._parent
        while above is not None and not self.descriptors.has(above):
            missing.append(above)
            above = above._parent
        for directory in reversed(missing):
            with directory.using():
                pass

    def names(self) -> frozenset[bytes]:
        """Return the names of all entries that are there."""
        with target_errors(self.path), self.using() as descriptor:
            return frozenset(map(os.fsencode, os.listdir(descriptor)))

    def make_directory(self, entry: Entry) -> "TargetDirectory":
        """Make a directory, or enter the one that is there; the caller closes it.

        A new one is closed to all but its maker until ``finish_metadata``.
        """
        path = self._path_of(entry)
        with target_errors(path), self.using() as here:
            descriptor = self._enter(entry.name, here)
            fresh = descriptor is None
            if descriptor is None:
                self._make(entry, here, lambda: os.mkdir(entry.name, 0o700, dir_fd=here))
                descriptor = os.open(entry.name, DIRECTORY, dir_fd=here)
            if not self._admits(descriptor):
                raise SourceError(path, "is a mount point in the target; unmount it to restore")
        made = TargetDirectory(descriptor, path, self._tree, self)
        made.fresh = fresh
        return made

    def open_directory(self, entry: Entry) -> "TargetDirectory | None":
        """Open the directory that is there without making one; None for anything else."""
        path = self._path_of(entry)
        with target_errors(path), self.using() as here:
            descriptor = self._enter(entry.name, here)
            if descriptor is None or not self._admits(descriptor):
                return None
        return TargetDirectory(descriptor, path, self._tree, self)

    def _admits(self, descriptor: int) -> bool:
        """Tell whether a directory may be entered; else, or if it cannot be told, close it."""
        admitted = False
        try:
            admitted = self._tree.admits(descriptor)
        finally:
            if not admitted:
                os.close(descriptor)
        return admitted

    def holds(self, entry: Entry) -> bool:
        """Tell whether a symlink, fifo or device is there as it should be, metadata aside."""
        path = self._path_of(entry)
        with target_errors(path), self.using() as here:
            try:
                with pinned(entry.name, here) as found:
                    return is_as_wanted(found, entry)
            except FileNotFoundError:
                return False

    def make_file(self, entry: Entry) -> TargetFile:
        """Make an empty file in place of what is there; the caller writes, finishes, closes."""
        path = self._path_of(entry)
        with target_errors(path), self.using() as here:
            descriptor = self._make(
                entry, here, lambda: os.open(entry.name, _CREATE, 0o600, dir_fd=here)
            )
        return TargetFile(descriptor, path, self)

    def make_files(self, entries: Sequence[Entry], contents: Sequence[Buffer]) -> list[int]:
        """Make small files with content and metadata, all that can be made without a decision.

        Returns the places of the others: ``make_file`` makes them, or says why not.
        """
        with target_errors(self.path), self.using() as here:
            return create_batch(here, entries, contents)

    def open_existing(self, entry: Entry) -> "ExistingFile | None":
        """Open the regular file that is there, to be read; None for anything else."""
        path = self._path_of(entry)
        with target_errors(path), self.using() as here:
            try:
                with pinned(entry.name, here) as found:
                    if not mode_bits.S_ISREG(os.fstat(found).st_mode):
                        return None  # a device is not even opened
                    descriptor = reopen_to_read(found)
            except (FileNotFoundError, PermissionError):
                return None
        return ExistingFile(descriptor, path, self)

    def make_symlink(self, entry: Entry) -> None:
        """Make a symlink with its metadata in place of what is there; its target is not looked at."""
        path = self._path_of(entry)
        if not entry.link_target or b"\0" in entry.link_target:
            raise SourceError(path, "is a symlink to nowhere; the snapshot is not to be trusted")
        with target_errors(path), self.using() as here:
            self._make(entry, here, lambda: os.symlink(entry.link_target, entry.name, dir_fd=here))
            self._finish_named(entry, here)

    def make_special(self, entry: Entry) -> None:
        """Make a fifo or device with its metadata in place of what is there."""
        path = self._path_of(entry)
        file_type = SPECIAL.get(entry.kind)
        if file_type is None:
            raise SourceError(
                path, f"is a {entry.kind.name.lower()}, which is not restored as such"
            )
        mode = file_type | 0o600
        with target_errors(path), self.using() as here:
            try:
                self._make(entry, here, lambda: os.mknod(entry.name, mode, entry.rdev, dir_fd=here))
            except OverflowError as error:
                raise SourceError(path, f"has an impossible device number {entry.rdev}") from error
            self._finish_named(entry, here)

    def link(self, entry: Entry, existing: Place) -> None:
        """Make a hard link to a file that this restore made, in place of what is there.

        The file is found again from the root, component by component, and must still be a
        file of the same inode: the owner may have moved another one there.
        """
        path = self._path_of(entry)
        with target_errors(path), self.using() as here:
            found = self._find(existing)
            try:
                stat = os.fstat(found)
                same = (stat.st_dev, stat.st_ino) == (existing.device, existing.inode)
                if not same or not mode_bits.S_ISREG(stat.st_mode):
                    raise SourceError(path, "the file that it links to was replaced; restore again")
                if is_link_to(stat, entry.name, here):
                    return
                # From the pin's magic link, which linkat(2) is told to follow, to the inode.
                self._make(
                    entry,
                    here,
                    lambda: os.link(
                        proc_path(found), entry.name, dst_dir_fd=here, follow_symlinks=True
                    ),
                )
            finally:
                os.close(found)

    def finish_metadata(self, entry: Entry) -> None:
        """Set the directory's own metadata, after all its entries were made."""
        with target_errors(self.path), self.using() as here:
            report(self.path, apply_metadata(here, entry), self._tree.problem)

    def discard(self, file: TargetFile) -> None:
        """Remove a file that was begun here, unless its name leads elsewhere by now."""
        name = file.path.rpartition(b"/")[2]
        with target_errors(file.path), self.using() as here:
            try:
                with pinned(name, here) as found:
                    if file.is_at(found):
                        os.unlink(name, dir_fd=here)
            except FileNotFoundError:
                return

    def remove(
        self, name: bytes, count: Callable[[int], None], spares: Spares | None = None
    ) -> None:
        """Remove an entry with all that is below it but what ``spares`` tells to leave.

        ``count`` hears how many were removed, however it ends. Raises ``SourceError`` at the first
        that cannot be removed.
        """
        with target_errors(join(self.path, name)), self.using() as here:
            removal = Removal(here, self.path, self._tree.admits, spares)
            try:
                removal.remove(name)
            finally:
                count(removal.removed)

    def _path_of(self, entry: Entry) -> bytes:
        name = entry.name
        path = join(self.path, name)
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            why = f"{name!r} is not a name of one entry; the snapshot is not to be trusted"
            raise SourceError(path, why)
        return path

    @staticmethod
    def _enter(name: bytes, here: int) -> int | None:
        """Open the directory that is there, or return None if there is none."""
        try:
            return os.open(name, DIRECTORY, dir_fd=here)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _make(self, entry: Entry, here: int, create: Callable[[], _Made]) -> _Made:
        """Call ``create`` under a cleared name; its owner may put things there meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return create()
            except FileExistsError:
                self._clear(entry, here)
        why = "something is put in its place again and again; stop the pod and restore again"
        raise SourceError(join(self.path, entry.name), why)

    def _clear(self, entry: Entry, here: int) -> None:
        try:
            os.unlink(entry.name, dir_fd=here)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            try:
                os.rmdir(entry.name, dir_fd=here)
            except OSError as error:
                why = f"a directory is in its place; remove it ({os.strerror(error.errno or 0)})"
                raise SourceError(join(self.path, entry.name), why) from error

    def _finish_named(self, entry: Entry, here: int) -> None:
        """Give what was just made under a name its metadata, if it is still that."""
        path = join(self.path, entry.name)
        with pinned(entry.name, here) as made:
            # What was just made has one name; with another it may be somebody else's, put there.
            alone = has_only_this_name(made, entry.name, here)
            if not alone or not is_as_wanted(made, entry):
                raise SourceError(path, "was replaced while it was restored; stop the pod")
            report(path, apply_metadata(made, entry), self._tree.problem)

    def _find(self, place: Place) -> int:
        """Pin what is at ``place`` now, from the root, through directories only."""
        *above, name = place.path.split(b"/")
        current = self._tree.reopen_root()
        try:
            for part in above:
                below = os.open(part, DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            return pin(name, current)
        finally:
            os.close(current)
