"""Merging: many cached files become one that answers the same, and that nobody has to wait for."""

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.config import CacheDir
from agent.repository import merging
from agent.repository.cache import Cache, is_mapped, release
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexview import IndexView
from agent.repository.merging import Loaded, merge_if_worthwhile
from agent.repository.opening import open_repository
from agent.repository.pack import PackedBlob
from agent.repository.table import Table
from agent.storage.faults import Faulty
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, keys, new_repository, store_chunks

REPOSITORY_ID = "2" * 64
NAMES = [f"{number:064x}" for number in range(10)]


def of_index(number: int) -> list[Table]:
    """Return tables of three data blobs and a tree, of two packs; one blob is in every index."""

    def blob(type: BlobType, byte: int, offset: int) -> PackedBlob:
        return PackedBlob(type, BlobId(bytes([byte, number]) * 16), offset, 40 + number, 0)

    shared = PackedBlob(BlobType.DATA, BlobId(b"s" * 32), 90, 41, 5)
    data = [blob(BlobType.DATA, 7, 0), blob(BlobType.DATA, 200, 40), shared]
    packs = [
        (PackId(bytes([number, 1]) * 16), data),
        (PackId(bytes([number, 2]) * 16), [blob(BlobType.TREE, 3, 0)]),
    ]
    return [Table.build(type, packs) for type in BlobType]


def cached(root: Path, names: list[str]) -> tuple[Cache, Loaded]:
    cache = Cache(CacheDir(root), REPOSITORY_ID)
    fresh = {}
    for number, name in enumerate(names):
        cache.save(name, of_index(number))
        tables = cache.load(name)
        assert tables is not None
        fresh[name] = tables
    return cache, Loaded(None, fresh)


def content(view: IndexView) -> list[list[tuple[bytes, PackId, int, int, int]]]:
    return [
        sorted(
            (f.blob.id, f.pack, f.blob.offset, f.blob.length, f.blob.plain_length)
            for table in view.all(type)
            for f in table
        )
        for type in BlobType
    ]


def test_a_view_is_handed_the_merged_file_and_says_what_it_said(tmp_path: Path) -> None:
    cache, loaded = cached(tmp_path, NAMES)
    view = IndexView(loaded.tables)
    said = content(view)
    view.add([(PackId(b"n" * 32), [PackedBlob(BlobType.DATA, BlobId(b"n" * 32), 0, 40, 0)])])
    thread = merge_if_worthwhile(cache, view, loaded)
    assert thread is not None
    thread.join()
    assert [len(view.all(type)) for type in BlobType] == [2, 1]
    assert is_mapped(view.all(BlobType.DATA)[0])
    release(view.all(BlobType.DATA))
    assert len(view.find(BlobType.DATA, BlobId(b"s" * 32))) == 10
    assert view.known(BlobType.DATA, b"s" * 32 + b"x" * 32 + b"n" * 32) == b"\1\0\1"
    found = cache.load_merged(set(NAMES))
    assert found is not None
    assert found.names == set(NAMES)
    assert content(IndexView(found.tables)) == said


def test_additions_are_merged_from_the_small_end_and_stay_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge, merged = Table.merge, list[int]()

    def counted(type: BlobType, tables: list[Table]) -> Table:
        merged.append(sum(map(len, tables)))
        return merge(type, tables)

    monkeypatch.setattr(Table, "merge", counted)
    view, ids = IndexView([]), [bytes([number]) * 32 for number in range(100)]
    for id in ids:
        view.add([(PackId(id), [PackedBlob(BlobType.DATA, BlobId(id), 0, 40, 0)])])
        assert len(view.all(BlobType.DATA)) <= 8
    assert view.known(BlobType.DATA, b"".join(ids)) == b"\1" * 100
    assert sorted(found[0] for found in content(view)[0]) == ids
    assert 5 <= max(merged) <= 50  # what is merged at a time is in memory twice


def test_a_merged_file_is_void_when_an_index_file_is_no_more(tmp_path: Path) -> None:
    cache, loaded = cached(tmp_path, NAMES)
    assert cache.save_merged(loaded.names, loaded.tables, lambda: True)
    cache.keep_only({*NAMES, "f" * 64})
    assert cache.load_merged({*NAMES, "f" * 64}) is not None
    assert cache.load_merged(set(NAMES[1:])) is None
    assert cache.load_merged(set(NAMES)) is None


