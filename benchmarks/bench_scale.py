"""Scale: what a file costs from 10,000 to 1,000,000 of them, a GiB from 1 to 20; memory over time.

Each volume is backed up in full, files to a local directory and GiB to the discarding sink (so that
20 GiB need no second 20). What counts is what each further file or GiB costs from one size to the next:
the start, part of which is hidden behind the first work, is in both. Flat means that between the two
largest sizes each costs at most 15 % more than between the two smallest. Memory over time is of the largest volume of GiB: its last quarter may hold at most
15 % more than its second, and no sample more than 256 MiB. About 21 GiB of room are needed.
"""

import itertools
import statistics
import sys
from pathlib import Path
from shutil import rmtree
from typing import Any

import report
from samples import SAMPLES
from sides import Cost, Podlift
from storages import storage
from workspace import GIB, parser, workspace

FLAT, RSS_MIB = 1.15, 256
SIZES = {"tiny": (10_000, 100_000, 1_000_000), "incompressible": (1024, 5 * 1024, 20 * 1024)}
QUICK = {"tiny": (1000, 4000), "incompressible": (64, 256)}
STORAGE = {"tiny": "local", "incompressible": "sink"}


def backup(folder: Path, kind: str, volume: Path, rounds: int) -> list[Cost]:
    """Back up a volume into new repositories; return what each round took."""
    costs = []
    for _ in range(rounds):
        with storage(kind, folder / "storage") as store:
            place = store.place("repository")
            Podlift().init(place)
            costs.append(Podlift().backup(place, volume))
        rmtree(folder / "storage")
    return costs


def scale(folder: Path, name: str, sizes: tuple[int, ...], rounds: int) -> dict[int, list[Cost]]:
    """Return the costs of each size."""
    sample, costs = SAMPLES[name], {}
    for size in sizes:
        volume = sample.make(folder / "volume", size)
        costs[size] = backup(folder, STORAGE[name], volume, rounds)
        rmtree(volume)
        print(f"{name:14} {size:8} {sample.unit:5} {_wall(costs[size]):8.2f} s", flush=True)
    return costs


def _wall(costs: list[Cost]) -> float:
    return statistics.median(cost.wall_seconds for cost in costs)


def each(costs: dict[int, list[Cost]]) -> dict[int, float]:
    """Return the wall seconds that each further unit costs, up to each size but the smallest."""
    return {
        size: (_wall(costs[size]) - _wall(costs[before])) / (size - before)
        for before, size in itertools.pairwise(sorted(costs))
    }


def memory_ratio(resident: list[tuple[float, float]]) -> float:
    """Return the mean of the last quarter by that of the second."""
    quarter = len(resident) // 4
    if not quarter:
        return 1.0
    last = statistics.mean(mib for _, mib in resident[-quarter:])
    return last / statistics.mean(mib for _, mib in resident[quarter : 2 * quarter])


def main() -> int:
    """Measure, report, and end with a verdict."""
    options = parser(__doc__).parse_args()
    chosen, rounds = (QUICK, 1) if options.quick else (SIZES, options.rounds)
    rows: list[list[Any]] = []
    judged: list[tuple[bool, str]] = []
    resident: list[tuple[float, float]] = []
    with workspace((2 if options.quick else 21) * GIB) as folder:
        for name, sizes in chosen.items():
            costs = scale(folder, name, sizes, rounds)
            a_unit = each(costs)
            first = a_unit[sizes[1]]
            for size, seconds in a_unit.items():
                peak = max(cost.rss_mib for cost in costs[size])
                unit = SAMPLES[name].unit
                rows.append([name, f"{size} {unit}", seconds * 1e6, seconds / first, peak])
                judged.append((peak <= RSS_MIB, f"{size} {unit}: RSS {peak:.0f} MiB ≤ {RSS_MIB}"))
            ratio = a_unit[sizes[-1]] / first
            if not options.quick:
                judged.append(
                    (ratio <= FLAT, f"{name}: each of the last ÷ of the first {ratio:.2f} ≤ {FLAT}")
                )
            resident = costs[sizes[-1]][-1].resident
    growth = memory_ratio(resident)
    if not options.quick:
        judged.append((growth <= FLAT, f"RSS, last ÷ second quarter {growth:.2f} ≤ {FLAT}"))
    return _finish(options, rows, judged, resident)


def _finish(
    options: Any,
    rows: list[list[Any]],
    judged: list[tuple[bool, str]],
    resident: list[tuple[float, float]],
) -> int:
    said = [f"{'held' if held else 'NOT held'}: {what}" for held, what in judged]
    title = "Resident memory while the largest volume is backed up"
    step = max(1, len(resident) // 400)
    memory = {
        "title": title,
        "unit": "MiB",
        "limit": RSS_MIB,
        "points": {"podlift": resident[::step]},
    }
    result = {
        "about": report.about([Podlift().version()], options.quick),
        "columns": ["volume", "size", "µs each further", "÷ first", "peak RSS MiB"],
        "rows": rows,
        "lines": {"memory": memory},
        "verdicts": said,
    }
    report.write(options.out, "scale", result)
    print("\n".join(said))
    held = all(good for good, _ in judged)
    flat = " (--quick: flatness is not judged)" if options.quick else ""
    print(f"Verdict: {'held' if held else 'NOT held'}{flat}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
