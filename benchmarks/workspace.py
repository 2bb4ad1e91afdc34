"""What all benchmarks are told, and where they work: a folder that is gone afterwards.

/dev/shm is preferred where it has room, for a disk's file system measures itself: ext4 makes files
slowly for minutes after many were deleted. TMPDIR decides if it is set.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
GIB = 1 << 30


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="small data, one round")
    made.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    made.add_argument("--rounds", type=int, default=3, help="of all sides in turn (%(default)s)")
    restic = os.environ.get("PODLIFT_RESTIC_BINARIES", "").split(":")[0] or shutil.which("restic")
    made.add_argument("--restic", default=restic, help="which restic (%(default)s)")
    return made


def environment(**own: str) -> dict[str, str]:
    """Return the environment of a program that is measured: ours, and what is its own.

    Without PYTHONDONTWRITEBYTECODE, which has every run compile all of its modules: 0.4 s. Those of the
    image were compiled when it was built.
    """
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return ours | own


@contextlib.contextmanager
def workspace(need_bytes: int) -> Iterator[Path]:
    """Yield an empty folder where ``need_bytes`` have room; raise ``SystemExit`` without one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves nothing behind
    shared = Path("/dev/shm")
    where = None
    if "TMPDIR" not in os.environ and shared.is_dir() and _free(shared) > need_bytes:
        where = shared
    with tempfile.TemporaryDirectory(prefix="podlift-bench-", dir=where) as name:
        if _free(Path(name)) < need_bytes:
            raise SystemExit(f"{need_bytes / GIB:.0f} GiB are needed; set TMPDIR to where they are")
        yield Path(name)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
