"""Small things that would become large: each is decoded in a process of its own, with little memory.

``python -m tests.fuzz.bombs [NAME...]`` prints the peak of resident memory that each takes beyond what
the process had before, and fails if one is above its limit. All is sealed by the repository's own
key: the writer has it, so no seal helps.
"""

import gzip
import hashlib
import io
import itertools
import os
import re
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from agent.cancel import NEVER
from agent.cluster import objects
from agent.cluster.client import decode
from agent.cluster.order import OrderKind, parse
from agent.cluster.record import read_record
from agent.errors import ClusterError, DamagedBlob, MalformedData, PodliftError, WrongPassword
from agent.repository.crypto import OVERHEAD
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import decode_index
from agent.repository.keyfile import decode_key, open_key
from agent.repository.lockfile import decode_lock
from agent.repository.longblob import LongTree, fetch_tree
from agent.repository.longtree import decode_pieces
from agent.repository.objects import Folder, Objects, pack_key
from agent.repository.pack import PackedBlob, decode_header, header_span
from agent.repository.plainkernel import SEALED, PlainKernel
from agent.repository.reader import BlobOpener
from agent.repository.snapshot import decode_snapshot
from agent.repository.table import Found
from agent.repository.tree import decode_tree
from agent.storage import s3client
from agent.storage.memory import MemoryStorage
from tests.fuzz.of_repositories import IV, KEY, KEY_FILE

MIB = 1 << 20
_ID = b"i" * 32
_HEX = _ID.hex().encode()


class Bomb(NamedTuple):
    """What is decoded, in how many MiB, and how it ends: an error, or None if it is sound."""

    call: Callable[[], Any]
    limit_mib: int
    error: type[PodliftError] | None


def _frame(size: int, *, declared: int | None = None, window: bytes = b"\x50") -> bytes:
    """Return a zstd frame of so many spaces, in blocks that say how many; its window is 1 MiB."""
    head = b"\x28\xb5\x2f\xfd" + (
        b"\x00" + window if declared is None else b"\xc0" + window + struct.pack("<Q", declared)
    )
    made = io.BytesIO()
    made.write(head)
    left = size
    while left:
        count = min(left, 128 << 10)
        left -= count
        made.write(struct.pack("<I", count << 3 | 1 << 1 | (left == 0))[:3] + b" ")
    return made.getvalue()


