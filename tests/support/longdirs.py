"""Directories of very many entries, as small ones: the limits from which on they are handled in parts."""

from collections.abc import Callable

from agent.repository import living, longblob, longtree, packreading, reader
from agent.transfer import restore, stretches, walk
from agent.transfer.holding import ENTRY_BYTES

STRETCH_NAMES = 5

_LIMITS = (
    (walk, "AT_ONCE_BYTES", 8 * ENTRY_BYTES),
    (stretches, "STRETCH_NAMES", STRETCH_NAMES),
    (stretches, "STRETCH_BYTES", STRETCH_NAMES * ENTRY_BYTES),
    (stretches, "STRETCHES", 2),
    (living, "LONG_TREE_BYTES", 2000),
    (packreading, "LONG_TREE_BYTES", 2000),
    (reader, "LONG_TREE_BYTES", 2000),
    (longtree, "READ_BYTES", 500),
    (longtree, "PIECE_BYTES", 700),
    (longblob, "STEP_BYTES", 300),
    (longblob, "FETCH_BYTES", 700),
    (restore, "PART_ENTRIES", STRETCH_NAMES),
)


def lower_limits(change: Callable[[object, str, object], None] = setattr) -> None:
    """Have every directory of more than 8 entries worked on in stretches of 5."""
    for module, name, value in _LIMITS:
        assert hasattr(module, name)
        change(module, name, value)
