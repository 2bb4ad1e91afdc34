"""The retry wrapper under a virtual clock: which errors it repeats, when, and for how long."""

import logging
import threading
from collections.abc import Callable

import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import (
    AccessDenied,
    BucketMissing,
    Canceled,
    CredentialsExpired,
    IntegrityRefused,
    ObjectMissing,
    StorageError,
    Throttled,
    Unreachable,
)
from agent.monitor import Monitor
from agent.storage.contract import Listed, Page, read_range
from agent.storage.faults import Fault, Faulty, Operation, failing
from agent.storage.memory import MemoryStorage
from agent.storage.retry import Retrying, RetryPolicy


class VirtualClock:
    def __init__(self) -> None:
        self.time = 100.0
        self.pauses: list[float] = []

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float, cancel: CancelToken) -> None:
        cancel.check()
        self.pauses.append(seconds)
        self.time += seconds


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def memory() -> MemoryStorage:
    memory = MemoryStorage()
    memory.put("x", b"0123456789")
    return memory


def longest(_: float, limit: float) -> float:
    return limit


def wrap(
    storage: MemoryStorage, clock: VirtualClock, *faults: Fault, policy: RetryPolicy | None = None
) -> tuple[Retrying, Faulty]:
    faulty = Faulty(storage, *faults)
    return Retrying(faulty, policy, clock=clock, uniform=longest), faulty


CALLS: list[tuple[Operation, Callable[[Retrying], object], object]] = [
    ("put", lambda s: s.put("y", b"1"), None),
    ("put_new", lambda s: s.put_new("y", b"1"), True),
    ("get", lambda s: s.get("x"), b"0123456789"),
    ("get_range", lambda s: read_range(s, "x", 2, 3), b"234"),
    ("size", lambda s: s.size("x"), 10),
    ("list", lambda s: list(s.list("")), [Listed("x", 10)]),
    ("delete", lambda s: s.delete("x"), None),
]


@pytest.mark.parametrize(("operation", "call", "result"), CALLS, ids=[c[0] for c in CALLS])
def test_every_operation_is_repeated_until_it_works(
    memory: MemoryStorage,
    clock: VirtualClock,
    operation: Operation,
    call: Callable[[Retrying], object],
    result: object,
) -> None:
    storage, faulty = wrap(memory, clock, Fault(operation, failing(Unreachable("reset")), times=3))
    assert call(storage) == result
    assert len(faulty.calls) == 4
    assert clock.pauses == [0.25, 0.5, 1.0]


