"""What the kernel ``agent.volume._look`` does, in Python: its specification, for tests."""

import errno
import os
import stat as mode_bits
import struct

from agent.volume.mounts import mount_id

_FACTS = struct.Struct("=6I2q5Q")
_FILE = struct.Struct("=6I2q5Q4Q")
_PIN = struct.Struct("=QQ")
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NONE_HERE = (errno.ENOTSUP, errno.ENOSYS)
_SECOND = 1_000_000_000
MOUNT, NO_ROOM, REPLACED, UNUSUAL = 252, 253, 254, 255
NAMES_BYTES, VALUE_BYTES, ATTRIBUTES_BYTES = 1024, 4096, 64 << 10


def look(directory: int, names: tuple[bytes, ...]) -> bytes:
    """Return the packed facts of each name of the open directory, through no symlink."""
    return b"".join([_look(directory, name) for name in _checked(names)])


def _checked(names: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if not isinstance(names, tuple) or not all(isinstance(name, bytes) for name in names):
        raise TypeError("names are a tuple of bytes")
    if any(b"\0" in name for name in names):
        raise ValueError("embedded null byte")
    return names


def _look(directory: int, name: bytes) -> bytes:
    try:
        pinned = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            status = 0 if mount_id(pinned) == mount_id(directory) else MOUNT
            return _FACTS.pack(status, *_facts(os.fstat(pinned)))
        finally:
            os.close(pinned)
    except OSError as error:
        return _FACTS.pack(error.errno or errno.EIO, *[0] * 12)


def _facts(stat: os.stat_result) -> tuple[int, ...]:
    mtime, mtime_rest = divmod(stat.st_mtime_ns, _SECOND)
    ctime, ctime_rest = divmod(stat.st_ctime_ns, _SECOND)
    return (
        stat.st_mode, stat.st_uid, stat.st_gid, mtime_rest, ctime_rest, mtime, ctime,
        stat.st_ino, stat.st_dev, stat.st_rdev, stat.st_nlink, stat.st_size,
    )  # fmt: skip


def read_files(
    directory: int, names: tuple[bytes, ...], pins: bytes, buffer: bytearray | memoryview
) -> tuple[bytes, bytes]:
    """Read regular files one behind the other into buffer; return their records and attributes."""
    if len(pins) != len(_checked(names)) * _PIN.size:
        raise ValueError("names and pins are of different lengths")
    kept = bytearray()
    files = []
    used = 0
    for name, pin in zip(names, _PIN.iter_unpack(pins), strict=True):
        status, facts, content, attributes = _read(directory, name, pin, len(buffer) - used, kept)
        files.append((status, *facts, used, len(content), len(kept), len(attributes)))
        kept += attributes
        if status == 0:
            memoryview(buffer)[used : used + len(content)] = content
            used += len(content)
    return b"".join([_FILE.pack(*file) for file in files]), bytes(kept)


def _read(
    directory: int, name: bytes, pin: tuple[int, ...], room: int, kept: bytearray
) -> tuple[int, tuple[int, ...], bytes, bytes]:
    facts: tuple[int, ...] = (0,) * 12
    try:
        descriptor = _open(directory, name, pin)
    except OSError as error:
        return error.errno or errno.EIO, facts, b"", b""
    if descriptor < 0:
        return REPLACED, facts, b"", b""
    try:
        facts = _facts(os.fstat(descriptor))
        attributes = _attributes(descriptor)
        if attributes is None or len(kept) + len(attributes) > ATTRIBUTES_BYTES:
            return UNUSUAL, facts, b"", b""
        size = facts[-1]
        if room <= size:
            return NO_ROOM, facts, b"", attributes
        content = os.pread(descriptor, size + 1, 0)
        return UNUSUAL if len(content) > size else 0, facts, content, attributes
    except OSError as error:
        return error.errno or errno.EIO, facts, b"", b""
    finally:
        os.close(descriptor)


def _open(directory: int, name: bytes, pin: tuple[int, ...]) -> int:
    pinned = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        stat = os.fstat(pinned)
        if not mode_bits.S_ISREG(stat.st_mode) or (stat.st_ino, stat.st_dev) != pin:
            return -1
        try:
            return os.open(f"/proc/self/fd/{pinned}", _READ | os.O_NOATIME)
        except PermissionError:
            return os.open(f"/proc/self/fd/{pinned}", _READ)
    finally:
        os.close(pinned)


def _attributes(descriptor: int) -> bytes | None:
    try:
        names = [os.fsencode(name) for name in os.listxattr(descriptor)]
    except OSError as error:
        return b"" if error.errno in _NONE_HERE else None
    if sum(len(name) + 1 for name in names) > NAMES_BYTES:
        return None
    packed = bytearray()
    for name in names:
        try:
            value = os.getxattr(descriptor, name)
        except OSError:
            return None
        if len(value) > VALUE_BYTES:
            return None
        packed += struct.pack("=II", len(name), len(value)) + name + value
    return bytes(packed)
