"""Backups: what is counted, what is taken from the parent, what is left out, and what is stored."""

import concurrent.futures
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.entry import Entry
from agent.errors import SourceError, UsageError, VolumeError
from agent.monitor import Monitor
from agent.transfer import backup as pipeline
from agent.volume.directory import Directory
from agent.volume.file import FileReader
from agent.volume.looking import ReadFile
from tests.repository.making import keys
from tests.transfer.running import Bench, all_content, noise


def test_everything_is_in_the_snapshot(bench: Bench) -> None:
    (bench.volume / "a" / "b").mkdir(parents=True)
    (bench.volume / "a" / "b" / "large").write_bytes(noise(1, 5 << 20))
    (bench.volume / "a" / "empty").touch()
    (bench.volume / "z").write_bytes(b"z")
    result = bench.run()
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    snapshot = bench.repository().snapshot(result.snapshot_id)
    assert (snapshot.hostname, snapshot.tags, snapshot.paths) == (
        "host",
        ("k=v",),
        (str(bench.volume),),
    )
    assert snapshot.summary is not None
    assert snapshot.summary.total_bytes_processed == (5 << 20) + 1
    assert snapshot.summary.files_new == 3
    assert keys(bench.storage, "locks") == []


def test_what_did_not_change_is_neither_read_nor_stored(bench: Bench) -> None:
    (bench.volume / "d").mkdir()
    for number in range(10):
        (bench.volume / "d" / f"f{number}").write_bytes(noise(number, 1000))
    first = bench.run()
    second = bench.run()
    assert second.parent_id == first.snapshot_id
    counters = second.counters
    assert (counters.files_unmodified, counters.files_new, counters.files_changed) == (10, 0, 0)
    assert (counters.directories_unmodified, counters.directories_changed) == (1, 0)
    assert counters.bytes_done == counters.bytes_total == 10_000
    assert counters.bytes_read == counters.bytes_uploaded == counters.data_blobs == 0
    one, two = (bench.repository().snapshot(r.snapshot_id) for r in (first, second))
    assert one.tree == two.tree


def test_new_changed_and_removed_files_are_told_apart(bench: Bench) -> None:
    for name in ("kept", "changed", "removed"):
        (bench.volume / name).write_text(name)
    bench.run()
    (bench.volume / "changed").write_text("changed since")
    (bench.volume / "removed").unlink()
    (bench.volume / "new").write_text("new")
    result = bench.run()
    counters = result.counters
    assert (counters.files_unmodified, counters.files_changed, counters.files_new) == (1, 1, 1)
    assert bench.content(result.snapshot_id) == all_content(bench.volume)


def test_a_file_changed_in_place_with_its_mtime_put_back_is_read(bench: Bench) -> None:
    path = bench.volume / "file"
    path.write_bytes(b"one")
    before = path.stat()
    bench.run()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = bench.run()
    assert result.counters.files_changed == 1
    assert bench.content(result.snapshot_id)[b"file"] == b"two"


def test_without_a_parent_everything_is_read_and_nothing_stored_again(bench: Bench) -> None:
    (bench.volume / "file").write_bytes(noise(1, 3 << 20))
    bench.run()
    result = bench.run(parent=False)
    assert result.parent_id == ""
    assert result.counters.bytes_read == 3 << 20
    assert result.counters.data_blobs == result.counters.tree_blobs == 0


def test_a_name_that_changed_its_kind_is_no_parent(bench: Bench) -> None:
    (bench.volume / "x").mkdir()
    (bench.volume / "y").write_text("file")
    bench.run()
    (bench.volume / "x").rmdir()
    (bench.volume / "x").write_text("now a file")
    (bench.volume / "y").unlink()
    (bench.volume / "y").mkdir()
    (bench.volume / "y" / "inner").write_text("inner")
    result = bench.run()
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    assert result.counters.directories_new == 1


