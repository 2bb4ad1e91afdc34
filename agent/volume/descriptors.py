"""Descriptors: how a name is resolved once and never again.

The owner of a volume can put another thing under a name at any moment. So a name is first
pinned: opened with ``O_PATH``, which touches nothing (no device is started, no fifo's writer
is woken, no automount is triggered), and everything that follows (stat, xattrs, link target,
the real open) goes through the pin. Reaching a pin by ``/proc/self/fd/N`` is not a look-up by
path: the kernel goes from the descriptor to its inode (proc(5), "magic link").
"""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import SourceError

PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

MAX_PATH_BYTES = 16 << 10
"""The longest path that is entered, four times what a program can name at once (PATH_MAX).

Each open directory holds its own path, so a deep tree of long names, which costs its owner next
to nothing, would cost the square of its depth.
"""

_RESERVED_DESCRIPTORS = 256
"""Kept for reading files and for the storage while a deep walk holds one descriptor a level."""

_ADVICE = {
    errno.EMFILE: "too many open files; raise podlift's limit of open files (ulimit -Hn)",
    errno.ENFILE: "too many open files on this machine; raise fs.file-max",
    errno.E2BIG: "there are too many of them, or they are too large",
    errno.ENOENT: "vanished meanwhile",
    errno.ESTALE: "vanished from the file server meanwhile",
    errno.EAGAIN: "is leased by another process, which must close it; left out",
    errno.EIO: "input/output error; check the disk and the kernel's log",
    errno.ELOOP: "was replaced by a symlink meanwhile",
    errno.ENOTDIR: "was replaced by something else meanwhile",
    errno.ENOSPC: "no space left on the device; free some and restore again",
    errno.EROFS: "the file system is read-only; remount it for writing",
    errno.ENOTSUP: "the file system does not support it",
}


_FORBIDDEN = {errno.EACCES: "permission denied", errno.EPERM: "operation not permitted"}


def more_rights() -> str:
    """Return what to do for more rights than this process has."""
    if os.geteuid() != 0:
        return "run podlift as root"
    return "root lacks a capability here, or the file server takes root for nobody (root_squash)"


def reason(error: OSError | OverflowError) -> str:
    """Return what went wrong in words that say what to do."""
    if isinstance(error, OverflowError) or error.errno is None:
        return str(error)
    if error.errno in _FORBIDDEN:
        return f"{_FORBIDDEN[error.errno]}; {more_rights()}"
    text = _ADVICE.get(error.errno)
    return text or f"{os.strerror(error.errno).lower()} (errno {error.errno})"


def join(parent: bytes, name: bytes) -> bytes:
    """Return the path of ``name`` in the directory ``parent`` (b"" is the root)."""
    return parent + b"/" + name if parent else name


def proc_path(descriptor: int) -> str:
    """Return the magic link that leads to the inode a descriptor pins."""
    return f"/proc/self/fd/{descriptor}"


def reopen_to_read(pinned_descriptor: int) -> int:
    """Open the pinned regular file for reading, without touching its atime where that is allowed.

    It never waits, not even for who holds a lease on the file. Raises ``OSError``.
    """
    path = proc_path(pinned_descriptor)
    try:
        return os.open(path, _READ | os.O_NOATIME)
    except PermissionError:
        return os.open(path, _READ)  # O_NOATIME is for the owner and root only


def pin(name: bytes, directory: int) -> int:
    """Open ``name`` of an open directory without touching it; the caller closes. ``OSError``."""
    return os.open(name, PIN, dir_fd=directory)


@contextmanager
def pinned(name: bytes, directory: int) -> Iterator[int]:
    """Hold a pin of ``name`` for the length of the block; raises ``OSError``."""
    descriptor = pin(name, directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def source_errors(path: bytes) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``SourceError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise SourceError(path, reason(error)) from error


def last_descriptor() -> int:
    """Return the highest descriptor that a walk may hold: a quarter, or 256, are left for others.

    The kernel gives out the lowest free number (open(2)), so a number tells how many are in use.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 30
    return limit - min(_RESERVED_DESCRIPTORS, limit // 4)


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of open files to the hard one, and return it.

    A walk holds one descriptor a level. Call it once when the program starts.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft  # an unlimited hard limit cannot be set everywhere
    return hard
