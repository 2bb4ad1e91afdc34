"""Reading blobs: fetched, opened, decompressed and compared with their id, or not returned.

Trees lie together in packs of their own and are wanted one after the other, so their packs are
fetched whole and a few of them kept. Data blobs are fetched one by one, or as the ranges that
``fetching`` plans.
"""

import collections
import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry
from agent.errors import DamagedBlob, MalformedData, ObjectMissing, ObjectTooLarge, StorageError
from agent.repository.buffers import Buffers
from agent.repository.contract import Chunks
from agent.repository.crypto import Key
from agent.repository.fetching import Fetch
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexview import IndexView
from agent.repository.kernel import blob_kernel
from agent.repository.longblob import LongTree, fetch_tree
from agent.repository.objects import pack_key
from agent.repository.pack import PackedBlob
from agent.repository.plainkernel import SEALED
from agent.repository.sealing import LEVELS
from agent.repository.table import Found
from agent.repository.tree import decode_tree
from agent.repository.unpacked import inflate
from agent.storage.contract import Buffer, Room, Storage, read_range, require_range

TREE_PACKS_BYTES = 24 << 20
"""How many bytes of tree packs are kept; one pack is kept whatever its size."""

MOST_TREE_PACK_BYTES = 40 << 20
"""A pack that is longer, for it ends in the tree of a huge directory, is not fetched whole."""

ONE_STEP_BYTES = 8 << 20
"""What is decompressed in one call: no more than any chunk, whatever size a blob claims."""

LONG_TREE_BYTES = 24 << 20
"""A longer tree is read by way of a file: some 50,000 entries."""

MOST_CHUNK_BYTES = 128 << 20
"""What a data blob may hold: chunks have 8 MiB at most, those of other programs perhaps more.

A tree has no such bound but what its index says, for a directory has none either.
"""

TOGETHER_BYTES = 2 << 20
"""How much content is opened in one call, if it is more than one blob."""

T = TypeVar("T")


