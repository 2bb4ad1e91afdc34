"""The restore pipeline on trees that no honest backup makes, and when it is stopped half-way."""

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cancel import CancelToken
from agent.entry import Entry, Kind
from agent.errors import Canceled, DamagedBlob
from agent.monitor import Monitor
from agent.repository.contract import Chunks
from agent.storage.contract import Buffer
from agent.transfer.restore import RestoreRequest, restore
from agent.transfer.selection import Selection
from agent.transfer.target_folders import TargetFolder
from agent.transfer.target_writing import LargeFile
from agent.volume.target_file import TargetFile
from agent.volume.writer import TargetTree

ROOT = b"root"


class Chunk:
    """One chunk of a source, as a range of its own."""

    count = 1

    def __init__(self, source: "Source", id: bytes) -> None:
        self._source = source
        self._id = id
        self.length = self.content_bytes = len(source.chunks.get(id, b""))

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Buffer]:
        self._source.before(self._id)
        self._source.loaded.append(self._id)
        yield self._source.chunks.get(self._id, b"")

    def groups(self, fetched: Buffer) -> Iterator[Chunks]:
        lost = DamagedBlob(f"data blob {self._id!r} is damaged")
        yield [(self._id, fetched if self._id in self._source.chunks else lost)]


class Source:
    """Trees and chunks of a test's own; implements ``RestoreSource``."""

    waits = True

    def __init__(self, **trees: list[Entry]) -> None:
        self.trees = {name.encode(): entries for name, entries in trees.items()}
        self.chunks = {b"a": b"content of a", b"b": b"content of b", b"0": bytes(1 << 16)}
        self.zeros: frozenset[bytes] = frozenset()
        self.loaded: list[bytes] = []
        self.unindexed: set[bytes] = set()
        self.before: Callable[[bytes], None] = lambda _id: None

    def load_tree(self, id: bytes) -> list[Entry]:
        self.before(id)
        if id not in self.trees:
            raise DamagedBlob(f"tree {id!r} is damaged")
        return self.trees[id]

    def load_chunk(self, id: bytes) -> bytes:
        raise AssertionError(f"{id!r} was asked for alone")

    def chunk_size(self, id: bytes) -> int:
        if id in self.unindexed:
            raise DamagedBlob(f"data blob {id!r} is in no index")
        return len(self.chunks.get(id, b"?"))

    def is_chunk(self, id: bytes, data: bytes) -> bool:
        return self.chunks.get(id) == data

    def is_zeros(self, id: bytes) -> bool:
        return id in self.zeros

    def plan(self, ids: Collection[bytes]) -> tuple[list[Chunk], dict[bytes, DamagedBlob]]:
        lost = {id: DamagedBlob(f"data blob {id!r} is in no index") for id in self.unindexed}
        return (
            [Chunk(self, id) for id in ids if id not in lost],
            {id: error for id, error in lost.items() if id in ids},
        )


def entry(name: str, kind: Kind = Kind.FILE, **facts: Any) -> Entry:
    plain = {"permissions": 0o755, "uid": os.getuid(), "gid": os.getgid(), "mtime_ns": 1}
    fixed = {"ctime_ns": 1, "inode": 1, "device": 1}
    return Entry(name=name.encode(), kind=kind, **{**plain, **fixed, **facts})


def file(name: str, *content: bytes, **facts: Any) -> Entry:
    sizes = {b"a": 12, b"b": 12, b"0": 1 << 16}
    size = sum(sizes.get(id, 0) for id in content)
    return entry(name, **{"content": content, "size": size, **facts})


def directory(name: str, tree: bytes) -> Entry:
    return entry(name, Kind.DIRECTORY, subtree=tree)


