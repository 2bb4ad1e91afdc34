"""A verdict follows from the figures: held where each is within its limit, NOT held where one is not."""

import argparse
import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_agent
import bench_backup
import bench_chunker
import bench_index
import bench_memory
import bench_restore
import bench_scale
import pytest
from bench_agent import Idle, Seen, Times
from bench_backup import Run, Table
from sides import Cost, Place, Podlift

from tests.benchmarks.conftest import BENCHMARKS

SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("bench_*.py"))
Verdicts = list[tuple[bool, str]]


def cost(wall: float = 1.0, rss: float = 100.0, cpu: float = 1.0) -> Cost:
    return Cost(wall, cpu, rss, [(n / 10, rss) for n in range(40)])


def failing(verdicts: Verdicts) -> list[str]:
    return [what for held, what in verdicts if not held]


@pytest.fixture(autouse=True)
def _no_process_for_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Podlift, "version", lambda self: "podlift")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Return a way to run a benchmark's main in a folder of the test's own."""

    @contextlib.contextmanager
    def workspace(_need: int) -> Iterator[Path]:
        yield tmp_path

    def call(module: Any, *arguments: str) -> int:
        monkeypatch.setattr(module, "workspace", workspace, raising=False)
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        return int(module.main())

    return call


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_says_what_it_is_for(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"],
        env={"PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--quick" in done.stdout
    assert script in (BENCHMARKS / "README.md").read_text()


class TestBackup:
    """bench_backup: by restic's side, by the floor, and by memory."""

    @staticmethod
    def table(**ours: Any) -> Table:
        """Return a table with one case in which restic took 10 s, 150 MiB and stored 1000 bytes."""
        table = Table()
        figures = {"wall": 3.0, "rss": 100.0, "stored": 1000, "floor": 2.5, **ours}
        case = (ours.get("volume", "incompressible"), ours.get("kind", "local"), "full")
        run = Run(cost(figures["wall"], figures["rss"]), figures["stored"], None)
        table.add(case, "podlift", run)
        table.add(case, "restic", Run(cost(10.0, 150.0), 1000, None))
        table.floors[case[0]] = [figures["floor"]]
        return table

    def test_everything_within_its_limit_is_held(self) -> None:
        judged = bench_backup.verdicts(self.table(), quick=False)
        assert len(judged) == 5
        assert failing(judged) == []

    @pytest.mark.parametrize(
        ("ours", "what"),
        [
            ({"wall": 3.4, "floor": 3.0}, "wall ÷ restic 0.34 ≤ 0.33"),
            ({"floor": 2.0}, "wall ÷ floor 1.50 ≤ 1.3"),
            ({"stored": 1060}, "stored ÷ restic 1.060 ≤ 1.05"),
            ({"rss": 160.0}, "RSS 160 MiB ≤ restic's 150"),
            ({"volume": "text", "wall": 4.6, "floor": 4.0}, "wall ÷ restic 0.46 ≤ 0.45"),
            ({"volume": "small", "wall": 5.1}, "wall ÷ restic 0.51 ≤ 0.50"),
        ],
    )
    def test_one_over_its_limit_is_not(self, ours: dict[str, Any], what: str) -> None:
        (failed,) = failing(bench_backup.verdicts(self.table(**ours), quick=False))
        assert failed.endswith(what)

    @pytest.mark.parametrize("kind", ["local", "sink", "server"])
    def test_memory_is_judged_everywhere_even_of_small_data(self, kind: str) -> None:
        table = self.table(kind=kind, rss=257.0, wall=99.0)
        (failed,) = failing(bench_backup.verdicts(table, quick=True))
        assert failed.endswith("RSS 257 MiB ≤ 256")

    def test_figures_are_medians_and_the_most_memory(self) -> None:
        runs = [
            Run(cost(wall, rss, 2 * wall), 1 << 20, 7) for wall, rss in ((1, 9), (2, 5), (9, 1))
        ]
        row = bench_backup.Row.of(runs)
        assert dataclasses.astuple(row) == (2, 4, 9, 1.0, 7)

    def test_each_row_has_a_cell_for_each_column(self) -> None:
        ours, theirs = self.table().rows()
        assert len(ours) == len(theirs) == len(bench_backup.COLUMNS)
        assert ours[bench_backup.COLUMNS.index("wall ÷ restic")] == pytest.approx(0.3)
        assert theirs[bench_backup.COLUMNS.index("wall ÷ restic")] == 1.0


