"""Rewriting a repository under an exclusive lock: copy, name, then remove.

The rule guarded here is the order (restic-format.md section 17). New packs are durable before an
index names them; new index files name everything that stays before the first old one goes; and
packs go last, when no index names them any more. Whatever ends the work between two steps leaves
at worst things twice, or things that no index names. The lock is proven before each step.

A blob that is copied is opened and compared with its id first. Its sealed bytes are then stored
as they are: the format does not tie them to a pack. Trees that were not compressed are sealed
anew.
"""

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from agent.cancel import CancelToken, Run
from agent.errors import Canceled, DamagedBlob, RepositoryError, StorageError
from agent.monitor import Monitor
from agent.repository.census import PackContent
from agent.repository.crypto import Buffer
from agent.repository.identity import BlobType, PackId
from agent.repository.indexfile import Packs, encode_index
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, file_key, pack_key
from agent.repository.pack import PackedBlob
from agent.repository.ranges import read_blobs
from agent.repository.reader import BlobOpener
from agent.repository.repository import LOADERS, Repository, in_parallel
from agent.repository.sealing import Sealed, Sealer
from agent.repository.uploads import INDEX_BLOBS, Uploads
from agent.repository.writer import OpenPacks
from agent.threads import Threads

Recover = Callable[[PackedBlob, DamagedBlob], bytes | None]
"""Returns the content of a blob that does not open, None to leave it out, or raises."""


class Rewrite:
    """The steps of one rewriting, to be called in the order in which they stand here."""

    def __init__(
        self, repository: Repository, lock: HeldLock, monitor: Monitor, cancel: CancelToken
    ) -> None:
        """Raise ``RepositoryError`` unless the lock keeps everybody else out."""
        if not lock.exclusive:
            raise RepositoryError("rewriting needs an exclusive lock (a bug: report it)")
        self._objects = repository.objects
        self._lock = lock
        self._monitor = monitor
        self._cancel = cancel
        self._opener = BlobOpener(repository.objects.key)
        self._sealer = Sealer(repository.objects.key)

    def copy(self, packs: Iterable[PackContent], recover: Recover) -> int:
        """Copy blobs into new packs, and return how many of them are durable and indexed."""
        self._lock.prove()
        uploads = Uploads(self._objects, self._lock, self._monitor, self._cancel)
        indexed = 0

        def count(named: Packs) -> None:
            nonlocal indexed
            indexed += sum(len(blobs) for _, blobs in named)

        uploads.on_index = count
        targets = {type: OpenPacks(type, uploads) for type in BlobType}
        try:
            self._copy_all(packs, targets, recover)
            for target in targets.values():
                target.flush()
            uploads.drain()
        except BaseException:
            with contextlib.suppress(Canceled, RepositoryError, StorageError):
                uploads.close()
            raise
        uploads.close()
        return indexed

    def _copy_all(
        self, packs: Iterable[PackContent], targets: dict[BlobType, OpenPacks], recover: Recover
    ) -> None:
        """Copy in a few threads; a pack is only taken from ``packs`` when one has time for it."""
        run = Run(self._cancel)

        def copy(pack: PackId, blobs: list[PackedBlob]) -> None:
            for blob, sealed in read_blobs(self._objects.storage, pack, blobs, self._cancel):
                run.check()
                self._copy_blob(blob, sealed, targets[blob.type], recover)

        with Threads(LOADERS, "copy") as pool:
            running: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
            try:
                for pack, blobs in packs:
                    running.append(pool.submit(copy, pack, blobs))
                    if len(running) > LOADERS:
                        running.popleft().result()
                while running:
                    running.popleft().result()
            except BaseException as error:
                run.fail(error)
                raise

    def _copy_blob(
        self, blob: PackedBlob, sealed: Buffer, target: OpenPacks, recover: Recover
    ) -> None:
        again = blob.type is BlobType.TREE and not blob.plain_length
        plain: bytes | None
        try:
            plain = self._opener.open(sealed, blob)
        except DamagedBlob as error:
            plain, again = recover(blob, error), True
        if plain is None:
            return
        if again:
            hashed = self._sealer.hash(plain, [(0, len(plain))])
            for resealed in self._sealer.seal(blob.type, plain, hashed, [0]):
                target.add(resealed)
        else:
            target.add([Sealed(blob.id, memoryview(sealed), blob.plain_length)])
        self._monitor.add(bytes_done=blob.length + blob.entry_bytes)

    def damaged(self, packs: Iterable[PackContent]) -> list[PackContent]:
        """Return those of the blobs that do not open, changing nothing."""

        def look(content: PackContent) -> PackContent:
            pack, blobs = content
            bad = []
            for blob, sealed in read_blobs(self._objects.storage, pack, blobs, self._cancel):
                try:
                    self._opener.open(sealed, blob)
                except DamagedBlob:
                    bad.append(blob)
            return pack, bad

        return [(pack, blobs) for pack, blobs in in_parallel(look, packs) if blobs]

    def write_index(self, packs: Iterable[PackContent]) -> int:
        """Store new index files for packs that stay, and return how many blobs they name."""
        named = 0
        for content in _index_files(packs):
            self._cancel.check()
            self._lock.prove()
            self._objects.save(Folder.INDEX, encode_index(content), cancel=self._cancel)
            named += sum(len(blobs) for _, blobs in content)
        return named

    def remove_index(self, names: Iterable[str]) -> None:
        """Remove old index files; new ones name everything that stays."""
        self._remove(file_key(Folder.INDEX, name) for name in names)

    def remove_packs(self, ids: Iterable[PackId]) -> None:
        """Remove packs that no index names any more."""
        self._remove(pack_key(id) for id in ids)

    def _remove(self, keys: Iterable[str]) -> None:
        run = Run(self._cancel)

        def remove(key: str) -> None:
            try:
                run.check()
                self._lock.prove()
                self._objects.storage.delete(key, cancel=self._cancel)
            except BaseException as error:
                run.fail(error)  # so that what is still in line ends at once
                raise

        in_parallel(remove, keys)


def _index_files(packs: Iterable[PackContent]) -> Iterator[Packs]:
    """Divide packs among index files; a pack stands in one whole, however large it is."""
    content: Packs = []
    count = 0
    for pack, blobs in packs:
        if content and count + len(blobs) > INDEX_BLOBS:
            yield content
            content, count = [], 0
        content.append((pack, blobs))
        count += len(blobs)
    if content:
        yield content
