"""A directory that is held open: its listing, and the only way to what lies below it.

Each name is pinned once when it is listed, and all that its entry says comes through that one
pin: metadata, attributes and link target belong to the same inode whatever the owner does.
Opening pins the name again, refuses anything but the same device and inode, and then opens
what is pinned: a fifo or device put in its place is never opened.

A directory is shared by counting: who queues work about it calls ``retain`` and, when the
file is open (open files need their directory no more) or given up, ``release``.
"""

import dataclasses
import errno
import os
import stat as mode_bits
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from agent.cancel import CancelToken
from agent.entry import Entry, Kind
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.volume.descriptors import (
    DIRECTORY,
    MAX_PATH_BYTES,
    join,
    pin,
    reason,
    reopen_to_read,
    source_errors,
)
from agent.volume.exclude import Exclude
from agent.volume.file import FileReader
from agent.volume.looking import (
    Listing,
    ReadFile,
    file_entry,
    is_file_of,
    is_mounted_file,
    listed,
    look,
    read_files,
)
from agent.volume.mounts import mount_id
from agent.volume.names import NameCache
from agent.volume.scope import Scoped
from agent.volume.xattrs import Attributes, is_text, keepable, read_xattrs

_REPLACED = "was replaced by something else meanwhile"
LOOKED_AT = 1000
"""Names that are looked at in one call; between calls a run may be canceled."""

TOO_MANY = (
    "which do not fit into memory; left out, raise podlift's memory limit or divide the directory"
)
"""Why a directory is not listed, or not backed up."""

_TOO_DEEP = f"what lies below {MAX_PATH_BYTES} is left out, back that directory up on its own"

