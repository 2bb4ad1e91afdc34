"""Fetches: which ranges of which packs bring a set of blobs, with few requests and little waste.

Each wanted blob lies in exactly one range. Ranges of a pack are joined across what lies between
them, the smallest gaps first, while all that is read in vain stays a small part of what is wanted;
and cut where one would be larger than a budget of memory allows. Pure.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from agent.repository.identity import PackId
from agent.repository.pack import PackedBlob
from agent.repository.table import Found

FETCH_BYTES = 4 << 20
"""How long a range may get; a larger blob is fetched alone."""

WASTE_PERCENT = 4
"""How much may be read in vain, of what is wanted of the same pack."""


class Fetch(msgspec.Struct, frozen=True):
    """One range of a pack, and the wanted blobs in it in stored order."""

    pack: PackId
    offset: int
    length: int
    blobs: tuple[PackedBlob, ...]

    @property
    def content_bytes(self) -> int:
        """Return the size of the plaintext of all blobs."""
        return sum(blob.content_bytes for blob in self.blobs)


def plan_fetches(places: Iterable[Found], most_bytes: int = FETCH_BYTES) -> list[Fetch]:
    """Return the ranges for blobs, each of which is named once; packs in the order of first use."""
    packs: dict[PackId, list[PackedBlob]] = {}
    for place in places:
        packs.setdefault(place.pack, []).append(place.blob)
    return [
        Fetch(pack, run[0].offset, run[-1].offset + run[-1].length - run[0].offset, tuple(run))
        for pack, blobs in packs.items()
        for run in _runs(sorted(blobs, key=_offset), most_bytes)
    ]


def _runs(blobs: Sequence[PackedBlob], most_bytes: int) -> Iterator[list[PackedBlob]]:
    widest = _widest_gap(blobs)
    run = [blobs[0]]
    for blob in blobs[1:]:
        end = run[-1].offset + run[-1].length
        if blob.offset - end > widest or blob.offset + blob.length - run[0].offset > most_bytes:
            yield run
            run = []
        run.append(blob)
    yield run


def _widest_gap(blobs: Sequence[PackedBlob]) -> int:
    """Return the size of the largest gap that is read in vain; of equal ones all, or none."""
    budget = sum(blob.length for blob in blobs) * WASTE_PERCENT // 100
    gaps = sorted(
        blobs[i].offset - blobs[i - 1].offset - blobs[i - 1].length for i in range(1, len(blobs))
    )
    widest = 0
    for place, gap in enumerate(gaps):
        budget -= gap
        if budget < 0:
            return widest if place == 0 or gap > widest else max(0, widest - 1)
        widest = max(widest, gap)
    return widest


def _offset(blob: PackedBlob) -> int:
    return blob.offset
