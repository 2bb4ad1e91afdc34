"""Reading packs: is every byte of them what the pack's name, its header and the index say?

Packs are read a few at a time, each whole if it is small. A larger one is read in ranges, and alone:
what may be large in it, the tree of a huge directory, has to be held in one piece to be opened, and
so is the one thing whose memory has no bound. What comes of it is one finding for each thing that is wrong
with a pack, and marks in the health of its blobs.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import threading
from collections.abc import Collection, Iterator

import msgspec

from agent.cancel import CancelToken, Run
from agent.errors import (
    DamagedBlob,
    MalformedData,
    ObjectMissing,
    StorageError,
)
from agent.monitor import Monitor
from agent.repository.crypto import Buffer
from agent.repository.finding import Advice, Finding, damage
from agent.repository.health import Health
from agent.repository.identity import BlobType, PackId
from agent.repository.objects import Objects, of_one_object, pack_key
from agent.repository.pack import (
    FRAME_BYTES,
    MAX_HEADER_BYTES,
    PackedBlob,
    decode_header,
    header_span,
    packed_size,
)
from agent.repository.packlist import PackList
from agent.repository.reader import LONG_TREE_BYTES, BlobOpener, BlobReader
from agent.repository.repository import LOADERS
from agent.repository.table import Found
from agent.threads import Threads

WHOLE_BYTES = 24 << 20
"""Up to this size a pack comes in one request: a pack of the usual size with its last blob."""

STEP_BYTES = 8 << 20
"""How much of a larger pack is fetched at a time."""

HEADER_BYTES = MAX_HEADER_BYTES + FRAME_BYTES
"""How long the end of a pack may be that is no blob."""


class Reading(msgspec.Struct):
    """What reading one pack found; "" and empty where nothing is wrong."""

    pack: PackId
    blobs: int
    unread: str = ""
    renamed: bool = False
    header: str = ""
    lost: list[PackedBlob] = msgspec.field(default_factory=list)

    def findings(self, *, thorough: bool) -> Iterator[Finding]:
        """Yield what to report; only what is lost unless everything was to be read."""
        what = f"pack {self.pack.hex()}"
        advice = (Advice.PACKS, Advice.BACKUP)
        if self.unread:
            yield damage(f"{what} cannot be read: {self.unread}", *advice)
            return
        if self.renamed and thorough:
            yield damage(f"{what} does not match its name", *advice)
        if self.header and thorough:
            yield damage(self.header, Advice.INDEX, *advice)
        if self.lost:
            first = self.lost[0]
            yield damage(
                f"{what}: {len(self.lost)} of its {self.blobs} blobs do not open, the first is"
                f" {first.type.word} blob {first.id.hex()}",
                *advice,
            )


class PackReader:
    """Reads packs in a few threads."""

    def __init__(
        self, objects: Objects, trees: BlobReader, monitor: Monitor, cancel: CancelToken
    ) -> None:
        self._objects = objects
        self._trees = trees
        self._opener = BlobOpener(objects.key)
        self._monitor = monitor
        self._run = Run(cancel)
        self._cancel = cancel
        self._alone = threading.Lock()

    def read(
        self, packs: PackList, wanted: Collection[PackId], health: Health
    ) -> Iterator[Finding]:
        """Read packs, and yield what is wrong with them; mark what is lost.

        Those of a wrong size are read as well: what is left of them decides what is touched.
        """
        every = packs.wrong_size.union(wanted)
        self._monitor.add(bytes_total=sum(packs.stored[id] for id in every))
        self._monitor.walk_finished()
        running: collections.deque[concurrent.futures.Future[Reading]] = collections.deque()
        with Threads(LOADERS, "packs") as pool:
            try:
                for id, blobs in packs.blobs(every):
                    running.append(pool.submit(self._read, id, blobs, packs.stored[id]))
                    if len(running) > LOADERS:
                        yield from _told(running.popleft().result(), health, wanted)
                while running:
                    yield from _told(running.popleft().result(), health, wanted)
            except BaseException as error:
                self._run.fail(error)
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _read(self, id: PackId, blobs: list[PackedBlob], size: int) -> Reading:
        with self._alone if size > WHOLE_BYTES else contextlib.nullcontext():
            return self._read_now(id, blobs, size)

    def _read_now(self, id: PackId, blobs: list[PackedBlob], size: int) -> Reading:
        self._run.check()
        reading = Reading(id, len(blobs))
        stream = _Stream(self._objects, id, size, self._cancel)
        try:
            for blob in blobs:
                self._run.check()
                try:
                    self._prove(id, blob, stream)
                except DamagedBlob:
                    reading.lost.append(blob)
            tail = stream.rest()
        except ObjectMissing:
            reading.unread, reading.lost = "it is gone", list(blobs)
            return reading
        except StorageError as error:
            if not of_one_object(error):
                raise
            reading.unread, reading.lost = str(error), list(blobs)
            return reading
        finally:
            self._monitor.add(bytes_done=size, bytes_read=size)
        reading.renamed = stream.digest.digest() != id
        reading.header = self._compare(id, blobs, size, tail)
        return reading

    def _prove(self, id: PackId, blob: PackedBlob, stream: "_Stream") -> None:
        """Raise ``DamagedBlob`` unless a blob opens; a long tree is fetched once more, by way of a file."""
        if blob.type is BlobType.TREE and blob.content_bytes > LONG_TREE_BYTES:
            self._trees.prove_at(Found(id, blob))
        else:
            self._opener.open(stream.at(blob.offset, blob.length), blob)

    def _compare(self, id: PackId, blobs: list[PackedBlob], size: int, tail: Buffer) -> str:
        """Return how the header differs from the index; ``tail`` is what ends the pack."""
        what = f"pack {id.hex()}"
        try:
            offset, length = header_span(tail, size, what)
            start = offset - (size - len(tail))
            if start < 0:
                return f"the header of {what} and its index disagree"
            header = self._objects.key.unseal(memoryview(tail)[start : start + length], what)
            named = decode_header(header, what)
            if packed_size(named) != size:
                return f"{what}: its header describes {packed_size(named)} bytes, not {size}"
        except MalformedData as error:
            return f"the header of {what} cannot be read: {error.reason}"
        ordered = sorted(named, key=_place)
        return "" if ordered == blobs else f"the header of {what} and its index disagree"


def _place(blob: PackedBlob) -> tuple[int, bytes]:
    return blob.offset, blob.id


def _told(reading: Reading, health: Health, thorough: Collection[PackId]) -> Iterator[Finding]:
    health.lose(reading.pack, reading.lost)
    yield from reading.findings(thorough=reading.pack in thorough)


class _Stream:
    """A pack read from its beginning to its end, hashed on the way; what is past is dropped."""

    def __init__(self, objects: Objects, id: PackId, size: int, cancel: CancelToken) -> None:
        self._storage = objects.storage
        self._key = pack_key(id)
        self._size = size
        self._cancel = cancel
        self._step = size if size <= WHOLE_BYTES else STEP_BYTES
        self._kept = memoryview(b"")
        self._start = 0  # where ``_kept`` begins
        self.digest = hashlib.sha256()

    @property
    def _end(self) -> int:
        return self._start + len(self._kept)

    def at(self, offset: int, length: int) -> memoryview:
        """Return a range, cut where the pack ends; offsets must not fall."""
        self._drop(offset)
        self._fill(offset + length)
        begin = offset - self._start
        return self._kept[begin : begin + length] if begin >= 0 else self._kept[:0]

    def rest(self) -> memoryview:
        """Return what follows the last range: the header, or the last 16 MiB."""
        while self._end < self._size:
            self._fill(min(self._size, self._end + STEP_BYTES))
            self._drop(self._size - HEADER_BYTES)
        return self._kept

    def _drop(self, offset: int) -> None:
        """Read past what lies before ``offset``, and keep nothing of it."""
        while self._end < min(offset, self._size):
            self._start = self._end
            self._kept = memoryview(b"")
            self._fill(self._start + 1)
        if offset > self._start:
            self._kept = self._kept[offset - self._start :]
            self._start = min(offset, self._size)

    def _fill(self, end: int) -> None:
        """Fetch until ``end`` is there, or the pack ends."""
        missing = min(end, self._size) - self._end
        if missing <= 0:
            return
        length = min(max(missing, self._step), self._size - self._end)
        place = self._end
        filled = memoryview(bytearray(len(self._kept) + length))
        filled[: len(self._kept)] = self._kept
        missing_part = filled[len(self._kept) :]
        for start in range(0, length, self._step):
            part = missing_part[start : start + self._step]
            self._storage.get_range(self._key, place + start, part, cancel=self._cancel)
            self.digest.update(part)
        self._kept = filled
