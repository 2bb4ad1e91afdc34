"""The content of files: wanted by the window, fetched in ranges, delivered to whoever wants it.

Each range is fetched by one thread of the pool, which verifies every chunk in it and writes it
wherever it belongs. The budget of the pool is what bounds the memory of all of it.
"""

from agent.cancel import Run
from agent.entry import Entry
from agent.errors import DamagedBlob
from agent.monitor import Monitor
from agent.repository.contract import Range, RestoreSource
from agent.storage.contract import Buffer
from agent.transfer.pool import Pool
from agent.transfer.target_folders import TargetFolder
from agent.transfer.target_writing import BATCH_BYTES, Batches, LargeFile, Wanted, Writing
from agent.transfer.window import Window
from agent.volume.descriptors import join

WRITERS = 6
"""Ranges fetched and written at a time; some of that time is spent waiting for the storage."""

RANGES_BYTES = 64 << 20
"""Budget of ranges that are queued or at work, with the content of those that are."""


class Content:
    """The window that is being filled, and the pool that fetches what it wants."""

    def __init__(self, source: RestoreSource, monitor: Monitor, run: Run, writing: Writing) -> None:
        self._source = source
        self._monitor = monitor
        self._run = run
        self._writing = writing
        self.window = Window.first()
        self.pool = Pool(run, "restore", WRITERS, RANGES_BYTES)

    def want(self, file: LargeFile, chunks: list[tuple[int, bytes]]) -> None:
        """Have chunks fetched for a file; one that wants none is finished here and now."""
        if chunks:
            self.window.add_large(file, chunks)
        else:
            self._writing.settle(file)

    def fetch(self) -> None:
        """Queue all that the window wants. What the last one wanted is nearly done by then."""
        window, self.window = self.window, self.window.next()
        for folder, entries in window.empty.items():
            self.pool.submit(len(entries), self._empty, folder, entries)
        ranges, lost = self._source.plan(window.wanted)
        batches = Batches(self._writing, self._monitor)
        for id, error in lost.items():
            self._deliver(window.wanted, id, error, batches)
        for range in ranges:
            weight = range.length + min(range.content_bytes, BATCH_BYTES)
            self.pool.submit(weight, self._range, range, window.wanted)

    def finish(self) -> None:
        """Fetch what is still wanted, and wait until all of it is written."""
        self.fetch()
        self.pool.wait_idle()

    def _empty(self, folder: TargetFolder, entries: list[Entry]) -> None:
        Batches(self._writing, self._monitor).create(folder, entries, [b""] * len(entries))

    def _range(self, range: Range, wanted: Wanted) -> None:
        """Fetch one range and write all that is in it."""
        batches = Batches(self._writing, self._monitor)
        fetched = range.fetch()
        for id, chunk in range.chunks(fetched):
            self._run.check()
            self._deliver(wanted, id, chunk, batches)
        batches.flush()
        self._monitor.add(bytes_read=len(fetched))

    def _deliver(
        self, wanted: Wanted, id: bytes, chunk: Buffer | DamagedBlob, batches: Batches
    ) -> None:
        """Give a chunk to every file that wants it."""
        for taker in wanted.pop(id):
            first, rest = taker
            if isinstance(first, LargeFile):
                assert isinstance(rest, int)
                if not isinstance(chunk, DamagedBlob):
                    self._monitor.add(bytes_done=len(chunk))
                if first.write(rest, chunk):
                    self._writing.settle(first)
            else:
                assert isinstance(rest, Entry)
                if isinstance(chunk, DamagedBlob):
                    self._writing.lost(join(first.path, rest.name), chunk)
                    first.done()
                else:
                    batches.add(first, rest, bytes(chunk))
