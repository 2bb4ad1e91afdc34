"""The content of files: wanted by the window, fetched in ranges, delivered to whoever wants it.

Each range is fetched by one thread of the pool, which verifies every chunk in it and writes it
wherever it belongs. The budget of the pool is what bounds the memory of all of it. One thread more
waits for room in it, so that the next window is filled while this one is fetched.
"""

import os

from agent.budget import Budgets
from agent.cancel import Run
from agent.entry import Entry
from agent.errors import DamagedBlob
from agent.monitor import Monitor
from agent.repository.contract import Chunks, Range, RestoreSource
from agent.storage.contract import Buffer
from agent.transfer.pool import Pool
from agent.transfer.target_folders import TargetFolder
from agent.transfer.target_writing import Batches, LargeFile, Wanted, Writing
from agent.transfer.window import Window
from agent.volume.descriptors import join

WRITERS = 6
"""Ranges fetched and written at a time from far away."""

GROUP_BYTES = 4 << 20
"""What the content of a range at work is taken to weigh: a group of chunks, or one large one."""

RANGES_BYTES = 64 << 20
"""Budget of ranges that are queued or at work, with the content of those that are."""


def writers(source: RestoreSource) -> int:
    """Return how many threads fetch: where nothing is waited for, more than cores get in each other's way."""
    return WRITERS if source.waits else min(WRITERS, (os.cpu_count() or 2) + 1)


class Content:
    """The window that is being filled, and the pool that fetches what it wants."""

    def __init__(
        self,
        source: RestoreSource,
        monitor: Monitor,
        run: Run,
        writing: Writing,
        budgets: Budgets,
    ) -> None:
        self._source = source
        self._monitor = monitor
        self._run = run
        self._writing = writing
        self.window = Window.first()
        self.pool = Pool(run, "restore", writers(source), budgets.share_of(RANGES_BYTES))
        self._windows = Pool(run, "restore-plan", 1, lambda: 1)

    def close(self) -> None:
        """Drop what has not begun, and end the threads."""
        self._windows.close()
        self.pool.close()

    def want(self, file: LargeFile, chunks: list[tuple[int, bytes]]) -> None:
        """Have chunks fetched for a file; one that wants none is finished here and now."""
        if chunks:
            self.window.add_large(file, chunks)
        else:
            self._writing.settle(file)

    def fetch_when_due(self) -> None:
        """Have the window fetched if it is full, or worth it with no other before it.

        While the one before is planned, which begins with the wait for the lock to settle, the
        walk goes on and this one grows.
        """
        if self.window.full or (self.window.worth_fetching and self._windows.idle):
            self._fetch()

    def _fetch(self) -> None:
        """Have all fetched that the window wants, as soon as the last one is nearly done."""
        window, self.window = self.window, self.window.next()
        self._windows.submit(1, self._queue, window)

    def _queue(self, window: Window) -> None:
        """Plan the ranges of a window and queue them."""
        for folder, entries in window.empty.items():
            self.pool.submit(len(entries), self._empty, folder, entries)
        ranges, lost = self._source.plan(window.wanted)
        batches = Batches(self._writing, self._monitor)
        self._deliver(window.wanted, list(lost.items()), batches)
        for range in ranges:
            weight = range.length + min(range.content_bytes, GROUP_BYTES)
            self.pool.submit(weight, self._range, range, window.wanted)

    def finish(self) -> None:
        """Fetch what is still wanted, and wait until all of it is written."""
        self._fetch()
        self._windows.wait_idle()
        self.pool.wait_idle()

    def _empty(self, folder: TargetFolder, entries: list[Entry]) -> None:
        Batches(self._writing, self._monitor).create(folder, entries, [b""] * len(entries))

    def _range(self, range: Range, wanted: Wanted) -> None:
        """Fetch one range and write all that is in it."""
        batches = Batches(self._writing, self._monitor)
        with range.fetched() as fetched:
            for group in range.groups(fetched):
                self._run.check()
                self._deliver(wanted, group, batches)
                batches.flush()
            self._monitor.add(bytes_read=len(fetched))

    def _deliver(self, wanted: Wanted, group: Chunks, batches: Batches) -> None:
        """Give chunks to every file that wants them."""
        add, pop = batches.add, wanted.pop
        for id, chunk in group:
            for first, rest in pop(id):
                if isinstance(first, LargeFile):
                    assert isinstance(rest, int)
                    self._write(first, rest, chunk)
                else:
                    assert isinstance(rest, Entry)
                    if isinstance(chunk, DamagedBlob):
                        self._writing.lost(join(first.path, rest.name), chunk)
                        first.done()
                    else:
                        add(first, rest, chunk)

    def _write(self, file: LargeFile, offset: int, chunk: Buffer | DamagedBlob) -> None:
        if not isinstance(chunk, DamagedBlob):
            self._monitor.add(bytes_done=len(chunk))
        if file.write(offset, chunk):
            self._writing.settle(file)
