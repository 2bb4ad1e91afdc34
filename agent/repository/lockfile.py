"""Locks as values: who works on a repository, and which locks exclude each other.

A lock is an unpacked file in ``locks/`` (restic-format.md section 16). Any number of shared locks
may stand together; an exclusive one stands alone. Pure: the clock is the caller's.
"""

from typing import Annotated

import msgspec

from agent.errors import MalformedData
from agent.repository.node import read_json
from agent.repository.times import Zone, format_time, parse_time

STALE_SECONDS = 30 * 60
"""A lock this old was left behind, if clocks are right: ``unlock`` and ``rivals`` act on that."""

_U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]


class _LockJson(msgspec.Struct, frozen=True, omit_defaults=True):
    time: str
    exclusive: bool
    hostname: str = ""
    username: str = ""
    pid: int = 0
    uid: _U32 = 0
    gid: _U32 = 0


_decoder = msgspec.json.Decoder(_LockJson)


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """A lock's content; ``time_ns`` is when it was made or last refreshed."""

    time_ns: int
    exclusive: bool
    hostname: str
    username: str
    pid: int
    uid: int = 0
    gid: int = 0

    def describe(self, now_ns: int) -> str:
        """Say in one phrase whose lock this is and how old."""
        minutes = max(0, now_ns - self.time_ns) // 60_000_000_000
        kind = "exclusive" if self.exclusive else "shared"
        stale = ", probably left behind" if minutes * 60 >= STALE_SECONDS else ""
        return f"{kind} lock of {self.hostname} (pid {self.pid}), {minutes} min old{stale}"


def encode_lock(lock: Lock, zone: Zone) -> bytes:
    """Return the lock's JSON in restic's field order."""
    return msgspec.json.encode(
        _LockJson(
            time=format_time(lock.time_ns, zone),
            exclusive=lock.exclusive,
            hostname=lock.hostname,
            username=lock.username,
            pid=lock.pid,
            uid=lock.uid,
            gid=lock.gid,
        )
    )


def decode_lock(json: bytes, what: str) -> Lock:
    """Parse a lock; raise ``MalformedData`` naming ``what``."""
    raw = read_json(_decoder, json, what)
    try:
        time_ns = parse_time(raw.time)
    except MalformedData as error:
        raise MalformedData(what, error.reason) from error
    return Lock(
        time_ns=time_ns,
        exclusive=raw.exclusive,
        hostname=raw.hostname,
        username=raw.username,
        pid=raw.pid,
        uid=raw.uid,
        gid=raw.gid,
    )


def conflicting(others: dict[str, Lock], exclusive: bool) -> dict[str, Lock]:
    """Return the locks that forbid a new one of this kind."""
    return {name: lock for name, lock in others.items() if exclusive or lock.exclusive}
