"""Merging: many tables of index files become one cached file, in the background.

Each run adds an index file or more, and a look-up asks each table. So once there are many that the
merged file of the cache does not cover, a thread writes a new one and hands it to the view, which
from then on asks that. The rule guarded here: nobody waits for it. It is cheap to begin again, so at
the end of the process it is given up within a moment, and if it fails nothing is lost.
"""

import threading
import time
from typing import NamedTuple

from agent.repository.cache import Cache, Merged
from agent.repository.indexview import IndexView
from agent.repository.table import Table
from agent.threads import within_context

_WORTH_FILES = 8
_MANY_FILES = 32
_SMALL_PART = 16
"""8 files are merged if they hold a 16th of all; 32 always are, for a table costs 0.1 µs a look-up."""

_MOMENT_SECONDS = 0.5


class Loaded(NamedTuple):
    """What a view was made of: the merged file, and the tables of each index file beside it."""

    merged: Merged | None
    fresh: dict[str, list[Table]]

    @property
    def tables(self) -> list[Table]:
        """Return all tables."""
        old = self.merged.tables if self.merged is not None else []
        return old + [table for tables in self.fresh.values() for table in tables]

    @property
    def names(self) -> frozenset[str]:
        """Return the index files that the tables are from."""
        return frozenset(self.fresh) | (self.merged.names if self.merged else frozenset())


def merge_if_worthwhile(cache: Cache, view: IndexView, loaded: Loaded) -> threading.Thread | None:
    """Begin to merge what a view was made of, if there is enough; return the thread that does."""
    if not _is_worthwhile(loaded):
        return None
    thread = threading.Thread(
        target=within_context(_merge), args=(cache, view, loaded), name="merge"
    )
    thread.start()
    return thread


def _is_worthwhile(loaded: Loaded) -> bool:
    if len(loaded.fresh) < _WORTH_FILES:
        return False
    fresh = sum(len(table) for tables in loaded.fresh.values() for table in tables)
    every = sum(map(len, loaded.tables))
    return len(loaded.fresh) >= _MANY_FILES or fresh * _SMALL_PART >= every


def _merge(cache: Cache, view: IndexView, loaded: Loaded) -> None:
    if cache.save_merged(loaded.names, loaded.tables, _Patience().lasts):
        merged = cache.load_merged(set(loaded.names))
        if merged is not None and merged.names == loaded.names:
            view.swap(loaded.tables, merged.tables)


class _Patience:
    """How long we go on: while the process does, and a moment after its main thread has ended."""

    def __init__(self) -> None:
        self._until = float("inf")

    def lasts(self) -> bool:
        """Tell whether there is still time."""
        if self._until == float("inf") and not threading.main_thread().is_alive():
            self._until = time.monotonic() + _MOMENT_SECONDS
        return time.monotonic() < self._until
