"""What this process takes of memory, and what it may take: figures that are read, and never set.

What is taken is what the kernel cannot give to others by itself: anonymous memory, and not the pages
of files that are mapped, such as a repository's index in the cache. It is what leads to a kill.
"""

import os
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container finds its limit, in control groups of version 2 and 1."""

STATUS = Path("/proc/self/status")
_TAKEN = ("RssAnon:", "RssShmem:")


def machine_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def limit_bytes() -> int | None:
    """Return the container's limit; None if there is none that is below the machine's memory."""
    found = []
    for limit in LIMITS:
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue  # another version of control groups, or "max"
    least = min(found, default=None)
    return least if least is not None and least < machine_bytes() else None


def taken_bytes() -> int:
    """Return what this process takes; raises ``OSError`` where the system does not say."""
    lines = STATUS.read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(_TAKEN))