def test_a_put_whose_answer_was_lost_is_repeated(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    storage, faulty = wrap(memory, clock, Fault("put", failing(Unreachable("lost")), after=True))
    storage.put("y", b"1")
    assert faulty.calls == [("put", "y"), ("put", "y")]
    assert memory.get("y") == b"1"


@pytest.mark.parametrize("kind", [Unreachable, IntegrityRefused, Throttled])
def test_passing_errors_are_repeated(
    memory: MemoryStorage, clock: VirtualClock, kind: type[StorageError]
) -> None:
    storage, _ = wrap(memory, clock, Fault("get", failing(kind("passing", key="x")), times=2))
    assert storage.get("x") == b"0123456789"


@pytest.mark.parametrize("kind", [StorageError, ObjectMissing, BucketMissing, AccessDenied])
def test_final_errors_are_not_repeated(
    memory: MemoryStorage, clock: VirtualClock, kind: type[StorageError]
) -> None:
    storage, faulty = wrap(memory, clock, Fault("get", failing(kind("final")), times=2))
    with pytest.raises(kind, match="final"):
        storage.get("x")
    assert len(faulty.calls) == 1
    assert clock.pauses == []


def test_the_pause_has_a_longest_and_full_jitter(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    asked: list[tuple[float, float]] = []

    def half(low: float, high: float) -> float:
        asked.append((low, high))
        return (low + high) / 2

    faulty = Faulty(memory, Fault("get", failing(Unreachable("down")), times=8))
    Retrying(faulty, clock=clock, uniform=half).get("x")
    assert asked == [(0.0, limit) for limit in (0.25, 0.5, 1, 2, 4, 8, 8, 8)]
    assert clock.pauses == [limit / 2 for _, limit in asked]


def test_the_budget_ends_the_repeating_with_the_last_error(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    policy = RetryPolicy(budget_seconds=60)
    storage, _ = wrap(
        memory, clock, Fault("get", failing(Unreachable("down")), times=999), policy=policy
    )
    with pytest.raises(Unreachable, match="down"):
        storage.get("x")
    assert 52 < clock.time - 100 <= 60


def test_an_outage_of_minutes_is_survived_and_the_next_call_has_a_fresh_budget(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    storage, faulty = wrap(memory, clock, Fault("*", failing(Unreachable("down")), times=100))
    assert storage.get("x") == b"0123456789"
    assert 700 < clock.time - 100 < 900
    faulty.faults.append(Fault("get", failing(Unreachable("down")), times=100))
    assert storage.get("x") == b"0123456789"


def test_a_throttled_call_sleeps_once(memory: MemoryStorage, clock: VirtualClock) -> None:
    storage, _ = wrap(memory, clock, Fault("get", failing(Throttled("slow")), times=3))
    storage.get("x")
    assert clock.pauses == [0.5, 1.0, 2.0]


def test_everybody_waits_when_one_is_throttled(memory: MemoryStorage, clock: VirtualClock) -> None:
    policy = RetryPolicy(budget_seconds=10)
    wish = Throttled("slow", retry_after_seconds=7)
    storage, faulty = wrap(memory, clock, Fault("put", failing(wish), times=2), policy=policy)
    with pytest.raises(Throttled):
        storage.put("y", b"1")
    assert clock.pauses == [7]
    clock.time -= 7  # another thread that arrives while the first one still waits
    storage.get("x")
    assert clock.pauses == [7, 14]
    assert faulty.calls[-1] == ("get", "x")


def test_the_stores_own_wish_wins_unless_it_exceeds_the_budget(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    wishes = [Throttled("slow", retry_after_seconds=s) for s in (3, 2000)]
    storage, _ = wrap(memory, clock, *(Fault("get", failing(w), nth=i) for i, w in
                                       enumerate(wishes, start=1)))  # fmt: skip
    with pytest.raises(Throttled) as caught:
        storage.get("x")
    assert caught.value.retry_after_seconds == 2000
    assert clock.pauses == [3]


def test_refusals_waits_and_retries_are_counted_by_their_reason(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    once = [Throttled("slow", retry_after_seconds=3), Unreachable("reset"), IntegrityRefused("bit")]
    faults = [Fault("get", failing(error), nth=n) for n, error in enumerate(once, 1)]
    monitor = Monitor()
    storage = Retrying(Faulty(memory, *faults), clock=clock, uniform=longest, count=monitor.add)
    assert storage.get("x") == b"0123456789"
    counted = monitor.counters
    assert (counted.throttled, counted.throttled_milliseconds) == (1, 3000)
    assert (counted.retries_throttled, counted.retries_unreachable) == (1, 1)
    assert (counted.retries_integrity, counted.retries_credentials) == (1, 0)
    renewable = RenewableStorage(good_after=2)
    Retrying(renewable, clock=clock, count=monitor.add).get("x")
    assert monitor.counters.retries_credentials == 2


class RenewableStorage(MemoryStorage):
    def __init__(self, good_after: int) -> None:
        super().__init__()
        self.renewals = 0
        self.good_after = good_after

    def renew(self) -> None:
        self.renewals += 1

    def get(self, key: str, **_how: object) -> bytes:
        if self.renewals < self.good_after:
            raise CredentialsExpired("expired", key=key)
        return b"fresh"


def test_expired_credentials_are_renewed_at_once(clock: VirtualClock) -> None:
    renewable = RenewableStorage(good_after=3)
    assert Retrying(renewable, clock=clock).get("x") == b"fresh"
    assert renewable.renewals == 3
    assert clock.time == 100


def test_credentials_that_worked_are_waited_for_while_a_secret_is_exchanged(
    clock: VirtualClock,
) -> None:
    renewable = RenewableStorage(good_after=3)
    storage = Retrying(renewable, clock=clock)
    storage.put("y", b"1")
    assert storage.get("x") == b"fresh"
    assert clock.pauses == [0, 15, 75]


def test_credentials_are_not_waited_for_beyond_the_budget(clock: VirtualClock) -> None:
    renewable = RenewableStorage(good_after=3)
    storage = Retrying(renewable, RetryPolicy(budget_seconds=20), clock=clock)
    storage.put("y", b"1")
    with pytest.raises(CredentialsExpired):
        storage.get("x")
    assert renewable.renewals == 2


def test_credentials_are_renewed_three_times_at_most(clock: VirtualClock) -> None:
    renewable = RenewableStorage(good_after=4)
    with pytest.raises(CredentialsExpired):
        Retrying(renewable, clock=clock).get("x")
    assert renewable.renewals == 3


def test_expired_credentials_of_a_storage_that_cannot_renew_are_final(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    storage, faulty = wrap(memory, clock, Fault("get", failing(CredentialsExpired("expired"))))
    with pytest.raises(CredentialsExpired):
        storage.get("x")
    assert len(faulty.calls) == 1


class PagedStorage(MemoryStorage):
    """Three pages, of which the second fails once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str | None] = []

    def page(self, prefix: str, token: str | None, *, cancel: CancelToken = NEVER) -> Page:
        self.asked.append(token)
        if self.asked == [None, "1"]:
            raise Unreachable("reset")
        number = int(token or 0)
        return Page([Listed(f"k{number}", 1)], str(number + 1) if number < 2 else None)


def test_a_listing_is_repeated_from_the_page_that_failed(clock: VirtualClock) -> None:
    paged = PagedStorage()
    listed = list(Retrying(paged, clock=clock, uniform=longest).list(""))
    assert [entry.key for entry in listed] == ["k0", "k1", "k2"]
    assert paged.asked == [None, "1", "1", "2"]


def test_a_listing_without_pages_that_breaks_off_shows_nothing_twice(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    fault = Fault("list", failing(Unreachable("reset")), after=True)
    storage, _ = wrap(memory, clock, fault)
    assert list(storage.list("")) == [Listed("x", 10)]


def test_a_pause_ends_when_the_work_is_canceled(memory: MemoryStorage) -> None:
    token = CancelToken()

    def cancel_soon() -> None:
        threading.Timer(0.01, token.cancel, ["node drains"]).start()
        raise Throttled("slow", retry_after_seconds=600)

    storage = Retrying(Faulty(memory, Fault("get", cancel_soon)))
    with pytest.raises(Canceled, match="node drains"):
        storage.get("x", cancel=token)


def test_each_repetition_leaves_one_line_with_key_and_reason(
    memory: MemoryStorage, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    storage, _ = wrap(memory, clock, Fault("get", failing(Unreachable("line was cut")), times=2))
    with caplog.at_level(logging.WARNING):
        storage.get("x")
    assert [r.getMessage() for r in caplog.records] == [
        "get x: line was cut; trying again in 0.2 s",
        "get x: line was cut; trying again in 0.5 s",
    ]


def test_it_shows_and_closes_what_it_wraps() -> None:
    class Closable(MemoryStorage):
        closed = False

        def close(self) -> None:
            self.closed = True

    inner = Closable("a place")
    outer = Retrying(Faulty(inner))
    assert outer.place == "a place"
    outer.close()
    assert inner.closed


def test_faults_can_be_aimed_by_key_and_number(memory: MemoryStorage) -> None:
    seen: list[str] = []
    faulty = Faulty(
        memory,
        Fault("put", failing(Unreachable("third")), key="data/*", nth=3),
        Fault("delete", lambda: seen.append("after delete"), after=True),
    )
    for key in ("data/ab/1", "index/1", "data/ab/2"):
        faulty.put(key, b"")
    with pytest.raises(Unreachable, match="third"):
        faulty.put("data/ab/3", b"")
    faulty.put("data/ab/4", b"")
    faulty.delete("data/ab/4")
    assert seen == ["after delete"]
    assert [k.key for k in memory.list("data/")] == ["data/ab/1", "data/ab/2"]
    assert faulty.calls[-1] == ("delete", "data/ab/4")


def test_a_storage_that_never_answered_gets_less_patience_than_one_that_did(
    memory: MemoryStorage, clock: VirtualClock
) -> None:
    policy = RetryPolicy(budget_seconds=600, first_contact_seconds=20)
    storage, _ = wrap(
        memory,
        clock,
        Fault("get", failing(Unreachable("down")), times=999),
        policy=policy,
    )
    with pytest.raises(Unreachable, match="down"):
        storage.get("x")
    assert clock.time - 100 <= 20
    assert storage.size("x") == 10
    begun = clock.time
    with pytest.raises(Unreachable, match="down"):
        storage.get("x")
    assert 580 < clock.time - begun <= 600
