"""The named files of a repository: sealed, compressed, called by the hash of what is stored.

Layout: restic-format.md section 1. Every file that is read here is compared with its name, so a
damaged or exchanged file is never believed.
"""

import enum
import hashlib
import secrets
from collections.abc import Iterator
from typing import NamedTuple

from agent.cancel import NEVER, CancelToken
from agent.errors import (
    AccessDenied,
    BucketMissing,
    CredentialsExpired,
    MalformedData,
    ObjectTooLarge,
    StorageError,
    Throttled,
    Unreachable,
)
from agent.repository.crypto import IV_SIZE, Buffer, Key
from agent.repository.identity import PackId, is_object_name
from agent.repository.unpacked import unwrap, wrap
from agent.storage.contract import Storage

CONFIG_KEY = "config"


class Folder(enum.StrEnum):
    """Where files of one kind lie; keys are the only ones that are not sealed."""

    KEYS = "keys"
    LOCKS = "locks"
    SNAPSHOTS = "snapshots"
    INDEX = "index"
    DATA = "data"


MOST_JSON_BYTES = {
    Folder.LOCKS: 1 << 20,
    Folder.SNAPSHOTS: 64 << 20,
    Folder.INDEX: 128 << 20,
}
"""What the JSON of a file may take, which is up to five times as much in memory.

A snapshot may name hundreds of thousands of paths. An index file has 50,000 blobs and those of one more
pack, whose header has room for 400,000, at 150 bytes each.
"""


_MOST_SMALL_BYTES = 1 << 20
"""What a config or a key file may have: they have some 150 and 500 bytes."""

_ROOM_BYTES = 1 << 20
"""What sealing adds to JSON, and compressing to what does not get smaller by it (1/256)."""

_GENERAL = (AccessDenied, BucketMissing, CredentialsExpired, Throttled, Unreachable)
"""Errors that say nothing of the object that was asked for."""


def of_one_object(error: StorageError) -> bool:
    """Tell whether an error is the trouble of one object, such as a bad sector, not of all."""
    return not isinstance(error, _GENERAL)


def pack_key(id: PackId) -> str:
    """Return the storage key of a pack."""
    return _key(Folder.DATA, id.hex())


def file_key(folder: Folder, name: str) -> str:
    """Return the storage key of an unpacked file."""
    return f"{folder}/{name}"


def read_file(storage: Storage, key: str, most_bytes: int, cancel: CancelToken = NEVER) -> bytes:
    """Return an unpacked file as it is stored.

    Raises ``ObjectMissing``, and ``MalformedData`` for one that is larger than any such file can be.
    """
    try:
        return storage.get(key, most_bytes=most_bytes, cancel=cancel)
    except ObjectTooLarge as error:
        raise MalformedData(key, f"it has {error.size} bytes, and may have {most_bytes}") from None


def read_config(storage: Storage, cancel: CancelToken = NEVER) -> bytes:
    """Return the config as it is stored; raises as ``read_file`` does."""
    return read_file(storage, CONFIG_KEY, _MOST_SMALL_BYTES, cancel)


def read_key(storage: Storage, name: str, cancel: CancelToken = NEVER) -> bytes:
    """Return a key file; raises as ``read_file`` does."""
    return read_file(storage, file_key(Folder.KEYS, name), _MOST_SMALL_BYTES, cancel)


def names(storage: Storage, folder: Folder, cancel: CancelToken = NEVER) -> Iterator[str]:
    """Yield the ids in a folder; names that are no ids are ignored, as restic does."""
    for name, _ in sizes(storage, folder, cancel):
        yield name


def sizes(
    storage: Storage, folder: Folder, cancel: CancelToken = NEVER
) -> Iterator[tuple[str, int]]:
    """Yield (id, size in bytes) of every file that lies where it belongs."""
    for key, size in storage.list(f"{folder}/", cancel=cancel):
        name = key.rpartition("/")[2]
        if is_object_name(name) and key == _key(folder, name):
            yield name, size


def _key(folder: Folder, name: str) -> str:
    return f"{folder}/{name[:2]}/{name}" if folder is Folder.DATA else file_key(folder, name)


def fresh_iv() -> bytes:
    """Return 16 random bytes that are not all zero."""
    return fresh_ivs(1)[0]


def fresh_ivs(count: int) -> list[bytes]:
    """Return IVs of 16 random bytes, none of them all zero."""
    while True:
        random = secrets.token_bytes(count * IV_SIZE)
        ivs = [random[place : place + IV_SIZE] for place in range(0, len(random), IV_SIZE)]
        if all(map(any, ivs)):
            return ivs


class SealedFile(NamedTuple):
    """A file that is ready to be stored; ``digest`` is the SHA-256 that names it."""

    digest: bytes
    stored: bytearray

    @property
    def name(self) -> str:
        """Return the file's id."""
        return self.digest.hex()


class Objects:
    """Loads and saves the sealed, unpacked files of an open repository."""

    def __init__(self, storage: Storage, key: Key) -> None:
        self.storage = storage
        self.key = key

    def load(self, folder: Folder, name: str, *, cancel: CancelToken = NEVER) -> bytes:
        """Return the JSON of a file; raises ``ObjectMissing`` or ``MalformedData``."""
        return self.unseal(folder, name, self.fetch(folder, name, cancel=cancel))

    def fetch(self, folder: Folder, name: str, *, cancel: CancelToken = NEVER) -> bytes:
        """Return a file as it is stored, not verified yet; raises as ``read_file`` does."""
        most = MOST_JSON_BYTES[folder] + _ROOM_BYTES
        return read_file(self.storage, file_key(folder, name), most, cancel)

    def unseal(self, folder: Folder, name: str, stored: bytes) -> bytes:
        """Return the JSON of a file that was stored as this; raises ``MalformedData``."""
        what = file_key(folder, name)
        if hashlib.sha256(stored).hexdigest() != name:
            raise MalformedData(what, "its content does not match its name")
        return unwrap(self.key.unseal(stored, what), MOST_JSON_BYTES[folder], what)

    def seal(self, json: Buffer) -> SealedFile:
        """Return JSON as it will be stored."""
        stored = self.key.seal(fresh_iv(), wrap(json))
        return SealedFile(hashlib.sha256(stored).digest(), stored)

    def put(self, folder: Folder, file: SealedFile, *, cancel: CancelToken = NEVER) -> None:
        """Store a sealed file."""
        key = file_key(folder, file.name)
        self.storage.put(key, file.stored, sha256=file.digest, cancel=cancel)

    def save(self, folder: Folder, json: Buffer, *, cancel: CancelToken = NEVER) -> str:
        """Store JSON as a new file, and return its id."""
        file = self.seal(json)
        self.put(folder, file, cancel=cancel)
        return file.name

    def remove(self, folder: Folder, name: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove a file; it may be gone already."""
        self.storage.delete(file_key(folder, name), cancel=cancel)
