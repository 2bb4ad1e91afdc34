"""Backups beside restic's (and kopia's and borg's, where installed): volume, storage, state, side.

Each round makes a new repository for each side and backs up the same volume: in full, unchanged, and
with 1 % changed. The sides take turns and swap their order each round; figures are medians. The
discarding sink takes full backups only. Then the floor: the bare primitives over the same bytes,
once a round. With --quick the data is too small for speed, which is then printed and not judged.
"""

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import report
from primitives import floor_seconds
from samples import SAMPLES, Sample
from sides import Cost, Restic, Side, sides
from storages import STATES, Storage, storage
from workspace import GIB, parser, workspace

RSS_MIB, STORED, EFFICIENCY = 256, 1.05, 1.3
WALL = {
    ("incompressible", "full"): 1 / 3,
    ("text", "full"): 0.45,
    ("small", "full"): 0.5,
    ("small", "unchanged"): 0.5,
}
"""To hold on a local directory, as a part of restic's wall time (design.md, "Numbers to hold")."""

QUICK = {
    "incompressible": ("local", "sink", "server"),
    "small": ("local", "sink"),
}
"""What --quick measures."""

COLUMNS = ["volume", "storage", "state", "side", "wall s", "CPU s", "RSS MiB", "stored MiB"]
COLUMNS += ["requests", "wall ÷ restic", "CPU ÷ restic", "stored ÷ restic", "wall ÷ floor"]
Case = tuple[str, str, str]
SEEDS = itertools.count(1000)
"""Each change has its own: the same one twice would change nothing."""


@dataclasses.dataclass
class Run:
    """One backup: its cost, the bytes that it added, and its requests where they are counted."""

    cost: Cost
    stored: int
    requests: int | None


@dataclasses.dataclass
class Row:
    """The medians of one side in one case."""

    wall: float
    cpu: float
    rss: float
    stored: float
    requests: float | None

    @classmethod
    def of(cls, runs: list[Run]) -> "Row":
        """Take the median of each figure, and the most memory."""
        asked = [r.requests for r in runs if r.requests is not None]
        return cls(
            statistics.median(r.cost.wall_seconds for r in runs),
            statistics.median(r.cost.cpu_seconds for r in runs),
            max(r.cost.rss_mib for r in runs),
            statistics.median(r.stored for r in runs) / (1 << 20),
            statistics.median(asked) if asked else None,
        )


class Table:
    """All runs of all cases, and the floors of the volumes."""

    def __init__(self) -> None:
        self.runs: dict[Case, dict[str, list[Run]]] = {}
        self.floors: dict[str, list[float]] = {}

    def add(self, case: Case, side: str, run: Run) -> None:
        """Keep one run."""
        self.runs.setdefault(case, {}).setdefault(side, []).append(run)

    def floor(self, volume: str) -> float:
        """Return the median floor of a volume."""
        return statistics.median(self.floors[volume])

    def medians(self) -> Iterator[tuple[Case, dict[str, Row]]]:
        """Yield the rows of each case."""
        for case, by_side in self.runs.items():
            yield case, {side: Row.of(runs) for side, runs in by_side.items()}

    def rows(self) -> list[list[Any]]:
        """Return what the report shows."""
        shown = []
        for case, by_side in self.medians():
            beside = by_side.get("restic")
            for side, row in by_side.items():
                ratios: list[float | None] = [None] * 3
                if beside is not None:
                    pairs = ((row.wall, beside.wall), (row.cpu, beside.cpu))
                    ratios = [a / b for a, b in (*pairs, (row.stored, beside.stored))]
                floor = row.wall / self.floor(case[0]) if case[2] == "full" else None
                shown.append([*case, side, *dataclasses.astuple(row), *ratios, floor])
        return shown


@dataclasses.dataclass(frozen=True)
class At:
    """Which round it is, on which storage, and who takes part."""

    round: int
    storage: str
    sides: list[Side]


def measure(table: Table, sample: Sample, volume: Path, store: Storage, at: At) -> None:
    """Run one round of one volume on one storage."""
    kind = at.storage
    names = {side.name: f"{sample.name}-{at.round}-{side.name}" for side in at.sides}
    places = {name: store.place(repository) for name, repository in names.items()}
    taking_part = [side for side in at.sides if kind in side.storages]
    for side in taking_part:
        side.init(places[side.name])
    for state in STATES[kind]:
        if state == "changed":
            sample.change(volume, next(SEEDS))
        for side in taking_part[:: -1 if at.round % 2 else 1]:
            before, asked = store.stored(names[side.name]), store.requests()
            cost = side.backup(places[side.name], volume)
            after = store.requests()
            requests = None if after is None or asked is None else after - asked
            run = Run(cost, store.stored(names[side.name]) - before, requests)
            table.add((sample.name, kind, state), side.name, run)
            shown = f"{cost.wall_seconds:7.2f} s {cost.cpu_seconds:7.2f} CPU s"
            shown += f" {cost.rss_mib:6.0f} MiB RSS {run.stored / (1 << 20):9.2f} MiB stored"
            print(f"{sample.name:14} {kind:6} {state:9} {side.name:8} {shown}", flush=True)
    for judge in taking_part:
        if isinstance(judge, Restic) and kind == "local":
            judge.judge(places["podlift"])
            print(f"{sample.name:14} {kind:6} restic has read every byte of podlift's repository")


