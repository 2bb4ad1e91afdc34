"""Times as restic writes them: RFC 3339 with up to nine digits, in the writer's local zone.

The same instant has one text per time zone, and the text goes into the bytes of a tree, hence
into its id. So the rule here is: the text is exactly the one that Go's ``time.Time`` produces
for the instant in that zone (restic-format.md section 12.3), and what Go refuses is refused.

This module reads no clock and no zone database: whoever knows the zone passes it in.
"""

import functools
import re
from collections.abc import Callable

from agent.errors import MalformedData

Zone = Callable[[int], int]
"""Maps an instant (unix seconds) to the offset in seconds east of UTC that is valid then."""

NANOSECONDS = 1_000_000_000
_DAY_SECONDS = 86_400
_ERA_DAYS = 146_097  # 400 Gregorian years
_EPOCH_DAYS = 719_468  # from 0000-03-01 to 1970-01-01

ZERO_TIME_NS = -62_135_596_800 * NANOSECONDS
"""0001-01-01T00:00:00Z: what Go, hence restic, takes a missing time to be."""

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d?):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
_HOUR = re.compile(r"\d{4}-\d\d-\d\dT\d\d", re.ASCII)


def utc(_seconds: int) -> int:
    """Serve as the zone of those who want UTC."""
    return 0


def fixed_zone(offset_seconds: int) -> Zone:
    """Return the zone that is always ``offset_seconds`` east of UTC."""
    return lambda _seconds: offset_seconds


def format_time(ns: int, zone: Zone) -> str:
    """Return the text of the instant ``ns`` (nanoseconds since the epoch) in ``zone``.

    Years outside 0 to 9999 are set to the nearest of the two with month, day and clock kept,
    as restic does, because readers refuse them. Seconds of an offset are not shown (Go cuts
    towards zero), so a historic local mean time does not read back as the same instant.
    """
    seconds, nanos = divmod(ns, NANOSECONDS)
    offset = zone(seconds)
    local = seconds + offset
    if not _FIRST_SECOND <= local <= _LAST_SECOND:
        offset, local = _into_range(local, zone)
    hour, second = divmod(local, 3600)
    if not nanos:
        return f"{_hour_text(hour)}{_IN_HOUR_TEXTS[second]}{_offset_text(offset)}"
    fraction = f"{nanos:09d}" if nanos % 10 else f"{nanos:09d}".rstrip("0")
    return f"{_hour_text(hour)}{_IN_HOUR_TEXTS[second]}.{fraction}{_offset_text(offset)}"


def parse_time(text: str) -> int:
    """Return the instant in nanoseconds since the epoch; digits beyond the ninth are dropped.

    Accepts what Go's ``time.Time`` accepts in JSON: RFC 3339, also with a one-digit hour, a
    comma before the fraction, and offsets up to 24:60. Raises ``MalformedData``.
    """
    try:
        return _parse_usual(text)
    except LookupError:
        return _parse_any(text)


def _parse_usual(text: str) -> int:
    """Parse a text as ``format_time`` writes it; ``LookupError`` for every other one.

    Every piece but the fraction is looked up, so nothing is accepted that is not known.
    """
    if text[-1] == "Z":
        fraction = text[19:-1]
        seconds = _hour_seconds(text[:13]) + _IN_HOUR[text[13:19]]
    else:
        fraction = text[19:-6]
        seconds = _hour_seconds(text[:13]) + _IN_HOUR[text[13:19]] - _OFFSETS[text[-6:]]
    if not fraction:
        return seconds * NANOSECONDS
    if fraction[0] != "." or not (fraction[1:].isdecimal() and fraction.isascii()):
        raise LookupError
    unit = _FRACTION_UNITS[len(fraction)]
    return seconds * NANOSECONDS + int(fraction[1:]) * unit


