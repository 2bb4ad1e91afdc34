"""Paths lead to what a snapshot holds, and to nothing else."""

import os
from pathlib import Path

import pytest

from agent.cancel import CancelToken
from agent.errors import Canceled, UsageError
from agent.repository.paths import find, walk
from tests.transfer.running import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench.new(tmp_path / "volume")
    (bench.volume / "a" / "b").mkdir(parents=True)
    (bench.volume / "a" / "b" / "file").write_text("x")
    (bench.volume / "a" / "b.txt").write_text("y")
    Path(os.fsdecode(bytes(bench.volume) + b"/bad\xff")).write_text("z")
    (bench.volume / "link").symlink_to("a")
    return bench


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/", b""),
        (b"", b""),
        (b"./", b""),
        (b"/a", b"/a"),
        (b"a//b/", b"/a/b"),
        (b"/a/./b/file", b"/a/b/file"),
        (b"bad\xff", b"/bad\xff"),
        (b"link", b"/link"),
    ],
)
def test_a_path_leads_to_its_entry(bench: Bench, path: bytes, found: bytes) -> None:
    tree = bench.repository().snapshot(bench.run().snapshot_id).tree
    place = find(bench.repository().reading().load_tree, tree, path)
    assert place.path == found
    assert (place.tree is None) == (found in (b"/a/b/file", b"/bad\xff", b"/link"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            b"/a/c/d",
            "/a/c/d is not in the snapshot; the nearest that is there is the directory /a ",
        ),
        (b"nothing", "/nothing is not in the snapshot; the nearest .* directory / "),
        (b"/a/b/file/x", "/a/b/file is a file"),
        (b"link/b", "/link is a symlink to a, which is not followed"),
        (b"/a/../a", r"\.\. is not followed"),
        (b"\xfe", r"/\\xfe is not in"),
    ],
)
def test_a_path_to_nothing_names_the_nearest_that_is_there(
    bench: Bench, path: bytes, words: str
) -> None:
    tree = bench.repository().snapshot(bench.run().snapshot_id).tree
    with pytest.raises(UsageError, match=words):
        find(bench.repository().reading().load_tree, tree, path)


def test_a_walk_goes_through_directories_in_order_and_reads_each_when_it_comes_to_it(
    bench: Bench,
) -> None:
    tree = bench.repository().snapshot(bench.run().snapshot_id).tree
    reader = bench.repository().reading()
    read: list[bytes] = []

    def load_tree(id: bytes):  # type: ignore[no-untyped-def]
        read.append(id)
        return reader.load_tree(id)

    steps = walk(load_tree, find(load_tree, tree, b"/"))
    read.clear()
    assert next(steps)[0] == b"/a"
    assert len(read) == 1
    assert [path for path, _ in steps] == [
        b"/a/b",
        b"/a/b/file",
        b"/a/b.txt",
        b"/bad\xff",
        b"/link",
    ]
    flat = walk(load_tree, find(load_tree, tree, b"a"), recursive=False)
    assert [path for path, _ in flat] == [b"/a/b", b"/a/b.txt"]
    alone = walk(load_tree, find(load_tree, tree, b"a/b.txt"))
    assert [path for path, _ in alone] == [b"/a/b.txt"]


def test_a_walk_can_be_stopped(bench: Bench) -> None:
    tree = bench.repository().snapshot(bench.run().snapshot_id).tree
    load_tree = bench.repository().reading().load_tree
    cancel = CancelToken()
    steps = walk(load_tree, find(load_tree, tree, b"/"), cancel=cancel)
    next(steps)
    cancel.cancel("enough")
    with pytest.raises(Canceled, match="enough"):
        next(steps)
