"""What the cluster hands to the data path, and what it gets back: values only.

This is the seam between the rooms: whoever moves the bytes needs nothing of Kubernetes, and
the controller knows nothing of repositories.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.cancel import CancelToken
from agent.cluster.wishes import OnReadError, Pattern
from agent.config import Compression, VerifyStored
from agent.monitor import Monitor
from agent.storage.settings import S3Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One volume to move.

    ``storage`` is the repository's own prefix with all that is needed to reach it;
    ``repository`` is the same place in words (``s3:…``), ``location`` the name of the
    BackupStorageLocation that it lies in. ``password`` is not part of the representation.
    """

    name: str
    namespace: str
    uid: str
    volume_path: Path
    location: str
    storage: S3Settings
    repository: str
    password: str = field(repr=False)
    pvc_uid: str | None
    pod_namespace: str
    pod_name: str
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupAssignment(Assignment):
    """One volume to back up; ``reported_path`` and ``warning`` go into the status.

    ``files_at_once`` is how many are read at the same time, 0 for the mover's own choice. ``parent`` is
    the PodVolumeBackup's word on that: an id, ``none``, or ``auto`` or "" for the mover's own choice.
    """

    tags: dict[str, str]
    reported_path: str
    compression: Compression = "default"
    verify_stored: VerifyStored = "sample"
    excludes: tuple[Pattern, ...] = ()
    on_read_error: OnReadError = "warn"
    files_at_once: int = 0
    parent: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreAssignment(Assignment):
    """One volume to give back.

    ``snapshot_id`` may be the beginning of an id. ``done_name`` is what the file is called that
    tells the pod's init container of the end. ``read_only``: nothing may be written to the
    location, not even a lock. ``elsewhere`` says where a snapshot of another format would be.
    ``resumed``: a process that is gone had begun it, and reported a size of ``reported_bytes``.
    """

    snapshot_id: str
    done_name: str
    read_only: bool
    elsewhere: str
    resumed: bool = False
    reported_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: a snapshot that can be restored, or a volume that was given back.

    ``snapshot_id`` and ``incremental_bytes`` (content that was new or changed, and so was read) are a
    backup's alone. ``size_bytes`` is the size of the volume's content.
    ``problems`` entries are not complete, of which ``problem_names`` are the first.
    ``message`` is for the status, "" for nothing to say.
    """

    snapshot_id: str = ""
    size_bytes: int
    incremental_bytes: int = 0
    problems: int = 0
    problem_names: tuple[str, ...] = ()
    message: str = ""


BackupMover = Callable[[BackupAssignment, Monitor, CancelToken], Outcome]
RestoreMover = Callable[[RestoreAssignment, Monitor, CancelToken], Outcome]
"""Moves one volume. Blocks (it runs in a thread of its own), counts into the monitor, looks at
the token, and raises ``PodliftError`` (``Canceled`` for a stop) if it did not come to its end.
A restore that comes to its end has told the pod's init container."""


@dataclass(frozen=True, slots=True)
class Movers:
    """The two ways that bytes move."""

    back_up: BackupMover
    give_back: RestoreMover

    def move(self, assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
        """Carry out an assignment of either kind."""
        if isinstance(assignment, RestoreAssignment):
            return self.give_back(assignment, monitor, cancel)
        if isinstance(assignment, BackupAssignment):
            return self.back_up(assignment, monitor, cancel)
        raise TypeError(f"no mover for {type(assignment).__name__}")
