"""Sample volumes, each made from a seed: two runs, and two machines, read the same bytes.

A sample is a function that fills a folder with an amount (MiB, or a number of files) and a function
that changes 1 % of it. What changes is what such data changes by in life: one run of bytes in a
large file, pages all over a database, whole files in a tree of small ones.
"""

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
PAGE = 8192
FILES_A_FOLDER = 200
SEED = 20


def incompressible(root: Path, mib: int) -> None:
    """Write four files of random bytes, ``mib`` MiB together."""
    chance = random.Random(SEED)
    for number in range(4):
        with (root / f"large-{number}.bin").open("wb") as file:
            for _ in range(mib // 4):
                file.write(chance.randbytes(MIB))


def text(root: Path, mib: int) -> None:
    """Write log files of at most 64 MiB: a time, a level and one of 20,000 sentences a line."""
    chance = random.Random(SEED + 1)
    words = [chance.randbytes(chance.randrange(1, 6)).hex() for _ in range(5000)]
    lines = [" ".join(chance.choices(words, k=chance.randrange(6, 20))) for _ in range(20_000)]
    second = 0
    for number in range(-(-mib // 64)):
        with (root / f"app-{number:03d}.log").open("w", encoding="ascii") as file:
            for _ in range(min(64, mib - 64 * number)):
                chosen = chance.choices(lines, k=MIB // 40)
                block = "\n".join(f"{second + at:012d} {line}" for at, line in enumerate(chosen))
                file.write(block[: MIB - 1] + "\n")
                second += MIB // 40


def pages(root: Path, mib: int) -> None:
    """Write one file of 8 KiB pages: a header, rows that compress, and free space."""
    chance = random.Random(SEED + 2)
    with (root / "base.db").open("wb") as file:
        for number in range(mib * MIB // PAGE):
            file.write(_page(chance, number))


def _page(chance: random.Random, number: int) -> bytes:
    head = number.to_bytes(8, "little") + chance.randbytes(16)
    rows = chance.randbytes(1500) + chance.randbytes(1500).hex().encode()
    return (head + rows).ljust(PAGE, b"\0")


def sparse(root: Path, mib: int) -> None:
    """Write a disk image of ``mib`` MiB of which about 5 % is not a hole."""
    chance = random.Random(SEED + 3)
    with (root / "disk.img").open("wb") as file:
        file.truncate(mib * MIB)
        for _ in range(max(1, mib // 20)):
            file.seek(chance.randrange(mib * MIB // PAGE - MIB // PAGE) * PAGE)
            file.write(chance.randbytes(MIB // 2) + b"\x11" * (MIB // 2))


def small(root: Path, files: int) -> None:
    """Write a source tree: files of 0.2 to 12 KB, 200 a folder."""
    _tree(root, files, (200, 12_000))


def tiny(root: Path, files: int) -> None:
    """Write files of 20 to 400 bytes, 200 a folder."""
    _tree(root, files, (20, 400))


def _tree(root: Path, files: int, sizes: tuple[int, int]) -> None:
    chance = random.Random(SEED + 4)
    blocks = [_block(chance) for _ in range(400)]
    folder = root
    for number in range(files):
        if number % FILES_A_FOLDER == 0:
            folder = root / f"{number // 10_000:03d}" / f"{number // FILES_A_FOLDER:05d}"
            folder.mkdir(parents=True)
        size, at, block = chance.randrange(*sizes), chance.randrange(4000), chance.choice(blocks)
        # the number makes every file different: none may cost nothing by being known
        _write(f"{folder}/{number}.txt", b"%d\n" % number + block[at : at + size])


def _block(chance: random.Random) -> bytes:
    """Return 16,000 bytes of few words, as a source file has: a match finder must find some.

    Go's zstd stores what has no match as it is; hexadecimal digits would make restic look bad.
    """
    words = [chance.randbytes(chance.randrange(1, 6)).hex() for _ in range(60)]
    return " ".join(chance.choices(words, k=8000)).encode()[:16_000]


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def change_run(root: Path, seed: int) -> None:
    """Overwrite one run of 1 % of each file."""
    chance = random.Random(seed)
    for path in sorted(root.iterdir()):
        length = max(1, path.stat().st_size // 100)
        with path.open("r+b") as file:
            file.seek(chance.randrange(path.stat().st_size - length))
            file.write(chance.randbytes(length))


def change_pages(root: Path, seed: int) -> None:
    """Rewrite 1 % of the pages, at random places."""
    chance = random.Random(seed)
    with (root / "base.db").open("r+b") as file:
        count = os.fstat(file.fileno()).st_size // PAGE
        for number in sorted(chance.sample(range(count), max(1, count // 100))):
            file.seek(number * PAGE)
            file.write(_page(chance, number))


def change_files(root: Path, seed: int) -> None:
    """Write 1 % of the files anew."""
    chance = random.Random(seed)
    paths = sorted(root.rglob("*.txt"))
    for path in chance.sample(paths, max(1, len(paths) // 100)):
        _write(str(path), chance.randbytes(max(10, path.stat().st_size // 2)).hex().encode())


@dataclasses.dataclass(frozen=True)
class Sample:
    """How to fill a folder and how to change 1 % of it; ``full`` and ``quick`` are in ``unit``."""

    name: str
    fill: Callable[[Path, int], None]
    change: Callable[[Path, int], None]
    unit: str
    full: int
    quick: int

    def make(self, root: Path, amount: int) -> Path:
        """Make ``root`` and fill it; return it."""
        root.mkdir(parents=True)
        self.fill(root, amount)
        return root


SAMPLES = {
    sample.name: sample
    for sample in (
        Sample("incompressible", incompressible, change_run, "MiB", 1024, 64),
        Sample("text", text, change_run, "MiB", 1024, 64),
        Sample("pages", pages, change_pages, "MiB", 1024, 64),
        Sample("small", small, change_files, "files", 100_000, 3000),
        Sample("sparse", sparse, change_run, "MiB", 8192, 256),
        Sample("tiny", tiny, change_files, "files", 1_000_000, 3000),
    )
}
