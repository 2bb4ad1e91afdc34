"""Reading blobs: fetched, opened, decompressed and compared with their id, or not returned.

Trees lie together in packs of their own and are wanted one after the other, so their packs are
fetched whole and a few of them kept. Data blobs are fetched one by one, or as the ranges that
``fetching`` plans.
"""

import collections
import hashlib
import threading
from collections.abc import Iterator

import zstandard

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry
from agent.errors import DamagedBlob, MalformedData, ObjectMissing, StorageError
from agent.repository.crypto import Key, Opener
from agent.repository.fetching import Fetch
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexview import IndexView
from agent.repository.objects import pack_key
from agent.repository.pack import PackedBlob
from agent.repository.table import Found
from agent.repository.tree import decode_tree
from agent.repository.unpacked import MAX_WINDOW_BYTES, inflate
from agent.storage.contract import Buffer, Storage

TREE_PACKS_BYTES = 24 << 20
"""How many bytes of tree packs are kept; one pack is kept whatever its size."""

ONE_STEP_BYTES = 8 << 20
"""What is decompressed in one call: no more than any chunk, whatever size a blob claims."""

_SIZE_UNTOLD = -1


class BlobOpener:
    """Opens sealed blobs with contexts that are kept, one for each thread that calls."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._local = threading.local()

    def open(self, sealed: Buffer, blob: PackedBlob) -> bytes:
        """Return the plaintext; raise ``DamagedBlob`` unless it is what the blob says."""
        try:
            opener: Opener = self._local.opener
        except AttributeError:
            opener = self._local.opener = Opener(self._key)
            self._local.frames = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        try:
            plain = opener.unseal(sealed, "it")
            if blob.plain_length:
                plain = self._inflated(plain, blob.plain_length)
        except MalformedData as error:
            raise DamagedBlob(f"{_named(blob)} is damaged: {error.reason}") from None
        if hashlib.sha256(plain).digest() != blob.id:
            raise DamagedBlob(f"{_named(blob)} is damaged: its content does not match its id")
        return plain

    def _inflated(self, packed: bytes, size: int) -> bytes:
        """Decompress in one go what is one frame of a chunk's size, and anything else in steps."""
        try:
            told = zstandard.frame_content_size(packed) if size <= ONE_STEP_BYTES else 0
            if told in (size, _SIZE_UNTOLD):
                plain: bytes = self._local.frames.decompress(packed, max_output_size=size)
                if len(plain) == size:
                    return plain
        except zstandard.ZstdError:
            pass  # what follows says what is wrong
        return inflate(packed, size, "it")


def _named(blob: PackedBlob) -> str:
    return f"{blob.type.word} blob {blob.id.hex()}"


class BlobReader:
    """Reads blobs that the index view knows."""

    def __init__(
        self, storage: Storage, key: Key, view: IndexView, cancel: CancelToken = NEVER
    ) -> None:
        self._storage = storage
        self._opener = BlobOpener(key)
        self._view = view
        self._cancel = cancel
        self._lock = threading.Lock()
        self._tree_packs: collections.OrderedDict[PackId, bytes] = collections.OrderedDict()

    def load(self, type: BlobType, id: BlobId) -> bytes:
        """Return a blob's plaintext, from any pack that holds it intact.

        Raises ``DamagedBlob``, or the storage's error if that is what kept a pack from being read.
        """
        damage: list[str] = []
        unread: StorageError | None = None
        for place in self._view.find(type, id):
            try:
                return self._opener.open(self._sealed(place), place.blob)
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

    def fetch(self, fetch: Fetch) -> bytes:
        """Return a range, or nothing if its pack is not there or ends before it; ``StorageError``."""
        try:
            return self._storage.get_range(
                pack_key(fetch.pack), fetch.offset, fetch.length, cancel=self._cancel
            )
        except ObjectMissing:
            return b""
        except StorageError:
            if not self._too_short(Found(fetch.pack, fetch.blobs[-1])):
                raise
            return b""

    def opened(self, fetch: Fetch, fetched: bytes) -> Iterator[tuple[BlobId, bytes | DamagedBlob]]:
        """Yield each wanted blob of a range, verified, in stored order.

        A blob that does not open is looked for once more, in every pack that holds it; its
        ``DamagedBlob`` is yielded in its place if none has it intact. Raises ``StorageError``.
        """
        view = memoryview(fetched)
        for blob in fetch.blobs:
            start = blob.offset - fetch.offset
            try:
                yield blob.id, self._opener.open(view[start : start + blob.length], blob)
            except DamagedBlob:
                yield blob.id, self._again(blob)

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

    def load_tree(self, id: bytes) -> list[Entry]:
        """Return the entries of a directory; raises ``DamagedBlob`` or ``MalformedData``."""
        return decode_tree(self.load(BlobType.TREE, BlobId(id)))

    def _sealed(self, place: Found) -> Buffer:
        blob = place.blob
        if blob.type is BlobType.TREE:
            pack = memoryview(self._tree_pack(place.pack))
            return pack[blob.offset : blob.offset + blob.length]
        return self._storage.get_range(
            pack_key(place.pack), blob.offset, blob.length, cancel=self._cancel
        )

    def _tree_pack(self, id: PackId) -> bytes:
        with self._lock:
            if id in self._tree_packs:
                self._tree_packs.move_to_end(id)
                return self._tree_packs[id]
            pack = self._storage.get(pack_key(id), cancel=self._cancel)
            self._tree_packs[id] = pack
            kept = sum(len(p) for p in self._tree_packs.values())
            while kept > TREE_PACKS_BYTES and len(self._tree_packs) > 1:
                kept -= len(self._tree_packs.popitem(last=False)[1])
            return pack
