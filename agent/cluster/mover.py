"""The mover: one volume of the cluster, backed up by the transfer pipeline.

With ``restorer`` the only place where the two rooms meet. It knows how Velero's words (tags, claims, the host
``velero``) become a snapshot's, and nothing of how either side works.
"""

import contextlib
from dataclasses import dataclass, field

from agent.budget import Budgets
from agent.cancel import CancelToken
from agent.cluster.assignment import BackupAssignment, Outcome
from agent.config import CacheDir
from agent.monitor import Monitor
from agent.repository.opening import open_or_create
from agent.storage.opening import open_s3
from agent.transfer.garbage import HOST
from agent.transfer.job import Request, require_volume, run_backup
from agent.transfer.parent import by_tags

LOCK_WAIT_SECONDS = 40 * 60
"""How long a backup waits for a prune; a dead one's lock is removed after 30 minutes of watching."""

NAMED_PROBLEMS = 10


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
    require_volume(str(assignment.volume_path))  # else a repository is made for nothing
    budgets = means.budgets
    opened = open_s3(assignment.storage, rates=budgets.rates, count=monitor.add)
    with contextlib.closing(opened) as storage:
        repository = open_or_create(storage, assignment.password, cache=means.cache, cancel=cancel)
        request = Request(
            path=str(assignment.volume_path),
            reported_paths=(assignment.reported_path,),
            host=HOST,
            tags=assignment.tags,
            choose_parent=lambda snapshots, now_ns: by_tags(snapshots, assignment.tags, now_ns),
            lock_wait_seconds=means.lock_wait_seconds,
            compression=assignment.compression,
            verify_stored=assignment.verify_stored,
            budgets=budgets,
        )
        result = run_backup(repository, request, monitor, cancel)
    names = tuple(str(problem) for problem in monitor.problems[:NAMED_PROBLEMS])
    return Outcome(
        snapshot_id=result.snapshot_id,
        size_bytes=result.counters.bytes_done,
        problems=result.counters.problems,
        problem_names=names,
    )
