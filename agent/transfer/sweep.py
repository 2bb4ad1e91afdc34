"""A sweep: the garbage of one repository is forgotten, and what only it needed is pruned.

The rule guarded here: no snapshot goes that somebody needs, even one that was made a moment ago.
What is needed is not said by the repository but by others, who write it down *after* the
snapshot is stored: the agent into the PodVolumeBackup, then Velero into the bucket. So all is
read against that stream, upstream first::

    1. the exclusive lock      no backup of this repository runs, none can begin
    2. the snapshots           none can be added from here on
    3. the needs, in order:    PodVolumeBackups of the cluster, then records in the bucket
    4. the verdicts; a plan of the prune, which finds damage before anything is changed
    5. forget, then prune, under the same lock

A snapshot of step 2 had its backup end before step 1, or was left by one that died. While its
PodVolumeBackup is in the cluster that protects it: by the id in its status, or by its tags as
long as there is none. Velero writes the bucket's record while the object is still there, so a
snapshot that is not found in the cluster in step 3 is found in the bucket, or its backup was
deleted. Steps 3 and 5 cannot be exchanged, nor the two parts of step 3.

Other clusters, or another Velero of this one, may also write into the location, and only the
record tells of them. Between their snapshot and their record lies the rest of their backup, which
Velero ends after 4 hours by default: that is what the grace period is for, counted from the end
of the snapshot's own backup. It also covers a lock that somebody removed, and a storage whose
listings lag behind.

Killed in step 5, a sweep leaves a valid repository: garbage that is still there is found again,
and packs that nobody needs are pruned by every sweep, whether it forgets anything or not. Nobody
watches a sweep, so one that is to act first removes locks that were left behind, as ``podlift
unlock`` does: whoever lives refreshes a lock every five minutes and writes nothing once that has
failed for 22.5 (restic-format.md section 16), long before it counts as left behind.
"""

import logging
import time
from collections.abc import Callable

import msgspec

from agent.cancel import CancelToken
from agent.monitor import Monitor
from agent.needs import Needs
from agent.repository.forget import remove_snapshots
from agent.repository.prune import plan_prune, run_prune
from agent.repository.pruneplan import Figures, PruneOptions
from agent.repository.repository import Repository
from agent.repository.unlock import unlock
from agent.transfer.garbage import Judgement, judge, refuse_doubtful

log = logging.getLogger(__name__)

ReadNeeds = Callable[[CancelToken], Needs]
"""Reads, at this moment, who needs what; raises if any part of that cannot be known."""


class SweepOptions(msgspec.Struct, frozen=True):
    """How to sweep: ``apply`` acts, else it only looks. Seconds; ``now_ns`` is for tests."""

    apply: bool = False
    grace_seconds: float = 72 * 3600
    lock_wait_seconds: float = 0
    empty_location: bool = False
    now_ns: Callable[[], int] = time.time_ns


class Swept(msgspec.Struct, frozen=True):
    """What a sweep found, and has done if it was to act."""

    judgement: Judgement
    figures: Figures


def sweep(
    repository: Repository,
    prefix: str,
    read_needs: ReadNeeds,
    options: SweepOptions,
    cancel: CancelToken,
) -> Swept:
    """Judge all snapshots of the repository at ``prefix``, and act if told so.

    Raises ``RepositoryError`` if the verdicts are doubtful or the repository is damaged,
    ``RepositoryLocked``, and whatever ``read_needs`` raises; nothing was changed then.
    ``LockLost``, ``StorageError`` and ``Canceled`` may also come in the middle of step 5.
    """
    monitor = Monitor()
    if options.apply:
        for lock_found in unlock(repository, cancel):
            if lock_found.removed:
                log.warning("removed from %s: %s", repository.place, lock_found.reason)
    wait = options.lock_wait_seconds
    with repository.locked(exclusive=options.apply, wait_seconds=wait, cancel=cancel) as lock:
        snapshots = repository.snapshots(cancel, fresh=True)
        needs = read_needs(cancel)
        grace_ns = int(options.grace_seconds * 1e9)
        judgement = judge(snapshots, needs, options.now_ns(), grace_ns, prefix)
        refuse_doubtful(judgement, needs, prefix, empty_location=options.empty_location)
        garbage = judgement.garbage
        log.info(
            "%s: %d of %d snapshots are garbage", repository.place, len(garbage), len(snapshots)
        )
        ignored = frozenset(snapshot.id for snapshot in garbage)
        plan = plan_prune(repository, PruneOptions(ignored=ignored), monitor, cancel)
        if options.apply:
            remove_snapshots(repository, lock, garbage, cancel)
            if not plan.empty:
                run_prune(repository, lock, plan, monitor, cancel)
    return Swept(judgement, plan.figures)
