"""Retention: which snapshots a policy keeps, and why.

Values in, decision out. The rule guarded here: the same decision as restic's for the same
snapshots and the same policy, because both will be run on one repository. Hours, days, weeks,
months and years are those of the wall clock that the snapshot's own time names, not of the
machine that decides (restic-format.md section 12.3). Going from the newest snapshot to the
oldest, a rule keeps the first snapshot of each of its periods until its number is used up; while
it is not, it keeps the oldest snapshot of all as well.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from agent.errors import UsageError
from agent.repository.snapshot import Snapshot
from agent.repository.times import NANOSECONDS, civil_date, day_of

PERIODS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
UNLIMITED = -1
GROUPINGS = ("host", "paths", "tags")

_DAY_SECONDS = 86_400
_DURATION = re.compile(r"(\d{1,18})([ymdh])", re.ASCII)
_THURSDAY = 3  # counted from Monday: a week belongs to the year that its Thursday is in


class Duration(msgspec.Struct, frozen=True):
    """A span as people count it: months and years have the length that the calendar gives."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0
    text: str = ""

    def before(self, time_ns: int, offset_seconds: int) -> int:
        """Return the instant (ns) that lies this span before another, by its wall clock."""
        seconds, nanos = divmod(time_ns, NANOSECONDS)
        day, clock = divmod(seconds + offset_seconds, _DAY_SECONDS)
        year, month, day_of_month = civil_date(day)
        months = (year - self.years) * 12 + month - 1 - self.months
        first = day_of(months // 12, months % 12 + 1, day_of_month - self.days)
        local = first * _DAY_SECONDS + clock - self.hours * 3600
        return (local - offset_seconds) * NANOSECONDS + nanos


def parse_duration(text: str) -> Duration:
    """Parse ``1y5m7d2h``, any part of which may be missing; raise ``UsageError``."""
    parts = _DURATION.findall(text)
    units = [unit for _, unit in parts]
    if not parts or "".join(n + u for n, u in parts) != text or len(set(units)) != len(units):
        raise UsageError(f"{text!r} is no duration; write it as 1y5m7d2h (years, months, days, h)")
    count = {unit: int(number) for number, unit in parts}
    if max(count.values()) > 100_000:
        raise UsageError(f"the duration {text!r} is longer than any repository is old")
    years, months, days, hours = (count.get(unit, 0) for unit in "ymdh")
    return Duration(years, months, days, hours, text)


class Policy(msgspec.Struct, frozen=True):
    """What to keep: a snapshot stays if any of the rules says so.

    ``counts`` maps periods to how many of them keep a snapshot (``UNLIMITED`` for all);
    ``within`` keeps everything that is younger than the newest snapshot by less than a span, and
    ``within_period`` one snapshot a period of those. Each of ``tags`` is a set of tags that a
    snapshot needs, "" being for snapshots that have none.
    """

    counts: Mapping[str, int] = {}
    within: Duration | None = None
    within_period: Mapping[str, Duration] = {}
    tags: tuple[tuple[str, ...], ...] = ()

    @property
    def empty(self) -> bool:
        """Tell whether no rule is given."""
        return not (any(self.counts.values()) or self.within or self.within_period or self.tags)


class Verdict(msgspec.Struct, frozen=True):
    """One snapshot, and the rules that keep it; none means that it is to be removed."""

    snapshot: Snapshot
    reasons: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """Tell whether the snapshot stays."""
        return bool(self.reasons)


class Group(msgspec.Struct, frozen=True, order=True):
    """What the snapshots that one policy is applied to have in common; "" and () say nothing."""

    host: str = ""
    paths: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what an operator would call the group."""
        parts = [
            f"host {self.host}" if self.host else "",
            f"paths {', '.join(self.paths)}" if self.paths else "",
            f"tags {', '.join(self.tags)}" if self.tags else "",
        ]
        return "; ".join(filter(None, parts)) or "all snapshots"


class Filter(msgspec.Struct, frozen=True):
    """Which snapshots are looked at: any of the hosts, any of the tag sets, all of the paths."""

    hosts: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()
    paths: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Tell whether everything passes."""
        return not (self.hosts or self.tags or self.paths)

    def admits(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot passes."""
        return (
            (not self.hosts or snapshot.hostname in self.hosts)
            and (not self.tags or any(has_tags(snapshot, wanted) for wanted in self.tags))
            and set(self.paths) <= set(snapshot.paths)
        )


def tag_sets(texts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the sets of tags that texts such as ``a=1,b=2`` ask for."""
    return tuple(tuple(text.split(",")) for text in texts)


def has_tags(snapshot: Snapshot, wanted: Sequence[str]) -> bool:
    """Tell whether a snapshot has all the tags; "" is met by having none."""
    if "" in wanted and not snapshot.tags:
        return True
    return set(wanted) <= set(snapshot.tags)


def group(snapshots: Iterable[Snapshot], by: Sequence[str]) -> dict[Group, list[Snapshot]]:
    """Sort snapshots into groups by any of ``GROUPINGS``; raise ``UsageError`` for others."""
    unknown = [name for name in by if name not in GROUPINGS]
    if unknown:
        raise UsageError(f"cannot group by {unknown[0]!r}; choose of {', '.join(GROUPINGS)}, or ''")
    groups: dict[Group, list[Snapshot]] = {}
    for snapshot in snapshots:
        key = Group(
            snapshot.hostname if "host" in by else "",
            tuple(sorted(snapshot.paths)) if "paths" in by else (),
            tuple(sorted(snapshot.tags)) if "tags" in by else (),
        )
        groups.setdefault(key, []).append(snapshot)
    return dict(sorted(groups.items()))


def decide(snapshots: Iterable[Snapshot], policy: Policy, now_ns: int) -> list[Verdict]:
    """Return a verdict on each snapshot of one group, newest first.

    Spans count from the newest snapshot that is not in the future of ``now_ns``.
    """
    ordered = sorted(snapshots, key=lambda s: s.time_ns, reverse=True)
    rules = [*_rules(policy, _newest(ordered, now_ns))]
    verdicts = []
    for place, snapshot in enumerate(ordered):
        oldest = place == len(ordered) - 1
        reasons = [
            f"has tags {', '.join(filter(None, tags)) or '(none)'}"
            for tags in policy.tags
            if has_tags(snapshot, tags)
        ]
        reasons += [reason for rule in rules if (reason := rule.keeps(snapshot, place, oldest))]
        verdicts.append(Verdict(snapshot, tuple(reasons)))
    return verdicts


def _newest(ordered: Sequence[Snapshot], now_ns: int) -> Snapshot | None:
    return next((s for s in ordered if s.time_ns < now_ns), None)


class _Rule:
    """One rule on its way from the newest snapshot to the oldest."""

    def __init__(self, period: str, name: str, count: int, after_ns: int | None = None) -> None:
        self._period = _PERIOD_OF[period]
        self._name = name
        self._left = count
        self._after_ns = after_ns
        self._last: object = None

    def keeps(self, snapshot: Snapshot, place: int, oldest: bool) -> str:
        """Return why the rule keeps this snapshot, or ""."""
        if not self._left or (self._after_ns is not None and snapshot.time_ns <= self._after_ns):
            return ""
        period = self._period(snapshot, place)
        new = period != self._last
        if not new and not oldest:
            return ""
        self._last = period
        if self._left > 0:
            self._left -= 1
        return self._name if new else f"oldest {self._name}"


def _rules(policy: Policy, newest: Snapshot | None) -> Iterable[_Rule]:
    for period in PERIODS:
        if count := policy.counts.get(period, 0):
            yield _Rule(period, f"{period} snapshot", count)
    if newest is None:
        return
    if policy.within is not None:
        after = policy.within.before(newest.time_ns, newest.offset_seconds)
        yield _Rule("last", f"within {policy.within.text}", UNLIMITED, after)
    for period in PERIODS:
        if span := policy.within_period.get(period):
            after = span.before(newest.time_ns, newest.offset_seconds)
            yield _Rule(period, f"{period} within {span.text}", UNLIMITED, after)


def _wall_clock(snapshot: Snapshot) -> tuple[int, int]:
    """Return (day since 1970-01-01, hour) by the snapshot's own clock."""
    seconds = snapshot.time_ns // NANOSECONDS + snapshot.offset_seconds
    return seconds // _DAY_SECONDS, seconds % _DAY_SECONDS // 3600


def _week(snapshot: Snapshot) -> tuple[int, int]:
    """Return the ISO year and week."""
    day = _wall_clock(snapshot)[0]
    thursday = day - (day + _THURSDAY) % 7 + _THURSDAY  # 1970-01-01 was a Thursday
    year = civil_date(thursday)[0]
    return year, (thursday - day_of(year, 1, 1)) // 7 + 1


_PERIOD_OF: dict[str, Callable[[Snapshot, int], object]] = {
    "last": lambda snapshot, place: place,
    "hourly": lambda snapshot, place: _wall_clock(snapshot),
    "daily": lambda snapshot, place: _wall_clock(snapshot)[0],
    "weekly": lambda snapshot, place: _week(snapshot),
    "monthly": lambda snapshot, place: civil_date(_wall_clock(snapshot)[0])[:2],
    "yearly": lambda snapshot, place: civil_date(_wall_clock(snapshot)[0])[0],
}
