"""Rivals: the locks that forbid ours while we wait for it, and which of them nobody holds any more.

The rule guarded here: a lock's own time alone proves nothing, since its holder's clock or ours may be
wrong. Whoever lives replaces the lock every 5 minutes by one of another name, and writes nothing
more after 22.5 minutes without (restic-format.md section 16). So a name that is still there after
30 minutes of watching was left behind, whatever the clocks say; where they say so too, it is after
22.5 minutes: no less, or a holder whose clock is wrong might still be writing. Pure: the clocks are the caller's.
"""

from collections.abc import Mapping

from agent.repository.lockfile import STALE_SECONDS, Lock

WATCH_SECONDS = float(STALE_SECONDS)
"""How long a lock is watched that does not look old."""

WATCH_OLD_SECONDS = 22.5 * 60
"""How long a lock is watched whose own time is older than ``STALE_SECONDS``."""


class Rivals:
    """Remembers since when each lock stands in the way; one for each wait, not for several threads."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def left_behind(
        self, rivals: Mapping[str, Lock], looked_at: float, running_seconds: float, now_ns: int
    ) -> list[str]:
        """Note what stands in the way now, and return the names to remove; those are forgotten.

        ``looked_at`` and ``running_seconds`` are the running clock just before and after the
        locks were listed: reading them may have taken long, which counts for nothing.
        """
        self._since = {name: self._since.get(name, running_seconds) for name in rivals}
        gone = [
            name
            for name, since in self._since.items()
            if looked_at - since >= _watch_seconds(rivals[name], now_ns)
        ]
        for name in gone:
            del self._since[name]
        return gone


def _watch_seconds(lock: Lock, now_ns: int) -> float:
    old = now_ns - lock.time_ns > STALE_SECONDS * 1_000_000_000
    return WATCH_OLD_SECONDS if old else WATCH_SECONDS
