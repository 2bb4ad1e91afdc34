"""Subsets of packs: what the words mean, and which packs they choose."""

import datetime
import hashlib
import itertools
import random

import pytest

from agent.errors import UsageError
from agent.repository.identity import PackId
from agent.repository.subset import Subset, parse_subset

STORED = {PackId(hashlib.sha256(bytes([n])).digest()): 100 for n in range(200)}


class TestSubset:
    def test_parts_are_disjoint_and_all_of_them_are_everything(self) -> None:
        parts = [parse_subset(f"{n}/7").choose(STORED, random.Random(n)) for n in range(1, 8)]
        assert sum(map(len, parts)) == len(STORED)
        assert frozenset().union(*parts) == STORED.keys()
        assert all(id[0] % 7 == 2 for id in parts[2])

    @pytest.mark.parametrize(
        ("words", "count"),
        [("5%", 10), ("0.1%", 1), ("100%", 200), ("1K", 11), ("1", 1), ("1G", 200)],
    )
    def test_a_share_or_a_size_is_taken_at_random(self, words: str, count: int) -> None:
        subset = parse_subset(words)
        one = subset.choose(STORED, random.Random(1))
        assert len(one) == count
        if 1 < count < 200:
            assert one != subset.choose(STORED, random.Random(2))

    def test_of_nothing_nothing_is_chosen(self) -> None:
        for words in ("5%", "1G", "1/3"):
            assert parse_subset(words).choose({}, random.Random(1)) == frozenset()

    @pytest.mark.parametrize(
        "words",
        [
            "",
            "%",
            "0%",
            "-1%",
            "100.1%",
            "1e2%",
            "nan%",
            "0/3",
            "4/3",
            "1/",
            "/2",
            "1/257",
            "1//2",
            "1.5",
            "-5M",
            "0",
            "5Q",
            "٣%",
            "week/0",
            "week/257",
            "day/",
            "month/3",
            "weeks/3",
        ],
    )
    def test_nonsense_is_refused_with_what_can_be_written(self, words: str) -> None:
        with pytest.raises(UsageError, match="write 5% of the packs"):
            parse_subset(words)

    def test_words_become_values(self) -> None:
        assert parse_subset("2.5%") == Subset(percent=2.5)
        assert parse_subset("3M") == Subset(bytes=3 << 20)
        assert parse_subset("256/256") == Subset(part=(256, 256))


MONDAY = datetime.date(2026, 12, 28)
"""Its week ends in another year."""


class TestTurns:
    def test_a_week_from_monday_to_sunday_has_one_part_and_the_next_week_the_next(self) -> None:
        days = [MONDAY + datetime.timedelta(days=n) for n in range(-1, 8)]
        before, *week, after = [parse_subset("week/8", day).part for day in days]
        assert len(set(week)) == 1
        turns = [number for number, _ in (before, week[0], after)]
        assert [(b - a) % 8 for a, b in itertools.pairwise(turns)] == [1, 1]

    @pytest.mark.parametrize(("unit", "days"), [("week", 7), ("day", 1)])
    @pytest.mark.parametrize("parts", [1, 5, 8, 256])
    def test_as_many_runs_as_there_are_parts_read_every_pack_once(
        self, unit: str, days: int, parts: int
    ) -> None:
        start = MONDAY + datetime.timedelta(days=3)
        read = [
            id
            for n in range(parts)
            for id in parse_subset(
                f"{unit}/{parts}", start + datetime.timedelta(days=n * days)
            ).choose(STORED, random.Random(0))
        ]
        assert sorted(read) == sorted(STORED)

    def test_without_a_date_it_is_today_s_turn_in_utc(self) -> None:
        before = datetime.datetime.now(datetime.UTC).date()
        found = parse_subset("day/256")
        after = datetime.datetime.now(datetime.UTC).date()
        assert found in [parse_subset("day/256", day) for day in (before, after)]
