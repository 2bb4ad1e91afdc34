"""The process' time zone, as the codecs want it.

restic renders every time of a repository in local time, so trees are byte-identical only if we
do the same (restic-format.md section 12.3). In a pod without ``TZ`` that is UTC.
"""

import functools
import time

_ODD_CHANGES_UNTIL = 94_694_400  # 1973-01-01; Liberia's clock was the last off the full minute


def local_zone(unix_seconds: int) -> int:
    """Return the seconds east of UTC that local time has at an instant.

    Since 1973 every zone changes its offset on full minutes only, so those are remembered.
    """
    if unix_seconds < _ODD_CHANGES_UNTIL:
        return _offset(unix_seconds)
    return _offset_of_minute(unix_seconds // 60)


@functools.lru_cache(maxsize=16384)
def _offset_of_minute(minute: int) -> int:
    return _offset(minute * 60)


def _offset(unix_seconds: int) -> int:
    try:
        return time.localtime(unix_seconds).tm_gmtoff
    except (OverflowError, OSError, ValueError):
        return 0
