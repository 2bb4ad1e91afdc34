"""The plan of a prune: which packs go, which are copied, which stay.

Values in, decision out. The rule guarded here: a pack that holds a used blob and is not what its
index says stops everything. Otherwise a pack without used blobs goes; one that must not stay
(mixed, or with trees that are not compressed) is copied; of those with some waste, the most
wasteful are copied until what is left of it is within the limit; small ones are copied when
there are enough of them to make fewer (restic-format.md section 7).
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

import msgspec

from agent.errors import RepositoryError, UsageError
from agent.repository.census import PackFacts
from agent.repository.identity import PackId
from agent.repository.pack import FRAME_BYTES

SMALL_BYTES = (4 << 20) * 4 // 5
"""Four fifths of the smallest pack size that restic can be told to make."""

SMALL_PACKS = 10
"""So many small packs of a type are worth the copying; fewer come from any two backups."""

_SIZE = re.compile(r"(\d{1,18})([BKMGT]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PERCENT = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)%", re.ASCII)


def parse_size(text: str) -> int:
    """Parse ``500M`` (units of 1024: K, M, G, T) into bytes; raise ``UsageError``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no size; write it as 500M or 20G")
    return int(match[1]) * _UNITS[match[2].upper()]


class Tolerance(msgspec.Struct, frozen=True):
    """How much waste may stay: a share of what the repository then holds, bytes, or any."""

    percent: str = ""
    bytes: int | None = None

    @property
    def unlimited(self) -> bool:
        """Tell whether nothing is copied to save space."""
        return not self.percent and self.bytes is None

    def limit(self, used_bytes: int) -> int | None:
        """Return how many unused bytes may stay beside the used ones."""
        if not self.percent:
            return self.bytes
        share = Fraction(self.percent)
        return None if share >= 100 else int(share * used_bytes / (100 - share))


def parse_tolerance(text: str) -> Tolerance:
    """Parse ``5%``, ``500M`` or ``unlimited``; raise ``UsageError``."""
    if text == "unlimited":
        return Tolerance()
    if match := _PERCENT.fullmatch(text):
        if Fraction(match[1]) >= 100:
            raise UsageError(f"{text!r} of a repository cannot be waste; write `unlimited`")
        return Tolerance(percent=match[1])
    return Tolerance(bytes=parse_size(text))


