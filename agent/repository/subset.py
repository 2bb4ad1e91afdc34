"""A subset of the packs to read: a share, a size, or one of several equal parts.

A share and a size choose packs at random, so that repeated checks come to read all of them. A part
``n/m`` is always the same packs, told by the first byte of their ids, as restic does: m checks read
every pack once. ``week/m`` and ``day/m`` are the part whose turn it is, in UTC: weeks (from Monday)
and days are counted since the first one of the calendar, so m weekly or daily checks read everything,
whenever they begin, and one that is missed leaves its part to the next round.
"""

import datetime
import random
import re
from collections.abc import Mapping

import msgspec

from agent.errors import UsageError
from agent.repository.identity import PackId
from agent.repository.pruneplan import parse_size

MOST_PARTS = 256
"""There are no more first bytes than that."""

TURNS = ("week", "day")
"""Words for the part whose turn it is."""

_PART = re.compile(rf"(\d{{1,4}}|{'|'.join(TURNS)})/(\d{{1,4}})", re.ASCII)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%", re.ASCII)


class Subset(msgspec.Struct, frozen=True):
    """Which packs to read; exactly one of the three is set. ``part`` counts from 1."""

    percent: float | None = None
    bytes: int | None = None
    part: tuple[int, int] | None = None

    def choose(self, stored: Mapping[PackId, int], dice: random.Random) -> frozenset[PackId]:
        """Return the packs to read, at least one of them if there are any; sizes in bytes."""
        if self.part is not None:
            number, parts = self.part
            return frozenset(id for id in stored if id[0] % parts == number - 1)
        ids = sorted(stored)
        dice.shuffle(ids)
        if self.percent is not None:
            count = max(1, round(len(ids) * self.percent / 100))
            return frozenset(ids[:count])
        chosen: list[PackId] = []
        left = self.bytes or 0
        for id in ids:
            if left <= 0:
                break
            chosen.append(id)
            left -= stored[id]
        return frozenset(chosen)


def parse_subset(text: str, today: datetime.date | None = None) -> Subset:
    """Return what ``5%``, ``1G``, ``1/7``, ``week/7`` or ``day/7`` stands for today (in UTC).

    Raises ``UsageError``.
    """
    words = text.strip()
    part = _PART.fullmatch(words)
    if part is not None:
        parts = int(part[2])
        number = _turn(part[1], parts, today) if part[1] in TURNS else int(part[1])
        if 1 <= number <= parts <= MOST_PARTS:
            return Subset(part=(number, parts))
        raise _refused(
            text, f"the part must be from 1 to the number of parts, at most {MOST_PARTS}"
        )
    if "%" in words:
        share = _SHARE.fullmatch(words)
        if share is None or not 0 < float(share[1]) <= 100:
            raise _refused(text, "a share is above 0% and at most 100%")
        return Subset(percent=float(share[1]))
    try:
        size = parse_size(words)
    except UsageError:
        size = 0
    if size <= 0:
        raise _refused(text, "it is neither a share, nor a size above 0, nor a part")
    return Subset(bytes=size)


def _turn(unit: str, parts: int, today: datetime.date | None) -> int:
    """Return which part's turn it is this week or today, from 1."""
    days = (today or datetime.datetime.now(datetime.UTC).date()).toordinal() - 1  # from a Monday
    return (days // 7 if unit == "week" else days) % max(parts, 1) + 1


def _refused(text: str, reason: str) -> UsageError:
    return UsageError(
        f"--read-data-subset {text[:80]!r}: {reason}; write 5% of the packs, 1G of them, 1/7:"
        " the first of seven parts, or week/7 or day/7: the part whose turn it is"
    )
