"""What a backup holds of files on their way: batches of them, the ids of their chunks while some are
still being stored, and the bytes that went by.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from agent.budget import Rate
from agent.cancel import CancelToken
from agent.entry import Entry
from agent.monitor import Monitor
from agent.threads import within_context

Fail = Callable[[BaseException], None]

BATCH_FILES = 256
BATCH_BYTES = 2 << 20

FILE_WEIGHT_BYTES = 16 << 10
"""What a queued file weighs at least: its entry, its slot and its share of the batch."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file that has to be read; ``known`` if the parent snapshot has one of this name."""

    place: int
    entry: Entry
    known: bool


class Seen:
    """The bytes of one file that went by, told to the monitor as they do, and held to a rate."""

    def __init__(self, monitor: Monitor, rate: Rate, cancel: CancelToken) -> None:
        self._monitor = monitor
        self._rate = rate
        self._cancel = cancel
        self.size = 0

    def add(self, length: int, *, read: int) -> None:
        """Count bytes of the file, and those of them that were read."""
        self.size += length
        self._monitor.add(bytes_done=length, bytes_read=read)
        self._rate.take(read, self._cancel)


class Ids:
    """The ids of a file's chunks, in order, while some of them are still being stored."""

    def __init__(self) -> None:
        self.count = 0
        self._done: list[bytes] = []
        self._open: collections.deque[Future[Sequence[bytes]]] = collections.deque()

    def append(self, ids: "Future[Sequence[bytes]] | Sequence[bytes]", count: int) -> None:
        """Add ids that are or will be there; a single one stands for as many as are counted."""
        self.count += count
        if isinstance(ids, Future):
            self._open.append(ids)
            while self._open and self._open[0].done():
                self._take()
            return
        self._take_all()
        self._done += list(ids) * (count // len(ids))

    def when_stored(self, finish: Callable[[list[bytes]], None], fail: Fail) -> None:
        """Call ``finish`` with all of them when the last is there: now, or on the thread that stores it.

        So a reader begins with the next file meanwhile. ``fail`` hears of what ``finish`` raises; if a
        chunk is not stored, neither is called: its run has failed by that.
        """
        finish = within_context(finish)
        left = itertools.count(len(self._open), -1)  # next() is atomic

        def one_less(future: "Future[Sequence[bytes]] | None" = None) -> None:
            if next(left) or not all(map(_succeeded, self._open)):
                return
            try:
                self._take_all()
                finish(self._done)
            except BaseException as error:
                fail(error)

        for future in tuple(self._open):
            future.add_done_callback(one_less)
        one_less()

    def _take_all(self) -> None:
        while self._open:
            self._take()

    def _take(self) -> None:
        self._done += self._open.popleft().result()


def _succeeded(future: "Future[Sequence[bytes]]") -> bool:
    return not future.cancelled() and future.exception() is None


class Batch:
    """Files of one directory that are one task."""

    def __init__(self) -> None:
        self.files: list[File] = []
        self.weight = 0
        self._bytes = 0

    def add(self, file: File) -> None:
        """Take one more file."""
        self.files.append(file)
        self.weight += max(file.entry.size, FILE_WEIGHT_BYTES)
        self._bytes += file.entry.size + 1

    @property
    def full(self) -> bool:
        """Tell whether it should be queued."""
        return len(self.files) >= BATCH_FILES or self._bytes >= BATCH_BYTES


def batched(files: Iterable[File]) -> Iterator[Batch]:
    """Divide files into batches, each as soon as it is full."""
    batch = Batch()
    for file in files:
        batch.add(file)
        if batch.full:
            yield batch
            batch = Batch()
    if batch.files:
        yield batch
