"""The restorer: one volume of the cluster, given back by the transfer pipeline.

The mover's other half. Its rule is the order of the end: everything is written, then it is on the
disk, then the pod is told; and the pod is told only if nothing was left out but metadata or single
entries, which are named. Until then a stop leaves a volume that a restore can begin anew. After
that nothing may be written into it, also not by whoever takes over from a process that was killed
between the done file and the status: the file is found, and only the status is missing.
"""

import contextlib
import logging
from collections.abc import Iterator

from agent.cancel import CancelToken
from agent.cluster.assignment import Outcome, RestoreAssignment
from agent.cluster.mover import Means
from agent.cluster.patches import NAMED_PROBLEMS, RESTORED_BEFORE
from agent.errors import ClusterError, NoRepository, UsageError
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.storage.opening import open_s3
from agent.transfer.restore import RestoreRequest, restore
from agent.volume.handover import Handover

LOG = logging.getLogger(__name__)


def give_back(
    assignment: RestoreAssignment, monitor: Monitor, cancel: CancelToken, means: Means
) -> Outcome:
    """Restore the assigned snapshot into its volume, and let the pod start.

    Raises ``PodliftError``; ``Canceled`` for a stop.
    """
    path = assignment.volume_path
    budgets = means.budgets
    opened = open_s3(assignment.storage, rates=budgets.rates, count=monitor.add)
    with contextlib.closing(opened) as storage, Handover.open(path, cancel) as handover:
        if assignment.resumed and handover.finished(assignment.done_name):
            return Outcome(size_bytes=assignment.reported_bytes, message=RESTORED_BEFORE)
        try:
            repository = open_repository(
                storage, assignment.password, cache=means.cache, cancel=cancel
            )
        except NoRepository as error:
            raise ClusterError(
                f"{error}. Perhaps the snapshot is of another format: {assignment.elsewhere}"
            ) from error
        with _lock(repository, assignment, monitor, cancel, means.lock_wait_seconds):
            snapshot = _snapshot(repository, assignment, cancel)
            request = RestoreRequest(snapshot.tree, path, budgets=budgets)
            restore(repository.reading(cancel), request, monitor, cancel)
        cancel.check()
        handover.flush()
        handover.finish(assignment.done_name)
    counters = monitor.counters
    return Outcome(
        size_bytes=counters.bytes_total,  # the walk is over; holes are not counted as done
        problems=counters.problems,
        problem_names=tuple(str(problem) for problem in monitor.problems[:NAMED_PROBLEMS]),
    )


@contextlib.contextmanager
def _lock(
    repository: Repository,
    assignment: RestoreAssignment,
    monitor: Monitor,
    cancel: CancelToken,
    wait_seconds: float,
) -> Iterator[None]:
    """Keep a prune away for a scope, as far as the location lets us."""
    if assignment.read_only:
        LOG.info(
            "%s: restored without a lock, since BackupStorageLocation %s is read-only: nobody may "
            "prune %s meanwhile",
            assignment.name,
            assignment.location,
            repository.place,
        )
        yield
        return
    waiting = repository.locked(exclusive=False, wait_seconds=wait_seconds, cancel=cancel)
    with waiting as lock, monitor.holding(lock.age_seconds):
        yield


def _snapshot(
    repository: Repository, assignment: RestoreAssignment, cancel: CancelToken
) -> Snapshot:
    try:
        return repository.snapshot(assignment.snapshot_id, cancel)
    except UsageError as error:
        raise ClusterError(
            f"{error}. It may have been forgotten, or lie in another repository: "
            f"{assignment.elsewhere}"
        ) from error
