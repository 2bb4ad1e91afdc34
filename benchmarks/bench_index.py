"""The index at scale: resident memory a blob, time to open, and look-ups a second.

Makes cached tables for 1 and 10 million blobs directly, in files of 50,000 blobs as an index file
has them, without packs. Each measurement is a process of its own that reads its resident memory
from the kernel: before the view is opened, after look-ups of blobs that are not there, and after
those of blobs all over it that are. The number to hold is 32 bytes a blob, with the merged file; file by
file is how a view begins whose merged file is still being made. A cold open begins with
index files of JSON in a local repository and no cache; of the larger count it is measured on a part
and extrapolated, which is said. The merged file is made from the cached ones, as in the background.
"""

import argparse
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from agent.config import CacheDir
from agent.repository import _table
from agent.repository.cache import Cache
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import encode_index
from agent.repository.indexview import IndexView
from agent.repository.objects import Folder
from agent.repository.opening import create_repository, open_repository
from agent.repository.pack import PackedBlob
from agent.repository.scrypt import ScryptCost
from agent.repository.table import Table
from agent.storage.local import LocalStorage

LIMIT_BYTES = 32
FILE_BLOBS = 50_000
PACK_BLOBS = 16  # a pack is 16 MiB, a chunk 1 MiB
COLD_BLOBS = 1_000_000
ASKED_BLOBS = 1_000_000
REPOSITORY_ID = "1" * 64
CACHE_MIB = 8192
_PLACES = struct.Struct("<IIII")


def blob_ids(number: int, count: int) -> bytes:
    """Return the ids of one index file, the same each time; 32 bytes each."""
    return hashlib.shake_256(b"%d" % number).digest(32 * count)


