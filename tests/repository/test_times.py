"""Times against Go's: the texts are those that ``time.Time`` gave, and what it refuses is refused."""

import datetime
import re
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import MalformedData
from agent.repository.times import (
    NANOSECONDS,
    Zone,
    fixed_zone,
    format_time,
    parse_offset,
    parse_time,
    utc,
)
from agent.repository.times import _parse_any as read_digit_by_digit

FIRST_SECOND = -62_167_219_200  # 0000-01-01T00:00:00Z
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z


def zone_named(name: str) -> Zone:
    info = zoneinfo.ZoneInfo(name)

    def zone(seconds: int) -> int:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone(info)
        offset = moment.utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    return zone


@pytest.mark.parametrize(
    ("zone", "seconds", "nanos", "text"),
    [
        ("UTC", 0, 0, "1970-01-01T00:00:00Z"),
        ("UTC", 1700000000, 123456789, "2023-11-14T22:13:20.123456789Z"),
        ("UTC", 1700000000, 500000000, "2023-11-14T22:13:20.5Z"),
        ("UTC", 1700000000, 1, "2023-11-14T22:13:20.000000001Z"),
        ("UTC", -1, 999999999, "1969-12-31T23:59:59.999999999Z"),
        ("UTC", 951782400, 0, "2000-02-29T00:00:00Z"),
        ("America/New_York", 1700000000, 0, "2023-11-14T17:13:20-05:00"),
        ("America/New_York", 1720000000, 0, "2024-07-03T05:46:40-04:00"),
        ("Asia/Kolkata", 1700000000, 0, "2023-11-15T03:43:20+05:30"),
        ("America/New_York", -2734930800, 0, "1883-05-02T12:03:58-04:56"),
        ("Europe/Berlin", -3581564400, 0, "1856-07-03T17:53:28+00:53"),
        ("Africa/Monrovia", 0, 0, "1969-12-31T23:15:30-00:44"),
    ],
)
def test_a_time_in_a_zone_has_the_text_that_go_gives(
    zone: str, seconds: int, nanos: int, text: str
) -> None:
    assert format_time(seconds * NANOSECONDS + nanos, zone_named(zone)) == text


@pytest.mark.parametrize(
    ("offset_hours", "seconds", "nanos", "text"),
    [
        (0, LAST_SECOND, 999999999, "9999-12-31T23:59:59.999999999Z"),
        (0, LAST_SECOND + 1, 0, "9999-01-01T00:00:00Z"),
        (0, 253407398400, 5, "9999-03-01T00:00:00.000000005Z"),
        (0, FIRST_SECOND, 0, "0000-01-01T00:00:00Z"),
        (0, FIRST_SECOND - 1, 0, "0000-12-31T23:59:59Z"),
        (0, -99999999999, 7, "0000-02-15T14:13:21.000000007Z"),
        (5, LAST_SECOND, 0, "9999-01-01T04:59:59+05:00"),
        (-5, LAST_SECOND + 1, 0, "9999-12-31T19:00:00-05:00"),
        (5, FIRST_SECOND - 1, 0, "0000-01-01T04:59:59+05:00"),
        (-5, FIRST_SECOND, 0, "0000-12-31T19:00:00-05:00"),
        (0, 9223371974719179007, 0, "9999-12-06T15:30:07Z"),
        (0, 1 << 62, 1, "9999-06-19T07:45:04.000000001Z"),
    ],
)
def test_a_year_that_readers_refuse_is_set_as_restic_sets_it(
    offset_hours: int, seconds: int, nanos: int, text: str
) -> None:
    """The texts are what restic's rule gave when Go ran it (0.19.1, compiled with Go 1.26)."""
    zone = fixed_zone(offset_hours * 3600)

    assert format_time(seconds * NANOSECONDS + nanos, zone) == text


