"""The process' time zone, as the codecs want it.

restic renders every time of a repository in local time, so trees are byte-identical only if we
do the same (restic-format.md section 12.3). In a pod without ``TZ`` that is UTC.
"""

import functools
import time

_QUARTER_SECONDS = 900


def local_zone(unix_seconds: int) -> int:
    """Return the seconds east of UTC that local time has at an instant.

    Since 1970 every zone changes its offset on quarters of an hour only, so those are remembered.
    """
    if unix_seconds < 0:
        return _offset(unix_seconds)
    return _offset_of_quarter(unix_seconds // _QUARTER_SECONDS)


@functools.lru_cache(maxsize=16384)
def _offset_of_quarter(quarter: int) -> int:
    return _offset(quarter * _QUARTER_SECONDS)


def _offset(unix_seconds: int) -> int:
    try:
        return time.localtime(unix_seconds).tm_gmtoff
    except (OverflowError, OSError, ValueError):
        return 0
