"""What a pipeline needs from a repository, whatever its format.

``transfer`` works against these two protocols and never learns how bytes are stored. Ids are
opaque; they are what ``Entry.content`` and ``Entry.subtree`` hold. All calls block, come from
many threads at once, and raise errors of ``agent.errors``: any ``RepositoryError`` or
``StorageError`` ends the run.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from agent.entry import Entry
from agent.errors import DamagedBlob
from agent.repository.snapshot import Snapshot
from agent.storage.contract import Buffer
from chunker import Parameters


class Remembered(msgspec.Struct, frozen=True, gc=False):
    """What the listing of a directory looked like when its tree was stored.

    ``digest`` is whatever tells listings apart, in 16 bytes; ``files`` counts its files, and
    ``content_bytes`` their bytes.
    """

    digest: bytes
    files: int
    content_bytes: int


class TreeWriter(Protocol):
    """The tree of one directory in the making, for one that has too many entries to hold them all.

    Used by one thread at a time. ``TreeTooLarge``, of both calls, concerns this directory alone; after
    an error nothing may follow but ``close``, which a failed ``finish`` has done already.
    """

    def add(self, entries: Sequence[Entry]) -> None:
        """Take finished entries, which come after all earlier ones by their raw names."""

    def finish(self) -> bytes:
        """Store the directory; return its id."""

    def close(self) -> None:
        """Give up what was taken and not stored; may be called at any time, and again."""


class BackupTarget(Protocol):
    """The write side of an open, locked repository."""

    @property
    def chunking(self) -> Parameters:
        """Return how files are to be cut, so that equal content becomes equal chunks."""

    def has_content(self, ids: Sequence[bytes]) -> bool:
        """Tell whether every chunk is already stored, so that it need not be read again."""

    def store_chunks(self, data: Buffer, spans: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Store the chunks that lie in a buffer, each at (start, size), unless they are known.

        Returns their ids; the buffer can be used for something else then.
        """

    def store_tree(self, entries: Sequence[Entry]) -> bytes:
        """Store a directory of finished entries; return its id."""

    def begin_tree(self) -> TreeWriter:
        """Begin to store a directory of many entries; raises ``TreeTooLarge``."""

    def load_tree(self, id: bytes) -> Iterable[Entry]:
        """Return the entries of a directory of an earlier snapshot, as ``RestoreSource`` does."""

    def recall(self, tree: bytes) -> Remembered | None:
        """Return what is remembered of a directory of the parent, if everything below it is stored."""

    def remember(self, tree: bytes, remembered: Remembered) -> None:
        """Remember a directory, all of whose chunks are stored, for a run that has this as parent."""

    def checkpoint(self, snapshot: Snapshot) -> str:
        """Make durable what was stored so far, then a snapshot of it; return its id in hexadecimal."""

    def remove_checkpoints(self, ids: Sequence[str]) -> None:
        """Remove snapshots that ``checkpoint`` made, by their ids, as far as the storage lets us."""

    def finish(self, snapshot: Snapshot) -> str:
        """Make everything durable, then the snapshot; return its id in hexadecimal."""


Chunks = Sequence[tuple[bytes, Buffer | DamagedBlob]]
"""Ids of chunks with their content, or with the reason why it is lost."""


class Range(Protocol):
    """Some chunks that lie together, and are read in one request."""

    @property
    def count(self) -> int:
        """Return how many chunks they are."""

    @property
    def length(self) -> int:
        """Return how many bytes are fetched."""

    @property
    def content_bytes(self) -> int:
        """Return how many bytes the chunks have."""

    def fetched(self) -> contextlib.AbstractContextManager[Buffer]:
        """Lend the range as it is stored, for the length of a scope."""

    def groups(self, fetched: Buffer) -> Iterator[Chunks]:
        """Yield the chunks, some at a time, verified, or why one cannot be had from anywhere.

        The content is good until the next group is asked for. A group is 2 MiB, or one chunk.
        """


class RestoreSource(Protocol):
    """The read side of an open repository."""

    @property
    def waits(self) -> bool:
        """Tell whether fetching mostly waits, so that more fetches than cores are worth it."""

    def load_tree(self, id: bytes) -> Iterable[Entry]:
        """Return the entries of a directory; ``DamagedBlob`` or ``MalformedData`` if it is lost.

        They are a list, or for a directory of very many something that yields them each time it is
        iterated over, and may raise ``MalformedData`` in the middle of that.
        """

    def load_chunk(self, id: bytes) -> bytes:
        """Return a chunk, verified; ``DamagedBlob`` if it is lost."""

    def chunk_size(self, id: bytes) -> int:
        """Return how many bytes a chunk has, without reading it; ``DamagedBlob`` if it is lost."""

    def is_chunk(self, id: bytes, data: bytes) -> bool:
        """Tell whether these bytes are that chunk."""

    def is_zeros(self, id: bytes) -> bool:
        """Tell whether a chunk is known to be nothing but zeros, so that it need not be read."""

    def plan(self, ids: Collection[bytes]) -> tuple[Sequence[Range], dict[bytes, DamagedBlob]]:
        """Return the ranges that bring these chunks, each once, and those that nobody has."""