@pytest.mark.parametrize(
    ("offset", "end"), [(30, "+00:00"), (-30, "+00:00"), (-90, "-00:01"), (3208, "+00:53")]
)
def test_seconds_of_an_offset_are_cut_towards_zero(offset: int, end: str) -> None:
    assert format_time(0, fixed_zone(offset)).endswith(end)


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("2023-11-14T22:13:20.123456789Z", 1700000000, 123456789),
        ("2023-11-14T22:13:20.1234567899Z", 1700000000, 123456789),
        ("2023-11-14T22:13:20,5Z", 1700000000, 500000000),
        ("2023-11-14T5:13:20+24:00", 1699852400, 0),
        ("2023-11-14T22:13:20-24:60", 1700090000, 0),
        ("1969-12-31T23:59:59.5Z", -1, 500000000),
        ("0000-02-29T00:00:00Z", -62162121600, 0),
        ("0001-01-01T00:00:00Z", -62135596800, 0),
        ("2023-11-14T22:13:20-00:00", 1700000000, 0),
        ("0000-01-01T00:00:00+24:00", FIRST_SECOND - 86400, 0),
    ],
)
def test_what_go_reads_is_read_alike(text: str, seconds: int, nanos: int) -> None:
    assert parse_time(text) == seconds * NANOSECONDS + nanos


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "10000-01-01T00:00:00Z",
        "-001-01-01T00:00:00Z",
        "2023-11-14T22:13:20",
        "2023-11-14 22:13:20Z",
        "2023-11-14t22:13:20Z",
        "2023-11-14T22:13:20z",
        "2023-11-14T22:13:20+0100",
        "2023-11-14T22:13:20+01",
        "2023-11-14T22:13:20.Z",
        "2023-11-14T24:00:00Z",
        "2023-11-14T22:60:00Z",
        "2023-11-14T22:13:60Z",
        "2023-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2023-04-31T00:00:00Z",
        "2023-00-10T00:00:00Z",
        "2023-13-10T00:00:00Z",
        "2023-01-00T00:00:00Z",
        "2023-1-01T00:00:00Z",
        "2023-11-14T22:13:20-25:00",
        "2023-11-14T22:13:20-24:61",
        "2023-11-14T22:13:20Z\n",
        "\uff12023-11-14T22:13:20Z",
    ],
)
def test_what_go_refuses_is_refused(text: str) -> None:
    with pytest.raises(MalformedData, match="time is damaged"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("2023-11-14T22:13:20Z", 0),
        ("2023-11-14T22:13:20+05:30", 19800),
        ("2023-11-14T22:13:20-00:44", -2640),
    ],
)
def test_the_wall_clock_of_the_writer_can_be_read(text: str, offset: int) -> None:
    assert parse_offset(text) == offset


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20", "2023-11-14T22:13:20+25:00"])
def test_an_offset_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MalformedData, match="time is damaged"):
        parse_offset(text)


@given(
    st.integers((FIRST_SECOND + 86400) * NANOSECONDS, (LAST_SECOND - 86400) * NANOSECONDS),
    st.integers(-1439, 1439),
)
def test_an_instant_comes_back_whatever_the_zone(ns: int, offset_minutes: int) -> None:
    text = format_time(ns, fixed_zone(offset_minutes * 60))

    assert parse_time(text) == ns
    assert parse_offset(text) == offset_minutes * 60


@given(st.integers(-62_135_596_800, LAST_SECOND))
def test_the_calendar_is_that_of_the_standard_library(seconds: int) -> None:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    moment += datetime.timedelta(seconds=seconds)

    expected = moment.isoformat().replace("+00:00", "Z")
    assert format_time(seconds * NANOSECONDS, utc) == expected


@given(st.integers(), st.integers(-86_400, 86_400))
def test_any_instant_at_all_has_a_text_that_can_be_read(ns: int, offset: int) -> None:
    year = int(format_time(ns, fixed_zone(offset))[:4])

    assert 0 <= year <= 9999


@given(
    st.from_regex(
        r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]"
        r"([.,][0-9]{1,12})?(Z|[+-][0-2][0-9]:[0-5][0-9])",
        fullmatch=True,
    )
)
def test_a_time_is_read_as_the_standard_library_reads_it(text: str) -> None:
    whole_seconds = re.sub("[.,][0-9]+", "", text)
    try:
        moment = datetime.datetime.fromisoformat(whole_seconds)
    except ValueError:
        moment = None
    try:
        ns = parse_time(text)
    except MalformedData:
        assert moment is None
        return
    if moment is None:  # Go alone knows the year 0, and offsets of 24 hours
        assert text.startswith("0000") or text[-5:-3] == "24"
    else:
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        assert ns // NANOSECONDS == (moment - epoch) // datetime.timedelta(seconds=1)


@given(st.text(max_size=30))
def test_any_other_text_raises_only_our_error(text: str) -> None:
    with pytest.raises(MalformedData, match="time is damaged"):
        parse_time(text + "!")


@given(
    st.integers(FIRST_SECOND, LAST_SECOND),
    st.sampled_from(
        ["", ".5", ".000000001", ".123456789", ".1234567890", ".", ".\u0661", "._1", ".+1"]
    ),
    st.sampled_from(["Z", "z", "", "+02:00", "-00:00", "+05:45", "+13:59", "+24:60", "+25:00"]),
    st.integers(0, 40),
    st.text("0123456789T:-+.,Z_ \u0663", max_size=2),
    st.integers(0, 2),
)
def test_no_text_is_read_otherwise_because_it_looks_usual(
    seconds: int, fraction: str, zone: str, place: int, inserted: str, removed: int
) -> None:
    text = format_time(seconds * NANOSECONDS, utc)[:-1] + fraction + zone
    text = text[:place] + inserted + text[place + removed :]
    try:
        expected: int | None = read_digit_by_digit(text)
    except MalformedData:
        expected = None
    try:
        read: int | None = parse_time(text)
    except MalformedData:
        read = None
    assert read == expected


def test_digits_beyond_the_ninth_are_dropped_however_many_they_are() -> None:
    assert parse_time(f"1970-01-01T00:00:01.123456789{'9' * 5000}Z") == 1_123_456_789
