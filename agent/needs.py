"""The needs: which snapshots somebody outside of the repository still wants, and who that is.

The meeting point of two rooms that must not know each other: the cluster fills it in, a sweep of
a repository asks it. The rule guarded here: in doubt a snapshot is needed. A name may be the
beginning of an id and then means every snapshot that begins so, in whatever repository; and what
was needed once stays needed, however often the needs are read again.
"""

import re
from collections.abc import Collection, Iterable

import msgspec

START = 8
"""How much of an id every name has: restic's short ids are as long (restic-format.md section 14)."""

_NAME = re.compile(rf"[0-9a-f]{{{START},64}}")


def is_name(text: str) -> bool:
    """Tell whether a text is a snapshot's id, or a beginning of one that can be told apart."""
    return _NAME.fullmatch(text) is not None


class Named(msgspec.Struct, frozen=True):
    """A snapshot that somebody names, by its id in hex or a beginning of that.

    ``prefix`` is the repository that has to hold it, "" if that is not known.
    """

    id: str
    by: str
    prefix: str = ""


class Pending(msgspec.Struct, frozen=True):
    """A backup that has not ended: it may have made a snapshot that nobody names yet.

    Its snapshots carry all of ``tags``, each ``key=value``.
    """

    tags: frozenset[str]
    by: str


class Needs:
    """All names, all unfinished work, and the backups that the location holds; it only grows."""

    def __init__(
        self,
        named: Iterable[Named] = (),
        pending: Iterable[Pending] = (),
        backups: Iterable[str] = (),
    ) -> None:
        self._by_start: dict[str, dict[Named, None]] = {}
        self.pending: dict[Pending, None] = {}
        self.backups: set[str] = set()
        self._add(named, pending, backups)

    def learn(self, more: "Needs") -> None:
        """Add what somebody else knows, or what is known now."""
        self._add(more.named, more.pending, more.backups)

    def _add(
        self, named: Iterable[Named], pending: Iterable[Pending], backups: Iterable[str]
    ) -> None:
        for name in named:
            if not is_name(name.id):
                raise ValueError(f"{name.id!r} cannot name a snapshot")
            self._by_start.setdefault(name.id[:START], {})[name] = None
        for work in pending:
            if not work.tags:
                raise ValueError(f"{work.by} has no tags, so it would need every snapshot")
            self.pending[work] = None
        self.backups.update(backups)

    @property
    def named(self) -> list[Named]:
        """Return every name."""
        return [name for names in self._by_start.values() for name in names]

    def who(self, id: str, tags: Collection[str]) -> str:
        """Return who needs the snapshot with this id and these tags, "" for nobody."""
        for name in self._by_start.get(id[:START], ()):
            if id.startswith(name.id):
                return name.by
        carried = frozenset(tags)
        return next((work.by for work in self.pending if work.tags <= carried), "")

    def expected(self, prefix: str) -> list[Named]:
        """Return the names of snapshots that the repository at ``prefix`` has to hold."""
        return [name for name in self.named if name.prefix == prefix]
