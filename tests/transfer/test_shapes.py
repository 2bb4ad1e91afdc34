"""Volumes of unusual shape: links, devices, holes, wide and deep directories, more than fits."""

import os
import resource
import stat
import time
from collections.abc import Iterator, Sequence

import pytest

from agent.repository.buffers import USUAL_BYTES, Buffers
from agent.transfer import backup as pipeline
from chunker import ENOUGH_BYTES, Chunks
from chunker.rabin import MAX_SIZE
from tests.support.deep import nest
from tests.support.requirements import missing
from tests.transfer.running import Bench, all_content, noise

ZERO_CHUNK = "07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541"


def test_hard_links_share_content_and_identity(bench: Bench) -> None:
    (bench.volume / "d").mkdir()
    (bench.volume / "one").write_bytes(b"linked")
    os.link(bench.volume / "one", bench.volume / "d" / "two")
    result = bench.run()
    entries = bench.entries(result.snapshot_id)
    one, two = entries[b"one"], entries[b"d/two"]
    assert (one.links, one.inode, one.device) == (two.links, two.inode, two.device)
    assert one.links == 2
    assert one.content == two.content
    assert result.counters.data_blobs == 1


def test_other_kinds_are_kept_and_sockets_are_not(bench: Bench) -> None:
    os.mkfifo(bench.volume / "fifo")
    (bench.volume / "link").symlink_to("nowhere")
    os.mknod(bench.volume / "socket", 0o600 | stat.S_IFSOCK)
    result = bench.run()
    assert set(bench.entries(result.snapshot_id)) == {b"fifo", b"link"}
    assert (result.counters.others, result.counters.sockets_skipped) == (2, 1)


def test_holes_cost_one_chunk_and_no_reading(bench: Bench) -> None:
    with open(bench.volume / "sparse", "wb") as file:
        file.truncate(1 << 30)
    result = bench.run()
    content = bench.entries(result.snapshot_id)[b"sparse"].content
    assert content is not None
    assert {id.hex() for id in content} == {ZERO_CHUNK}
    assert len(content) == 2048
    assert result.counters.bytes_read == 0
    assert result.counters.bytes_done == 1 << 30
    assert result.counters.data_blobs == 1


def test_a_wide_directory_is_one_tree_in_order(bench: Bench) -> None:
    for number in range(3000):
        (bench.volume / f"{number * 7919 % 3000}").touch()
    result = bench.run()
    tree = bench.repository().snapshot(result.snapshot_id).tree
    names = [entry.name for entry in bench.repository().reading().load_tree(tree)]
    assert len(names) == 3000
    assert names == sorted(names)


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        missing("the right to open 4096 files (one a level is open)", "raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


LEVELS = 1500


@pytest.fixture
def deep(bench: Bench) -> Iterator[Bench]:
    """Fill the volume with one directory in the other; flat again before pytest removes it."""
    nest(bench.volume, LEVELS, "bottom")
    yield bench
    root = bench.volume
    for _ in range(LEVELS):
        os.rename(root / "d", root / "x")
        if (root / "x" / "d").exists():
            os.rename(root / "x" / "d", root / "d")
        for rest in os.listdir(root / "x"):
            os.unlink(root / "x" / rest)
        os.rmdir(root / "x")


@pytest.mark.usefixtures("_many_descriptors")
def test_deep_directories_end_in_the_snapshot(deep: Bench) -> None:
    result = deep.run()
    assert deep.monitor.problems == []
    assert len(deep.entries(result.snapshot_id)) == LEVELS + 1
    assert deep.run().counters.directories_unmodified == LEVELS


def test_byte_budgets_hold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "QUEUED_BYTES", 1 << 20)
    monkeypatch.setattr(pipeline, "SAVED_BYTES", 1 << 20)
    most: dict[str, int] = {}
    free = pipeline.Pool._free

    def note(self: pipeline.Pool, weight: int) -> None:
        name = self._executor._thread_name_prefix
        most[name] = max(most.get(name, 0), self._held)
        free(self, weight)

    monkeypatch.setattr(pipeline.Pool, "_free", note)
    for number in range(200):
        (bench.volume / f"small{number}").write_bytes(noise(number, 20_000))
    (bench.volume / "large").write_bytes(noise(1, 12 << 20))
    result = bench.run()
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    assert 0 < most["read"] <= 1 << 20
    # Together they may hold 1 MiB each; what a single one takes weighs all of that at most.
    savers = min(os.cpu_count() or 2, pipeline.SAVERS)
    assert 0 < most["save"] <= savers * savers << 20


def test_files_that_fill_a_part_of_a_buffer_take_no_more_buffers_than_large_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    lent: list[Buffers] = []
    most = 0

    class Counted(Buffers):
        def take(self, size: int) -> memoryview:
            nonlocal most
            if self._usual_bytes == USUAL_BYTES and size == MAX_SIZE:
                lent.append(self)
                most = max(most, len(lent))
            return super().take(size)

        def give(self, buffer: memoryview, filled: int) -> None:
            if self in lent:
                lent.remove(self)
            super().give(buffer, filled)

    monkeypatch.setattr(pipeline, "Buffers", Counted)
    for number in range(100):
        (bench.volume / f"f{number}").write_bytes(noise(number, 600_000))
    store = pipeline._Backup._store

    def slowly(self: pipeline._Backup, piece: Chunks) -> Sequence[bytes]:
        time.sleep(0.1)
        return store(self, piece)

    monkeypatch.setattr(pipeline._Backup, "_store", slowly)
    result = bench.run()
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    budget = 8 * pipeline.SAVED_BYTES // ENOUGH_BYTES
    assert 0 < most <= max(budget, pipeline.SAVERS) + 2 * pipeline.READERS
