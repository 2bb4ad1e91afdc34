"""The living: every blob that a snapshot needs, marked in the census.

The rule guarded here: nothing is taken for rubbish because it could not be read. A snapshot that
does not load, a tree that does not open or decode, a blob that no index names: each ends the
walk with an error, before anything was changed.

Each tree is visited once. Trees wait in line at the pack that holds them and are fetched
together from there, so that a pack is not read again for each of its directories.
"""

import collections
import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from agent.cancel import CancelToken
from agent.entry import Entry
from agent.errors import DamagedBlob, MalformedData, RepositoryError, StorageError
from agent.monitor import Monitor
from agent.repository.census import Census
from agent.repository.identity import ID_SIZE, BlobId, BlobType, PackId
from agent.repository.pack import PackedBlob
from agent.repository.ranges import read_blobs
from agent.repository.reader import LONG_TREE_BYTES, BlobOpener, BlobReader
from agent.repository.repository import LOADERS, Repository
from agent.repository.snapshot import Snapshot
from agent.repository.tree import decode_tree
from agent.threads import Threads

BATCH_TREES = 64
BATCH_BYTES = 4 << 20

_NOTHING_CHANGED = "nothing was changed"


class Tree(NamedTuple):
    """What one directory needs: ids of data and of trees, 32 bytes each, one after the other.

    Not its entries: a dozen batches are held at a time, and entries are large.
    """

    id: BlobId
    content: bytes
    subtrees: bytes


class Living:
    """Walks the trees of snapshots, and marks what they need."""

    def __init__(
        self,
        repository: Repository,
        census: Census,
        reader: BlobReader,
        monitor: Monitor,
        cancel: CancelToken,
    ) -> None:
        self._objects = repository.objects
        self._opener = BlobOpener(repository.objects.key)
        self._census = census
        self._reader = reader
        self._monitor = monitor
        self._cancel = cancel
        self._stop = threading.Event()
        self._waiting: collections.OrderedDict[int, list[PackedBlob]] = collections.OrderedDict()

    def mark(self, snapshots: Iterable[Snapshot]) -> None:
        """Mark all that the snapshots need; raise ``RepositoryError`` for what cannot be read."""
        for snapshot in snapshots:
            self._tree(snapshot.tree, f"snapshot {snapshot.id[:8]}")
        with Threads(LOADERS, "trees") as pool:
            running: set[concurrent.futures.Future[list[Tree]]] = set()
            try:
                while self._waiting or running:
                    self._cancel.check()
                    while self._waiting and len(running) < 2 * LOADERS:
                        running.add(pool.submit(self._load, *self._batch()))
                    done, running = concurrent.futures.wait(
                        running, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        self._take(future.result())
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self) -> tuple[PackId, list[PackedBlob]]:
        """Take some trees of the pack that has waited longest."""
        number, waiting = self._waiting.popitem(last=False)
        size, count = 0, 0
        while count < len(waiting) and count < BATCH_TREES and (size < BATCH_BYTES or not count):
            size += waiting[count].length
            count += 1
        if count < len(waiting):
            self._waiting[number] = waiting[count:]
        return self._census.packs[number], waiting[:count]

    def _load(self, pack: PackId, blobs: Sequence[PackedBlob]) -> list[Tree]:
        missing = {blob.id for blob in blobs}
        short = [blob for blob in blobs if blob.content_bytes <= LONG_TREE_BYTES]
        trees = []
        # Another pack may hold what is lost here, and the reader has the words for it if none does.
        with contextlib.suppress(DamagedBlob, StorageError):
            for blob, sealed in read_blobs(self._objects.storage, pack, short, self._cancel):
                if self._stop.is_set():
                    return []
                plain = self._opener.open(sealed, blob)
                trees.append(self._tree_of(blob.id, functools.partial(decode_tree, plain)))
                missing.discard(blob.id)
        return trees + [
            self._tree_of(id, functools.partial(self._reader.load_tree, id)) for id in missing
        ]

    def _tree_of(self, id: BlobId, load: Callable[[], Iterable[Entry]]) -> Tree:
        try:
            return _needs(id, load())
        except (DamagedBlob, MalformedData) as error:
            raise _unreadable(id, error) from error

    def _take(self, trees: list[Tree]) -> None:
        self._monitor.add(trees=len(trees))
        for tree in trees:
            self._cancel.check()
            where = f"the directory of tree {tree.id.hex()}"
            for id in _ids(tree.content):
                if self._census.mark(BlobType.DATA, id) is None:
                    raise _missing(BlobType.DATA, id, where)
            for id in _ids(tree.subtrees):
                self._tree(id, where)

    def _tree(self, id: bytes, where: str) -> None:
        new = self._census.mark(BlobType.TREE, id)
        place = self._census.tree_place(id)
        if new is None or place is None:
            raise _missing(BlobType.TREE, id, where)
        if new:
            number, blob = place
            self._waiting.setdefault(number, []).append(blob)


def _needs(id: BlobId, entries: Iterable[Entry]) -> Tree:
    content, subtrees = bytearray(), bytearray()
    last = b""
    for entry in entries:
        for chunk in entry.content or ():
            if chunk != last:  # a hole is one chunk many times over
                content += chunk
                last = chunk
        subtrees += entry.subtree or b""
    return Tree(id, bytes(content), bytes(subtrees))


def _ids(joined: bytes) -> Iterator[bytes]:
    return (joined[at : at + ID_SIZE] for at in range(0, len(joined), ID_SIZE))


def _missing(type: BlobType, id: bytes, where: str) -> RepositoryError:
    return RepositoryError(
        f"{where} needs {type.word} blob {id.hex()}, which no index names; {_NOTHING_CHANGED}."
        " `podlift repair index` finds it again if its pack is still there; else `podlift check`"
        " names the snapshots to forget"
    )


def _unreadable(id: BlobId, error: RepositoryError) -> RepositoryError:
    return RepositoryError(
        f"the directory of tree {id.hex()} cannot be read, so what it needs is unknown;"
        f" {_NOTHING_CHANGED}. `podlift check` names the snapshots to forget or repair: {error}"
    )
