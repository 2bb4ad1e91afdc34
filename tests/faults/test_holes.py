"""Sparse files larger than anything that could be stored: they cost their owner nothing."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.budget import Budgets
from agent.cluster import patches
from agent.cluster.order import OrderKind, parse
from agent.cluster.patches import Final
from agent.entry import Entry, Kind
from agent.monitor import Monitor
from agent.transfer import folders, job
from agent.transfer.folder import Folder
from agent.transfer.folders import LIST_STEP, Assembly
from tests.cluster.scene import pvb_object
from tests.cluster.test_order import as_bytes
from tests.transfer.running import Bench

GIB = 1 << 30
INT64_MAX = (1 << 63) - 1


def sparse(path: Path, gibibytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(gibibytes * GIB)


def test_a_file_with_more_holes_than_memory_is_left_out_and_its_neighbours_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LISTED_CHUNKS", 2 * LIST_STEP)  # 64 GiB of holes
    bench = Bench.new(tmp_path / "volume")
    sparse(bench.volume / "endless", 200)
    sparse(bench.volume / "image", 33)
    (bench.volume / "note").write_text("still here")
    for _ in range(2):  # the second time with a parent
        result = bench.run()
        (problem,) = bench.monitor.problems
        assert problem.path == b"endless"
        assert "more chunks than fit into memory" in problem.reason
        assert set(bench.entries(result.snapshot_id)) == {b"image", b"note"}


def test_files_that_claim_more_than_64_bits_of_holes_together_do_not_fail_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LISTED_CHUNKS", LIST_STEP // 2)
    bench = Bench.new(tmp_path / "volume")
    for name in ("one", "two", "three"):
        sparse(bench.volume / name, 14 << 10)  # what ext4 takes
    (bench.volume / "note").write_text("still here")
    result = bench.run()
    assert set(bench.entries(result.snapshot_id)) == {b"note"}
    huge = dataclasses.replace(result.counters, bytes_done=3 << 63)
    assert job.summary_of(huge, 0).total_bytes_processed == (1 << 64) - 1


def test_room_for_long_lists_is_given_back_when_their_directory_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folders, "LISTED_CHUNKS", 2 * LIST_STEP)
    target: Any = SimpleNamespace(store_tree=lambda entries: bytes(32))
    assembly = Assembly(target, Monitor(), Budgets())
    content = (b"i" * 32,) * (2 * LIST_STEP + 1)
    entry = Entry(
        name=b"f", kind=Kind.FILE, permissions=0, uid=0, gid=0, mtime_ns=0, ctime_ns=0, inode=1,
        device=1, content=content,
    )  # fmt: skip
    for _ in range(3):
        assert assembly.take(2 * LIST_STEP)
        assert not assembly.take(1)
        folder = Folder(None, 0, None, None)
        folder.expect(1)
        assembly.finish_many(folder, [(0, entry)])


def test_sizes_beyond_a_signed_64_bit_number_do_not_make_a_status_that_is_refused() -> None:
    pvb = parse(OrderKind.BACKUP, as_bytes(pvb_object("b-1")))
    end = Final("Completed", "", "id", "/path", 1 << 64)
    assert patches.final(pvb, end, "now")["status"]["progress"]["bytesDone"] == INT64_MAX
    sent = patches.progress(pvb, 1 << 65, 1 << 64)["status"]["progress"]
    assert sent == {"totalBytes": INT64_MAX, "bytesDone": INT64_MAX}
