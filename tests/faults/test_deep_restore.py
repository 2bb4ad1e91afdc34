"""Restores of trees that are deeper than calls may nest and than descriptors are held."""

import os
from pathlib import Path

import pytest

from agent.entry import Entry
from agent.transfer.selection import Selection
from agent.volume.writer import TargetTree
from tests.transfer.test_restore import Source, directory, file, problems, run

LEVELS = 1200


def chain(levels: int, name: str = "d") -> Source:
    """Return directories of one name inside each other, and a file in the innermost."""
    trees: dict[str, list[Entry]] = {"root": [directory(name, b"t1")]}
    for level in range(1, levels):
        trees[f"t{level}"] = [directory(name, f"t{level + 1}".encode())]
    trees[f"t{levels}"] = [file("leaf", b"a")]
    return Source(**trees)


@pytest.mark.parametrize("selection", [None, Selection(["leaf"])], ids=["all", "only the leaf"])
def test_a_deep_tree_is_restored_with_the_metadata_of_every_level(
    tmp_path: Path, selection: Selection | None
) -> None:
    monitor = run(chain(LEVELS), tmp_path, selection=selection)
    try:
        assert problems(monitor) == []
        assert_whole(tmp_path)
    finally:
        with TargetTree.open(tmp_path, lambda _: None) as tree:  # shutil's calls nest too deep
            tree.root.remove(b"d", lambda _: None)


def assert_whole(target: Path) -> None:
    here = os.open(target, os.O_RDONLY)
    for _ in range(LEVELS):
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        assert os.fstat(here).st_mtime_ns == 1
    assert os.stat("leaf", dir_fd=here).st_size == 12
    os.close(here)


def test_a_path_of_unreasonable_length_is_left_out_before_it_costs_memory(tmp_path: Path) -> None:
    monitor = run(chain(80, "n" * 255), tmp_path)
    (problem,) = problems(monitor)
    assert "longer than 16384 bytes" in problem
    assert len(problem) < 400
    assert monitor.counters.files == 0
