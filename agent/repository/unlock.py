"""unlock: locks that were left behind are removed, and those that may be alive are not.

A lock was left behind if it is older than 30 minutes, since whoever lives refreshes it every
five; or if it names a process of this host that no longer exists (restic-format.md section 16).
Containers that share a host name but not their process ids defeat the second test: give each
pod its own host name, as Kubernetes does.
"""

import os
import socket
from collections.abc import Callable, Iterator

import msgspec

from agent.cancel import CancelToken
from agent.errors import MalformedData, ObjectMissing
from agent.repository.lockfile import STALE_SECONDS, Lock, decode_lock
from agent.repository.locking import SYSTEM_CLOCK, Clock
from agent.repository.objects import Folder, file_key, sizes
from agent.repository.repository import Repository


class Judged(msgspec.Struct, frozen=True):
    """One lock, what was done with it, and why."""

    name: str
    removed: bool
    reason: str


def left_behind(lock: Lock, now_ns: int, host: str, alive: Callable[[int], bool]) -> str:
    """Return why a lock counts as left behind, or ""."""
    if now_ns - lock.time_ns > STALE_SECONDS * 1_000_000_000:
        return "it is older than 30 minutes"
    if lock.hostname == host and lock.pid > 0 and not alive(lock.pid):
        return "its process no longer exists on this host"
    return ""


def process_exists(pid: int) -> bool:
    """Tell whether a process of this host has a pid; it gets no signal."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def unlock(
    repository: Repository,
    cancel: CancelToken,
    *,
    remove_all: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> Iterator[Judged]:
    """Remove the locks that were left behind, or all; yield each lock as it is dealt with."""
    objects = repository.objects
    for name, size in list(sizes(objects.storage, Folder.LOCKS, cancel)):
        cancel.check()
        try:
            reason, whose = _judge(repository, name, size, clock)
        except ObjectMissing:
            continue  # given back, or refreshed, since it was listed
        if reason or remove_all:
            objects.remove(Folder.LOCKS, name, cancel=cancel)
            why = reason or "--remove-all was given"
            yield Judged(name, True, f"{whose}: {why}")
        else:
            yield Judged(name, False, f"{whose}: it may be alive")


def _judge(repository: Repository, name: str, size: int, clock: Clock) -> tuple[str, str]:
    """Return (why it counts as left behind or "", whose lock it is)."""
    if not size:
        return "", "an empty lock, which nobody honours"
    try:
        json = repository.objects.load(Folder.LOCKS, name)
        lock = decode_lock(json, file_key(Folder.LOCKS, name))
    except MalformedData as error:
        return "", f"a lock that cannot be read ({error})"
    now = clock.now_ns()
    return left_behind(lock, now, socket.gethostname(), process_exists), lock.describe(now)
