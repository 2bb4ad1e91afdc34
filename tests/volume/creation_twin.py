"""What the kernel ``agent.volume._create`` does, in Python: its specification, for tests."""

import errno
import os
import stat as mode_bits
import struct

from agent.storage.contract import Buffer

_FACTS = struct.Struct("=IIIIq")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LABELS = {"security.selinux", "security.ima", "security.evm"}
_NO_ATTRIBUTES = (errno.ENOTSUP, errno.ENOSYS)
NOT_A_NAME, NOT_AS_WANTED, HAS_ATTRIBUTES = 253, 254, 255


def create_files(
    directory: int, names: tuple[bytes, ...], contents: tuple[Buffer, ...], facts: bytes
) -> bytes:
    """Create files in an open directory; return one status byte for each, 0 for done."""
    if not (isinstance(names, tuple) and isinstance(contents, tuple) and isinstance(facts, bytes)):
        raise TypeError("create_files takes (int, tuple, tuple, bytes)")
    if len(names) != len(contents) or len(facts) != len(names) * _FACTS.size:
        raise ValueError("names, contents and facts are of different lengths")
    if not all(isinstance(each, bytes) for each in names):
        raise TypeError("names are bytes")
    for each in contents:
        memoryview(each)  # or TypeError
    records = _FACTS.iter_unpack(facts)
    every = zip(names, contents, records, strict=True)
    return bytes([_create(directory, name, content, wanted) for name, content, wanted in every])


def _create(directory: int, name: bytes, content: Buffer, facts: tuple[int, ...]) -> int:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        return NOT_A_NAME
    try:
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            return _dress(descriptor, len(content), facts)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno or errno.EIO


def _dress(descriptor: int, size: int, facts: tuple[int, ...]) -> int:
    uid, gid, mode, nanoseconds, seconds = facts
    try:
        if not _LABELS.issuperset(os.listxattr(descriptor)):
            return HAS_ATTRIBUTES
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTES:
            return HAS_ATTRIBUTES
    os.fchown(descriptor, uid, gid)
    found = os.fstat(descriptor)
    if mode & 0o6000 and (found.st_uid, found.st_gid) != (uid, gid):
        return NOT_AS_WANTED
    os.fchmod(descriptor, mode)
    time_ns = seconds * 1_000_000_000 + nanoseconds
    os.utime(descriptor, ns=(time_ns, time_ns))
    found = os.fstat(descriptor)
    is_so = (
        found.st_uid, found.st_gid, mode_bits.S_IMODE(found.st_mode), found.st_size,
        found.st_mtime_ns,
    )  # fmt: skip
    return 0 if is_so == (uid, gid, mode, size, time_ns) else NOT_AS_WANTED
