"""The gate before a storage under a virtual clock: who passes when something was refused."""

import contextlib
import threading

import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import Canceled, ObjectMissing, Throttled
from agent.storage.throttle import LONGEST_WISH_SECONDS, Throttle
from tests.storage.conftest import FlyingClock


class Gate:
    """A throttle with longest pauses, and calls that are open until they are told their outcome."""

    def __init__(self) -> None:
        self.clock = FlyingClock()
        self.throttle = Throttle(0.5, 5.0, self.clock, lambda low, high: high)

    def begin(self, calls: int) -> list[contextlib.ExitStack]:
        stacks = [contextlib.ExitStack() for _ in range(calls)]
        for stack in stacks:
            stack.enter_context(self.throttle.passing(NEVER))
        return stacks

    def refuse(self, call: contextlib.ExitStack, wish: float | None = None) -> None:
        error = Throttled("slow", retry_after_seconds=wish)
        with contextlib.suppress(Throttled), call:
            raise error

    def most(self) -> int:
        """Return how many calls pass at a time."""
        open_calls = []
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                if not self.lets_through():
                    break
                open_calls.append(stack.enter_context(self.quiet_passing()))
        return len(open_calls)

    def lets_through(self) -> bool:
        token = CancelToken()
        timer = threading.Timer(0.02, token.cancel, ["nobody was let through"])
        timer.start()
        try:
            with contextlib.suppress(Canceled, ObjectMissing), self.throttle.passing(token):
                raise ObjectMissing("which says nothing of how busy the storage is")
            return not token.canceled
        finally:
            timer.cancel()
            timer.join()

    @contextlib.contextmanager
    def quiet_passing(self):  # type: ignore[no-untyped-def]
        with contextlib.suppress(ObjectMissing), self.throttle.passing(NEVER):
            yield
            raise ObjectMissing("x")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr("agent.storage.throttle._WAIT_SLICE_SECONDS", 0.01)
    return Gate()


def test_everybody_passes_while_nothing_was_refused(gate: Gate) -> None:
    assert gate.most() == 20
    assert gate.clock.time == 0


def test_half_as_many_pass_when_some_are_refused_and_others_are_not(gate: Gate) -> None:
    good, *bad = gate.begin(8)
    good.close()
    for call in bad:
        gate.refuse(call)
    assert gate.most() == 4  # half of the seven that were under way, rounded up
    assert gate.clock.time == 0.5


def test_calls_that_were_under_way_together_are_refused_once(gate: Gate) -> None:
    for call in gate.begin(8):
        gate.refuse(call)
    assert gate.throttle.seconds_left() == 0.5


def test_nothing_succeeds_so_all_wait_twice_as_long_each_time(gate: Gate) -> None:
    waits = []
    for _ in range(6):
        calls = gate.begin(8)
        for call in calls:
            gate.refuse(call)
        waits.append(gate.throttle.seconds_left())
    assert waits == [0.5, 1, 2, 4, 5, 5]
    assert gate.most() == 20


def test_one_success_ends_the_doubling(gate: Gate) -> None:
    for _ in range(5):
        gate.refuse(gate.begin(1)[0])
    gate.begin(1)[0].close()
    gate.refuse(gate.begin(1)[0])
    assert gate.throttle.seconds_left() == 0.5


def test_as_many_as_before_pass_after_a_few_rounds_of_successes(gate: Gate) -> None:
    good, *bad = gate.begin(9)
    good.close()
    for call in bad:
        gate.refuse(call)
    seen = [gate.most()]
    for _ in range(30):
        gate.begin(1)[0].close()
        seen.append(gate.most())
    assert seen[0] == 4
    assert sorted(seen) == seen
    assert {5, 6, 7} < set(seen)
    assert seen[-1] == 20


def test_one_always_passes(gate: Gate) -> None:
    for _ in range(5):
        gate.begin(1)[0].close()
        gate.refuse(gate.begin(1)[0])
    assert gate.most() == 1


def test_the_storages_wish_is_everybodys_wait_within_bounds(gate: Gate) -> None:
    first, second = gate.begin(2)
    gate.refuse(first, 3)
    assert gate.throttle.seconds_left() == 3
    gate.refuse(second, 7)
    assert gate.throttle.seconds_left() == 7
    gate.refuse(gate.begin(1)[0], 10_000)
    assert gate.throttle.seconds_left() == LONGEST_WISH_SECONDS


def test_who_waits_for_room_goes_on_when_there_is_some_or_when_canceled(gate: Gate) -> None:
    gate.begin(1)[0].close()
    gate.refuse(gate.begin(1)[0])
    only = gate.begin(1)[0]
    passed = threading.Event()

    def wait() -> None:
        with gate.throttle.passing(NEVER):
            passed.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not gate.lets_through()
    only.close()
    thread.join(10)
    assert passed.is_set()
