"""An owner who swaps names as fast as it can, while we read and write as root."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.cancel import NEVER
from agent.entry import Entry, Kind
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.volume.directory import Directory
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume
from agent.volume.writer import TargetTree

ROUNDS = 400
_RENAME_EXCHANGE = 2  # renameat2(2)
_LIBC = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two names at once, as renameat2 does; nobody sees a moment without either."""
    done = _LIBC.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _RENAME_EXCHANGE)
    assert done == 0, os.strerror(ctypes.get_errno())


@contextmanager
def swapping(act: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def read_all(directory: Directory, found: set[bytes], refused: list[SourceError]) -> None:
    for entry in directory.entries(Exclude(), Monitor(), NEVER):
        try:
            if entry.kind is Kind.DIRECTORY:
                with directory.open_directory(entry) as below:
                    read_all(below, found, refused)
            elif entry.kind is Kind.FILE:
                with directory.open_file(entry) as file:
                    found.update(bytes(p) for p in file.segments(lambda: memoryview(bytearray(99))))  # type: ignore[arg-type]
        except SourceError as error:
            refused.append(error)


def test_nothing_outside_is_read_while_names_are_swapped(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "below").mkdir(parents=True)
    (secret / "file").write_bytes(b"secret")
    (secret / "below" / "file").write_bytes(b"secret")
    (source / "dir" / "below").mkdir(parents=True)
    (source / "dir" / "file").write_bytes(b"mine")
    (source / "dir" / "below" / "file").write_bytes(b"mine")
    os.symlink(secret, source / "x")
    (source / "plain").write_bytes(b"mine")
    os.symlink(secret / "file", source / "y")

    def swap() -> None:
        exchange(source / "dir", source / "x")
        exchange(source / "plain", source / "y")

    found: set[bytes] = set()
    refused: list[SourceError] = []
    with swapping(swap), Volume.open(source) as volume:
        for _ in range(ROUNDS):
            read_all(volume.root, found, refused)
    assert found == {b"mine"}
    assert all("replaced" in error.reason for error in refused)


def test_nothing_outside_is_written_while_names_are_swapped(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "victim").write_bytes(b"safe")
    before = os.stat(outside / "victim")
    (target / "dir").mkdir()
    os.symlink(outside, target / "x")
    fields = {"uid": 0, "gid": 0, "mtime_ns": 1, "ctime_ns": 0, "inode": 1, "device": 1}
    directory = Entry(name=b"dir", kind=Kind.DIRECTORY, permissions=0o777, **fields)  # type: ignore[arg-type]
    victim = Entry(name=b"victim", kind=Kind.FILE, permissions=0o666, **fields)  # type: ignore[arg-type]
    made = 0

    def swap() -> None:
        try:
            os.rename(target / "dir", target / "away")
            os.symlink(outside, target / "dir")
            os.unlink(target / "dir")
            os.rename(target / "away", target / "dir")
        except OSError:
            pass  # the restore was faster and took the name

    problems: list[SourceError] = []
    with swapping(swap), TargetTree.open(target, problems.append) as tree:
        for _ in range(ROUNDS):
            try:
                with tree.root.make_directory(directory) as below:
                    with below.make_file(victim) as file:
                        file.write_at(0, b"written")
                        file.truncate(7)
                        file.finish_metadata(victim)
                    below.finish_metadata(directory)
                    made += 1
            except SourceError:
                continue
    assert made > 0
    after = os.stat(outside / "victim")
    assert (outside / "victim").read_bytes() == b"safe"
    assert os.listdir(outside) == ["victim"]
    assert (after.st_mode, after.st_mtime_ns, after.st_ino) == (
        before.st_mode, before.st_mtime_ns, before.st_ino,
    )  # fmt: skip
