"""What every storage promises, whatever is behind it.

A storage is one flat set of objects under one prefix. Calls block the calling thread and may
come from many threads at once. An object is written whole or not at all, is durable when
``put`` returns, and is never changed afterwards: writing the same key again with the same
bytes is allowed at any time, which is what makes a blind retry safe.

Errors are the kinds of ``agent.errors.StorageError``. A storage does not retry; ``Retrying``
(``retry.py``) is the only place that does. Cancelling leaves either no object or the whole
one; ``Canceled`` is raised within about a second, also while the peer is stalled.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from agent.cancel import NEVER, CancelToken
from agent.errors import StorageError

Buffer = bytes | bytearray | memoryview
Room = bytearray | memoryview
"""Memory that can be written to."""

WHATEVER_BYTES = 1 << 63
"""No object has as many."""

SURE_BYTES = 16 << 20
"""A longer range gets its memory once it is known to be there, for an index may claim any length."""


class Listed(NamedTuple):
    """One object of a listing: its key below the prefix, and its size in bytes."""

    key: str
    size: int


class Page(NamedTuple):
    """A part of a listing; ``next_token`` asks for the one after it, None ends the listing."""

    listed: list[Listed]
    next_token: str | None


class Storage(Protocol):
    """One prefix of an object store."""

    @property
    def place(self) -> str:
        """Return what an operator would call this place, without any secret."""

    @property
    def waits(self) -> bool:
        """Tell whether a call mostly waits, for a network: more of them at once are then worth it."""

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        """Store ``body`` under ``key``; ``sha256`` is its digest when it is known already."""

    def put_new(self, key: str, body: Buffer, *, cancel: CancelToken = NEVER) -> bool:
        """Store ``body`` unless the key exists; tell whether it is now ours.

        Of several callers at the same moment exactly one gets True. A lost reply is no reason
        for a False: what is there is compared with ``body``. Where the server may ignore the
        condition (s3.md section 3), the storage waits until a rival must have written, and
        looks again at whose bytes stayed.
        """

    def get(
        self, key: str, *, most_bytes: int = WHATEVER_BYTES, cancel: CancelToken = NEVER
    ) -> bytes:
        """Return the whole object; raises ``ObjectMissing``.

        Raises ``ObjectTooLarge`` for one of more than ``most_bytes``, and takes no memory for it.
        """

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        """Fill ``out`` with the bytes from ``offset``: memory that is used again costs no page faults.

        Raises ``ObjectMissing``, or ``StorageError`` if the object ends before that; what is in
        ``out`` is of no use then.
        """

    def size(self, key: str, *, cancel: CancelToken = NEVER) -> int:
        """Return the object's size in bytes; raises ``ObjectMissing``."""

    def list(self, prefix: str, *, cancel: CancelToken = NEVER) -> Iterator[Listed]:
        """Yield every object whose key starts with ``prefix``, in no promised order."""

    def folders(self, prefix: str, *, cancel: CancelToken = NEVER) -> tuple[str, ...]:
        """Return, sorted, what keys have between ``prefix`` and the next slash.

        ``prefix`` is "" or ends in a slash. Costs no more for folders that hold many objects.
        """

    def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove the object; removing what is not there is not an error."""

    def close(self) -> None:
        """Release connections; the storage is not used afterwards."""


@runtime_checkable
class Renewable(Protocol):
    """A storage whose credentials may expire while it is used."""

    def renew(self) -> None:
        """Drop what was made with the old credentials; the next call reads them afresh."""


@runtime_checkable
class Paged(Protocol):
    """A storage that lists in pages, each of which can be asked for again."""

    def page(self, prefix: str, token: str | None, *, cancel: CancelToken = NEVER) -> Page:
        """Return the first page (``token`` None), or the one that ``token`` stands for."""


def require_range(
    storage: Storage, key: str, offset: int, length: int, *, cancel: CancelToken = NEVER
) -> None:
    """Raise as ``get_range`` does if a long range is not there, before any memory is taken for it."""
    if length > SURE_BYTES and (size := storage.size(key, cancel=cancel)) < offset + length:
        raise StorageError(
            f"{key} in {storage.place} has {size} bytes; {length} from {offset} were asked for",
            key=key,
        )


def read_range(
    storage: Storage, key: str, offset: int, length: int, *, cancel: CancelToken = NEVER
) -> bytearray:
    """Return ``length`` bytes from ``offset``, in new memory; raises as ``get_range`` does."""
    require_range(storage, key, offset, length, cancel=cancel)
    out = bytearray(length)
    storage.get_range(key, offset, out, cancel=cancel)
    return out
