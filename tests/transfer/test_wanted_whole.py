"""A backup that is to lack nothing, excludes that change between runs, and how many files are read at once."""

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.errors import VolumeIncomplete
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.transfer import backup
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import by_paths
from agent.volume.file import FileReader
from tests.repository.making import PASSWORD
from tests.transfer.running import Bench, noise


class Wanting:
    """Runs over one volume with requests of their own."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.monitor = Monitor()
        path = str(bench.volume)
        self.request = Request(
            path, (path,), "host", {}, lambda every, now: by_paths(every, "host", [path], now)
        )

    def run(self, **changes: object) -> Result:
        self.monitor = Monitor()
        request = dataclasses.replace(self.request, **changes)  # type: ignore[arg-type]
        repository = open_repository(self.bench.storage, PASSWORD)
        return run_backup(repository, request, self.monitor, self.bench.cancel)

    def names(self, result: Result) -> set[str]:
        return set(map(os.fsdecode, self.bench.content(result.snapshot_id)))


@pytest.fixture
def wanting(tmp_path: Path) -> Wanting:
    bench = Bench.new(tmp_path / "volume")
    (bench.volume / "d").mkdir()
    for number in range(6):
        (bench.volume / "d" / f"f{number}").write_bytes(noise(number, 3000))
    (bench.volume / "large").write_bytes(noise(9, 3 << 20))
    return Wanting(bench)


def lose(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Have one file vanish between being listed and being read."""
    queue = backup._Backup._queue

    def lost(self: backup._Backup, folder: Any, directory: Any, batch: Any) -> None:
        if any(file.entry.name == os.fsencode(path.name) for file in batch.files):
            path.unlink()
        queue(self, folder, directory, batch)

    monkeypatch.setattr(backup._Backup, "_queue", lost)


class TestComplete:
    def test_a_run_that_left_something_out_makes_no_snapshot(
        self, wanting: Wanting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            lose(patch, wanting.bench.volume / "d/f3")
            with pytest.raises(VolumeIncomplete) as incomplete:
                wanting.run(complete=True)
        assert incomplete.value.count == 1
        assert [str(problem).split(":")[0] for problem in wanting.monitor.problems] == ["d/f3"]
        assert [each.is_checkpoint for each in wanting.bench.repository().snapshots()] == [True]
        assert not list(wanting.bench.storage.list("locks/"))

    def test_what_it_stored_is_neither_read_nor_sent_again(
        self, wanting: Wanting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("f3", "f4"):
            with monkeypatch.context() as patch:
                lose(patch, wanting.bench.volume / f"d/{name}")
                if name == "f4":
                    (wanting.bench.volume / "d/f4").write_bytes(b"it has changed, so it is read")
                with pytest.raises(VolumeIncomplete):
                    wanting.run(complete=True)
            snapshots = wanting.bench.repository().snapshots()
            assert [each.is_checkpoint for each in snapshots] == [True]
        result = wanting.run(complete=True)
        assert wanting.names(result) == {"large", *(f"d/f{n}" for n in (0, 1, 2, 5))}
        assert (result.counters.bytes_read, result.counters.data_blobs) == (0, 0)
        (snapshot,) = wanting.bench.repository().snapshots()
        assert (snapshot.id, snapshot.parent) == (result.snapshot_id, "")

    def test_a_run_that_left_nothing_out_is_like_any_other(self, wanting: Wanting) -> None:
        assert len(wanting.names(wanting.run(complete=True))) == 7


class TestChangedExcludes:
    def test_what_is_excluded_no_longer_is_back_and_the_other_way_round(
        self, wanting: Wanting
    ) -> None:
        everything = {"large", *(f"d/f{n}" for n in range(6))}
        assert wanting.names(wanting.run()) == everything
        assert wanting.names(wanting.run(excludes=("f[0-2]",))) == everything - {
            "d/f0", "d/f1", "d/f2",
        }  # fmt: skip
        assert wanting.names(wanting.run(excludes=("/d/*",))) == {"large"}
        again = wanting.run()
        assert wanting.names(again) == everything
        assert again.counters.data_blobs == 0
        assert wanting.names(wanting.run(excludes=("d/",))) == {"large"}


class TestReaders:
    def test_as_many_files_are_read_at_a_time_as_are_asked_for(
        self, wanting: Wanting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(20):
            (wanting.bench.volume / f"large{number}").write_bytes(noise(number, 1 << 20))
        asked = backup.MOST_READERS
        together = threading.Barrier(asked, timeout=20)
        met = threading.Event()
        entry_after = FileReader.entry_after

        def meet(reader: FileReader) -> object:
            if not met.is_set():
                together.wait()
                met.set()
            return entry_after(reader)

        monkeypatch.setattr(FileReader, "entry_after", meet)
        assert len(wanting.names(wanting.run(readers=999))) == 27  # else the barrier breaks
        assert met.is_set()
