"""Which snapshots a person means: by host, tags and paths, and only the newest of each kind.

Pure functions of snapshots. Several values of one filter are alternatives; different filters must
all hold.
"""

from collections.abc import Iterable, Sequence

import msgspec

from agent.repository.retention import Filter, tag_sets
from agent.repository.snapshot import Snapshot


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Filters over snapshots; an empty one takes all.

    A text in ``tags`` is a tag, or several joined by commas of which a snapshot must have all, or ""
    for having none; a snapshot must hold all of ``paths``. ``newest`` keeps so many of each host and paths.
    """

    hosts: Sequence[str] = ()
    tags: Sequence[str] = ()
    paths: Sequence[str] = ()
    newest: int | None = None

    def of(self, snapshots: Iterable[Snapshot]) -> list[Snapshot]:
        """Return the snapshots that are meant, oldest first."""
        takes = Filter(tuple(self.hosts), tag_sets(self.tags), tuple(self.paths)).admits
        found = sorted(filter(takes, snapshots), key=lambda s: s.time_ns)
        return found if self.newest is None else _newest(found, self.newest)


def _newest(snapshots: list[Snapshot], count: int) -> list[Snapshot]:
    taken: dict[tuple[str, frozenset[str]], int] = {}
    kept = []
    for snapshot in reversed(snapshots):
        origin = (snapshot.hostname, frozenset(snapshot.paths))
        taken[origin] = taken.get(origin, 0) + 1
        if taken[origin] <= count:
            kept.append(snapshot)
    return kept[::-1]
