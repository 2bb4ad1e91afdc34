"""Who opens what: the kernel tells (inotify), also of devices and fifos, and of nothing that is only pinned."""

import ctypes
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN_ACCESS, _IN_OPEN, _IN_DONT_FOLLOW = 0x1, 0x20, 0x02000000  # inotify(7)
_EVENT = struct.Struct("iIII")


@contextmanager
def never_opened(*paths: Path) -> Iterator[list[str]]:
    """Fail if any of these, or anything below them, is opened or read in the scope.

    It is about what is there at the beginning, under whatever name it is found later.
    """
    inotify = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert inotify >= 0, os.strerror(ctypes.get_errno())
    try:
        watched = {}
        for path in itertools.chain(paths, *(path.rglob("*") for path in paths)):
            mask = _IN_OPEN | _IN_ACCESS | _IN_DONT_FOLLOW
            number = _LIBC.inotify_add_watch(inotify, os.fsencode(path), mask)
            assert number >= 0, f"{path}: {os.strerror(ctypes.get_errno())}"
            watched[number] = str(path)
        _events(inotify)  # those of watching itself
        opened: list[str] = []
        yield opened
        opened += sorted({watched.get(number, "?") for number in _events(inotify)})
    finally:
        os.close(inotify)
    assert not opened, f"opened or read: {opened}"


def _events(inotify: int) -> list[int]:
    found = []
    while True:
        try:
            data = os.read(inotify, 1 << 16)
        except BlockingIOError:
            return found
        place = 0
        while place < len(data):
            number, _, _, length = _EVENT.unpack_from(data, place)
            found.append(number)
            place += _EVENT.size + length
