"""The floor: the bare primitives over the same bytes, on all cores, with nothing around them.

Each piece of at most 1 MiB is read, scanned for cuts, hashed, compressed, sealed, hashed again as a
part of a pack, and written. There is no walk, no index, no tree, no verification and no order. What
a full backup takes more than this is what podlift adds: efficiency is its wall time by the floor.
"""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard

from agent.repository.crypto import Key
from agent.repository.sealing import LEVELS
from chunker import Parameters, scan

PIECE = 1 << 20
POLYNOMIAL = 0x2F7215888E3049
KEY = Key(b"\1" * 32, b"\2" * 16, b"\3" * 16)


def floor_seconds(volume: Path, out: Path) -> float:
    """Return the wall seconds of the primitives over all files of ``volume``.

    Writes one file a core into the new folder ``out``. The list of files is made before.
    """
    out.mkdir()
    files = sorted(p for p in volume.rglob("*") if p.is_file())
    left = iter(_pieces(files))
    lock = threading.Lock()
    workers = len(os.sched_getaffinity(0))
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(_work, left, lock, out / str(n)) for n in range(workers)]:
            done.result()
    return time.monotonic() - started


def _pieces(files: list[Path]) -> Iterator[list[tuple[Path, int, int]]]:
    """Yield tasks of (path, offset, length): a piece of a large file, or many small files."""
    batch: list[tuple[Path, int, int]] = []
    held = 0
    for path in files:
        size = path.stat().st_size
        for at in range(0, size, PIECE):
            batch.append((path, at, min(PIECE, size - at)))
            held += batch[-1][2]
            if held >= PIECE:
                yield batch
                batch, held = [], 0
    yield batch


def _work(tasks: Iterator[list[tuple[Path, int, int]]], lock: threading.Lock, target: Path) -> None:
    parameters = Parameters(POLYNOMIAL)
    compressor = zstandard.ZstdCompressor(level=LEVELS["default"][0])
    pack = hashlib.sha256()
    with target.open("wb", buffering=0) as packs:
        while True:
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            for path, offset, length in task:
                descriptor = os.open(path, os.O_RDONLY)
                data = os.pread(descriptor, length, offset)
                os.close(descriptor)
                scan(data, b"", *parameters.tables, parameters.mask)
                hashlib.sha256(data).digest()
                packed = compressor.compress(data)
                smaller = packed if len(packed) < len(data) else data
                sealed = KEY.seal(os.urandom(16), smaller)
                pack.update(sealed)
                packs.write(sealed)