def test_what_is_excluded_is_counted_and_left_out(bench: Bench) -> None:
    (bench.volume / "cache").mkdir()
    (bench.volume / "cache" / "x").write_text("x")
    (bench.volume / "a.tmp").write_text("x")
    (bench.volume / "kept").write_text("x")
    result = bench.run(excludes=["*.tmp", "cache"])
    assert set(bench.entries(result.snapshot_id)) == {b"kept"}
    assert result.counters.excluded == 2
    assert bench.repository().snapshot(result.snapshot_id).excludes == ("*.tmp", "cache")


def test_an_empty_volume_is_a_snapshot_all_the_same(bench: Bench) -> None:
    result = bench.run()
    assert bench.entries(result.snapshot_id) == {}
    assert result.counters.bytes_total == result.counters.bytes_done == 0


def test_a_volume_that_is_not_there_fails_before_anything_is_written(bench: Bench) -> None:
    bench.volume.rmdir()
    with pytest.raises(VolumeError, match="does not exist"):
        bench.run()
    assert keys(bench.storage, "locks") == keys(bench.storage, "snapshots") == []


def test_a_bad_exclude_is_refused_before_anything_is_written(bench: Bench) -> None:
    with pytest.raises(UsageError):
        bench.run(excludes=["[z-a"])
    assert keys(bench.storage, "snapshots") == []


@pytest.mark.parametrize("when", ["open", "read"])
def test_an_unreadable_file_is_counted_named_and_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for name in ("bad", "good", "large"):
        (bench.volume / name).write_bytes(noise(1, 3 << 20 if name == "large" else 10))
    _break(monkeypatch, b"bad", when)
    result = bench.run()
    assert bench.content(result.snapshot_id).keys() == {b"good", b"large"}
    (problem,) = bench.monitor.problems
    assert str(problem).startswith(
        "bad: input/output error" if when == "read" else "bad: permission denied"
    )
    assert result.counters.files_new == 2
    assert result.counters.bytes_done == result.counters.bytes_total


def _break(monkeypatch: pytest.MonkeyPatch, name: bytes, when: str) -> None:
    read_files = Directory.read_files

    def fail_too(
        self: Directory, entries: Sequence[Entry], buffer: memoryview, monitor: Monitor
    ) -> list[ReadFile | None]:
        read = read_files(self, entries, buffer, monitor)
        return [
            None if entry.name.endswith(name) else one
            for entry, one in zip(entries, read, strict=True)
        ]

    monkeypatch.setattr(Directory, "read_files", fail_too)
    if when == "open":
        opened = Directory._open_pinned

        def deny(self: Directory, entry: object, path: bytes) -> int:
            if path.endswith(name):
                raise PermissionError(13, "Permission denied")
            return opened(self, entry, path)  # type: ignore[arg-type]

        monkeypatch.setattr(Directory, "_open_pinned", deny)
    else:
        fill = FileReader._fill

        def fail(self: FileReader, buffer: memoryview, wanted: int) -> int:
            if self.path.endswith(name):
                raise OSError(5, "Input/output error")
            return fill(self, buffer, wanted)

        monkeypatch.setattr(FileReader, "_fill", fail)


def test_a_large_file_that_fails_half_way_does_not_spoil_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.volume / "a-bad").write_bytes(noise(1, 11 << 20))
    (bench.volume / "b-good").write_bytes(noise(2, 700_000))
    fill = FileReader._fill

    def fail_later(self: FileReader, buffer: memoryview, wanted: int) -> int:
        if self.path == b"a-bad" and self.bytes_delivered > 1 << 20:
            raise OSError(5, "Input/output error")
        return fill(self, buffer, wanted)

    monkeypatch.setattr(FileReader, "_fill", fail_later)
    result = bench.run()
    assert bench.content(result.snapshot_id) == {b"b-good": noise(2, 700_000)}
    assert result.counters.problems == 1
    assert result.counters.bytes_done == result.counters.bytes_total
    assert bench.monitor.shrank == []


