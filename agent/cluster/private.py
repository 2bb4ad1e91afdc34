"""A folder for credentials that does not outlive the agent by long.

It is removed at the agent's end. An agent that was killed cannot do that, so its folder says
whether anybody still lives in it: by a lock on a file, which the kernel drops with the process.
The next agent removes what is abandoned.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "podlift-agent-"
_LOCK = "in-use"
_UNLOCKED_SECONDS = 60.0
"""A folder this old without a lock file is not one that is just being made."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder of mode 0700 in ``parent`` (default: where temporary files go)."""
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as name,
        open(Path(name) / _LOCK, "xb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def remove_abandoned(parent: Path) -> None:
    """Remove our own folders in which no agent lives any more."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and _abandoned(folder):
                log.info("removing %s, which a killed agent left behind", folder)
                shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return time.time() - folder.lstat().st_mtime > _UNLOCKED_SECONDS
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
