"""A repository in a directory: one file an object, whole or not there.

An object is written to a temporary file beside its place, synced, and renamed; then the
directory is synced. So a power cut leaves either nothing, the object, or a temporary file
that no listing shows. Directories are 0700 and files 0400, as restic makes them
(restic-format.md section 1).

The root must exist: a disk that is not mounted must not turn into a new empty repository.
``LocalStorage.create`` is for whoever wants a new one.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from agent.budget import Rate, Rates
from agent.cancel import NEVER, CancelToken
from agent.errors import (
    AccessDenied,
    BucketMissing,
    ObjectMissing,
    ObjectTooLarge,
    StorageError,
    StorageFull,
)
from agent.storage.contract import WHATEVER_BYTES, Buffer, Listed, Room
from agent.storage.keys import (
    TEMPORARY,
    check_folder,
    check_key,
    check_offset,
    check_prefix,
    is_temporary,
)

T = TypeVar("T")

SLICE_BYTES = 1 << 20
"""How much is read or written between two looks at the cancel token."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # FAT, some network file systems
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)  # some network file systems cannot


class LocalStorage:
    """The objects below one directory. Holds no descriptors between calls."""

    def __init__(self, root: str | os.PathLike[str], rates: Rates | None = None) -> None:
        self._root = Path(root)
        self._rates = rates or Rates()

    @classmethod
    def create(cls, root: str | os.PathLike[str], rates: Rates | None = None) -> "LocalStorage":
        """Make the root directory (0700) and its parents if they are not there, and use it."""
        storage = cls(root, rates)
        try:
            storage._root.parent.mkdir(parents=True, exist_ok=True)
            storage._root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            storage._refuse("", error)
        return storage

    @property
    def place(self) -> str:
        """Return the root directory."""
        return str(self._root)

    @property
    def waits(self) -> bool:
        """A disk is here, or its pages are."""
        return False

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        """Store ``body`` durably; ``sha256`` is not needed here."""
        self._store(key, body, os.replace, cancel)

    def put_new(self, key: str, body: Buffer, *, cancel: CancelToken = NEVER) -> bool:
        """Store ``body`` durably unless the key exists; a hard link decides who was first."""
        try:
            self._store(key, body, _link_into_place, cancel)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        return True

    def _store(
        self, key: str, body: Buffer, place: Callable[[Path, Path], None], cancel: CancelToken
    ) -> None:
        path = self._path(key)
        temporary = path.with_name(f"{path.name}{TEMPORARY}{secrets.token_hex(8)}")
        try:
            try:
                descriptor = _create(temporary)
            except FileNotFoundError:
                self._make_directories(path.parent)
                descriptor = _create(temporary)
            try:
                _write(descriptor, body, cancel, self._rates.upload)
                place(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _sync_directory(path.parent)
        except OSError as error:
            self._refuse(key, error)

    def get(
        self, key: str, *, most_bytes: int = WHATEVER_BYTES, cancel: CancelToken = NEVER
    ) -> bytes:
        """Return the whole object; raises ``ObjectMissing`` and ``ObjectTooLarge``."""

        def read(descriptor: int) -> bytes:
            size = os.fstat(descriptor).st_size
            if size > most_bytes:
                raise ObjectTooLarge(key, self.place, size, most_bytes)
            out = bytearray(size)
            _fill(descriptor, 0, memoryview(out), cancel, self._rates.download)
            return bytes(out)

        return self._reading(key, read)

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        """Fill ``out`` with the bytes from ``offset``."""
        check_offset(key, offset)

        def read(descriptor: int) -> None:
            size, length = os.fstat(descriptor).st_size, len(out)
            if offset + length > size:
                raise StorageError(
                    f"{self._path(key)} has {size} bytes; {length} from {offset} were asked for."
                    " The file is damaged or was cut short",
                    key=key,
                )
            _fill(descriptor, offset, memoryview(out), cancel, self._rates.download)

        self._reading(key, read)

    def size(self, key: str, *, cancel: CancelToken = NEVER) -> int:
        """Return the object's size in bytes; raises ``ObjectMissing``."""
        cancel.check()
        return self._reading(key, lambda fd: os.fstat(fd).st_size)

    def list(self, prefix: str, *, cancel: CancelToken = NEVER) -> Iterator[Listed]:
        """Yield every object whose key starts with ``prefix``; temporary files are left out."""
        check_prefix(prefix)
        if not self._root.is_dir():
            self._refuse("", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
        directories = [prefix.rpartition("/")[0]]
        while directories:
            directory = directories.pop()
            for key, size in self._children(directory, cancel):
                if size is None:
                    if key.startswith(prefix) or prefix.startswith(f"{key}/"):
                        directories.append(key)
                elif key.startswith(prefix):
                    yield Listed(key, size)

    def folders(self, prefix: str, *, cancel: CancelToken = NEVER) -> tuple[str, ...]:
        """Return the directories right below ``prefix`` in which there is an object."""
        check_folder(prefix)
        if not self._root.is_dir():
            self._refuse("", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
        inside = self._children(prefix.removesuffix("/"), cancel)
        names = [key.removeprefix(prefix) for key, size in inside if size is None]
        held = [n for n in names if any(True for _ in self.list(f"{prefix}{n}/", cancel=cancel))]
        return tuple(sorted(held))

    def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove the object, durably; removing what is not there is not an error."""
        path = self._path(key)
        cancel.check()
        try:
            os.unlink(path)
            _sync_directory(path.parent)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._root.is_dir():
                self._refuse(key, error)
        except OSError as error:
            self._refuse(key, error)

    def close(self) -> None:
        """Do nothing: no descriptor is kept."""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _reading(self, key: str, read: Callable[[int], T]) -> T:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return read(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._refuse(key, error)

    def _children(self, directory: str, cancel: CancelToken) -> Iterator[tuple[str, int | None]]:
        """Yield (key, size) of one directory; the size of a directory is None."""
        try:
            with os.scandir(self._root / directory) as entries:
                for entry in entries:
                    cancel.check()
                    key = f"{directory}/{entry.name}" if directory else entry.name
                    try:
                        if entry.is_dir():
                            yield key, None
                        elif entry.is_file() and not is_temporary(entry.name):
                            yield key, entry.stat().st_size
                    except FileNotFoundError:
                        continue  # deleted by somebody else since the directory was read
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._refuse(directory, error)

    def _make_directories(self, directory: Path) -> None:
        """Make the directories between the root and ``directory``, each one durable."""
        if not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root))
        current = self._root
        for part in directory.relative_to(self._root).parts:
            parent, current = current, current / part
            with contextlib.suppress(FileExistsError):
                current.mkdir(mode=0o700)
                _sync_directory(parent)

    def _refuse(self, key: str, error: OSError) -> NoReturn:
        """Raise the error of the tree that this one of the operating system means."""
        where = str(self._root / key)
        if error.errno in _FORBIDDEN:
            raise AccessDenied(
                f"{where}: {error.strerror}; run podlift as the owner of {self._root}"
                " and make sure that it is mounted for writing",
                key=key,
            ) from error
        if error.errno in _FULL:
            raise StorageFull(
                f"{where}: {error.strerror}; free some space under {self._root}", key=key
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if not self._root.is_dir():
                raise BucketMissing(
                    f"{self._root} is not a directory; mount it, or make the repository first (podlift init)",
                    key=key,
                ) from error
            raise ObjectMissing(f"{where} does not exist", key=key) from error
        raise StorageError(
            f"{where}: {error.strerror or error}; check the disk and the kernel's log", key=key
        ) from error


def _link_into_place(temporary: Path, path: Path) -> None:
    """Give the file its name only if nobody has it; raises ``FileExistsError``."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(_create(path))  # an empty file claims the name until it is replaced
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _write(descriptor: int, body: Buffer, cancel: CancelToken, rate: Rate) -> None:
    """Write all of ``body``, make it read-only and durable, and close the descriptor."""
    try:
        with memoryview(body) as view, view.cast("B") as rest:
            done = 0
            while done < rest.nbytes:
                cancel.check()
                part = rest[done : done + SLICE_BYTES]
                rate.take(len(part), cancel)
                done += os.write(descriptor, part)
        cancel.check()
        os.fchmod(descriptor, 0o400)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(descriptor: int, offset: int, out: memoryview, cancel: CancelToken, rate: Rate) -> None:
    """Fill ``out`` with the bytes from ``offset``."""
    done = 0
    while done < len(out):
        cancel.check()
        count = os.preadv(descriptor, [out[done : done + SLICE_BYTES * 8]], offset + done)
        if not count:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        rate.take(count, cancel)
        done += count


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)
