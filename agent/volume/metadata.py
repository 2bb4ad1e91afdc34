"""Metadata given back to what a descriptor pins: owner, attributes, mode, times, in that order.

The order is the rule. A new owner takes set-id bits and capabilities away, so both come
later; an ACL writes the mode's group bits, so the mode comes after it; and the time is last,
for whatever else was still written. Set-id bits are never given to a file whose owner could
not be set: they would then run as somebody else than the volume meant.
"""

import os

from agent.entry import Entry, Kind
from agent.volume.descriptors import more_rights, proc_path, reason
from agent.volume.xattrs import read_xattrs

_SET_ID = 0o6000
_PERMISSIONS = 0o7777
_LABELS = frozenset({b"security.selinux", b"security.ima", b"security.evm"})
"""Attributes that this machine puts on every file by itself; they are never removed."""

_COARSE_NS = 2_000_000_000
"""The coarsest step of times among file systems (FAT's); what is off by more was refused."""


def apply_metadata(descriptor: int, entry: Entry) -> list[str]:
    """Give ``entry``'s metadata to the inode that ``descriptor`` pins.

    Everything is tried; returns what could not be set, in words, and raises nothing. What is right
    is not set again: the file may be one that was there, and every call moves its ctime.
    """
    path = proc_path(descriptor)
    failures: list[str] = []
    owned = _set_owner(descriptor, path, entry, failures)
    _set_xattrs(descriptor, path, entry, failures)
    if entry.kind is not Kind.SYMLINK:
        _set_mode(descriptor, path, entry, owned, failures)
    _set_time(descriptor, path, entry, failures)
    return failures


def has_metadata(descriptor: int, entry: Entry) -> bool:
    """Tell whether ``apply_metadata`` would change nothing; raises ``OSError``."""
    stat = os.fstat(descriptor)
    present = {
        name: value
        for name, value in read_xattrs(descriptor)
        if name not in _LABELS or (name, value) in entry.xattrs
    }
    return (
        (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid)
        and stat.st_mode & _PERMISSIONS == entry.permissions
        and stat.st_mtime_ns == entry.mtime_ns
        and present == dict(entry.xattrs)
    )


def _set_owner(descriptor: int, path: str, entry: Entry, failures: list[str]) -> bool:
    try:
        stat = os.fstat(descriptor)
        if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid):
            os.chown(path, entry.uid, entry.gid)
            stat = os.fstat(descriptor)  # an id of all ones says "leave it", and that is no error
    except (OSError, OverflowError) as error:
        failures.append(f"owner {entry.uid}:{entry.gid} could not be set: {reason(error)}")
        return False
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid):
        failures.append(
            f"owner {entry.uid}:{entry.gid} could not be set: it is {stat.st_uid}:{stat.st_gid}"
        )
        return False
    return True


def _set_xattrs(descriptor: int, path: str, entry: Entry, failures: list[str]) -> None:
    """Make the attributes equal to the entry's: what is unexpected (an inherited ACL) goes."""
    try:
        present = dict(read_xattrs(descriptor))
    except OSError as error:
        failures.append(f"extended attributes could not be read: {reason(error)}")
        return
    wanted = dict(entry.xattrs)
    for name in present:
        if name not in wanted and name not in _LABELS:
            try:
                os.removexattr(path, name)
            except OSError as error:
                failures.append(f"attribute {_shown(name)} could not be removed: {reason(error)}")
    for name, value in wanted.items():
        if present.get(name) != value:
            try:
                os.setxattr(path, name, value)
            except (OSError, ValueError) as error:
                why = reason(error) if isinstance(error, OSError) else str(error)
                failures.append(f"attribute {_shown(name)} could not be set: {why}")


def _set_mode(descriptor: int, path: str, entry: Entry, owned: bool, failures: list[str]) -> None:
    permissions = entry.permissions
    if not owned and permissions & _SET_ID:
        permissions &= ~_SET_ID
        failures.append("set-user-id and set-group-id were left off, since the owner is another")
    try:
        if os.fstat(descriptor).st_mode & _PERMISSIONS != permissions:
            os.chmod(path, permissions)
        held = os.fstat(descriptor).st_mode & _PERMISSIONS
    except OSError as error:
        failures.append(f"mode {permissions:04o} could not be set: {reason(error)}")
        return
    if held != permissions:  # without CAP_FSETID, set-group-id of a foreign group goes in silence
        failures.append(
            f"mode {permissions:04o} could not be set: it is {held:04o}; {more_rights()}"
        )


def _set_time(descriptor: int, path: str, entry: Entry, failures: list[str]) -> None:
    try:
        if os.fstat(descriptor).st_mtime_ns == entry.mtime_ns:
            return
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        held = os.fstat(descriptor).st_mtime_ns
    except (OSError, OverflowError) as error:
        failures.append(f"modification time could not be set: {reason(error)}")
        return
    if abs(held - entry.mtime_ns) > _COARSE_NS:
        failures.append("modification time is beyond what this file system can hold")


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
