"""The owner of a volume, in a process of its own: changes names and files as fast as it can.

An attack is a list of acts, each of them a function of this module with its arguments. The function
opens the directories that it works in, once, and returns what is to be done again and again; so an
attacker never follows the symlinks that it plants. Every time an act succeeds is counted.
"""

import ctypes
import multiprocessing
import os
import random
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import c_uint64
from pathlib import Path
from typing import Any

Act = tuple[Callable[..., Callable[[], object]], tuple[Any, ...]]

SECONDS_TO_LIVE = 110
"""An attacker that nobody stops ends by itself."""

SECONDS_TO_START = 30
SECONDS_TO_STOP = 20

_RENAME_EXCHANGE = 2  # renameat2(2)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


class Attacker:
    """An attack that goes on; ``done`` tells how often each of its acts has succeeded."""

    def __init__(self, acts: Sequence[Act]) -> None:
        self._stop = _processes.RawValue(ctypes.c_bool, False)
        self._done = _processes.RawArray(c_uint64, len(acts))
        self._process = _processes.Process(
            target=_attack, args=(list(acts), self._stop, self._done), daemon=True
        )

    @property
    def done(self) -> list[int]:
        return list(self._done)

    def start(self) -> None:
        self._process.start()
        deadline = time.monotonic() + SECONDS_TO_START
        while not all(self._done):
            assert self._process.is_alive(), "the attacker has ended"
            assert time.monotonic() < deadline, f"acts do not succeed: {self.done}"
            time.sleep(0.001)

    def stop(self) -> None:
        self._stop.value = True
        self._process.join(SECONDS_TO_STOP)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        assert self._process.exitcode == 0, "the attacker failed"


@contextmanager
def attacking(*acts: Act) -> Iterator[Attacker]:
    """Run an attack for the length of a scope, from its first success of each act on."""
    attacker = Attacker(acts)
    try:
        attacker.start()
        yield attacker
    finally:
        attacker.stop()


def _attack(acts: list[Act], stop: Any, done: Any) -> None:
    prepared = [make(*arguments) for make, arguments in acts]
    end = time.monotonic() + SECONDS_TO_LIVE
    while not stop.value and time.monotonic() < end:
        for place, act in enumerate(prepared):
            with suppress(OSError):  # what is to be swapped is not there yet, or not any more
                act()
                done[place] += 1


def _directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _below(root: int, names: Sequence[str]) -> int:
    current = os.dup(root)
    for name in names:
        try:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


def _exchange(one: int, name: str, other: int, other_name: str) -> None:
    names = os.fsencode(name), os.fsencode(other_name)
    if _LIBC.renameat2(one, names[0], other, names[1], _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def exchange(directory: Path, one: str, other: str, elsewhere: Path | None = None) -> Any:
    """Swap two names, the second perhaps in another directory; there is no moment without either."""
    here = _directory(directory)
    there = here if elsewhere is None else _directory(elsewhere)
    return lambda: _exchange(here, one, there, other)


def move_out_and_in(directory: Path, name: str, elsewhere: Path) -> Any:
    """Move a directory out of the volume and back."""
    here, there = _directory(directory), _directory(elsewhere)

    def act() -> None:
        os.rename(name, name, src_dir_fd=here, dst_dir_fd=there)
        os.rename(name, name, src_dir_fd=there, dst_dir_fd=here)

    return act


def grow(path: Path, most: int) -> Any:
    """Append for ever: a MiB at a time, and from ``most`` bytes on a byte."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    block = random.Random(1).randbytes(1 << 20)

    def act() -> None:
        os.write(file, block if os.fstat(file).st_size < most else b"x")

    return act


def truncate_and_fill(path: Path, size: int) -> Any:
    """Cut a file to nothing, or to a half, and fill it up again."""
    file = os.open(path, os.O_RDWR)
    content = random.Random(2).randbytes(size)
    lengths = [0, size // 2, 1]

    def act() -> None:
        lengths.append(lengths.pop(0))
        os.ftruncate(file, lengths[0])
        os.pwrite(file, content, 0)

    return act


def move_holes(path: Path, size: int, step: int) -> Any:
    """Punch a hole somewhere and fill another one."""
    file = os.open(path, os.O_RDWR)
    chance = random.Random(3)
    block = chance.randbytes(step)

    def act() -> None:
        if _LIBC.fallocate(
            file, _PUNCH_HOLE | _KEEP_SIZE, chance.randrange(size // step) * step, step
        ):
            raise OSError(ctypes.get_errno(), "fallocate")
        os.pwrite(file, block, chance.randrange(size // step) * step)

    return act


def replace(directory: Path, name: str, contents: Sequence[bytes]) -> Any:
    """Put another file under a name; the number of the one before is free, and is used again."""
    here, left = _directory(directory), list(contents)

    def act() -> None:
        left.append(left.pop(0))
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=here)
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=here)
        os.write(file, left[0])
        os.close(file)

    return act


def take_turns(directory: Path, name: str) -> Any:
    """Put one kind of thing after the other under a name: file, fifo, devices, socket, directory."""
    here = _directory(directory)
    kinds = [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFSOCK, 0),
        (stat.S_IFBLK, os.makedev(7, 200)),
    ]

    def act() -> None:
        kinds.append(kinds.pop(0))
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=here)
        os.mknod(name, kinds[0][0] | 0o600, kinds[0][1], dir_fd=here)

    return act


def relink(one: Path, other: Path, name: str, sources: Sequence[str]) -> Any:
    """Make ``name`` in ``other`` a hard link to one file of ``one`` after the other."""
    here, there, left = _directory(one), _directory(other), list(sources)

    def act() -> None:
        left.append(left.pop(0))
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=there)
        os.link(left[0], name, src_dir_fd=here, dst_dir_fd=there)

    return act


def add_entries(directory: Path, most: int) -> Any:
    """Make one empty file after the other; from ``most`` on rename the oldest instead."""
    here, number = _directory(directory), 0

    def act() -> None:
        nonlocal number
        if number < most:
            os.mknod(f"{number:09}", 0o100600, 0, dir_fd=here)
        else:
            os.rename(f"{number - most:09}", f"{number:09}", src_dir_fd=here, dst_dir_fd=here)
        number += 1

    return act


def plant(root: Path, above: Sequence[str], name: str, pool: Path, master: Path) -> Any:
    """Put one more name of ``master`` in the place of an entry for a moment, and then the entry back.

    The entry's directory is looked for below ``root`` each time: it may be another one by now.
    """
    here, store, number = _directory(root), _directory(pool), 0

    def act() -> None:
        nonlocal number
        number += 1
        planted = f"{'-'.join(above)}-{name}-{number}"
        directory = _below(here, above)
        try:
            os.link(master, planted, dst_dir_fd=store, follow_symlinks=False)
            try:
                _exchange(directory, name, store, planted)
                _exchange(directory, name, store, planted)
            finally:
                with suppress(IsADirectoryError):
                    os.unlink(planted, dir_fd=store)
        finally:
            os.close(directory)

    return act
