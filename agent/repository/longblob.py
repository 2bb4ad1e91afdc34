"""Long blobs: the trees of huge directories, which memory should not hold at once.

One is made in a file: hashed, compressed and sealed as its pieces come, and sent from there as a pack of
its own. And it is read by way of one: fetched in ranges, proven to be what its id names, and only then
read, as often as asked for. The file has no name, so it is gone with who uses it; it lies in the cache
directory, or where temporary files do, and holds sealed bytes only.

The rules are those of ``sealing`` and ``reader``: what was sealed is opened again before anybody relies
on it, and nothing of a blob is used before its authentication code and its hash were seen to be right.
"""

import hashlib
import logging
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import xxhash
import zstandard

from agent.cancel import CancelToken
from agent.entry import Entry
from agent.errors import DamagedBlob, MalformedData, RepositoryError, TreeTooLarge
from agent.repository.crypto import IV_SIZE, MAC_SIZE, OVERHEAD, Key, Unsealing
from agent.repository.identity import BlobId, BlobType
from agent.repository.longtree import TreeText, decode_pieces
from agent.repository.objects import fresh_iv, pack_key
from agent.repository.pack import MAX_BLOB_BYTES, PackBuilder, PackedBlob
from agent.repository.table import Found
from agent.repository.unpacked import MAX_WINDOW_BYTES
from agent.repository.zone import local_zone
from agent.storage.contract import Buffer, Storage

STEP_BYTES = 1 << 20
"""What is hashed, sealed, opened, read and written in one call."""

FETCH_BYTES = 4 << 20
"""What is fetched in one request."""

log = logging.getLogger(__name__)


class Spool:
    """A file without a name, which is closed with its last user.

    Raises ``TreeTooLarge`` where there is no room for it.
    """

    def __init__(self, folder: Path | None) -> None:
        """Make it in a directory, or where temporary files lie."""
        try:
            self._descriptor = _nameless(folder)
        except OSError as error:
            raise _no_room(error) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Append bytes."""
        left = memoryview(data)
        try:
            while left:
                count = os.write(self._descriptor, left)
                self.size += count
                left = left[count:]
        except OSError as error:
            raise _no_room(error) from error

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yield what was written between two places."""
        while start < end:
            piece = os.pread(self._descriptor, min(STEP_BYTES, end - start), start)
            if not piece:
                raise RepositoryError("a temporary file is shorter than what was written to it")
            start += len(piece)
            yield piece

    def mapped(self) -> memoryview:
        """Return all of it; it stays mapped while the view is used."""
        return memoryview(mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ))

    def close(self) -> None:
        """Give the room back at once; nobody else may use it any more."""
        self._close()


def _nameless(folder: Path | None) -> int:
    """Return the descriptor of a new file."""
    for place in (folder, None):
        try:
            with tempfile.TemporaryFile(dir=place, buffering=0) as file:
                return os.dup(file.fileno())
        except OSError as error:
            if place is None:
                raise
            log.debug("no temporary files in %s: %s", place, error)
    raise AssertionError


def _no_room(error: OSError) -> TreeTooLarge:
    return TreeTooLarge(
        f"there is no room for a temporary file: {error.strerror}; free some in the cache directory"
        " or in TMPDIR"
    )


class LongBlob:
    """A tree blob in the making, which is to be the only one of its pack."""

    def __init__(self, key: Key, level: int, folder: Path | None) -> None:
        """Begin one that is compressed at a zstd level."""
        self._key = key
        self._spool = Spool(folder)
        iv = fresh_iv()
        self._sealing = key.sealing(iv)
        self._spool.write(iv)
        self._zstd = zstandard.ZstdCompressor(level=level).compressobj()
        self._hash = hashlib.sha256()
        self._seal = xxhash.xxh3_64()
        self._plain_bytes = 0

    @property
    def id(self) -> BlobId:
        """Return the hash of what was written so far."""
        return BlobId(self._hash.digest())

    def write(self, plain: bytes) -> None:
        """Append plaintext; raises ``TreeTooLarge``."""
        view = memoryview(plain)
        for start in range(0, len(plain), STEP_BYTES):
            piece = view[start : start + STEP_BYTES]
            self._plain_bytes += len(piece)
            self._hash.update(piece)
            self._seal.update(piece)
            self._store(self._zstd.compress(piece))
        if max(self._plain_bytes, self._spool.size) > MAX_BLOB_BYTES:
            raise TreeTooLarge(
                f"its tree has more than {MAX_BLOB_BYTES} bytes, which no pack holds"
            )

    def finish(self) -> "LongPack":
        """Return the pack; raises ``DamagedBlob`` if what is sealed does not open again."""
        self._store(self._zstd.flush())
        self._spool.write(self._sealing.finish())
        blob = PackedBlob(BlobType.TREE, self.id, 0, self._spool.size, self._plain_bytes)
        seal = xxhash.xxh3_64()
        try:
            for piece in _opened(self._spool, blob, self._key):
                seal.update(piece)
        except MalformedData as error:
            raise _corrupt(blob, error.reason) from error
        if seal.digest() != self._seal.digest():
            raise _corrupt(blob, "it opens to something else")
        return LongPack(self._spool, blob)

    def close(self) -> None:
        """Give up what was written."""
        self._spool.close()

    def _store(self, packed: bytes) -> None:
        if packed:
            self._spool.write(self._sealing.update(packed))