class TestAgent:
    """bench_agent: memory and CPU when idle, and the first byte."""

    WARM = Times(0.01, 0.5, 1.0)

    def seen(self, **changes: Any) -> Seen:
        idle = Idle(70.0, 50.0, 200.0, 0.1)
        backups = [Times(0.01, 9.0, 9.5), self.WARM, self.WARM]
        return dataclasses.replace(Seen("one", idle, backups, idle), **changes)

    def test_everything_within_its_limit_is_held_whatever_the_first_backup_took(self) -> None:
        judged = bench_agent.verdicts(self.seen())
        assert len(judged) == 6
        assert failing(judged) == []

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"start": Idle(80.1, 1, 81, 0.0)}, "after the start: RSS 80.1 MiB ≤ 80"),
            ({"start": Idle(1, 1, 1, 0.21)}, "after the start: CPU 0.210 % ≤ 0.2"),
            ({"end": Idle(80.1, 1, 81, 0.0)}, "after work: RSS 80.1 MiB ≤ 80"),
            ({"end": Idle(1, 1, 1, 0.21)}, "after work: CPU 0.210 % ≤ 0.2"),
            ({"end": Idle(1, 1, 257, 0.0)}, "peak: RSS 257 MiB ≤ 256"),
            ({"backups": [WARM, Times(0.0, 1.1, 2.0)]}, "warm: 1.10 s ≤ 1"),
            ({"backups": [WARM, WARM, Times(0.0, None, 2.0)]}, "warm: not seen in 1 of 2"),
            ({"backups": [WARM]}, "warm: not seen in 0 of 0"),
        ],
    )
    def test_one_over_its_limit_is_not(self, changes: dict[str, Any], what: str) -> None:
        (failed,) = failing(bench_agent.verdicts(self.seen(**changes)))
        assert failed.endswith(what)

    def test_each_row_has_a_cell_for_each_column(self) -> None:
        shown = bench_agent.rows(self.seen())
        assert {len(row) for row in shown} == {len(bench_agent.COLUMNS)}
        assert [row[1] for row in shown][1:3] == ["backup 1, cold", "backup 2, warm"]

    @pytest.mark.parametrize(("rss", "code"), [(80.0, 0), (80.1, 1)])
    def test_the_exit_code_follows(
        self, rss: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = argparse.Namespace(quick=True, out=tmp_path)
        seen = self.seen(end=Idle(rss, 1, 200, 0.1))
        assert bench_agent._finish([self.seen(), seen], options) == code
        assert capsys.readouterr().out.splitlines()[-1] == f"Verdict: {'NOT ' * code}held"
        assert bench_agent._finish([], options) == 1


class TestScale:
    """bench_scale: flat in time, flat in memory, and never more than the limit."""

    @staticmethod
    def main(
        called: Callable[..., int], monkeypatch: pytest.MonkeyPatch, out: Path, **largest: Any
    ) -> int:
        def scale(_folder: Path, name: str, sizes: tuple[int, ...], _rounds: int) -> dict[int, Any]:
            costs = {size: [cost(1.0 + size / 1000)] for size in sizes}
            if name in largest:
                costs[sizes[-1]] = [largest[name](sizes[-1])]
            return costs

        monkeypatch.setattr(bench_scale, "scale", scale)
        return called(bench_scale, "--out", str(out))

    @pytest.mark.parametrize(
        ("largest", "code"),
        [
            ({}, 0),
            ({"tiny": lambda size: cost(1.0 + 1.13 * size / 1000)}, 0),
            ({"tiny": lambda size: cost(1.0 + 1.14 * size / 1000)}, 1),
            ({"incompressible": lambda size: cost(1.0 + 1.12 * size / 1000)}, 1),
            ({"tiny": lambda size: cost(1.0 + size / 1000, rss=257.0)}, 1),
            (
                {
                    "incompressible": lambda size: Cost(
                        1.0 + size / 1000, 1.0, 150.0, [(n, 100.0 + n) for n in range(40)]
                    )
                },
                1,
            ),
        ],
        ids=["flat", "just", "files", "gib", "memory", "memory-grows"],
    )
    def test_the_exit_code_follows(
        self,
        largest: dict[str, Any],
        code: int,
        called: Callable[..., int],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        assert self.main(called, monkeypatch, tmp_path, **largest) == code
        assert (tmp_path / "scale.json").exists()


@pytest.mark.parametrize(
    ("peak", "two", "four", "code"),
    [(256.0, 320.0, 448.0, 0), (256.1, 9.0, 9.0, 1), (9.0, 320.1, 9.0, 1), (9.0, 9.0, 448.1, 1)],
)
def test_memory_is_the_most_of_all_runs(
    peak: float,
    two: float,
    four: float,
    code: int,
    called: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = iter([9.0, 9.0, peak, 9.0])

    class Fake:
        def init(self, place: Place) -> Cost:
            return cost()

        def backup(self, place: Place, volume: Path) -> Cost:
            return cost(rss=next(peaks))

    @contextlib.contextmanager
    def storage(_kind: str, folder: Path) -> Iterator[Any]:
        yield argparse.Namespace(place=lambda name: Place(str(folder / name), {}, folder))

    def run(command: list[str], _environ: dict[str, str]) -> Cost:
        volumes = [word for word in command if word.startswith("volume-")]
        return cost(rss={2: two, 4: four}[len(volumes)])

    monkeypatch.setattr(bench_memory, "Podlift", Fake)
    monkeypatch.setattr(bench_memory, "storage", storage)
    monkeypatch.setattr(bench_memory, "SAMPLES", _Nothing())
    monkeypatch.setattr(bench_memory, "run", run)
    several = [Path(f"volume-{number}") for number in range(4)]
    monkeypatch.setattr(bench_memory, "_several", lambda *_: several)
    assert called(bench_memory, "--large-mib", "1", "--files", "1") == code


class _Nothing(dict[str, Any]):
    def __missing__(self, _name: str) -> Any:
        return argparse.Namespace(make=lambda _where, _amount: None)


@pytest.mark.parametrize(
    ("ours", "fetched", "speed_and_rest"),
    [
        (cost(5.0), 105, (True, True)),
        (cost(5.1), 100, (False, True)),
        (cost(5.0, rss=257.0), 100, (True, False)),
        (cost(5.0), 106, (True, False)),
    ],
)
def test_a_restore_is_judged_by_speed_memory_and_what_it_fetches(
    ours: Cost,
    fetched: int,
    speed_and_rest: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    class Stage(bench_restore.Stage):
        def restore(self, side: Any, snapshot: str) -> Cost:
            return ours if side is self.podlift else cost(10.0)

    monkeypatch.setattr(bench_restore, "fetched_and_needed", lambda *_: (fetched, 100))
    stage = Stage(tmp_path, "restic", delete=False)
    assert bench_restore.measure(stage, "name", "snapshot", 1) == speed_and_rest


@pytest.mark.parametrize(("kernel", "code"), [(3000.0, 0), (2999.0, 1)])
def test_the_kernel_is_judged_by_the_plain_loop(
    kernel: float, code: int, called: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_chunker, "pin", lambda core: 0)
    rates = {"kernel": kernel, "plain": 1000.0}
    monkeypatch.setattr(bench_chunker, "measure", lambda data, rounds, folder: rates)
    assert called(bench_chunker, "--quick") == code


@pytest.mark.parametrize(("resident", "code"), [(32.0, 0), (32.1, 1)])
def test_an_index_is_judged_by_its_bytes_a_blob(
    resident: float, code: int, called: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([resident, 1.0])
    monkeypatch.setattr(bench_index, "measure", lambda blobs, folder: next(found))
    monkeypatch.setattr(bench_index, "measure_cold", lambda *_: None)
    assert called(bench_index) == code


def test_what_is_written_is_what_was_judged(tmp_path: Path) -> None:
    seen = TestAgent().seen(start=Idle(99.0, 1, 1, 0.0))
    bench_agent._finish([seen], argparse.Namespace(quick=False, out=tmp_path))
    assert (
        "- NOT held: one, idle after the start: RSS 99.0 MiB ≤ 80"
        in (tmp_path / "agent.md").read_text()
    )