def test_a_file_that_vanishes_is_a_problem_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (bench.volume / f"f{number}").write_text("x")
    read = pipeline._Backup._read_batch

    def vanish(self: object, folder: object, directory: object, batch: object) -> None:
        (bench.volume / "f3").unlink()
        read(self, folder, directory, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline._Backup, "_read_batch", vanish)
    result = bench.run()
    assert len(bench.content(result.snapshot_id)) == 4
    assert [p.path for p in bench.monitor.problems] == [b"f3"]


def test_a_directory_that_cannot_be_listed_is_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.volume / "bad").mkdir()
    (bench.volume / "gone" / "sub").mkdir(parents=True)
    (bench.volume / "good").mkdir()
    names, entries = Directory.names, Directory.iterate

    def deny(self: Directory, *args: object) -> object:
        if self.path == b"bad":
            raise SourceError(b"bad", "Permission denied")
        return names(self, *args)  # type: ignore[arg-type]

    def vanish(self: Directory, *args: object) -> object:
        found = list(entries(self, *args))  # type: ignore[arg-type]
        if self.path == b"":
            (bench.volume / "gone" / "sub").rmdir()
            (bench.volume / "gone").rmdir()
        return iter(found)

    monkeypatch.setattr(Directory, "names", deny)
    monkeypatch.setattr(Directory, "iterate", vanish)
    result = bench.run()
    assert set(bench.entries(result.snapshot_id)) == {b"good"}
    assert sorted(p.path for p in bench.monitor.problems) == [b"bad", b"gone"]


def test_a_root_that_cannot_be_listed_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Directory, *args: object) -> object:
        raise SourceError(self.path, "Input/output error")

    monkeypatch.setattr(Directory, "names", deny)
    with pytest.raises(VolumeError, match="root cannot be listed: Input/output error"):
        bench.run()
    assert keys(bench.storage, "snapshots") == []


def test_no_descriptor_stays_open(bench: Bench) -> None:
    for number in range(20):
        (bench.volume / f"d{number}").mkdir()
        (bench.volume / f"d{number}" / "f").write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    bench.run()
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_nodes_back_up_into_one_repository_at_a_time(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path / "other", bench.storage)
    other.volume.mkdir()
    for number in range(30):
        (bench.volume / f"f{number}").write_bytes(noise(number, 50_000))
        (other.volume / f"g{number}").write_bytes(noise(number + 15, 50_000))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(each.run) for each in (bench, other)]
        results = [run.result() for run in runs]
    for each, result in zip((bench, other), results, strict=True):
        assert each.content(result.snapshot_id) == all_content(each.volume)
        assert each.counters.bytes_done == each.counters.bytes_total == 1_500_000
    assert keys(bench.storage, "locks") == []


def test_a_damaged_parent_costs_reading_only(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.volume / "file").write_bytes(noise(1, 1000))
    first = bench.run()
    repository = bench.repository()
    tree = repository.snapshot(first.snapshot_id).tree
    for pack in keys(bench.storage, "data"):
        if len(bench.storage.get(pack)) < 1000:  # the trees'
            bench.storage.put(pack, bytes(len(bench.storage.get(pack))))
    result = bench.run()
    assert result.counters.files_new == 1
    assert result.counters.data_blobs == 0
    assert "cannot be read, so its files are read anew" in caplog.text
    assert repository.snapshot(result.snapshot_id).tree == tree
    assert bench.content(result.snapshot_id) == all_content(bench.volume)


def test_a_small_file_that_grew_to_many_chunks_is_cut(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.volume / "grows").write_bytes(b"small")
    read_files = Directory.read_files

    def grow(
        self: Directory, entries: Sequence[Entry], buffer: memoryview, monitor: Monitor
    ) -> list[ReadFile | None]:
        (bench.volume / "grows").write_bytes(noise(7, 100_000) + bytes(3 << 20))
        return read_files(self, entries, buffer, monitor)

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "read_files", grow)
        first = bench.run()
    content = bench.entries(first.snapshot_id)[b"grows"].content
    second = bench.run(parent=False)
    assert bench.entries(second.snapshot_id)[b"grows"].content == content
    assert len(content or ()) > 1
    assert bench.content(second.snapshot_id) == all_content(bench.volume)