def verdicts(table: Table, *, quick: bool) -> list[tuple[bool, str]]:
    """Return each number to hold that could be measured, and whether it was."""
    found = []
    for (volume, kind, state), rows in table.medians():
        ours, theirs = rows["podlift"], rows.get("restic")
        name = f"{volume}, {kind}, {state}"
        found.append((ours.rss <= RSS_MIB, f"{name}: RSS {ours.rss:.0f} MiB ≤ {RSS_MIB}"))
        if quick:
            continue
        if kind == "local" and state == "full" and volume in ("incompressible", "text"):
            ratio = ours.wall / table.floor(volume)
            found.append((ratio <= EFFICIENCY, f"{name}: wall ÷ floor {ratio:.2f} ≤ {EFFICIENCY}"))
        if theirs is None or kind != "local":
            continue
        if (limit := WALL.get((volume, state))) is not None:
            ratio = ours.wall / theirs.wall
            found.append((ratio <= limit, f"{name}: wall ÷ restic {ratio:.2f} ≤ {limit:.2f}"))
        if state == "full" and (volume, state) in WALL:
            ratio = ours.stored / theirs.stored
            found.append((ratio <= STORED, f"{name}: stored ÷ restic {ratio:.3f} ≤ {STORED}"))
            more = f"{name}: RSS {ours.rss:.0f} MiB ≤ restic's {theirs.rss:.0f}"
            found.append((ours.rss <= theirs.rss, more))
    return found


def bars(table: Table) -> dict[str, Any]:
    """Return the pictures: wall seconds and peak memory of local backups."""
    local = [(case, rows) for case, rows in table.medians() if case[1] == "local"]
    walls = {f"{c[0]}, {c[2]}": {s: r.wall for s, r in rows.items()} for c, rows in local}
    peaks = {f"{c[0]}, {c[2]}": {s: r.rss for s, r in rows.items()} for c, rows in local}
    return {
        "backup-wall": {"title": "Backup, wall time", "unit": "s", "groups": walls},
        "backup-rss": {"title": "Backup, peak memory", "unit": "MiB", "groups": peaks},
    }


def main() -> int:
    """Measure, report, and end with a verdict."""
    options = _options()
    table, taking_part = Table(), sides(options.restic)
    rounds = 1 if options.quick else options.rounds
    with workspace((1 if options.quick else 12) * GIB) as folder:
        for name in options.volumes:
            if options.quick and name not in QUICK:
                continue
            sample = SAMPLES[name]
            volume = sample.make(folder / name, sample.quick if options.quick else sample.full)
            for number in range(rounds):
                floor = floor_seconds(volume, folder / "floor")
                table.floors.setdefault(name, []).append(floor)
                rmtree(folder / "floor")
                for kind in options.storages:
                    if options.quick and kind not in QUICK.get(name, ()):
                        continue
                    with storage(kind, folder / kind) as store:
                        at = At(number, kind, taking_part)
                        measure(table, sample, volume, store, at)
                    rmtree(folder / kind)
            rmtree(volume)
    return _finish(table, [side.version() for side in taking_part], options)


def _options() -> Any:
    made = parser(__doc__)
    usual = [name for name in SAMPLES if name != "tiny"]
    made.add_argument(
        "--volumes", nargs="+", choices=SAMPLES, default=usual, help="which; tiny is the long run"
    )
    made.add_argument("--storages", nargs="+", choices=STATES, default=[*STATES], help="which")
    return made.parse_args()


def _finish(table: Table, versions: list[str], options: Any) -> int:
    judged = verdicts(table, quick=options.quick)
    said = [f"{'held' if held else 'NOT held'}: {what}" for held, what in judged]
    result = {
        "about": report.about(versions, options.quick),
        "columns": COLUMNS,
        "rows": table.rows(),
        "bars": bars(table),
        "verdicts": said,
    }
    report.write(options.out, "backup", result)
    print("\n".join(said))
    held = bool(judged) and all(good for good, _ in judged)
    speed = " (--quick: speed is not judged)" if options.quick else ""
    print(f"Verdict: {'held' if held else 'NOT held'}{speed}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
