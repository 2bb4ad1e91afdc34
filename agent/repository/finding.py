"""Findings: what a check says about a repository, as values.

A finding tells what is wrong, whether that is damage or a mere hint that costs nothing but space
or order, which place of a snapshot it touches, and what to do. All advice stands here, so that
the same trouble gets the same remedy wherever it is met.
"""

import dataclasses
import enum


class Advice(enum.StrEnum):
    """What an operator can do, in order of how soon it should be done."""

    KEY = (
        "delete the damaged file in keys/: restic refuses the repository because of it, even if"
        " another key opens"
    )
    CONFIG = "restore `config` from a copy: without it nothing can be opened"
    LOCK = "if nobody uses the repository, remove all locks: podlift unlock --remove-all"
    UNLOCK = "remove the locks that were left behind: podlift unlock"
    INDEX = "make the index true again by what the packs say: podlift repair index"
    MISSING = (
        "restore the missing packs from a copy if there is one; else name them no more:"
        " podlift repair index"
    )
    MISPLACED = "move the pack to data/ and the first two digits of its name"
    PACKS = "save what is intact in the damaged packs: podlift repair packs PACK…"
    BACKUP = "then back up again: what still exists is stored anew, and later snapshots are whole"
    RESTORE = (
        "restore what you need of the touched snapshots; what is not named above is intact"
        " as far as it was checked"
    )
    SNAPSHOT = "forget the snapshots that cannot be read: podlift forget SNAPSHOT"
    REWRITE = (
        "make a new backup, then forget the snapshots whose directories are wrong:"
        " podlift forget SNAPSHOT"
    )
    IDENTITY = (
        "restore with podlift, which keeps such files apart; restic's restore makes one of them"
    )
    PRUNE = "what no index names, or names twice, goes with the next podlift prune"


@dataclasses.dataclass(frozen=True, slots=True)
class Touched:
    """Places of a snapshot that are not as they were.

    One place has an absolute ``path``, b"" for the root. Where there are too many to name, ``path``
    is None and ``places`` says how many more there are.
    """

    snapshot: str
    path: bytes | None
    places: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be; ``damage`` is False for a mere hint."""

    message: str
    damage: bool = True
    advice: tuple[Advice, ...] = ()
    touched: Touched | None = None


def hint(message: str, *advice: Advice) -> Finding:
    """Return a finding that is no damage."""
    return Finding(message, False, advice)


def damage(message: str, *advice: Advice) -> Finding:
    """Return a finding that is damage."""
    return Finding(message, True, advice)
