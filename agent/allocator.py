"""Memory: the C library's allocator, told to give it back, and the collector of cycles, told to take its time.

What a backup allocates on a dozen threads has hundreds of kilobytes to some megabytes. By
default glibc keeps an arena a thread and never returns what that held. Backing 1 GiB up
to S3 peaked at 260 MiB with two arenas and maps from 4 MiB on, and at 225 MiB with these
settings, for no more CPU time, when the buffers of chunks and packs (``repository/buffers.py``) were not
mapped by themselves yet (``benchmarks/bench_memory.py`` measures the peak).

What lies free between objects that live on is given back only when somebody asks, which an agent
does that has nothing more to do (``benchmarks/bench_agent.py`` measures what it then holds).
"""

import atexit
import contextlib
import ctypes
import gc
import logging

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

ARENAS = 1
MMAP_THRESHOLD_BYTES = 2 << 20
TRIM_THRESHOLD_BYTES = 8 << 20

COLLECT_OBJECTS = 10_000
"""How many new objects make the collector look for cycles; Python's own number is 700.

A restore of 100,000 files spends 0.06 s looking with this, and 0.17 with 700; it makes no cycles.
"""

log = logging.getLogger(__name__)


def limit_arenas() -> None:
    """Set glibc's allocator up for large buffers on many threads; elsewhere do nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.debug("this C library has no mallopt; memory use may be higher")
        return
    mallopt(_M_ARENA_MAX, ARENAS)
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def collect_rarely() -> None:
    """Let the collector look for cycles less often, and not at all when the process ends: 20 ms less."""
    gc.set_threshold(COLLECT_OBJECTS)
    atexit.register(gc.freeze)


def return_memory() -> None:
    """Return unused memory to the system; takes some 50 ms, so ask when nothing is at work."""
    gc.collect()  # an idle agent would make no garbage that sets this off by itself
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