def _compressed(start: bytes, unit: bytes, count: int, end: bytes) -> bytes:
    """Compress a text that repeats itself, without having it in memory."""
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    parts = [stream.compress(start)]
    step = unit * 4096
    parts += [stream.compress(step) for _ in range(count // 4096)]
    return b"".join([*parts, stream.compress(unit * (count % 4096)), stream.compress(end), stream.flush()])  # fmt: skip


def _load(folder: Folder, frames: bytes) -> bytes:
    """Load an unpacked file that holds these frames, sealed by the repository's own key."""
    storage = MemoryStorage()
    sealed = bytes(KEY.seal(IV, b"\x02" + frames))
    name = hashlib.sha256(sealed).hexdigest()
    storage.put(f"{folder}/{name}", sealed)
    return Objects(storage, KEY).load(folder, name)


def _blob(packed: bytes, plain_length: int, type: BlobType = BlobType.DATA) -> bytes:
    sealed = bytes(KEY.seal(IV, packed))
    return BlobOpener(KEY).open(sealed, PackedBlob(type, BlobId(_ID), 0, len(sealed), plain_length))


def _long_tree(packed: bytes, plain_length: int) -> LongTree:
    storage, id = MemoryStorage(), PackId(_ID)
    sealed = bytes(KEY.seal(IV, packed))
    storage.put(pack_key(id), sealed)
    blob = PackedBlob(BlobType.TREE, BlobId(_ID), 0, len(sealed), plain_length)
    return fetch_tree(storage, Found(id, blob), KEY, None, NEVER)


def _by_the_plain_kernel(packed: bytes, plain_length: int) -> None:
    sealed = bytes(KEY.seal(IV, packed))
    record = SEALED.pack(0, len(sealed), plain_length, _ID)
    if PlainKernel(KEY, 2, 1).open(sealed, record, bytearray(plain_length)) != b"\0":
        raise DamagedBlob("it does not open")


def _index(unit: bytes, count: int, end: bytes) -> list[Any]:
    frames = _compressed(b'{"packs":[', unit, count, end)
    return decode_index(_load(Folder.INDEX, frames), "the index")


def _one_blob_many_times(count: int) -> list[Any]:
    entry = b'{"id":"%s","type":"data","offset":0,"length":99}' % _HEX
    start = b'{"packs":[{"id":"%s","blobs":[' % _HEX
    frames = _compressed(start, entry + b",", count - 1, entry + b"]}]}")
    return decode_index(_load(Folder.INDEX, frames), "the index")


def _snapshot(unit: bytes, count: int) -> Any:
    frames = _compressed(b'{"tree":"%s","paths":[""' % _HEX, unit, count, b"]}")
    return decode_snapshot(_load(Folder.SNAPSHOTS, frames), "id")


def _tree(unit: bytes, count: int, *, lenient: bool = False) -> Any:
    text = b'{"nodes":[' + unit + (b"," + unit) * (count - 1) + b"]}"
    return decode_tree(text, [] if lenient else None)


def _key(n: int, r: int, p: int) -> Any:
    stored = KEY_FILE.replace(b'"N":2', b'"N":%d' % n).replace(b'"r":1', b'"r":%d' % r)
    return open_key(decode_key(stored.replace(b'"p":1', b'"p":%d' % p), "k"), "secret", "k")


def _zipped(start: bytes, unit: bytes, count: int, end: bytes) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(count // 4096):
            file.write(unit * 4096)
        file.write(end)
    return packed.getvalue()


_DEEP = b"[" * 1_000_000 + b"]" * 1_000_000
_NODE = b'{"name":"a","type":"fifo"}'
_PVB = b'{"metadata":{"name":"a"},"spec":{"pod":{},"volume":"","backupStorageLocation":""}},'

_LAUGHS = b"<!DOCTYPE a [<!ENTITY e0 'ha'>%s]><a>&e30;</a>" % b"".join(
    b"<!ENTITY e%d '%s'>" % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 31)
)

BOMBS = {
    "lock of 4 GiB": Bomb(lambda: _load(Folder.LOCKS, _frame(4 << 30)), 16, MalformedData),
    "snapshot of 4 GiB": Bomb(lambda: _load(Folder.SNAPSHOTS, _frame(4 << 30)), 200, MalformedData),
    "index of 4 GiB": Bomb(lambda: _load(Folder.INDEX, _frame(4 << 30)), 300, MalformedData),
    "index that declares 2**60 bytes": Bomb(lambda: _load(Folder.INDEX, _frame(100, declared=1 << 60)), 300, MalformedData),
    "index of packs without blobs": Bomb(lambda: _index(b'{"id":""},', 12_000_000, b'{"id":""}]}'), 700, MalformedData),
    "index of a million entries of one blob": Bomb(lambda: _one_blob_many_times(1_000_000), 700, None),
    "index of nested arrays": Bomb(lambda: decode_index(_DEEP, "it"), 64, MalformedData),
    "snapshot of nested arrays": Bomb(lambda: decode_snapshot(b'{"a":%s}' % _DEEP, "id"), 64, MalformedData),
    "lock of nested arrays": Bomb(lambda: decode_lock(_DEEP, "it"), 64, MalformedData),
    "snapshot of empty paths": Bomb(lambda: _snapshot(b',""', 20 << 20), 700, None),
    "tree of nested arrays": Bomb(lambda: decode_tree(b'{"nodes":[{"content":%s}]}' % _DEEP, []), 64, MalformedData),
    "tree of empty nodes": Bomb(lambda: _tree(b"{}", 4_000_000), 64, MalformedData),
    "tree of empty nodes, leniently": Bomb(lambda: _tree(b"{}", 4_000_000, lenient=True), 64, MalformedData),
    "tree of empty attributes": Bomb(lambda: decode_tree(b'{"nodes":[{"extended_attributes":[%s{}]}]}' % (b"{}," * 4_000_000)), 64, MalformedData),
    "tree of small nodes": Bomb(lambda: _tree(_NODE, 400_000), 400, None),
    "long tree of nested arrays": Bomb(lambda: list(decode_pieces([b'{"nodes":[{"content":', _DEEP, b"}]}"])), 64, MalformedData),
    "long tree of empty nodes": Bomb(lambda: list(decode_pieces(itertools.chain([b'{"nodes":[{}'], itertools.repeat(b",{}" * 10_000, 400)))), 64, MalformedData),
    "long tree of 1 GiB that says so": Bomb(lambda: _long_tree(_frame(1 << 30), 1 << 30), 32, DamagedBlob),
    "long tree of 4 GiB that says 64 MiB": Bomb(lambda: _long_tree(_frame(4 << 30), 64 * MIB), 32, DamagedBlob),
    "content of empty ids": Bomb(lambda: decode_tree(b'{"nodes":[{"name":"a","type":"file","content":[%s""]}]}' % (b'"",' * 4_000_000)), 128, MalformedData),
    "data blob of 4 GiB that says 1 MiB": Bomb(lambda: _blob(_frame(4 << 30), MIB), 32, DamagedBlob),
    "data blob of 4 GiB that says so": Bomb(lambda: _blob(_frame((4 << 30) - 1), (4 << 30) - 1), 64, DamagedBlob),
    "data blob that declares 2**60 bytes": Bomb(lambda: _blob(_frame(100, declared=1 << 60), 100), 32, DamagedBlob),
    "data blob with a window of 128 MiB": Bomb(lambda: _blob(_frame(100, window=b"\x88"), 100), 32, DamagedBlob),
    "tree blob of 4 GiB that says 1 MiB": Bomb(lambda: _blob(_frame(4 << 30), MIB, BlobType.TREE), 32, DamagedBlob),
    "small data blob that declares 1 GiB, without the native kernel": Bomb(lambda: _by_the_plain_kernel(_frame(1 << 30, declared=1 << 30), 100), 32, DamagedBlob),
    "pack header of 409,600 blobs": Bomb(lambda: decode_header((b"\0" + struct.pack("<I", OVERHEAD) + _ID) * 409_600, "it"), 128, None),
    "pack header of 4 GiB": Bomb(lambda: header_span(b"\xff" * 4, 5 << 30, "it"), 8, MalformedData),
    "key that takes 1 GiB": Bomb(lambda: _key(1 << 20, 8, 1), 8, MalformedData),
    "key that takes what is allowed": Bomb(lambda: _key(1 << 17, 8, 1), 160, WrongPassword),
    "record of 1 GiB": Bomb(lambda: read_record(_zipped(b"[", b" " * 1024, 1 << 20, b"]"), "it"), 300, ClusterError),
    "record of small objects": Bomb(lambda: read_record(_zipped(b"[", _PVB, 1_400_000, b"]"), "it"), 700, ClusterError),
    "listing of entities in entities": Bomb(lambda: s3client._take_listing({"status_code": 200, "body": _LAUGHS}, {}), 160, None),
    "object of nested arrays": Bomb(lambda: parse(OrderKind.BACKUP, b'{"spec":%s}' % _DEEP), 64, ClusterError),
    "pod of nested arrays": Bomb(lambda: decode(b'{"spec":{"volumes":[{"csi":{"a":%s}}]}}' % _DEEP, objects.Pod, "a pod"), 64, ClusterError),
}  # fmt: skip


def _resident_mib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) >> 10


def _explode(name: str) -> str:
    """Decode one with little memory; return what it took, or raise."""
    bomb = BOMBS[name]
    before = _resident_mib("VmRSS")
    size = _resident_mib("VmSize") + 2 * bomb.limit_mib + 256
    resource.setrlimit(resource.RLIMIT_AS, (size * MIB, size * MIB))
    ended: type[Exception] | None = None
    try:
        bomb.call()
    except PodliftError as error:
        ended = type(error)
    if ended is not bomb.error:
        raise RuntimeError(f"it ended by {ended}, not by {bomb.error}")
    return f"{name}: {_resident_mib('VmHWM') - before} MiB of {bomb.limit_mib}"


def main(names: Sequence[str]) -> int:
    """Explode each in a child, and print what it took; return 1 if one took too much or failed."""
    failed = 0
    for name in names:
        child = os.fork()
        if child == 0:
            try:
                said = _explode(name)
            except BaseException as error:
                said = f"{name}: {type(error).__name__}: {str(error)[:500]}"
            os.write(1, f"{said}\n".encode())
            peak = re.fullmatch(r".*: (\d+) MiB of (\d+)", said)
            os._exit(peak is None or int(peak[1]) > int(peak[2]))
        failed |= os.waitpid(child, 0)[1] != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(BOMBS)))
