"""Garbage: the snapshots of deleted backups, told from all others; values in, verdicts out.

The rule guarded here: a snapshot is garbage only if it carries Velero's own tags, nobody needs
it, and it ended longer ago than the grace period. What was made by hand in the same repository
carries other tags and is never garbage, and what has no time cannot be called old.

Velero gives every PodVolumeBackup these tags and podlift writes them into the snapshot, as
Velero's own restic did (velero.md sections 2.2 and 5.5).
"""

import enum
from collections.abc import Iterable, Sequence

import msgspec

from agent.errors import RepositoryError
from agent.needs import Named, Needs
from agent.repository.snapshot import Snapshot

HOST = "velero"
"""The host name of every snapshot that Velero's restic made (velero.md section 5.5)."""

TAGS = frozenset({"backup", "backup-uid", "ns", "pod", "pod-uid", "volume"})
"""What every PodVolumeBackup has; those of a claim have pvc-uid too (velero.md section 2.2)."""

_HOUR_NS = 3600 * 10**9


class Verdict(enum.StrEnum):
    """What becomes of a snapshot."""

    LIVING = "living"
    GRACE = "grace"  # nobody needs it, but it is young
    FOREIGN = "foreign"  # not made for Velero
    GARBAGE = "garbage"


class Judged(msgspec.Struct, frozen=True):
    """A snapshot and its verdict; ``reason`` is for the operator."""

    snapshot: Snapshot
    verdict: Verdict
    reason: str


class Judgement(msgspec.Struct, frozen=True):
    """The verdicts on all snapshots of a repository, oldest first.

    ``missing`` are snapshots that somebody names and that the repository does not have.
    """

    judged: tuple[Judged, ...]
    missing: tuple[Named, ...] = ()

    def of(self, verdict: Verdict) -> list[Judged]:
        """Return the snapshots of one verdict."""
        return [judged for judged in self.judged if judged.verdict is verdict]

    @property
    def garbage(self) -> list[Snapshot]:
        """Return what is to be forgotten."""
        return [judged.snapshot for judged in self.of(Verdict.GARBAGE)]


def judge(
    snapshots: Sequence[Snapshot], needs: Needs, now_ns: int, grace_ns: int, prefix: str = ""
) -> Judgement:
    """Return the verdict on each snapshot of the repository at ``prefix``."""
    ids = [snapshot.id for snapshot in snapshots]
    return Judgement(
        tuple(_judge(snapshot, needs, now_ns, grace_ns) for snapshot in snapshots),
        tuple(_missing(ids, needs.expected(prefix) if prefix else ())),
    )


def _judge(snapshot: Snapshot, needs: Needs, now_ns: int, grace_ns: int) -> Judged:
    if who := needs.who(snapshot.id, snapshot.tags):
        return Judged(snapshot, Verdict.LIVING, who)
    tags = tags_of(snapshot)
    lacking = sorted(TAGS - tags.keys())
    if snapshot.hostname != HOST or lacking:
        what = f"it has no tag {lacking[0]}" if lacking else f"its host is not {HOST}"
        return Judged(snapshot, Verdict.FOREIGN, f"not made for Velero: {what}")
    backup = tags["backup"]
    if backup in needs.backups:
        why = f"backup {backup} does not name it: left by a failed or repeated attempt"
    else:
        why = f"backup {backup} is not in the location any more"
    ended_ns = ended(snapshot)
    if ended_ns <= 0:
        return Judged(snapshot, Verdict.GRACE, f"{why}; it has no time, so it cannot be judged")
    if now_ns - ended_ns <= grace_ns:
        hours = max(now_ns - ended_ns, 0) // _HOUR_NS
        return Judged(snapshot, Verdict.GRACE, f"{why}; it is {hours} h old")
    return Judged(snapshot, Verdict.GARBAGE, why)


def ended(snapshot: Snapshot) -> int:
    """Return when a snapshot's backup ended, as far as it says; ns since the epoch."""
    end_ns = snapshot.summary.backup_end_ns if snapshot.summary is not None else 0
    return max(snapshot.time_ns, end_ns)


def tags_of(snapshot: Snapshot) -> dict[str, str]:
    """Return the tags that are pairs."""
    pairs = (tag.partition("=") for tag in snapshot.tags)
    return {key: value for key, equals, value in pairs if equals}


def _missing(ids: Sequence[str], expected: Iterable[Named]) -> Iterable[Named]:
    starts = {id[:length] for id in ids for length in range(8, len(id) + 1)}
    return (name for name in expected if name.id not in starts)


def refuse_doubtful(
    judgement: Judgement, needs: Needs, prefix: str, *, empty_location: bool
) -> None:
    """Raise ``RepositoryError`` if there is garbage, but the needs look like those of elsewhere.

    ``empty_location`` says that the location is known to hold no backup any more.
    """
    garbage = judgement.garbage
    if not garbage:
        return
    if not needs.backups and not empty_location:
        raise RepositoryError(
            f"{len(garbage)} snapshots look like garbage only because the location holds no backup"
            " at all, which a wrong bucket or prefix would look like too; nothing was changed. If"
            " the last backup was really deleted, add --empty-location"
        )
    expected = needs.expected(prefix)
    if expected and len(judgement.missing) == len(expected):
        raise RepositoryError(
            f"backups name {len(expected)} snapshots of this repository and it has none of them"
            f" ({expected[0].id[:16]}, named by {expected[0].by}): it is not the one that they were"
            " stored in; nothing was changed. Correct the location's prefix, or restore the"
            " repository"
        )