_KINDS = {
    mode_bits.S_IFREG: Kind.FILE,
    mode_bits.S_IFDIR: Kind.DIRECTORY,
    mode_bits.S_IFLNK: Kind.SYMLINK,
    mode_bits.S_IFIFO: Kind.FIFO,
    mode_bits.S_IFBLK: Kind.BLOCK_DEVICE,
    mode_bits.S_IFCHR: Kind.CHARACTER_DEVICE,
    mode_bits.S_IFSOCK: Kind.SOCKET,
}
_DEVICES = frozenset({Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE})


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What all directories of one volume share."""

    device: int
    mount: int | None  # the kernel's mount id, None if it does not tell
    holds_mounts: bool  # whether a file could be a mount point
    names: NameCache
    last_descriptor: int = 1 << 30  # the highest that a directory may hold; see descriptors.py


class Directory(Scoped):
    """One open directory of a volume; any thread may use it while it holds a reference."""

    def __init__(self, descriptor: int, path: bytes, surroundings: Surroundings) -> None:
        """Take ``descriptor`` over, with one reference that ``close`` gives back."""
        self.path = path
        self._descriptor = descriptor
        self._surroundings = surroundings
        self._lock = threading.Lock()
        self._references = 1
        self._closed = False
        self._mount_points: frozenset[bytes] = frozenset()

    def entries(self, exclude: Exclude, monitor: Monitor, cancel: CancelToken) -> list[Entry]:
        """List the directory once, sorted by raw name; ``iterate`` says what is left out."""
        return list(self.iterate(self.listing(cancel), exclude, monitor, cancel))

    def listing(self, cancel: CancelToken) -> Listing:
        """Return all names with their facts; raises ``SourceError``, ``Canceled``."""
        return self.look(self.names(), cancel)

    def names(self, most_bytes: int = sys.maxsize) -> list[bytes]:
        """Return all raw names, sorted; raises ``SourceError``.

        Also for a directory whose names take more than ``most_bytes``, or that gets new ones without end.
        """
        with self._held() as descriptor, source_errors(self.path):
            names = listed(descriptor, most_bytes)
        if names is None:
            raise SourceError(
                self.path, f"has names that take more than {most_bytes} bytes, {TOO_MANY}"
            )
        return names

    def look(self, names: Sequence[bytes], cancel: CancelToken) -> Listing:
        """Return some names with their facts; raises ``Canceled``."""
        facts = bytearray()
        with self._held() as descriptor:
            for start in range(0, len(names), LOOKED_AT):
                cancel.check()
                facts += look(descriptor, names[start : start + LOOKED_AT])
        return Listing(names, facts)

    def iterate(
        self, listing: Listing, exclude: Exclude, monitor: Monitor, cancel: CancelToken
    ) -> Iterator[Entry]:
        """Yield the entries of a listing, sorted by raw name; raises ``Canceled``.

        A file has no attributes here: they are read when the file is, and an unchanged one has
        those of its parent, since every change of them moves ctime. Left out and counted: excluded
        entries, sockets, files that are mount points, and entries that cannot be looked at
        (``monitor.problem``, also for attributes that cannot be read). A directory that is a mount
        point is counted and yielded, see ``crossable``. What vanished since the listing is left out
        silently.
        """
        with self._held():
            for name, facts in listing:
                if exclude:  # which takes its time where somebody means harm
                    cancel.check()
                entry = self._entry_of(name, facts, exclude, monitor)
                if entry is not None:
                    yield entry

    def _entry_of(
        self, name: bytes, facts: tuple[int, ...], exclude: Exclude, monitor: Monitor
    ) -> Entry | None:
        """Return the entry of a name, or None if it is left out."""
        around = self._surroundings
        is_file = is_file_of(facts, around.device, holds_mounts=around.holds_mounts)
        if is_file or is_mounted_file(facts):
            if exclude and exclude.matches(join(self.path, name), False):
                monitor.add(excluded=1)
                return None
            if is_file:
                return file_entry(name, facts, around.names)
            monitor.add(mounts_skipped=1)
            return None
        path = join(self.path, name)
        try:
            return self._look_at(name, path, exclude, monitor)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not exclude.matches(path, False):
                monitor.problem(SourceError(path, reason(error)))
        except SourceError as error:
            monitor.problem(error)
        return None

    def crossable(self, entry: Entry) -> bool:
        """Tell whether a directory entry may be opened: false for a mount point."""
        return (
            entry.kind is Kind.DIRECTORY
            and entry.device == self._surroundings.device
            and entry.name not in self._mount_points
        )

    def open_directory(self, entry: Entry) -> "Directory":
        """Open a listed directory; the caller closes it. Raises ``SourceError``."""
        path = join(self.path, entry.name)
        if not self.crossable(entry):
            raise SourceError(path, "is not a directory of this file system; not crossed")
        if len(path) > MAX_PATH_BYTES:
            raise SourceError(path[:200] + b"...", f"its path has {len(path)} bytes; {_TOO_DEEP}")
        with self._held() as parent, source_errors(path):
            descriptor = os.open(entry.name, DIRECTORY, dir_fd=parent)
            try:
                if descriptor > self._surroundings.last_descriptor:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                if not _same(os.fstat(descriptor), entry):
                    raise SourceError(path, _REPLACED)
            except BaseException:
                os.close(descriptor)
                raise
        return Directory(descriptor, path, self._surroundings)

    def read_files(
        self, entries: Sequence[Entry], buffer: memoryview, monitor: Monitor
    ) -> list[ReadFile | None]:
        """Read small regular files, one behind the other, into ``buffer``.

        It has to have room for a byte more than they have. Their entries are fresh, with their
        attributes. None stands for a file that is unusual in any way: ``open_file`` is for it.
        """
        found: list[ReadFile | None] = []
        with self._held() as descriptor:
            for read in read_files(descriptor, entries, buffer, self._surroundings.names):
                if read is None:
                    found.append(None)
                    continue
                file, attributes = read
                if attributes:
                    kept = _kept(attributes, join(self.path, file.entry.name), monitor)
                    file = file._replace(entry=replace(file.entry, xattrs=kept))
                found.append(file)
        return found

    def open_file(self, entry: Entry, monitor: Monitor | None = None) -> FileReader:
        """Open a listed regular file; the caller closes it. Raises ``SourceError``.

        The reader's entry is fresh, with its attributes: metadata may have changed since the
        listing, the inode may not. The monitor hears of attributes that cannot be kept.
        """
        path = join(self.path, entry.name)
        opened = -1
        self.retain()  # spelled out, as all here is: this runs once a file
        try:
            opened = self._open_pinned(entry, path)
            stat = os.fstat(opened)
            xattrs = _xattrs(opened, path, monitor or Monitor())
            fresh = self._entry(entry.name, Kind.FILE, stat, xattrs)
        except OSError as error:
            if opened >= 0:
                os.close(opened)
            raise SourceError(path, reason(error)) from error
        finally:
            self.release()
        return FileReader(opened, path, fresh, stat)

    def retain(self) -> "Directory":
        """Take one more reference, which ``release`` gives back."""
        with self._lock:
            if self._references == 0:
                raise ValueError("directory is closed")
            self._references += 1
        return self

    def release(self) -> None:
        """Give a reference back; the last one closes the descriptor."""
        with self._lock:
            if self._references == 0:
                raise ValueError("directory was released more often than retained")
            self._references -= 1
            if self._references == 0:
                os.close(self._descriptor)

    def close(self) -> None:
        """Give back the reference of who opened it; closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.release()

    @contextmanager
    def _held(self) -> Iterator[int]:
        # A closed descriptor's number may be anybody's by now, so no call goes without a reference.
        self.retain()
        try:
            yield self._descriptor
        finally:
            self.release()

    def _open_pinned(self, entry: Entry, path: bytes) -> int:
        descriptor = pin(entry.name, self._descriptor)
        try:
            stat = os.fstat(descriptor)
            if not mode_bits.S_ISREG(stat.st_mode) or not _same(stat, entry):
                raise SourceError(path, _REPLACED)
            return reopen_to_read(descriptor)
        finally:
            os.close(descriptor)

    def _look_at(
        self, name: bytes, path: bytes, exclude: Exclude, monitor: Monitor
    ) -> Entry | None:
        descriptor = pin(name, self._descriptor)
        try:
            stat = os.fstat(descriptor)
            kind = _KINDS.get(mode_bits.S_IFMT(stat.st_mode))
            if kind is None:
                raise SourceError(path, "is of a kind that this kernel does not know; left out")
            if exclude and exclude.matches(path, kind is Kind.DIRECTORY):
                monitor.add(excluded=1)
                return None
            if self._is_mount(descriptor, stat, kind):
                monitor.add(mounts_skipped=1)
                if kind is not Kind.DIRECTORY:
                    return None
                self._mount_points |= {name}
            if kind is Kind.SOCKET:
                monitor.add(sockets_skipped=1)
                return None
            target = os.readlink(b"", dir_fd=descriptor) if kind is Kind.SYMLINK else b""
            xattrs = () if kind is Kind.FILE else _xattrs(descriptor, path, monitor)
            return self._entry(name, kind, stat, xattrs, target)
        finally:
            os.close(descriptor)

    def _is_mount(self, descriptor: int, stat: os.stat_result, kind: Kind) -> bool:
        around = self._surroundings
        foreign = stat.st_dev != around.device
        if kind is Kind.DIRECTORY:
            return foreign or (around.mount is not None and mount_id(descriptor) != around.mount)
        if not foreign and not around.holds_mounts:
            return False
        return foreign if around.mount is None else mount_id(descriptor) != around.mount

    def _entry(
        self,
        name: bytes,
        kind: Kind,
        stat: os.stat_result,
        xattrs: Attributes,
        target: bytes = b"",
    ) -> Entry:
        names = self._surroundings.names
        return Entry(
            name=name,
            kind=kind,
            permissions=stat.st_mode & 0o7777,
            uid=stat.st_uid,
            gid=stat.st_gid,
            user=names.user(stat.st_uid),
            group=names.group(stat.st_gid),
            mtime_ns=stat.st_mtime_ns,
            ctime_ns=stat.st_ctime_ns,
            inode=stat.st_ino,
            device=stat.st_dev,
            links=stat.st_nlink,
            size=stat.st_size if kind is Kind.FILE else 0,
            link_target=target,
            rdev=stat.st_rdev if kind in _DEVICES else 0,
            xattrs=xattrs,
        )


def _xattrs(descriptor: int, path: bytes, monitor: Monitor) -> Attributes:
    """Read the attributes; what cannot be kept of them is left out, and reported."""
    try:
        found = read_xattrs(descriptor)
    except OSError as error:
        why = f"kept without its extended attributes: {reason(error)}"
        monitor.problem(SourceError(path, why))
        return ()
    return _kept(found, path, monitor)


def _kept(found: Attributes, path: bytes, monitor: Monitor) -> Attributes:
    kept = keepable(found)
    if len(kept) < len(found):
        names = ", ".join(str(name) for name, _ in found if not is_text(name))
        why = f"kept without the attributes {names}, whose names are not UTF-8; rename them"
        monitor.problem(SourceError(path, why))
    return kept


def _same(stat: os.stat_result, entry: Entry) -> bool:
    return stat.st_ino == entry.inode and stat.st_dev == entry.device
