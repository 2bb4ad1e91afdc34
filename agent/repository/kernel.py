"""The blob kernel: the native one where it can work, and its twin in Python where it cannot.

The native kernel links nothing. It calls the C functions of three libraries that this process
has loaded anyhow: the libcrypto of Python's own ``hashlib``, the libzstd in the package
``zstandard``, the XXH3 in ``xxhash``. Whether they are what it takes them for is not believed: the
first kernel of a process has to seal and open what the packages open and seal.
"""

import functools
import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import Protocol

from agent.repository import _blobs
from agent.repository.crypto import OVERHEAD, Buffer, Key
from agent.repository.plainkernel import PLAIN, SEALED, SMALL_BYTES, SPAN, STORED, PlainKernel

LIBCRYPTO = "libcrypto.so.3"
"""OpenSSL 3: the name finds the one that ``hashlib`` has loaded, or else the machine's."""

LIBZSTD = "libzstd.so.1"

log = logging.getLogger(__name__)


class BlobKernel(Protocol):
    """Hashes, seals and opens many blobs in one call; ``plainkernel`` says what exactly."""

    def hash(self, data: Buffer, spans: Buffer, /) -> tuple[bytes, bytes]:
        """Return the ids and the XXH3 of all spans."""

    def seal(self, data: Buffer, blobs: Buffer, always: bool, out: Buffer, /) -> tuple[int, bytes]:
        """Seal blobs one behind the other into ``out``; return (status, records)."""

    def open(self, data: Buffer, blobs: Buffer, out: Buffer, /) -> bytes:
        """Open blobs one behind the other into ``out``; return one status byte for each."""


def blob_kernel(key: Key, level: int, small_level: int) -> BlobKernel:
    """Return a kernel for one key that compresses at a zstd level, small blobs at another."""
    if why_not_native():
        return PlainKernel(key, level, small_level)
    return _native(key, level, small_level)


@functools.cache
def why_not_native() -> str:
    """Return why the native kernel is not used in this process, or ""; logs it the first time."""
    try:
        _blobs.load(LIBCRYPTO, _zstd_path(), _xxhash_path())
        _compare()
    except (ImportError, ValueError) as error:
        log.warning("small files will take several times as long: %s", error)
        return str(error)
    return ""


def _zstd_path() -> str:
    spec = importlib.util.find_spec("zstandard._cffi")
    return spec.origin if spec is not None and spec.origin is not None else LIBZSTD


def _xxhash_path() -> str:
    spec = importlib.util.find_spec("xxhash._xxhash")
    if spec is None or spec.origin is None:
        raise ImportError("the package xxhash has no extension module")
    return spec.origin


def _native(key: Key, level: int, small_level: int) -> BlobKernel:
    return _blobs.Kernel(key.encrypt, key.mac_k, key.mac_r, level, small_level)


def _compare() -> None:
    """Let each of the two kernels open what the other sealed; raise ``ValueError``."""
    key = Key(os.urandom(32), b"k" + os.urandom(15), b"r" + os.urandom(15))
    native, plain = _native(key, 2, 1), PlainKernel(key, 2, 1)
    data = os.urandom(3000) + bytes(SMALL_BYTES) + b"podlift " * 600
    sizes = (3000, SMALL_BYTES, 4800)
    for one, other in ((native, plain), (plain, native)):
        if not _opens(one, other, data, sizes):
            raise ValueError("the native blob kernel and the Python packages disagree")


def _opens(one: BlobKernel, other: BlobKernel, data: bytes, sizes: tuple[int, ...]) -> bool:
    spans = list(_spans(sizes))
    ids, seals = one.hash(data, b"".join(SPAN.pack(*span) for span in spans))
    if other.hash(data, b"".join(SPAN.pack(*span) for span in spans)) != (ids, seals):
        return False
    marks = memoryview(seals).cast("Q")
    blobs = [
        PLAIN.pack(*span, marks[place], hashlib.sha256(bytes([place])).digest()[:16])
        for place, span in enumerate(spans)
    ]
    out = bytearray(len(data) + len(spans) * OVERHEAD)
    status, stored = one.seal(data, b"".join(blobs), False, out)
    if status:
        return False
    records, offset = [], 0
    for place, (length, plain_length) in enumerate(STORED.iter_unpack(stored)):
        records.append(SEALED.pack(offset, length, plain_length, ids[place * 32 :][:32]))
        offset += length
    opened = bytearray(len(data))
    return not any(other.open(out, b"".join(records), opened)) and opened == data


def _spans(sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    start = 0
    for size in sizes:
        yield start, size
        start += size
