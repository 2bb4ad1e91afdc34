"""What unfinished directories may hold in memory, and what becomes of that which does not fit."""

import os
import threading
from pathlib import Path

import pytest

from agent import footprint
from agent.transfer import holding
from agent.transfer.folder import Folder
from agent.transfer.holding import (
    ENTRY_BYTES,
    RESERVED_BYTES,
    Holding,
    attributes_weight,
    names_weight,
)
from tests.transfer.running import Bench
from tests.transfer.test_restore import directory

MIB = 1 << 20


def below(parent: Folder) -> Folder:
    return Folder(parent, 0, directory("d", b"t"), None)


def never() -> None:
    pytest.fail("waits")


def test_beside_other_runs_there_is_less_room_but_nothing_is_left_out_for_it() -> None:
    share = 10 * ENTRY_BYTES
    account, root = Holding(10 * ENTRY_BYTES, lambda: share), Folder.root(None)
    share = 4 * ENTRY_BYTES
    assert account.room(root) == 4 * ENTRY_BYTES
    assert account.hold(root, 9 * ENTRY_BYTES, never)
    child = below(root)
    assert account.room(child) == 0
    assert account.try_hold(child, ENTRY_BYTES)
    assert not account.hold(child, 2 * ENTRY_BYTES, never)


def test_what_directories_above_hold_is_not_there_for_those_below() -> None:
    account, root = Holding(10 * ENTRY_BYTES), Folder.root(None)
    assert account.room(root) == 10 * ENTRY_BYTES
    assert account.hold(root, 4 * ENTRY_BYTES, never)
    child = below(root)
    assert account.room(child) == 6 * ENTRY_BYTES
    assert account.try_hold(child, 6 * ENTRY_BYTES)
    assert not account.try_hold(child, 1)
    account.release(child)
    assert account.try_hold(child, ENTRY_BYTES)


def test_the_walk_waits_for_directories_beside_it() -> None:
    account, root = Holding(10 * ENTRY_BYTES), Folder.root(None)
    before, after = below(root), below(root)
    assert account.hold(before, 8 * ENTRY_BYTES, never)
    assert not account.hold(after, 11 * ENTRY_BYTES, never)
    waiting = threading.Event()

    def finish() -> None:
        waiting.wait(10)
        account.release(before)

    thread = threading.Thread(target=finish)
    thread.start()
    assert account.hold(after, 5 * ENTRY_BYTES, waiting.set)
    thread.join()
    assert account.room(below(after)) == 5 * ENTRY_BYTES


def test_what_grows_above_while_somebody_waits_is_not_waited_for() -> None:
    account, root = Holding(10 * ENTRY_BYTES), Folder.root(None)
    above, beside = below(root), below(root)
    assert account.hold(beside, 4 * ENTRY_BYTES, never)
    assert account.hold(above, 4 * ENTRY_BYTES, never)

    def grow() -> None:
        assert account.try_hold(above, ENTRY_BYTES)
        account.release(beside)

    assert not account.hold(below(above), 6 * ENTRY_BYTES, grow)  # and does not wait for ever
    assert account.hold(below(above), 5 * ENTRY_BYTES, never)


@pytest.mark.parametrize(
    ("limits", "budget"),
    [
        ([str(512 * MIB)], (512 * MIB - RESERVED_BYTES) * 2 // 3),
        (["max", str(400 * MIB)], (400 * MIB - RESERVED_BYTES) * 2 // 3),
        (["1"], 64 * MIB),
    ],
)
def test_the_budget_is_what_the_containers_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: list[str], budget: int
) -> None:
    for number, limit in enumerate(limits):
        (tmp_path / str(number)).write_text(f"{limit}\n")
    paths = [str(tmp_path / str(number)) for number in range(len(limits) + 1)]
    monkeypatch.setattr(footprint, "LIMITS", tuple(paths))
    assert holding.budget_bytes() == budget


def test_light_attributes_weigh_nothing_of_their_own() -> None:
    assert attributes_weight(((b"security.selinux", b"x" * 60),)) == 0
    assert attributes_weight(((b"user.a", b"x" * 65536),)) > 6 * 65000


def test_long_names_weigh_more_than_short_ones() -> None:
    assert names_weight([b"a" * 20, b"b" * 64]) == 2 * ENTRY_BYTES
    assert names_weight([b"\xff" * 255]) > 3000


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave room for 12 entries."""
    monkeypatch.setattr("agent.transfer.folders.budget_bytes", lambda: 12 * ENTRY_BYTES)


@pytest.mark.usefixtures("little")
def test_what_does_not_fit_is_left_out_and_what_comes_after_it_is_kept(bench: Bench) -> None:
    for name, count in (("a", 9), ("b", 10), ("c", 8)):
        (bench.volume / name).mkdir()
        for number in range(count):
            (bench.volume / name / f"f{number}").write_bytes(os.urandom(10))
    for _ in range(2):
        result = bench.run()
        (problem,) = bench.monitor.problems
        assert (problem.path, "has 10 entries" in problem.reason) == (b"b", True)
        assert len(bench.entries(result.snapshot_id)) == 2 + 9 + 8


def test_a_parent_that_does_not_fit_costs_reading_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holding, "try_hold", lambda *_: False)
    for number in range(8):
        (bench.volume / f"f{number}").write_bytes(b"%d" % number)
    bench.run()
    (bench.volume / "g").write_bytes(b"g")
    result = bench.run()
    assert (result.counters.problems, result.counters.files_new) == (0, 9)
    assert (result.counters.files_unmodified, result.counters.data_blobs) == (0, 1)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_attributes_that_do_not_fit_are_left_off_and_named(bench: Bench, kind: str) -> None:
    for name in ("a", "b"):
        path = bench.volume / name
        path.mkdir() if kind == "directory" else path.write_bytes(b"x")
        os.setxattr(path, "user.a", b"x" * 2000)
    result = bench.run()
    (problem,) = bench.monitor.problems
    assert "kept without its extended attributes" in problem.reason
    kept = [bool(entry.xattrs) for entry in bench.entries(result.snapshot_id).values()]
    assert sorted(kept) == [False, True]
