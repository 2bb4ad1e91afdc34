"""The mover: one volume of the cluster, backed up by the transfer pipeline.

With ``restorer`` the only place where the two rooms meet. It knows how Velero's words (tags, claims, the host
``velero``) become a snapshot's, and nothing of how either side works.
"""

import contextlib
from dataclasses import dataclass, field

from agent.budget import Budgets
from agent.cancel import CancelToken
from agent.cluster import patches
from agent.cluster.assignment import BackupAssignment, Outcome
from agent.cluster.patches import NAMED_PROBLEMS
from agent.cluster.wishes import EXCLUDE, ON_READ_ERROR, Pattern
from agent.config import CacheDir
from agent.errors import ClusterError, UsageError, VolumeError, VolumeIncomplete
from agent.monitor import Monitor
from agent.repository.opening import open_or_create
from agent.storage.opening import open_s3
from agent.transfer.garbage import HOST
from agent.transfer.job import Request, require_volume, run_backup
from agent.transfer.parent import by_tags, by_wish
from agent.volume.exclude import Exclude

LOCK_WAIT_SECONDS = 40 * 60
"""How long a backup waits for a prune; a dead one's lock is removed after 30 minutes of watching."""

FORBIDDEN = (
    f"left out, which {ON_READ_ERROR} forbids; make what can be read readable, and exclude the rest with"
    f" {EXCLUDE}"
)


@dataclass(frozen=True, slots=True)
class Means:
    """What an agent lends to each of its volumes.

    ``budgets`` are shared by all of them. ``lock_wait_seconds`` is how long to wait while others hold
    a repository's lock.
    """

    cache: CacheDir | None = None
    budgets: Budgets = field(default_factory=Budgets)
    lock_wait_seconds: float = LOCK_WAIT_SECONDS


def move(
    assignment: BackupAssignment, monitor: Monitor, cancel: CancelToken, means: Means
) -> Outcome:
    """Back the assigned volume up; make its repository first if nothing is there.

    Raises ``PodliftError``; ``Canceled`` for a stop.
    """
    request = _request(assignment, means)
    require_volume(request.path)  # else a repository is made for nothing
    opened = open_s3(assignment.storage, rates=means.budgets.rates, count=monitor.add)
    with contextlib.closing(opened) as storage:
        repository = open_or_create(storage, assignment.password, cache=means.cache, cancel=cancel)
        try:
            result = run_backup(repository, request, monitor, cancel)
        except VolumeIncomplete as error:
            text = patches.problems_message(error.count, _names(monitor), "", what=FORBIDDEN)
            raise VolumeError(text) from error
    return Outcome(
        snapshot_id=result.snapshot_id,
        size_bytes=result.counters.bytes_done,
        incremental_bytes=result.counters.bytes_read,
        problems=result.counters.problems,
        problem_names=_names(monitor),
    )


def _request(assignment: BackupAssignment, means: Means) -> Request:
    """Return the backup in the pipeline's words; raises ``ClusterError`` for bad exclude patterns."""
    return Request(
        path=str(assignment.volume_path),
        reported_paths=(assignment.reported_path,),
        host=HOST,
        tags=assignment.tags,
        choose_parent=lambda snapshots, now_ns: by_tags(snapshots, assignment.tags, now_ns),
        parent_wish=by_wish(assignment.parent, assignment.tags),
        excludes=_checked(assignment.excludes),
        complete=assignment.on_read_error == "fail",
        readers=assignment.files_at_once,
        lock_wait_seconds=means.lock_wait_seconds,
        compression=assignment.compression,
        verify_stored=assignment.verify_stored,
        budgets=means.budgets,
    )


def _names(monitor: Monitor) -> tuple[str, ...]:
    return tuple(str(problem) for problem in monitor.problems[:NAMED_PROBLEMS])


def _checked(patterns: tuple[Pattern, ...]) -> tuple[str, ...]:
    """Return exclude patterns that are patterns; raises ``ClusterError`` that names the bearer."""
    for pattern in patterns:
        try:
            Exclude((pattern.glob,))
        except UsageError as error:
            raise ClusterError(f"{pattern.origin}: {error}") from None
    return tuple(pattern.glob for pattern in patterns)
