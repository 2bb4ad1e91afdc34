"""What changed from one tree to another, without reading what did not."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.entry import Entry, Kind
from agent.repository.difference import Change, Difference, Mark
from tests.transfer.running import Bench, noise


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench.new(tmp_path / "volume")
    root = bench.volume
    (root / "same" / "deep").mkdir(parents=True)
    (root / "same" / "deep" / "file").write_text("same")
    (root / "dir" / "below").mkdir(parents=True)
    (root / "dir" / "below" / "gone").write_text("12345")
    (root / "changed").write_bytes(noise(1, 20 << 20))
    (root / "touched").write_text("touched")
    (root / "kind").write_text("a file")
    (root / "link").symlink_to("before")
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(0, 0), follow_symlinks=False)
    return bench


def change(root: Path) -> None:
    shutil.rmtree(root / "dir" / "below")
    (root / "dir" / "new").mkdir()
    (root / "dir" / "new" / "file").write_text("123")
    with (root / "changed").open("ab") as file:
        file.write(b"more at the end")
    os.utime(root / "touched", ns=(0, 1))
    (root / "kind").unlink()
    (root / "kind").mkdir()
    (root / "kind" / "inside").write_text("1")
    (root / "link").unlink()
    (root / "link").symlink_to("after")
    for path in (root, root / "dir"):
        os.utime(path, ns=(0, 0))


def test_each_kind_of_change_has_its_mark_and_equal_directories_are_not_read(bench: Bench) -> None:
    one = bench.repository().snapshot(bench.run().snapshot_id).tree
    change(bench.volume)
    two = bench.repository().snapshot(bench.run().snapshot_id).tree
    reader = bench.repository().reading()
    same = {e.name: e for e in reader.load_tree(one)}[b"same"].subtree
    read: list[bytes] = []

    def load_tree(id: bytes) -> list[Entry]:
        read.append(id)
        return reader.load_tree(id)

    found = Difference(load_tree, reader.chunk_size)
    assert [(change.mark.value, change.path.decode()) for change in found.walk(one, two)] == [
        ("M", "/changed"),
        ("-", "/dir/below/"),
        ("-", "/dir/below/gone"),
        ("+", "/dir/new/"),
        ("+", "/dir/new/file"),
        ("T", "/kind/"),
        ("+", "/kind/inside"),
        ("M", "/link"),
    ]
    assert same not in read
    assert len(read) == len(set(read)) == 7  # two roots, two of dir, below, new, kind
    assert (found.added.files, found.added.directories, found.changed_files) == (2, 2, 1)
    assert (found.removed.files, found.removed.directories) == (2, 1)
    assert found.changed_others == 1
    tail = found.added.bytes - 3 - 1 - len(b"more at the end")
    assert tail == found.removed.bytes - len("12345") - len("a file")  # of the last chunk alone
    assert 0 < tail <= 8 << 20  # the largest chunk

    changes = set(Difference(load_tree, reader.chunk_size).walk(one, two, metadata=True))
    assert Change(Mark.METADATA, b"/touched") in changes


def test_equal_trees_are_not_even_read() -> None:
    def never(id: bytes) -> list[Entry]:
        raise AssertionError(id)

    assert list(Difference(never, len).walk(b"t", b"t")) == []


def file(name: bytes, content: int) -> Entry:
    return Entry(
        name=name,
        kind=Kind.FILE,
        permissions=0,
        uid=0,
        gid=0,
        mtime_ns=0,
        ctime_ns=content,
        inode=content,
        device=0,
        size=content,
        content=(bytes([content]),),
    )


NAMES = st.binary(min_size=1, max_size=2)
SIDES = st.dictionaries(NAMES, st.integers(0, 2), max_size=12)


@given(SIDES, SIDES)
def test_the_merge_finds_what_sets_find(before: dict[bytes, int], after: dict[bytes, int]) -> None:
    trees = {
        b"one": [file(name, content) for name, content in before.items()],  # in any order
        b"two": [file(name, content) for name, content in after.items()],
    }
    found = Difference(trees.__getitem__, lambda id: id[0])
    marks = {path[1:]: mark for mark, path in found.walk(b"one", b"two")}
    assert {n for n, m in marks.items() if m is Mark.ADDED} == after.keys() - before.keys()
    assert {n for n, m in marks.items() if m is Mark.REMOVED} == before.keys() - after.keys()
    assert {n for n, m in marks.items() if m is Mark.MODIFIED} == {
        name for name in before.keys() & after.keys() if before[name] != after[name]
    }
    grown = found.added.bytes - found.removed.bytes
    assert grown == sum(after.values()) - sum(before.values())
