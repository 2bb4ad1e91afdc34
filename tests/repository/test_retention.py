"""Retention without restic: each rule, clocks, groups, filters, and how snapshots are removed.

That the decisions are restic's is shown in tests/interop/test_forget.py.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cancel import NEVER, CancelToken
from agent.errors import Canceled, LockLost, RepositoryError, UsageError
from agent.repository.forget import find_named, remove_named, remove_snapshots
from agent.repository.opening import open_repository
from agent.repository.retention import (
    PERIODS,
    UNLIMITED,
    Filter,
    Group,
    Policy,
    decide,
    group,
    parse_duration,
)
from agent.repository.snapshot import Snapshot
from agent.repository.times import NANOSECONDS, format_time, parse_time, utc
from agent.storage.faults import Faulty
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, keys, new_repository
from tests.repository.mess import noise, save

FOREVER = 1 << 62
numbers = itertools.count()


def at(time: str, offset_seconds: int = 0, **rest: object) -> Snapshot:
    id = f"{next(numbers):064x}"
    fields = {"time_ns": parse_time(time), "offset_seconds": offset_seconds, "tree": bytes(32)}
    return Snapshot(id=id, **fields, **rest)  # type: ignore[arg-type]


def kept(snapshots: list[Snapshot], policy: Policy, now_ns: int = FOREVER) -> list[Snapshot]:
    return [verdict.snapshot for verdict in decide(snapshots, policy, now_ns) if verdict.keep]


class TestRules:
    def test_the_newest_of_each_day_is_kept_and_the_oldest_of_all(self) -> None:
        days = [at(f"2026-01-{day:02}T{hour:02}:00:00Z") for day in (1, 2, 3) for hour in (1, 9)]
        assert kept(days, Policy({"daily": 2})) == [days[5], days[3]]
        assert kept(days, Policy({"daily": 9})) == [days[5], days[3], days[1], days[0]]

    def test_a_day_is_one_of_the_clock_that_made_the_snapshot(self) -> None:
        evening = at("2026-01-01T23:30:00+02:00", 7200)  # the same day in UTC as the next one
        night = at("2026-01-02T00:30:00+02:00", 7200)
        assert kept([evening, night], Policy({"daily": 2})) == [night, evening]
        other = at("2026-01-01T22:30:00Z")
        earlier = at("2026-01-01T21:30:00Z")
        oldest = at("2025-12-31T00:00:00Z")
        assert earlier not in kept([other, earlier, oldest], Policy({"daily": 2}))

    def test_a_week_belongs_to_the_year_of_its_thursday(self) -> None:
        days = [at(f"{day}T00:00:00Z") for day in ("2024-12-29", "2024-12-30", "2025-01-05")]
        assert kept(days, Policy({"weekly": 1})) == [days[2]]
        assert kept(days, Policy({"weekly": 2})) == [days[2], days[0]]
        assert kept(days, Policy({"yearly": 1})) == [days[2]]

    def test_a_span_of_a_month_ends_where_the_calendar_says(self) -> None:
        newest = at("2026-03-31T12:00:00Z")
        inside, outside = at("2026-03-03T12:00:01Z"), at("2026-03-03T12:00:00Z")
        policy = Policy(within=parse_duration("1m"))  # 31 February is 3 March
        assert kept([newest, inside, outside], policy) == [newest, inside]

    def test_a_span_does_not_count_from_the_future(self) -> None:
        future, now, old = (at(f"{year}-01-01T00:00:00Z") for year in (2090, 2026, 2024))
        policy = Policy(within=parse_duration("1y"))
        assert kept([future, now, old], policy, parse_time("2026-06-01T00:00:00Z")) == [future, now]

    def test_snapshots_with_all_of_the_tags_are_kept(self) -> None:
        both, one, none = (at("2026-01-01T00:00:00Z", tags=t) for t in (("a", "b"), ("a",), ()))
        assert kept([both, one, none], Policy(tags=(("a", "b"),))) == [both]
        assert kept([both, one, none], Policy(tags=(("",),))) == [none]

    def test_unlimited_keeps_one_of_every_period(self) -> None:
        years = [at(f"{year}-01-01T00:00:00Z") for year in range(1990, 2020)]
        assert kept(years, Policy({"yearly": UNLIMITED})) == years[::-1]

    def test_the_first_and_the_last_year_are_no_obstacle(self) -> None:
        ends = [at("0000-01-01T00:00:00Z"), at("9999-12-31T23:59:59Z")]
        every = Policy(dict.fromkeys(PERIODS, 1), parse_duration("90000y11m3000d9h"))
        assert kept(ends, every) == ends[::-1]


@given(
    st.lists(st.integers(0, 10**9), unique=True, max_size=40),
    st.dictionaries(st.sampled_from(PERIODS), st.integers(1, 5), min_size=1),
)
def test_any_policy_keeps_the_newest_and_no_more_than_it_may(
    seconds: list[int], counts: dict[str, int]
) -> None:
    snapshots = [at(format_time(s * NANOSECONDS, utc)) for s in seconds]
    verdicts = decide(snapshots, Policy(counts), FOREVER)
    assert sorted(v.snapshot.id for v in verdicts) == sorted(s.id for s in snapshots)
    keep = [v for v in verdicts if v.keep]
    assert not verdicts or verdicts[0].keep
    assert len(keep) <= sum(counts.values())
    assert len(keep) >= min(counts.get("last", 0), len(snapshots))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "y",
        "1",
        "1w",
        "-1d",
        "1d1d",
        "1y 2d",
        "1.5h",
        "d1",
        "999999999y",
        "\uff11d",
        "9" * 5000 + "d",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_groups_do_not_depend_on_the_order_of_paths_and_tags() -> None:
    one = at("2026-01-01T00:00:00Z", hostname="h", paths=("/a", "/b"), tags=("x", "y"))
    two = at("2026-01-02T00:00:00Z", hostname="h", paths=("/b", "/a"), tags=("y", "x"))
    other = at("2026-01-02T00:00:00Z", hostname="i", paths=("/b", "/a"), tags=("y",))
    by_all = group([one, two, other], ["host", "paths", "tags"])
    assert by_all == {
        Group("h", ("/a", "/b"), ("x", "y")): [one, two],
        Group("i", ("/a", "/b"), ("y",)): [other],
    }
    assert next(iter(by_all)).describe() == "host h; paths /a, /b; tags x, y"
    assert group([one, two, other], []) == {Group(): [one, two, other]}


def test_filters_of_one_kind_are_alternatives_but_for_paths() -> None:
    one = at("2026-01-01T00:00:00Z", hostname="h", paths=("/a", "/b"), tags=("x",))
    assert Filter(hosts=("g", "h"), tags=(("y",), ("x",)), paths=("/a",)).admits(one)
    assert not Filter(paths=("/a", "/c")).admits(one)
    assert not Filter(tags=(("x", "y"), ("",))).admits(one)


class TestRemoving:
    def test_the_lock_is_proven_before_each_removal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = Faulty(MemoryStorage())
        repository = new_repository(storage)
        for day in range(3):
            save(repository, {"a": noise(day)}, day)
        with repository.locked(exclusive=True) as lock:
            monkeypatch.setattr(lock, "prove", lambda: storage.calls.append(("prove", "")))
            snapshots = repository.snapshots()
            storage.calls.clear()
            remove_snapshots(repository, lock, snapshots[:2], NEVER)
            assert [op for op, _ in storage.calls] == ["prove", "delete"] * 2
        assert [s.id for s in repository.snapshots()] == [snapshots[2].id]

    def test_nothing_is_removed_without_the_lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = MemoryStorage()
        repository = new_repository(storage)
        id = save(repository, {"a": noise(1)}, 1)
        with (
            repository.locked(exclusive=False) as shared,
            pytest.raises(RepositoryError, match="exclusive"),
        ):
            remove_named(repository, shared, [id], NEVER)
        with repository.locked(exclusive=True) as lock:
            for key in keys(storage, "locks"):
                storage.delete(key)
            monkeypatch.setattr("agent.repository.locking.YOUNG_SECONDS", -1.0)
            with pytest.raises(LockLost):
                remove_named(repository, lock, [id], NEVER)
        assert len(keys(storage, "snapshots")) == 1

    def test_a_stop_is_heeded_between_two(self) -> None:
        repository = new_repository()
        ids = [save(repository, {"a": noise(day)}, day) for day in range(2)]
        token = CancelToken()
        token.cancel("enough")
        with repository.locked(exclusive=True) as lock, pytest.raises(Canceled):
            remove_named(repository, lock, ids, token)
        assert len(repository.snapshots()) == 2

    def test_what_stands_for_none_or_for_several_is_refused(self) -> None:
        storage = MemoryStorage()
        repository = open_repository(new_repository(storage).objects.storage, PASSWORD)
        for name in ("ab" * 32, "ac" * 32):
            storage.put(f"snapshots/{name}", b"damaged")
        assert find_named(repository, ["ab", "ab" * 32]) == ["ab" * 32]
        for text in ("a", "", "ff"):
            with pytest.raises(UsageError, match="nothing was removed"):
                find_named(repository, [text])