def _corrupt(blob: PackedBlob, reason: str) -> DamagedBlob:
    return DamagedBlob(
        f"blob {blob.id.hex()} did not survive being sealed ({reason}); nothing of it was stored. This"
        " node's memory, CPU or disk is suspect: test it before you trust its backups"
    )


class LongPack(PackBuilder):
    """The pack of one long blob, which is sent from its file."""

    def __init__(self, spool: Spool, blob: PackedBlob) -> None:
        super().__init__(blob.type)
        self._spool = spool
        self.blobs = [blob]
        self.size = blob.length

    def finish(self, key: Key, iv: bytes) -> memoryview:
        """Seal the header, and return the whole pack, which lies in the file."""
        for part in self.end(key, iv):
            self._spool.write(part)
        return self._spool.mapped()


class LongTreeWriter:
    """A tree that is made piece by piece; implements ``TreeWriter``."""

    def __init__(self, blob: LongBlob, store: Callable[[LongBlob], bytes]) -> None:
        self._blob = blob
        self._store = store
        self._text = TreeText(local_zone)

    def add(self, entries: Sequence[Entry]) -> None:
        """Encode, compress and seal entries."""
        for piece in self._text.pieces(entries):
            self._blob.write(piece)

    def finish(self) -> bytes:
        """Store the tree unless it is known; return its id."""
        try:
            self._blob.write(self._text.finish())
            return self._store(self._blob)
        except BaseException:
            self._blob.close()
            raise

    def close(self) -> None:
        """Give up a tree that is not stored."""
        self._blob.close()


class LongTree:
    """A directory of the repository whose tree is long; each iteration reads it from its file.

    Raises ``MalformedData`` where it comes to what does not decode.
    """

    def __init__(self, spool: Spool, blob: PackedBlob, key: Key) -> None:
        self._spool = spool
        self._blob = blob
        self._key = key
        self.refused: list[MalformedData] | None = None
        """With a list, errors of single entries go there, and the others are still yielded."""

    def __iter__(self) -> Iterator[Entry]:
        blob = self._blob
        plain = _decrypted(self._spool, blob, self._key.unsealing(_iv(self._spool), "it"))
        return decode_pieces(plain, self.refused)


def fetch_tree(
    storage: Storage, place: Found, key: Key, folder: Path | None, cancel: CancelToken
) -> LongTree:
    """Fetch a tree into a file, and prove it; raises ``DamagedBlob`` and ``StorageError``."""
    blob = place.blob
    spool = Spool(folder)
    room = memoryview(bytearray(min(FETCH_BYTES, blob.length)))
    for start in range(0, blob.length, FETCH_BYTES):
        part = room[: blob.length - start]
        storage.get_range(pack_key(place.pack), blob.offset + start, part, cancel=cancel)
        spool.write(part)
    digest = hashlib.sha256()
    try:
        for piece in _opened(spool, blob, key):
            digest.update(piece)
    except MalformedData as error:
        raise _damaged(blob, error.reason) from None
    if digest.digest() != blob.id:
        raise _damaged(blob, "its content does not match its id")
    return LongTree(spool, blob, key)


def _damaged(blob: PackedBlob, reason: str) -> DamagedBlob:
    return DamagedBlob(f"{blob.type.word} blob {blob.id.hex()} is damaged: {reason}")


def _iv(spool: Spool) -> bytes:
    return b"".join(spool.pieces(0, min(IV_SIZE, spool.size)))


def _opened(spool: Spool, blob: PackedBlob, key: Key) -> Iterator[bytes]:
    """Yield the plaintext of what is sealed in a file, after proving that it is authentic."""
    end = spool.size - MAC_SIZE
    if spool.size < OVERHEAD:
        raise MalformedData("it", f"{spool.size} bytes are too few to be sealed data")
    unsealing = key.unsealing(_iv(spool), "it")
    code = b"".join(spool.pieces(end, spool.size))
    unsealing.authenticate(spool.pieces(IV_SIZE, end), code)
    yield from _decrypted(spool, blob, unsealing)


def _decrypted(spool: Spool, blob: PackedBlob, unsealing: Unsealing) -> Iterator[bytes]:
    """Yield the plaintext of what was proven to be authentic; no more of it than the index says."""
    sealed = spool.pieces(IV_SIZE, spool.size - MAC_SIZE)
    pieces = map(unsealing.update, sealed)
    left = blob.content_bytes
    for piece in _inflated(pieces) if blob.plain_length else pieces:
        left -= len(piece)
        if left < 0:
            raise MalformedData("it", f"it has more than {blob.content_bytes} bytes")
        yield piece


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what zstd frames hold."""
    stream = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
        cast("IO[bytes]", _Readable(pieces)), read_across_frames=True
    )
    try:
        while piece := stream.read(STEP_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise MalformedData("it", f"zstd: {error}") from None


class _Readable:
    """Pieces, in the form that zstandard reads from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """Return some bytes, no more than ``size``; none at the end."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        part, self._left = self._left[:size], self._left[size:]
        return part
