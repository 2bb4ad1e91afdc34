"""A second run takes unchanged directories over by their listing, and never what it must not."""

import os
from pathlib import Path

import pytest

from agent.cancel import CancelToken
from agent.config import CacheDir
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.repository.identity import BlobType
from agent.repository.objects import Folder, pack_key
from agent.repository.opening import open_repository
from agent.repository.writer import Writer
from agent.transfer import backup
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import by_paths
from agent.transfer.pieces import File
from agent.volume.directory import Directory
from tests.repository.making import PASSWORD, keys
from tests.transfer.running import Bench, all_content, noise


class Cached:
    """Runs over one volume with a cache, and how many trees each of them looked into."""

    def __init__(self, bench: Bench, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.cache = bench, cache
        self.read: list[bytes] = []
        load = Writer.load_tree

        def counted(writer: Writer, id: bytes) -> object:
            self.read.append(id)
            return load(writer, id)

        monkeypatch.setattr(Writer, "load_tree", counted)

    def run(self, excludes: tuple[str, ...] = ()) -> Result:
        self.read.clear()
        path = str(self.bench.volume)
        request = Request(
            path, (path,), "host", {},
            lambda every, now: by_paths(every, "host", [path], now), excludes,
        )  # fmt: skip
        repository = open_repository(self.bench.storage, PASSWORD, cache=CacheDir(self.cache))
        return run_backup(repository, request, Monitor(), CancelToken())

    def root(self, result: Result) -> bytes:
        return self.bench.repository().load_snapshot(result.snapshot_id).tree


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    bench = Bench.new(tmp_path / "volume")
    for folder in ("one", "two", "three/four"):
        (bench.volume / folder).mkdir(parents=True)
        for number in range(4):
            (bench.volume / folder / f"f{number}").write_bytes(
                noise(hash(folder) % 99, 500 + number)
            )
    return Cached(bench, tmp_path / "cache", monkeypatch)


def test_unchanged_directories_are_neither_read_nor_written(cached: Cached) -> None:
    first, second, third = cached.run(), cached.run(), cached.run()
    assert len(cached.read) == 2  # the root and three, which have directories below them
    assert cached.root(first) == cached.root(second) == cached.root(third)
    for counters in (second.counters, third.counters):
        assert (counters.files_unmodified, counters.files_new, counters.files_changed) == (12, 0, 0)
        assert counters.bytes_done == counters.bytes_total == first.counters.bytes_done
        assert (counters.directories_unmodified, counters.tree_blobs) == (4, 0)
        assert counters.bytes_read == 0


@pytest.mark.parametrize("change", ["content", "mode", "new", "gone", "renamed", "xattr", "link"])
def test_a_change_is_seen_where_it_is(cached: Cached, change: str) -> None:
    first = cached.run()
    file = cached.bench.volume / "one" / "f1"
    before = file.stat().st_ctime_ns
    while True:
        match change:
            case "content":
                file.write_bytes(b"other" * 100)
            case "mode":
                file.chmod(0o604)
            case "new":
                (file.parent / "new").touch()
            case "gone":
                file.unlink()
            case "renamed":
                file.rename(file.parent / "other")
            case "xattr":
                os.setxattr(file, "user.x", b"1")
            case "link":
                os.link(file, cached.bench.volume.parent / "another name")
        if change not in ("xattr", "mode", "content") or file.stat().st_ctime_ns > before:
            break  # the clock that stamps files ticks every few milliseconds
    second = cached.run()
    assert len(cached.read) == 3
    assert cached.root(second) != cached.root(first)
    assert cached.bench.content(second.snapshot_id) == all_content(cached.bench.volume)
    entry = cached.bench.entries(second.snapshot_id).get(b"one/f1")
    if change == "xattr":
        assert entry is not None
        assert entry.xattrs == ((b"user.x", b"1"),)


def test_what_could_not_be_read_is_tried_again(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Directory, "read_files", lambda self, entries, *_: [None] * len(entries))

        def fail(self: backup._Backup, folder: object, directory: object, file: File) -> None:
            self._monitor.problem(SourceError(b"x", "input/output error"))
            self.assembly.finish_many(folder, [(file.place, None)])  # type: ignore[arg-type]

        patch.setattr(backup._Backup, "_read", fail)
        assert cached.bench.content(cached.run().snapshot_id) == {}
    assert cached.bench.content(cached.run().snapshot_id) == all_content(cached.bench.volume)


def test_excludes_and_hard_links_are_looked_at_each_time(cached: Cached) -> None:
    cached.run()
    cached.run(excludes=("f1",))
    assert len(cached.read) == 5
    assert len(cached.bench.content(cached.run().snapshot_id)) == 12
    os.link(cached.bench.volume / "one" / "f1", cached.bench.volume / "two" / "linked")
    cached.run()
    cached.run()
    assert len(cached.read) == 4


@pytest.mark.parametrize("loss", ["index", "data", "tree", "cache", "bits of a tree"])
def test_after_a_loss_everything_is_looked_at_and_what_is_lost_stored_again(
    cached: Cached, loss: str
) -> None:
    storage = cached.bench.storage
    first = cached.run()
    if loss == "index":
        for key in keys(storage, "index"):
            storage.delete(key)
    elif loss == "cache":
        for path in (*cached.cache.glob("*/directories/*"), *cached.cache.glob("*/index/*")):
            path.unlink()
    else:
        view = cached.bench.repository().load_index()
        wanted = BlobType.DATA if loss == "data" else BlobType.TREE
        for table in view.all(wanted):
            for number in range(table.pack_count):
                key = pack_key(table.pack(number))
                if loss == "bits of a tree":
                    body = bytearray(storage.get(key))
                    for place in range(20, len(body) - 400, 50):
                        body[place] ^= 1
                    storage.put(key, bytes(body))
                else:
                    storage.delete(key)
    second = cached.run()
    assert cached.root(second) == cached.root(first)
    assert cached.bench.content(second.snapshot_id) == all_content(cached.bench.volume)


def test_new_index_files_of_a_prune_make_it_void(cached: Cached) -> None:
    first = cached.run()
    repository = cached.bench.repository()
    for name in keys(cached.bench.storage, "index"):
        json = repository.objects.load(Folder.INDEX, name.rpartition("/")[2])
        cached.bench.storage.delete(name)
        repository.objects.save(Folder.INDEX, json)
    second = cached.run()
    assert len(cached.read) == 5
    assert cached.root(second) == cached.root(first)
    cached.run()
    assert len(cached.read) == 2