def tables_of(number: int, count: int) -> list[Table]:
    """Return the tables of one index file."""
    ids = blob_ids(number, count)
    rows = b"".join(
        ids[32 * n : 32 * n + 32] + _PLACES.pack(n // PACK_BLOBS, n % PACK_BLOBS << 20, 1 << 20, 0)
        for n in range(count)
    )
    packs = hashlib.shake_256(b"packs %d" % number).digest(32 * -(-count // PACK_BLOBS))
    return [Table(BlobType.DATA, packs, _table.build(rows), count), Table.merge(BlobType.TREE, [])]


def files(blobs: int) -> Iterator[tuple[int, str]]:
    """Yield the number and the name of each index file."""
    for number in range(blobs // FILE_BLOBS):
        yield number, f"{number:064x}"


def open_cache(folder: Path) -> Cache:
    """Return the cache of the benchmark."""
    return Cache(CacheDir(folder, CACHE_MIB), REPOSITORY_ID)


def fill_cache(folder: Path, blobs: int) -> float:
    """Make all cached files and the merged one; return how many seconds the merge took."""
    cache, tables = open_cache(folder), []
    for number, name in files(blobs):
        cache.save(name, tables_of(number, FILE_BLOBS))
        tables += cache.load(name) or []
    started = time.monotonic()
    if not cache.save_merged([name for _, name in files(blobs)], tables, lambda: True):
        raise SystemExit("the merged file could not be written")
    return time.monotonic() - started


def resident_bytes() -> int:
    """Return what this process has resident now, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_view(folder: Path, blobs: int, *, merged: bool) -> IndexView:
    """Open what the cache holds, merged or file by file."""
    cache = open_cache(folder)
    names = [name for _, name in files(blobs)]
    if not merged:
        return IndexView([table for name in names for table in cache.load(name) or ()])
    found = cache.load_merged(set(names))
    if found is None:
        raise SystemExit("the merged file is not there")
    return IndexView(found.tables)


def look_up(folder: Path, blobs: int, *, merged: bool) -> dict[str, float]:
    """Open the view warm, and look up blobs all over it; in a process of its own."""
    of_file = ASKED_BLOBS * FILE_BLOBS // blobs
    asked = [blob_ids(number, of_file) for number, _ in files(blobs)]
    some = b"".join(asked)
    singles = [BlobId(some[at : at + 32]) for at in range(0, len(some), 32 * 20)]
    unknown_ids = os.urandom(len(some) // 4)
    random.Random(1).shuffle(singles)
    before = resident_bytes()
    started = time.monotonic()
    view = open_view(folder, blobs, merged=merged)
    opened = time.monotonic()
    strangers = view.known(BlobType.DATA, unknown_ids)
    unknown = time.monotonic()
    light = resident_bytes()
    known = sum(sum(view.known(BlobType.DATA, ids)) for ids in asked)
    many = time.monotonic()
    held = sum(view.has(BlobType.DATA, id) for id in singles)
    single = time.monotonic()
    if sum(strangers) or known != of_file * len(asked) or held != len(singles):
        raise SystemExit("the view does not say what it was made of")
    heavy = resident_bytes()
    sums = time.monotonic()
    for table in view.all(BlobType.DATA):
        table.sums()
    return {
        "open_s": opened - started,
        "unknown_a_s": len(strangers) / (unknown - opened),
        "known_a_s": known / (many - unknown),
        "single_a_s": len(singles) / (single - many),
        "sums_s": time.monotonic() - sums,
        "unknown_bytes": (light - before) / blobs,
        "resident_bytes": (heavy - before) / blobs,
    }


def fill_repository(folder: Path, blobs: int) -> None:
    """Make a repository of index files alone."""
    storage = LocalStorage.create(folder)
    create_repository(storage, "bench", cost=ScryptCost(2, 1, 1))
    objects = open_repository(storage, "bench").objects
    for number, _ in files(blobs):
        table = tables_of(number, FILE_BLOBS)[0]
        packs: dict[PackId, list[PackedBlob]] = {}
        for found in table:
            packs.setdefault(found.pack, []).append(found.blob)
        objects.save(Folder.INDEX, encode_index(list(packs.items())))


def open_cold(folder: Path, blobs: int) -> dict[str, float]:
    """Open a repository without a cache, then again with it; in a process of its own."""
    storage = LocalStorage(folder / "repository")
    cache = CacheDir(folder / "cold", CACHE_MIB)
    found = {}
    for name in ("cold_s", "next_s"):
        started = time.monotonic()
        view = open_repository(storage, "bench", cache=cache).load_index()
        found[name] = time.monotonic() - started
        if view.count(BlobType.DATA) != blobs:
            raise SystemExit("the view does not hold what the index files say")
    return found


def in_child(step: str, folder: Path, blobs: int) -> dict[str, float]:
    """Do one step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run([*command, "--blobs", str(blobs)], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(blobs: int, folder: Path) -> float:
    """Print what one count gives; return the resident bytes a blob."""
    merge_s = fill_cache(folder, blobs)
    print(f"{blobs:,} blobs, {blobs // FILE_BLOBS} index files; merged in {merge_s:.2f} s")
    resident = []
    for step, name in (("merged", "merged file"), ("apart", "file by file")):
        found = in_child(step, folder, blobs)
        print(
            f"  {name:<12} opened warm in {found['open_s']:.3f} s; look-ups a second:"
            f" unknown {found['unknown_a_s']:,.0f}, known {found['known_a_s']:,.0f},"
            f" one by one {found['single_a_s']:,.0f}; sums by pack {found['sums_s']:.2f} s\n"
            f"  {'':<12} resident bytes a blob: {found['unknown_bytes']:.1f} after unknown ones,"
            f" {found['resident_bytes']:.1f} after known ones",
            flush=True,
        )
        resident.append(found["resident_bytes"])
    return resident[0]


def measure_cold(folder: Path, blobs: int, all_blobs: int) -> None:
    """Print how long an open without a cache takes."""
    fill_repository(folder / "repository", blobs)
    found = in_child("cold", folder, blobs)
    print(
        f"cold, {blobs:,} blobs from JSON: {found['cold_s']:.1f} s, the next open"
        f" {found['next_s']:.3f} s; for {all_blobs:,} extrapolated: {found['cold_s'] * all_blobs / blobs:.0f} s"
    )


def main() -> int:
    """Measure, print, and end with a verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 M blobs only, cold of 200,000")
    parser.add_argument("--step", choices=["merged", "apart", "cold"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to put some GB for a while [/tmp]")
    parser.add_argument("--blobs", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "cold":
        print(json.dumps(open_cold(options.folder, options.blobs)))
        return 0
    if options.step:
        merged = options.step == "merged"
        print(json.dumps(look_up(options.folder, options.blobs, merged=merged)))
        return 0
    counts = [1_000_000] if options.quick else [1_000_000, 10_000_000]
    cold = 200_000 if options.quick else COLD_BLOBS
    worst = 0.0
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="podlift-bench-", dir=options.folder) as name:
            worst = max(worst, measure(count, Path(name)))
    with tempfile.TemporaryDirectory(prefix="podlift-bench-", dir=options.folder) as name:
        measure_cold(Path(name), cold, counts[-1])
    held = worst <= LIMIT_BYTES
    print(f"Verdict: {'held' if held else 'NOT held'}: {worst:.1f} of {LIMIT_BYTES} bytes a blob")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