def test_what_is_dropped_meanwhile_stays_dropped(tmp_path: Path) -> None:
    cache, loaded = cached(tmp_path, NAMES)
    view = IndexView(loaded.tables)
    assert view.drop({PackId(b"\3\1" * 16)}) == 3
    thread = merge_if_worthwhile(cache, view, loaded)
    assert thread is not None
    thread.join()
    assert not view.has(BlobType.DATA, BlobId(b"\7\3" * 16))
    assert view.still_lost() == 2
    assert len(view.all(BlobType.TREE)) == 1


def test_a_merge_is_given_up_at_any_step_and_leaves_nothing(tmp_path: Path) -> None:
    cache, loaded = cached(tmp_path, NAMES)
    folder = tmp_path / REPOSITORY_ID / "index"
    before = sorted(os.listdir(folder))
    for steps in (0, 1, 5, 300):
        left = iter(range(steps))
        assert not cache.save_merged(
            loaded.names,
            loaded.tables,
            lambda left=left: next(left, None) is not None,  # type: ignore[misc]
        )
        assert sorted(os.listdir(folder)) == before


def test_two_processes_do_not_merge_the_same(tmp_path: Path) -> None:
    cache, loaded = cached(tmp_path, NAMES)
    folder = os.open(tmp_path / REPOSITORY_ID / "index", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert not cache.save_merged(loaded.names, loaded.tables, lambda: True)
    finally:
        os.close(folder)
    assert cache.save_merged(loaded.names, loaded.tables, lambda: True)


@pytest.mark.parametrize(
    ("covered", "fresh", "worthwhile"),
    [(0, 7, False), (0, 8, True), (100, 8, True), (200, 8, False), (2000, 32, True)],
)
def test_few_files_are_left_until_there_are_more(
    tmp_path: Path, covered: int, fresh: int, worthwhile: bool
) -> None:
    names = {f"{number:064x}": of_index(number) for number in range(fresh)}
    old = [table for number in range(covered) for table in of_index(number % 250)]
    loaded = Loaded(merging.Merged(frozenset(), old) if covered else None, names)
    cache = Cache(CacheDir(tmp_path), REPOSITORY_ID)
    thread = merge_if_worthwhile(cache, IndexView([]), loaded)
    if thread is not None:
        thread.join()
    assert (thread is not None) is worthwhile


def test_the_next_process_reads_one_file_and_fetches_what_is_new(tmp_path: Path) -> None:
    storage = MemoryStorage()
    repository = new_repository(storage)
    ids = [id for n in range(9) for id in store_chunks(repository, [b"%d" % n])[0]]
    open_repository(storage, PASSWORD, cache=CacheDir(tmp_path)).load_index()
    for thread in threading.enumerate():
        if thread.name == "merge":
            thread.join()
    for path in tmp_path.glob("*/index/*"):
        if path.name != "merged":
            path.unlink()
    ids += store_chunks(repository, [b"new"])[0]
    counted = Faulty(storage)
    view = open_repository(counted, PASSWORD, cache=CacheDir(tmp_path)).load_index()
    assert all(view.has(BlobType.DATA, BlobId(id)) for id in ids)
    assert sum(key.startswith("index/") for op, key in counted.calls if op == "get") == 1
    assert len(view.all(BlobType.DATA)) == 2
    storage.delete(keys(storage, "index")[0])
    assert (
        open_repository(storage, PASSWORD, cache=CacheDir(tmp_path))
        .load_index()
        .count(BlobType.DATA)
        == 9
    )


def test_a_merge_does_not_hold_up_the_end_of_the_process() -> None:
    program = (
        "import threading, time\n"
        "from agent.repository.merging import _Patience\n"
        "def work(patience=_Patience()):\n"
        "    while patience.lasts():\n"
        "        time.sleep(0.01)\n"
        "    print('given up')\n"
        "threading.Thread(target=work).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=30, check=True
    )
    assert done.stdout == b"given up\n"
    assert done.stderr == b""