class BlobOpener:
    """Opens sealed blobs; for any number of threads."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._kernel = blob_kernel(key, *LEVELS["default"])

    def open(self, sealed: Buffer, blob: PackedBlob) -> bytes:
        """Return the plaintext; raise ``DamagedBlob`` unless it is what the blob says."""
        if 0 <= blob.content_bytes <= ONE_STEP_BYTES and blob.length == len(sealed):
            (plain,) = self.open_many(sealed, [blob], blob.offset, bytearray(blob.content_bytes))
            if plain is not None:
                return bytes(plain)
        return self._patiently(sealed, blob)

    def open_many(
        self, data: Buffer, blobs: Sequence[PackedBlob], start: int, room: Room
    ) -> list[memoryview | None]:
        """Open blobs that lie in a range of a pack, which begins at ``start``, into ``room``.

        ``room`` takes all their content; what is returned are views of it, or None for a blob that
        did not open: ``open`` says why.
        """
        records = b"".join(
            [SEALED.pack(b.offset - start, b.length, b.plain_length, b.id) for b in blobs]
        )
        statuses = self._kernel.open(data, records, room)
        view = memoryview(room)
        found: list[memoryview | None] = []
        used = 0
        for blob, status in zip(blobs, statuses, strict=True):
            size = blob.content_bytes
            found.append(None if status else view[used : used + size])
            used += size
        return found

    def _patiently(self, sealed: Buffer, blob: PackedBlob) -> bytes:
        """Open one blob step by step, and say what is wrong with it."""
        if blob.type is BlobType.DATA and blob.content_bytes > MOST_CHUNK_BYTES:
            raise DamagedBlob(
                f"{_named(blob)} is damaged: it says that it holds {blob.content_bytes} bytes, and no"
                f" chunk has more than {MOST_CHUNK_BYTES}"
            )
        try:
            plain = self._key.unseal(sealed, "it")
            if blob.plain_length:
                plain = inflate(plain, blob.plain_length, "it")
        except MalformedData as error:
            raise DamagedBlob(f"{_named(blob)} is damaged: {error.reason}") from None
        if hashlib.sha256(plain).digest() != blob.id:
            raise DamagedBlob(f"{_named(blob)} is damaged: its content does not match its id")
        return plain


def _named(blob: PackedBlob) -> str:
    return f"{blob.type.word} blob {blob.id.hex()}"


def _together(blobs: Sequence[PackedBlob]) -> Iterator[tuple[list[PackedBlob], int]]:
    """Divide blobs into groups that are opened in one call; yield each with the size of its content."""
    group: list[PackedBlob] = []
    size = 0
    for blob in blobs:
        more = blob.content_bytes
        if group and size + more > TOGETHER_BYTES:
            yield group, size
            group, size = [], 0
        group.append(blob)
        size += more
    if group:
        yield group, size


class BlobReader:
    """Reads blobs that the index view knows."""

    def __init__(
        self,
        storage: Storage,
        key: Key,
        view: IndexView,
        cancel: CancelToken = NEVER,
        folder: Path | None = None,
    ) -> None:
        """Read with a key; temporary files are made in ``folder``, see ``longblob``."""
        self._storage = storage
        self._key = key
        self._folder = folder
        self._opener = BlobOpener(key)
        self._view = view
        self._cancel = cancel
        self._lock = threading.Lock()
        self._buffers = Buffers()
        self._ranges = Buffers()
        self._tree_packs: collections.OrderedDict[PackId, bytes] = collections.OrderedDict()
        self._long_packs: set[PackId] = set()

    @property
    def waits(self) -> bool:
        """Tell whether the storage is far away."""
        return self._storage.waits

    def load(self, type: BlobType, id: BlobId) -> bytes:
        """Return a blob's plaintext, from any pack that holds it intact.

        Raises ``DamagedBlob``, or the storage's error if that is what kept a pack from being read.
        """
        return self._from_any(type, id, self._whole)

    def _whole(self, place: Found) -> bytes:
        return self._opener.open(self._sealed(place), place.blob)

    def _from_any(self, type: BlobType, id: BlobId, read: Callable[[Found], T]) -> T:
        damage: list[str] = []
        unread: StorageError | None = None
        for place in self._view.find(type, id):
            try:
                return read(place)
            except (DamagedBlob, ObjectMissing) as error:
                damage.append(f"{error} (pack {place.pack.hex()})")
            except StorageError as error:
                if self._too_short(place):
                    damage.append(f"pack {place.pack.hex()} is cut short")
                else:
                    unread = error
        if unread is not None:
            raise unread
        raise DamagedBlob(
            f"{type.word} blob {id.hex()} cannot be read: {'; '.join(damage)}. `podlift repair packs`"
            " and a new backup mend what still can be"
        )

    @contextlib.contextmanager
    def fetched(self, fetch: Fetch) -> Iterator[memoryview]:
        """Lend a range, or nothing if its pack is not there or ends before it; ``StorageError``."""
        key, start, length = pack_key(fetch.pack), fetch.offset, fetch.length
        ask = functools.partial(require_range, self._storage, key, start, length)
        if not self._is_there(fetch, ask):
            yield memoryview(b"")
            return
        with self._ranges.lend(length) as room:
            ask = functools.partial(self._storage.get_range, key, start, room)
            yield room if self._is_there(fetch, ask) else room[:0]

    def _is_there(self, fetch: Fetch, ask: Callable[..., None]) -> bool:
        """Ask for a range, and tell whether its pack is there and long enough; ``StorageError``."""
        try:
            ask(cancel=self._cancel)
        except ObjectMissing:
            return False
        except StorageError:
            if not self._too_short(Found(fetch.pack, fetch.blobs[-1])):
                raise
            return False
        return True

    def opened(self, fetch: Fetch, fetched: Buffer) -> Iterator[Chunks]:
        """Yield the wanted blobs of a range in groups, verified, in stored order; good until the next.

        A blob that does not open is looked for once more, in every pack that holds it; its
        ``DamagedBlob`` is yielded in its place if none has it intact. Raises ``StorageError``.
        """
        for blobs, size in _together(fetch.blobs):
            if size > ONE_STEP_BYTES or fetch.length > len(fetched):
                yield from ([(blob.id, self._alone(fetch, fetched, blob))] for blob in blobs)
                continue
            with self._buffers.lend(size) as room:
                opened = self._opener.open_many(fetched, blobs, fetch.offset, room)
                yield [
                    (blob.id, self._alone(fetch, fetched, blob) if plain is None else plain)
                    for blob, plain in zip(blobs, opened, strict=True)
                ]

    def _alone(self, fetch: Fetch, fetched: Buffer, blob: PackedBlob) -> bytes | DamagedBlob:
        start = blob.offset - fetch.offset
        try:
            return self._opener.open(memoryview(fetched)[start : start + blob.length], blob)
        except DamagedBlob:
            return self._again(blob)

    def _again(self, blob: PackedBlob) -> bytes | DamagedBlob:
        try:
            return self.load(blob.type, blob.id)
        except DamagedBlob as error:
            return error

    def _too_short(self, place: Found) -> bool:
        """Tell whether a pack ends before its blob does; a storage cannot say so by its error."""
        try:
            size = self._storage.size(pack_key(place.pack), cancel=self._cancel)
        except StorageError:
            return False
        return size < place.blob.offset + place.blob.length

    def load_tree(
        self, id: bytes, refused: list[MalformedData] | None = None
    ) -> list[Entry] | LongTree:
        """Return the entries of a directory; raises ``DamagedBlob`` or ``MalformedData``.

        With a list in ``refused`` the errors of single entries go there.
        """
        found = self._from_any(BlobType.TREE, BlobId(id), self._tree)
        if not isinstance(found, LongTree):
            return decode_tree(found, refused)
        found.refused = refused
        return found

    def prove_tree(self, id: bytes) -> None:
        """Raise ``DamagedBlob`` unless a tree can be read."""
        self._from_any(BlobType.TREE, BlobId(id), self._tree)

    def prove_at(self, place: Found) -> None:
        """Raise ``DamagedBlob`` unless a tree can be read from this pack."""
        try:
            self._tree(place)
        except StorageError:
            if not self._too_short(place):
                raise
            raise DamagedBlob(f"pack {place.pack.hex()} is cut short") from None

    def _tree(self, place: Found) -> bytes | LongTree:
        if place.blob.content_bytes <= LONG_TREE_BYTES:
            return self._whole(place)
        return fetch_tree(self._storage, place, self._key, self._folder, self._cancel)

    def _sealed(self, place: Found) -> Buffer:
        blob = place.blob
        if blob.type is BlobType.TREE and (pack := self._tree_pack(place.pack)) is not None:
            return memoryview(pack)[blob.offset : blob.offset + blob.length]
        key = pack_key(place.pack)
        return read_range(self._storage, key, blob.offset, blob.length, cancel=self._cancel)

    def _tree_pack(self, id: PackId) -> bytes | None:
        """Return a whole pack of trees; None for one that is better read blob by blob."""
        with self._lock:
            if id in self._long_packs:
                return None
            if id in self._tree_packs:
                self._tree_packs.move_to_end(id)
                return self._tree_packs[id]
            try:
                pack = self._storage.get(
                    pack_key(id), most_bytes=MOST_TREE_PACK_BYTES, cancel=self._cancel
                )
            except ObjectTooLarge:
                self._long_packs.add(id)
                return None
            self._tree_packs[id] = pack
            kept = sum(len(p) for p in self._tree_packs.values())
            while kept > TREE_PACKS_BYTES and len(self._tree_packs) > 1:
                kept -= len(self._tree_packs.popitem(last=False)[1])
            return pack
