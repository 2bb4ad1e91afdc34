"""What the cluster hands to the data path, and what it gets back: values only.

This is the seam between the rooms: whoever moves the bytes needs nothing of Kubernetes, and
the controller knows nothing of repositories.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.cancel import CancelToken
from agent.monitor import Monitor
from agent.storage.settings import S3Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One volume to back up.

    ``storage`` is the repository's own prefix with all that is needed to reach it;
    ``repository`` is the same place in words (``s3:…``). ``reported_path`` goes into the
    status. ``password`` is not part of the representation.
    """

    name: str
    namespace: str
    uid: str
    volume_path: Path
    storage: S3Settings
    repository: str
    password: str = field(repr=False)
    tags: dict[str, str]
    pvc_uid: str | None
    pod_namespace: str
    pod_name: str
    volume: str
    reported_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A snapshot that can be restored.

    ``size_bytes`` is the size of the volume's content. ``problems`` entries were left out, of
    which ``problem_names`` are the first. ``message`` is for the status, "" for nothing to say.
    """

    snapshot_id: str
    size_bytes: int
    problems: int = 0
    problem_names: tuple[str, ...] = ()
    message: str = ""


Mover = Callable[[Assignment, Monitor, CancelToken], Outcome]
"""Backs one volume up. Blocks (it runs in a thread of its own), counts into the monitor, looks
at the token, and raises ``PodliftError`` (``Canceled`` for a stop) if there is no snapshot."""