def _parse_any(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise _refused(text)
    date, hour, minute, second, fraction, sign, zone_hours, zone_minutes = match.groups()
    hours, minutes, seconds = int(hour), int(minute), int(second)
    day = _day_number(date)
    if day is None or hours > 23 or minutes > 59 or seconds > 59:
        raise _refused(text)
    total = day * _DAY_SECONDS + hours * 3600 + minutes * 60 + seconds
    if sign is not None:
        total -= _offset_seconds(text, sign, zone_hours, zone_minutes)
    nanos = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return total * NANOSECONDS + nanos


def parse_offset(text: str) -> int:
    """Return the offset in seconds east of UTC that ``text`` carries; raises ``MalformedData``.

    ``restic forget`` sorts snapshots into hours and days by the clock on the writer's wall.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise _refused(text)
    sign, hours, minutes = match.group(6, 7, 8)
    return 0 if sign is None else _offset_seconds(text, sign, hours, minutes)


def _offset_seconds(text: str, sign: str, hours: str, minutes: str) -> int:
    if int(hours) > 24 or int(minutes) > 60:
        raise _refused(text)
    size = int(hours) * 3600 + int(minutes) * 60
    return -size if sign == "-" else size


def _refused(text: str) -> MalformedData:
    return MalformedData("time", f"{text[:60]!r} is not of the form YYYY-MM-DDTHH:MM:SS+HH:MM")


def _into_range(local: int, zone: Zone) -> tuple[int, int]:
    day, clock = divmod(local, _DAY_SECONDS)
    year, month, day_of_month = civil_date(day)
    wall = day_of(min(max(year, 0), 9999), month, day_of_month) * _DAY_SECONDS + clock
    offset = zone(wall)
    if offset:
        offset = zone(wall - offset)
    instant = wall - offset
    offset = zone(instant)
    return offset, instant + offset


def civil_date(day: int) -> tuple[int, int, int]:
    """Return year, month, day of a day counted from 1970-01-01.

    The calendar is the Gregorian one at all times; years start in March so that the leap day
    comes last, and 400 of them are one era of 146,097 days.
    """
    era, day_of_era = divmod(day + _EPOCH_DAYS, _ERA_DAYS)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    day_of_month = day_of_year - (153 * shifted + 2) // 5 + 1
    return year + era * 400 + (month <= 2), month, day_of_month


def day_of(year: int, month: int, day: int) -> int:
    """Return the day counted from 1970-01-01; days beyond the month's run into its neighbours."""
    shifted_year = year - (month <= 2)
    era, year_of_era = divmod(shifted_year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * _ERA_DAYS + day_of_era - _EPOCH_DAYS


_FIRST_SECOND = day_of(0, 1, 1) * _DAY_SECONDS
_LAST_SECOND = day_of(9999, 12, 31) * _DAY_SECONDS + _DAY_SECONDS - 1


@functools.lru_cache(maxsize=16_384)
def _hour_text(hour: int) -> str:
    year, month, day_of_month = civil_date(hour // 24)
    return f"{year:04d}-{month:02d}-{day_of_month:02d}T{hour % 24:02d}"


_IN_HOUR_TEXTS = [f":{second // 60:02d}:{second % 60:02d}" for second in range(3600)]
_IN_HOUR = {text: second for second, text in enumerate(_IN_HOUR_TEXTS)}
_OFFSETS = {
    f"{sign}{size // 60:02d}:{size % 60:02d}": (-60 if sign == "-" else 60) * size
    for sign in "+-"
    for size in range(0, 15 * 60, 15)
}
"""The offsets of today's zones; others are parsed digit by digit."""
_FRACTION_UNITS = {1 + digits: int("1".ljust(10 - digits, "0")) for digits in range(1, 10)}
"""Nanoseconds in a unit of the last digit, by the length of the fraction with its point."""


@functools.lru_cache(maxsize=256)
def _offset_text(offset: int) -> str:
    if offset == 0:
        return "Z"
    hours, minutes = divmod(abs(offset) // 60, 60)
    sign = "-" if offset <= -60 else "+"
    return f"{sign}{hours:02d}:{minutes:02d}"


@functools.lru_cache(maxsize=4096)
def _day_number(date: str) -> int | None:
    year, month, day = int(date[:4]), int(date[5:7]), int(date[8:])
    if not 1 <= month <= 12 or day < 1:
        return None
    number = day_of(year, month, day)
    return number if civil_date(number) == (year, month, day) else None


@functools.lru_cache(maxsize=16_384)
def _hour_seconds(text: str) -> int:
    """Return the first second of an hour, ``2006-01-02T15``; ``LookupError`` for another text."""
    if _HOUR.fullmatch(text) is None:
        raise LookupError
    day, hour = _day_number(text[:10]), int(text[11:])
    if day is None or hour > 23:
        raise LookupError
    return day * _DAY_SECONDS + hour * 3600
