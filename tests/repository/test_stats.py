"""Sizes of snapshots: counted once where they are stored once."""

import os
from pathlib import Path

import pytest

from agent.errors import DamagedBlob
from agent.repository import stats
from agent.repository.identity import BlobType
from agent.repository.stats import Stats, measure
from tests.repository.making import new_repository
from tests.transfer.running import Bench, noise


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.new(tmp_path / "volume")


def of(bench: Bench, *ids: str) -> Stats:
    repository = bench.repository()
    every = repository.snapshots()
    return measure(repository, [s for s in every if s.id in ids] if ids else every)


def test_shared_content_and_shared_directories_count_once_where_they_are_stored_once(
    bench: Bench,
) -> None:
    data = noise(1, 700_000)
    for name in ("one", "two"):
        (bench.volume / name).mkdir()
        (bench.volume / name / "file").write_bytes(data)
        os.utime(bench.volume / name / "file", ns=(0, 0))
    (bench.volume / "link").symlink_to("one")
    first = bench.run().snapshot_id
    (bench.volume / "three").write_bytes(b"more")
    second = bench.run().snapshot_id

    whole, alone = of(bench), of(bench, first)
    assert (alone.snapshots, whole.snapshots) == (1, 2)
    assert (alone.files, alone.directories, alone.others) == (2, 2, 1)
    assert (whole.files, whole.directories, whole.others) == (5, 4, 2)
    assert alone.restore_bytes == 2 * len(data)
    assert whole.restore_bytes == 4 * len(data) + 4
    assert alone.content_bytes == len(data)
    assert whole.content_bytes == len(data) + 4
    assert alone.dedup_ratio == 2
    view = bench.repository().load_index()
    assert whole.data_blobs == view.count(BlobType.DATA)
    assert whole.tree_blobs == view.count(BlobType.TREE)
    blobs = [found.blob for type in BlobType for table in view.all(type) for found in table]
    assert whole.stored_bytes == sum(blob.length for blob in blobs)
    assert whole.plain_bytes == sum(blob.content_bytes for blob in blobs)
    packs = [len(bench.storage.get(key)) for key, _ in bench.storage.list("data/")]
    assert whole.packs == whole.repository_packs == alone.repository_packs == len(packs) == 4
    assert alone.packs == 2
    assert whole.repository_bytes == sum(packs)
    assert of(bench, second).restore_bytes == 2 * len(data) + 4


def test_a_file_with_several_names_counts_once_in_each_snapshot(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        (bench.volume / name).mkdir()
    (bench.volume / "a" / "one").write_bytes(b"12345")
    os.link(bench.volume / "a" / "one", bench.volume / "b" / "two")
    (bench.volume / "c" / "other").write_bytes(b"12345")
    bench.run()
    (bench.volume / "more").write_bytes(b"1")  # directories stay the same trees
    bench.run()
    found = of(bench)
    assert found.files == 7
    assert found.restore_bytes == 2 * 10 + 1
    assert found.content_bytes == 6


def test_every_directory_is_read_once_however_many_snapshots_hold_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.volume / "dir").mkdir()
    (bench.volume / "dir" / "file").write_bytes(b"x")
    for number in range(5):
        (bench.volume / "number").write_text(str(number))
        bench.run()
    read: list[bytes] = []
    enter = stats._Walk._enter

    def counted(walk: stats._Walk, tree: bytes) -> object:
        found = enter(walk, tree)
        if found is not None:
            read.append(tree)
        return found

    monkeypatch.setattr(stats._Walk, "_enter", counted)
    assert of(bench).files == 10
    assert len(read) == len(set(read)) == 6


def test_nothing_has_no_ratio() -> None:
    found = measure(new_repository(), [])
    assert found == Stats()
    assert found.compression_ratio is found.dedup_ratio is None


def test_a_missing_part_is_an_error_and_no_smaller_number(bench: Bench) -> None:
    (bench.volume / "file").write_bytes(b"x")
    bench.run()
    for key, _ in list(bench.storage.list("index/")):
        bench.storage.delete(key)
    with pytest.raises(DamagedBlob, match="podlift check"):
        of(bench)
