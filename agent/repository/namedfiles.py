"""The named files of a repository under examination: keys, config, snapshots and locks.

The rule guarded here: one file that cannot be read hides nothing else. Every file is looked at by
itself, and what is gone by the time it is read was removed by somebody who may do so.
"""

import hashlib
import socket
from collections.abc import Iterator

from agent.cancel import CancelToken
from agent.errors import MalformedData, ObjectMissing, UnsupportedFormat
from agent.repository.finding import Advice, Finding, damage, hint
from agent.repository.keyfile import decode_key
from agent.repository.lockfile import decode_lock
from agent.repository.locking import SYSTEM_CLOCK
from agent.repository.objects import (
    Folder,
    file_key,
    names,
    read_config,
    read_key,
    sizes,
)
from agent.repository.parameters import decode_config
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.repository.times import NANOSECONDS, ZERO_TIME_NS
from agent.repository.unlock import left_behind, process_exists

FUTURE_NS = 24 * 3600 * NANOSECONDS
"""Clocks and time zones differ; a snapshot of the day after tomorrow is none of that."""


def check_keys(repository: Repository, cancel: CancelToken) -> Iterator[Finding]:
    """Yield key files that do not match their name or do not decode.

    One of them is enough for restic to refuse the repository (restic-format.md section 5).
    """
    storage = repository.objects.storage
    for name in names(storage, Folder.KEYS, cancel):
        try:
            stored = read_key(storage, name, cancel)
            if hashlib.sha256(stored).hexdigest() != name:
                yield damage(f"the key file keys/{name} does not match its name", Advice.KEY)
                continue
            decode_key(stored, name)
        except ObjectMissing:
            continue
        except MalformedData as error:
            yield damage(str(error), Advice.KEY)


def check_config(repository: Repository, cancel: CancelToken) -> Iterator[Finding]:
    """Yield what is wrong with the config as it is stored now."""
    objects = repository.objects
    what = "the repository's config"
    try:
        stored = read_config(objects.storage, cancel)
        config = decode_config(objects.key.unseal(stored, what))
    except ObjectMissing:
        yield damage(f"{what} is missing", Advice.CONFIG)
    except (MalformedData, UnsupportedFormat) as error:
        yield damage(str(error), Advice.CONFIG)
    else:
        if config != repository.config:
            yield damage(f"{what} was exchanged while it was checked", Advice.CONFIG)


def check_snapshots(
    repository: Repository, sound: list[Snapshot], cancel: CancelToken
) -> Iterator[Finding]:
    """Yield what is wrong with snapshots; those that can be used are appended to ``sound``."""
    now_ns = SYSTEM_CLOCK.now_ns()
    for name in names(repository.objects.storage, Folder.SNAPSHOTS, cancel):
        cancel.check()
        try:
            snapshot = repository.load_snapshot(name, cancel)
        except ObjectMissing:
            continue
        except MalformedData as error:
            yield damage(f"snapshot {name[:8]} cannot be used: {error}", Advice.SNAPSHOT)
            continue
        sound.append(snapshot)
        if snapshot.time_ns > now_ns + FUTURE_NS:
            yield hint(
                f"snapshot {name[:8]} is of a time to come: it is no parent, and forget counts it"
                " as the newest"
            )
        elif snapshot.time_ns <= ZERO_TIME_NS:
            yield hint(f"snapshot {name[:8]} has no time: forget counts it as the oldest")
    sound.sort(key=lambda snapshot: snapshot.time_ns)


def check_locks(repository: Repository, cancel: CancelToken) -> Iterator[Finding]:
    """Yield locks that were left behind, and those that nobody can read."""
    objects = repository.objects
    for name, size in sizes(objects.storage, Folder.LOCKS, cancel):
        if not size:
            yield hint(f"lock {name[:8]} is empty; nobody honours it", Advice.UNLOCK)
            continue
        try:
            json = objects.load(Folder.LOCKS, name, cancel=cancel)
            lock = decode_lock(json, file_key(Folder.LOCKS, name))
        except ObjectMissing:
            continue
        except MalformedData as error:
            yield damage(f"{error}; it keeps everybody from writing", Advice.LOCK)
            continue
        now_ns = SYSTEM_CLOCK.now_ns()
        reason = left_behind(lock, now_ns, socket.gethostname(), process_exists)
        if reason:
            yield hint(
                f"lock {name[:8]} was left behind, {reason}: {lock.describe(now_ns)}",
                Advice.UNLOCK,
            )
