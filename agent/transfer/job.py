"""One backup from beginning to end: lock, parent, pipeline, snapshot."""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence

from agent import __version__
from agent.budget import Budgets
from agent.cancel import CancelToken
from agent.config import Compression, VerifyStored
from agent.errors import MalformedData, VolumeIncomplete
from agent.monitor import Counters, Monitor
from agent.repository.locking import username
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot, Summary
from agent.repository.writer import WriteOptions
from agent.transfer.backup import back_up
from agent.transfer.checkpoint import Checkpoints
from agent.transfer.parent import ChooseParent, ParentWish, tagged
from agent.transfer.walk import Source
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume

log = logging.getLogger(__name__)

_UINT64_MAX = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to back up and how the snapshot is to be called.

    ``path`` is the directory whose content becomes the root tree; ``reported_paths`` is what the
    snapshot says of where it was. ``choose_parent`` knows the snapshots of this volume; ``parent_wish``
    may override what it chooses. ``lock_wait_seconds`` is how long to wait for others' locks,
    ``verify_stored`` says which packs are read back. With ``complete`` there is no snapshot if any entry
    was left out, but a checkpoint, so that nothing is read or sent again. ``readers`` files are read at a time, 0 for as many as suit. ``budgets`` are shared with whatever else the
    process does.
    """

    path: str
    reported_paths: tuple[str, ...]
    host: str
    tags: Mapping[str, str]
    choose_parent: ChooseParent
    excludes: tuple[str, ...] = ()
    complete: bool = False
    readers: int = 0
    lock_wait_seconds: float = 0
    compression: Compression = "default"
    verify_stored: VerifyStored = "sample"
    budgets: Budgets = dataclasses.field(default_factory=Budgets)
    parent_wish: ParentWish | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a backup came to. ``snapshot_id`` is the full id in hexadecimal."""

    snapshot_id: str
    parent_id: str
    counters: Counters
    seconds: float


def require_volume(path: str) -> None:
    """Raise ``VolumeError`` unless the directory can be read; for a look before anything is made."""
    Volume.open(path).close()


def run_backup(
    repository: Repository, request: Request, monitor: Monitor, cancel: CancelToken
) -> Result:
    """Back a directory up into an open repository.

    Raises ``VolumeError`` (``VolumeIncomplete``), ``UsageError`` for bad excludes, ``Canceled``,
    ``RepositoryError``, ``StorageError``. Files that cannot be read are counted in the monitor and left out.
    """
    started_ns = time.time_ns()
    exclude = Exclude(request.excludes)
    with (
        request.budgets.at_work(),
        Volume.open(request.path) as volume,
        repository.locked(
            exclusive=False, wait_seconds=request.lock_wait_seconds, cancel=cancel, begun=True
        ) as lock,
        monitor.holding(lock.age_seconds),
    ):
        # snapshots before the index: what they name is then in the index that is read next
        snapshots = _snapshots(repository, cancel)
        parent = _parent(request, snapshots, started_ns)
        tree = parent.tree if parent is not None else None
        source = Source(volume, exclude, tree, request.budgets, request.readers)
        with repository.writing(lock, monitor, cancel, _options(request, parent)) as writer:

            def described(tree: bytes) -> Snapshot:
                summary = summary_of(monitor.counters, started_ns)
                return _snapshot(request, parent, tree, summary)

            checkpoints = Checkpoints(writer, described, monitor, cancel)
            tree = back_up(source, writer, monitor, cancel, checkpoints)
            superfluous = _superfluous(request, snapshots, started_ns)
            if request.complete and monitor.counters.problems:
                checkpoints.keep(tree, superfluous)
                raise VolumeIncomplete(monitor.counters.problems)
            snapshot_id = writer.finish(described(tree))
            checkpoints.remove(superfluous)
    return Result(snapshot_id, _id(parent), monitor.counters, (time.time_ns() - started_ns) / 1e9)


def _parent(request: Request, snapshots: Sequence[Snapshot], now_ns: int) -> Snapshot | None:
    if request.parent_wish is None:
        return request.choose_parent(snapshots, now_ns)
    return request.parent_wish(snapshots, now_ns, request.choose_parent)


def _id(parent: Snapshot | None) -> str:
    return parent.id if parent is not None else ""


def _options(request: Request, parent: Snapshot | None) -> WriteOptions:
    return WriteOptions(_id(parent), request.compression, request.verify_stored, request.budgets)


def _superfluous(request: Request, snapshots: Sequence[Snapshot], started_ns: int) -> list[str]:
    """Return the checkpoints that were left of the same volume: the run that ended was the last."""
    return [
        snapshot.id
        for snapshot in snapshots
        if snapshot.is_checkpoint and request.choose_parent([snapshot], started_ns) is snapshot
    ]


def _snapshots(repository: Repository, cancel: CancelToken) -> list[Snapshot]:
    """Return the snapshots that can be read: a damaged one is no reason to stop backing up."""
    refused: list[MalformedData] = []
    snapshots = repository.snapshots(cancel, refused)
    for error in refused:
        log.warning("not taken for a parent: %s; remove it with forget", error)
    return snapshots


def summary_of(counters: Counters, started_ns: int) -> Summary:
    """Return what the snapshot says of a run that began at ``started_ns``."""
    return Summary(
        backup_start_ns=started_ns,
        backup_end_ns=time.time_ns(),
        files_new=counters.files_new,
        files_changed=counters.files_changed,
        files_unmodified=counters.files_unmodified,
        dirs_new=counters.directories_new,
        dirs_changed=counters.directories_changed,
        dirs_unmodified=counters.directories_unmodified,
        data_blobs=counters.data_blobs,
        tree_blobs=counters.tree_blobs,
        data_added=counters.bytes_added,
        data_added_packed=counters.bytes_stored,
        total_files_processed=counters.files,
        total_bytes_processed=min(counters.bytes_done, _UINT64_MAX),  # sparse files left out
    )


def _real(parent: Snapshot | None) -> str:
    """Return the id of the parent as a snapshot names it: not that of a checkpoint, which will go."""
    if parent is None:
        return ""
    return parent.parent if parent.is_checkpoint else parent.id


def _snapshot(request: Request, parent: Snapshot | None, tree: bytes, summary: Summary) -> Snapshot:
    return Snapshot(
        time_ns=summary.backup_start_ns,
        parent=_real(parent),
        tree=tree,
        paths=request.reported_paths,
        hostname=request.host,
        username=username(),
        uid=os.getuid(),
        gid=os.getgid(),
        excludes=request.excludes,
        tags=tagged(request.tags),
        program_version=f"podlift {__version__}",
        summary=summary,
    )