class PruneOptions(msgspec.Struct, frozen=True):
    """What a prune may leave and how much it may copy; sizes in bytes.

    ``ignored`` are ids of snapshots that count as forgotten already, for a look ahead.
    """

    max_unused: Tolerance = Tolerance(percent="5")
    max_repack_bytes: int | None = None
    ignored: frozenset[str] = frozenset()


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A prune in numbers. Bytes of blobs are as stored, with their header entries.

    ``*_unused`` have no snapshot that needs them, ``*_duplicate`` are copies beyond the one that
    is needed. ``*_deleted`` are packs that hold nothing else, with their whole size;
    ``*_unindexed`` are packs that no index names. ``packs_repacked`` are copied without their
    waste; ``*_repacked`` is what is copied. ``bytes_freed`` leaves out what the new packs cost
    beside their blobs, 36 bytes each, and what trees that are compressed now save.
    """

    packs: int
    blobs_used: int
    bytes_used: int
    blobs_unused: int
    bytes_unused: int
    blobs_duplicate: int
    bytes_duplicate: int
    packs_deleted: int
    blobs_deleted: int
    bytes_deleted: int
    packs_unindexed: int
    bytes_unindexed: int
    packs_repacked: int
    bytes_of_repacked_packs: int
    blobs_repacked: int
    bytes_repacked: int
    packs_missing: int
    bytes_freed: int
    bytes_unused_left: int
    bytes_total_after: int


class Decision(msgspec.Struct, frozen=True):
    """The packs that go, by number; all others stay. ``copied`` go when their blobs are safe."""

    deleted: tuple[PackFacts, ...]
    copied: tuple[PackFacts, ...]
    kept: tuple[PackFacts, ...]


def decide(packs: Iterable[PackFacts], options: PruneOptions) -> Decision:
    """Decide on every pack; raise ``RepositoryError`` if a needed one is not sound."""
    every = list(packs)
    _refuse_unsound(every)
    deleted = [pack for pack in every if not pack.used_blobs]
    living = [pack for pack in every if pack.used_blobs]
    copied = _choose(living, options)
    numbers = {pack.number for pack in copied}
    kept = [pack for pack in living if pack.number not in numbers]
    return Decision(tuple(deleted), tuple(copied), tuple(kept))


def _refuse_unsound(packs: Sequence[PackFacts]) -> None:
    bad = [pack for pack in packs if pack.used_blobs and not pack.sound]
    if bad:
        first = bad[0]
        size = first.bytes + FRAME_BYTES
        what = (
            "is missing"
            if first.stored_bytes is None
            else f"has {first.stored_bytes} bytes, its index describes {size}"
            if first.stored_bytes != size
            else "has a gap between the blobs that its index names"
        )
        raise RepositoryError(
            f"pack {first.id.hex()} {what}, and snapshots need {first.used_blobs} of its blobs;"
            f" {len(bad)} packs are like that. Nothing was changed; `podlift check` says what is"
            " lost, `podlift repair index` saves what can be"
        )


def _choose(living: Sequence[PackFacts], options: PruneOptions) -> list[PackFacts]:
    """Return the packs to copy, in order of urgency."""
    used = sum(pack.used_bytes for pack in living)
    limit = options.max_unused.limit(used)
    unused = sum(_waste(pack) for pack in living)
    room = options.max_repack_bytes
    chosen: list[PackFacts] = []
    copied = 0
    must = [pack for pack in living if pack.mixed or pack.outdated]
    rest = [pack for pack in living if not (pack.mixed or pack.outdated)]
    wasteful = sorted((p for p in rest if _waste(p)), key=_use_of_room)
    for pack in [*must, *wasteful]:
        needed = pack.mixed or pack.outdated or (limit is not None and unused > limit)
        if not needed or (room is not None and copied + pack.bytes > room):
            continue
        chosen.append(pack)
        copied += pack.bytes
        unused -= _waste(pack)
    if not options.max_unused.unlimited:
        left = None if room is None else room - copied
        chosen += _small(rest, {pack.number for pack in chosen}, left)
    return chosen


def _small(rest: Sequence[PackFacts], chosen: set[int], room: int | None) -> list[PackFacts]:
    """Return small packs that are worth joining, of either type."""
    found: list[PackFacts] = []
    for trees in (False, True):
        small = [
            pack
            for pack in rest
            if pack.trees is trees and pack.bytes < SMALL_BYTES and pack.number not in chosen
        ]
        if len(small) >= SMALL_PACKS:
            found += small
    if room is None:
        return found
    fitting = []
    for pack in sorted(found, key=lambda pack: pack.bytes):
        room -= pack.bytes
        if room >= 0:
            fitting.append(pack)
    return fitting if len(fitting) >= SMALL_PACKS else []


def _waste(pack: PackFacts) -> int:
    return pack.bytes - pack.used_bytes


def _use_of_room(pack: PackFacts) -> float:
    return pack.used_bytes / pack.bytes


def figures(
    decision: Decision, duplicates: tuple[int, int], unindexed: dict[PackId, int]
) -> Figures:
    """Return a decision in numbers; ``duplicates`` are (blobs, bytes)."""
    deleted, copied, kept = decision.deleted, decision.copied, decision.kept
    every = [*deleted, *copied, *kept]
    used = sum(p.used_bytes for p in every)
    wasted = sum(p.bytes for p in every) - used
    used_blobs = sum(p.used_blobs for p in every)
    bytes_deleted = sum(p.stored_bytes or 0 for p in deleted)
    bytes_unindexed = sum(unindexed.values())
    bytes_copied = sum(p.used_bytes for p in copied)
    packs_copied = sum(p.stored_bytes or 0 for p in copied)
    freed = bytes_deleted + bytes_unindexed + packs_copied - bytes_copied
    stored = sum(p.stored_bytes or 0 for p in every) + bytes_unindexed
    return Figures(
        packs=len(every),
        blobs_used=used_blobs,
        bytes_used=used,
        blobs_unused=sum(p.blobs for p in every) - used_blobs - duplicates[0],
        bytes_unused=wasted - duplicates[1],
        blobs_duplicate=duplicates[0],
        bytes_duplicate=duplicates[1],
        packs_deleted=sum(p.stored_bytes is not None for p in deleted),
        blobs_deleted=sum(p.blobs for p in deleted),
        bytes_deleted=bytes_deleted,
        packs_unindexed=len(unindexed),
        bytes_unindexed=bytes_unindexed,
        packs_repacked=len(copied),
        bytes_of_repacked_packs=packs_copied,
        blobs_repacked=sum(p.used_blobs for p in copied),
        bytes_repacked=bytes_copied,
        packs_missing=sum(p.stored_bytes is None for p in deleted),
        bytes_freed=freed,
        bytes_unused_left=sum(_waste(p) for p in kept),
        bytes_total_after=stored - freed,
    )
