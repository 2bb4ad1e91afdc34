"""Transfers as values: rates, what is left, order on the screen, what is shown at all."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.order import Order, OrderKind, Owner, parse
from agent.cluster.transfer import Transfers, of_node, recent, seconds_of, sums
from tests.cluster.scene import pvb_object

START = "2026-01-01T00:00:00Z"
ZERO = seconds_of(START) or 0.0


def running(done: int, total: int = 1000, uid: str = "u", **changes: object) -> Order:
    order = Order(uid=uid, name=uid, phase="InProgress", created=START, started=START)
    return msgspec.structs.replace(order, done_bytes=done, total_bytes=total, **changes)


def test_an_object_is_read_with_its_progress_and_its_end() -> None:
    status = {
        "phase": "Completed",
        "completionTimestamp": START,
        "progress": {"totalBytes": 9, "bytesDone": 7},
    }
    order = parse(OrderKind.BACKUP, msgspec.json.encode({**pvb_object("b"), "status": status}))
    assert (order.ended, order.total_bytes, order.done_bytes) == (START, 9, 7)


def test_the_first_look_knows_the_average_since_the_start() -> None:
    (seen,) = Transfers().seen([running(200)], ZERO + 10)
    assert (seen.age_seconds, seen.seconds) == (10, 10)
    assert (seen.bytes_per_second, seen.left_seconds) == (20, 40)


def test_later_looks_know_the_rate_of_late() -> None:
    transfers = Transfers()
    transfers.seen([running(100)], ZERO + 1000)
    (seen,) = transfers.seen([running(400)], ZERO + 1010)
    assert (seen.bytes_per_second, seen.left_seconds) == (30, 20)


def test_what_stands_still_has_no_rate_after_a_while_and_no_end() -> None:
    transfers = Transfers()
    for second in range(0, 200, 10):
        (seen,) = transfers.seen([running(500)], ZERO + second)
    assert seen.bytes_per_second == 0
    assert seen.left_seconds is None


def test_one_that_was_begun_again_has_no_rate_below_zero() -> None:
    transfers = Transfers()
    transfers.seen([running(900)], ZERO + 10)
    (seen,) = transfers.seen([running(100)], ZERO + 20)
    assert seen.bytes_per_second is None
    assert seen.left_seconds is None


def test_what_has_ended_has_its_average_and_nothing_left() -> None:
    order = Order(
        phase="Completed", created=START, started=START, ended="2026-01-01T00:00:50Z",
        done_bytes=500, total_bytes=500,
    )  # fmt: skip
    (seen,) = Transfers().seen([order], ZERO + 3600)
    assert (seen.seconds, seen.bytes_per_second, seen.left_seconds) == (50, 10, None)
    assert seen.age_seconds == 3600


@given(
    st.text(max_size=30),
    st.integers(-(2**63), 2**63),
    st.integers(-(2**63), 2**63),
    st.sampled_from(["", "New", "InProgress", "Completed", "Failed", "?"]),
    st.lists(st.floats(-1e9, 1e12), min_size=1, max_size=4),
)
def test_no_time_and_no_number_is_too_strange(
    time: str, done: int, total: int, phase: str, looks: list[float]
) -> None:
    order = Order(phase=phase, started=time, ended=time, done_bytes=done, total_bytes=total)
    transfers = Transfers()
    for now in looks:
        (seen,) = transfers.seen([order], now)
        assert seen.left_seconds is None or seen.left_seconds > 0 or seen.bytes_per_second
        assert recent([order], now, 60) in ([], [order])


def test_what_runs_comes_first_then_what_waits_then_the_last_that_ended() -> None:
    orders = [
        Order(uid="1", name="early", phase="Completed", ended="2026-01-01T00:00:00Z"),
        Order(uid="2", name="late", phase="Failed", ended="2026-01-02T00:00:00Z"),
        Order(uid="3", name="second", created="2026-01-01T00:00:01Z"),
        Order(uid="4", name="first", phase="New", created="2026-01-01T00:00:00Z"),
        running(0, uid="runs"),
    ]
    for several in itertools.permutations(orders):
        names = [each.order.name for each in Transfers().seen(several, ZERO)]
        assert names == ["runs", "first", "second", "late", "early"]
    assert sums(Transfers().seen([*orders, running(50, uid="too")], ZERO + 10)) == (2, 2, 5.0)


@pytest.mark.parametrize(
    ("phase", "ended", "kept"),
    [
        ("Completed", "2026-01-01T00:00:00Z", False),
        ("Completed", "2026-01-01T00:59:00Z", True),
        ("Completed", "", True),
        ("Completed", "no time", True),
        ("InProgress", "", True),
        ("", "", True),
    ],
)
def test_what_ended_long_ago_is_left_out(phase: str, ended: str, kept: bool) -> None:
    order = Order(phase=phase, ended=ended)
    assert (recent([order], ZERO + 3700, 3600) == [order]) is kept


def test_a_restore_is_of_the_node_whose_agent_has_claimed_it() -> None:
    backup, restore = Order(node="n1"), Order(kind=OrderKind.RESTORE, owner=Owner(node="n2"))
    new = Order(kind=OrderKind.RESTORE)
    assert of_node([backup, restore, new], "") == [backup, restore, new]
    assert of_node([backup, restore, new], "n1") == [backup]
    assert of_node([backup, restore, new], "n2") == [restore]
