"""Objects in a dictionary: the storage of tests, and the simplest reading of the contract."""

import hashlib
import threading
from collections.abc import Iterator

from agent.cancel import NEVER, CancelToken
from agent.errors import IntegrityRefused, ObjectMissing, ObjectTooLarge, StorageError
from agent.storage.contract import WHATEVER_BYTES, Buffer, Listed, Room
from agent.storage.keys import check_folder, check_key, check_offset, check_prefix


class MemoryStorage:
    """Keeps objects for as long as it lives; refuses a body that ``sha256`` does not match."""

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    @property
    def place(self) -> str:
        """Return the name given at construction."""
        return self._name

    @property
    def waits(self) -> bool:
        """Nothing is waited for."""
        return False

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        """Store a copy of ``body``."""
        check_key(key)
        kept = bytes(body)
        if sha256 is not None and hashlib.sha256(kept).digest() != sha256:
            raise IntegrityRefused(f"{key}: the bytes do not match their SHA-256", key=key)
        cancel.check()
        with self._lock:
            self._objects[key] = kept

    def put_new(self, key: str, body: Buffer, *, cancel: CancelToken = NEVER) -> bool:
        """Store a copy of ``body`` unless the key exists."""
        check_key(key)
        cancel.check()
        with self._lock:
            return self._objects.setdefault(key, kept := bytes(body)) is kept

    def get(
        self, key: str, *, most_bytes: int = WHATEVER_BYTES, cancel: CancelToken = NEVER
    ) -> bytes:
        """Return the whole object; raises ``ObjectMissing`` and ``ObjectTooLarge``."""
        check_key(key)
        cancel.check()
        with self._lock:
            try:
                body = self._objects[key]
            except KeyError:
                raise ObjectMissing(f"{key} does not exist in {self.place}", key=key) from None
        if len(body) > most_bytes:
            raise ObjectTooLarge(key, self.place, len(body), most_bytes)
        return body

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        """Fill ``out`` with the bytes from ``offset``."""
        check_offset(key, offset)
        body, length = self.get(key, cancel=cancel), len(out)
        if offset + length > len(body):
            raise StorageError(
                f"{key} has {len(body)} bytes; {length} from {offset} were asked for", key=key
            )
        out[:] = body[offset : offset + length]

    def size(self, key: str, *, cancel: CancelToken = NEVER) -> int:
        """Return the object's size in bytes; raises ``ObjectMissing``."""
        return len(self.get(key, cancel=cancel))

    def list(self, prefix: str, *, cancel: CancelToken = NEVER) -> Iterator[Listed]:
        """Yield what was there when the listing began."""
        check_prefix(prefix)
        with self._lock:
            found = [Listed(k, len(v)) for k, v in self._objects.items() if k.startswith(prefix)]
        for listed in found:
            cancel.check()
            yield listed

    def folders(self, prefix: str, *, cancel: CancelToken = NEVER) -> tuple[str, ...]:
        """Return the folders right below ``prefix``."""
        check_folder(prefix)
        rest = [key.removeprefix(prefix) for key, _ in self.list(prefix, cancel=cancel)]
        return tuple(sorted({key.partition("/")[0] for key in rest if "/" in key}))

    def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove the object if it is there."""
        check_key(key)
        cancel.check()
        with self._lock:
            self._objects.pop(key, None)

    def close(self) -> None:
        """Keep everything; a test may look at it afterwards."""