def descriptors() -> set[str]:
    """Return what this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue
    return found


def run(
    source: Source,
    target: Path,
    cancel: CancelToken | None = None,
    *,
    monitor: Monitor | None = None,
    selection: Selection | None = None,
    delete: bool = False,
) -> Monitor:
    """Restore, and make sure that no descriptor and no thread is left, however it ends."""
    before, threads = descriptors(), set(threading.enumerate())
    monitor = monitor or Monitor()
    try:
        request = RestoreRequest(ROOT, target, selection or Selection(), delete=delete)
        restore(source, request, monitor, cancel or CancelToken())
    finally:
        assert descriptors() == before
        assert set(threading.enumerate()) <= threads  # one of an earlier test may just end
    return monitor


def problems(monitor: Monitor) -> list[str]:
    assert monitor.counters.problems == len(monitor.problems)
    return [str(problem) for problem in monitor.problems]


def test_files_of_one_inode_become_one_file_if_their_content_is_one(tmp_path: Path) -> None:
    twin = {"links": 2, "inode": 7}
    names = [file("one", b"a", **twin), file("two", b"a", **twin), file("odd", b"b", **twin)]
    monitor = run(Source(root=names), tmp_path)
    assert os.path.samefile(tmp_path / "one", tmp_path / "two")
    assert not os.path.samefile(tmp_path / "one", tmp_path / "odd")
    assert (tmp_path / "odd").read_bytes() == b"content of b"
    assert (monitor.counters.files, monitor.counters.bytes_done) == (3, 36)
    assert problems(monitor) == []


def test_when_the_first_of_several_links_fails_the_next_is_the_first(tmp_path: Path) -> None:
    twin = {"links": 3, "inode": 7}
    names = [file(name, b"a", **twin) for name in ("first", "second", "third")]
    for name in ("first", "third"):
        (tmp_path / name / "in the way").mkdir(parents=True)
    monitor = run(Source(root=names), tmp_path)
    assert (tmp_path / "second").read_bytes() == b"content of a"
    assert [p.split(":")[0] for p in problems(monitor)] == ["first", "third"]


def test_entries_that_cannot_be_made_are_named_and_the_others_are_made(tmp_path: Path) -> None:
    below = [file("file", b"a")]
    names = [
        directory("..", b"below"),
        entry("x/y", Kind.SYMLINK, link_target=b"z"),
        entry("device", Kind.CHARACTER_DEVICE, rdev=1 << 70),
        entry("socket", Kind.SOCKET),
        entry("no-subtree", Kind.DIRECTORY),
        directory("good", b"below"),
        entry("fifo", Kind.FIFO),
        entry("link", Kind.SYMLINK, link_target=b"good"),
    ]
    monitor = run(Source(root=names, below=below), tmp_path / "new" / "target")
    assert sorted(p.split(":")[0] for p in problems(monitor)) == [
        "..",
        "device",
        "no-subtree",
        "x/y",
    ]
    target = tmp_path / "new" / "target"
    assert sorted(path.name for path in target.iterdir()) == ["fifo", "good", "link"]
    assert (target / "good" / "file").read_bytes() == b"content of a"
    assert (target / "good").stat().st_mtime_ns == 1
    assert monitor.counters.sockets_skipped == 1
    assert monitor.counters.others == 2


def test_a_file_of_another_size_than_its_content_is_named(tmp_path: Path) -> None:
    monitor = run(Source(root=[file("odd", b"a", size=99)]), tmp_path)
    assert problems(monitor) == ["odd: its snapshot says 99 bytes, its content has 12"]
    assert (tmp_path / "odd").read_bytes() == b"content of a"


def test_a_chunk_that_repeats_is_fetched_once_and_zeros_take_no_room(tmp_path: Path) -> None:
    source = Source(root=[file("sparse", *([b"0"] * 100), b"a")])
    run(source, tmp_path)
    assert source.loaded == [b"0", b"a"]
    found = (tmp_path / "sparse").stat()
    assert found.st_size == 100 * (1 << 16) + 12
    assert found.st_blocks * 512 < found.st_size // 10


def test_a_chunk_that_is_damaged_ends_the_restore(tmp_path: Path) -> None:
    below = [file(f"f{n}", b"a") for n in range(50)]
    source = Source(root=[directory("d", b"below"), file("bad", b"gone")], below=below)
    with pytest.raises(DamagedBlob, match="gone"):
        run(source, tmp_path)


@pytest.mark.parametrize("at", ["deep", "root", "a"])
def test_a_restore_that_is_stopped_lets_go_of_everything(tmp_path: Path, at: str) -> None:
    cancel = CancelToken()
    source = Source(
        root=[file("first", b"a"), directory("d", b"below")],
        below=[directory("e", b"deep"), directory("never", b"deep")],
        deep=[file(f"f{n}", b"a") for n in range(100)],
    )
    source.before = lambda id: cancel.cancel("enough") if id == at.encode() else None
    with pytest.raises(Canceled, match="enough"):
        run(source, tmp_path, cancel)
    # What the walk has not reached is not made; content comes when directories stand.
    assert (tmp_path / "d" / "never").exists() is (at == "a")
    assert not list(tmp_path.rglob("f*"))


def test_lost_content_is_told_as_such_by_a_thread_that_was_about_to_write(tmp_path: Path) -> None:
    with TargetTree.open(tmp_path, lambda _: None) as tree:
        folder = TargetFolder.root(tree.root, lambda _: None)
        lost = DamagedBlob("data blob is damaged")

        class Late(LargeFile):
            def open(self) -> TargetFile:
                self.write(0, lost)  # as another thread does between a look and the opening
                return super().open()

        late_file = Late(folder, file("f", b"a", b"b"), 24, 2)
        late_file.write(12, b"content of b")
        assert late_file.broken is lost
