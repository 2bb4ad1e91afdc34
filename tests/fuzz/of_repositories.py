"""What lies in a repository or in the cache: anybody with the bucket, or the password, wrote it."""

import contextlib
import hashlib
import itertools
import json
import struct
import tempfile
from pathlib import Path
from unittest import mock

import xxhash
import zstandard

from agent.cancel import NEVER
from agent.config import CacheDir
from agent.entry import Entry, Kind
from agent.errors import (
    DamagedBlob,
    MalformedData,
    UnsupportedFormat,
    UsageError,
    WrongPassword,
)
from agent.repository import _table, cache, longtree, remembered
from agent.repository.cache import Cache
from agent.repository.crypto import Key
from agent.repository.gojson import replace_invalid, unquote_name
from agent.repository.headers import read_header
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import decode_index, encode_index
from agent.repository.journal import Inheritance
from agent.repository.kernel import blob_kernel
from agent.repository.keyfile import KeyFile, Origin, _user_key, decode_key, encode_key, open_key
from agent.repository.lockfile import Lock, decode_lock, encode_lock
from agent.repository.longblob import fetch_tree
from agent.repository.node import (
    Node,
    parse_id,
    read_node,
    read_node_list,
    read_nodes,
    read_raw_list,
    read_raw_nodes,
)
from agent.repository.objects import Folder, Objects, pack_key
from agent.repository.pack import (
    PackBuilder,
    PackedBlob,
    decode_header,
    encode_header,
    header_span,
    open_pack,
)
from agent.repository.parameters import RepositoryConfig, decode_config, encode_config
from agent.repository.plainkernel import SEALED, PlainKernel
from agent.repository.pruneplan import Tolerance, parse_size, parse_tolerance
from agent.repository.reader import BlobOpener
from agent.repository.remembered import Directories
from agent.repository.retention import Duration, parse_duration
from agent.repository.scrypt import ScryptCost
from agent.repository.snapshot import Snapshot, Summary, decode_snapshot, encode_snapshot
from agent.repository.subset import Subset, parse_subset
from agent.repository.table import Found, Table
from agent.repository.times import parse_offset, parse_time, utc
from agent.repository.tree import check_order, decode_nodes, decode_tree, encode_tree
from agent.repository.unpacked import inflate, unwrap, wrap
from agent.storage.memory import MemoryStorage
from tests.fuzz.decoder import Decoder

KEY = Key(b"e" * 32, b"k" * 16, b"r" * 16)
IV = b"i" * 16
IDS = [hashlib.sha256(bytes([n])).digest() for n in range(8)]
WHAT = "the file"
_DAY_NS = 86_400 * 10**9
_TIME_NS = 1_770_000_000_123_456_789
_CHEAP = ScryptCost(2, 1, 1)
_HEX = json.dumps(IDS[5].hex())
_WORDS = (_HEX, '"data"', '"tree"', '"file"', '"dir"', '"symlink"', '"2026-01-02T3:04:05,6+24:60"')


# Examples.
KEY_FILE = encode_key(
    "secret", KEY, Origin("2026-01-02T03:04:05Z", "me", "here"), b"s" * 80, _CHEAP
)
MASTER = json.dumps(
    {"mac": {"k": "a2trawtra2tra2tra2traw==", "r": "cnJycnJycnJycnJycnJycg=="}, "encrypt": "ZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWU="}
).encode()  # fmt: skip
CONFIG = encode_config(RepositoryConfig(2, IDS[0].hex(), "3da3358b4dc173"))
LOCK = encode_lock(
    Lock(time_ns=_TIME_NS, exclusive=True, hostname="h", username="u", pid=7, uid=1, gid=2), utc
)
PACKED = [
    PackedBlob(BlobType.DATA, BlobId(IDS[1]), 0, 60, 0),
    PackedBlob(BlobType.DATA, BlobId(IDS[2]), 60, 90, 400),
]
TREES = [PackedBlob(BlobType.TREE, BlobId(IDS[3]), 0, 200, 300)]
PACKS = [(PackId(IDS[0]), PACKED), (PackId(IDS[4]), TREES)]
INDEX = bytes(encode_index(PACKS))
SNAPSHOT = encode_snapshot(
    Snapshot(
        time_ns=_TIME_NS,
        tree=IDS[0],
        paths=("/a", "/b"),
        parent=IDS[1].hex(),
        hostname="velero",
        username="root",
        uid=1,
        gid=1,
        excludes=("*.log",),
        tags=("a=1", "b"),
        original=IDS[2].hex(),
        program_version="podlift",
        summary=Summary(backup_start_ns=_TIME_NS, backup_end_ns=_TIME_NS, files_new=3),
    ),
    utc,
)


def _entry(name: bytes, kind: Kind = Kind.FILE, **more: object) -> Entry:
    content = (IDS[1], IDS[2]) if kind is Kind.FILE else None
    subtree = IDS[3] if kind is Kind.DIRECTORY else None
    times = (_TIME_NS, _TIME_NS + 1)
    target = b"to\xff" if kind is Kind.SYMLINK else b""
    xattrs = ((b"user.a", b"1"),) if kind is Kind.FILE else ()
    return Entry(name, kind, 0o4755, 1, 2, *times, 5, 6, 2, 7, "u", "g", target, 8, xattrs, content, subtree)  # fmt: skip


TREE = encode_tree(
    [_entry(f"n{number}\\\xff".encode("latin-1"), kind) for number, kind in enumerate(Kind)], utc
)
SMALL_TREE = encode_tree([_entry(b"a")], utc)


def _pack() -> bytes:
    builder = PackBuilder(BlobType.DATA)
    for number in range(3):
        builder.append(BlobId(IDS[number]), KEY.seal(IV, b"x" * (10 + number)), number * 10)
    return bytes(builder.finish(KEY, IV))


PACK = _pack()
HEADER = encode_header(PACKED)
PLAIN = b"podlift " * 200
FRAMES = zstandard.ZstdCompressor().compress(PLAIN)


def _sealed_table(*covers: str) -> bytes:
    """Return the file of a cache as it stands on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        made = Cache(CacheDir(Path(folder)), "r")
        tables = [Table.build(type, PACKS) for type in BlobType]
        if covers:
            assert made.save_merged(covers, tables, lambda: True)
        else:
            made.save("one", tables)
        (file,) = [p for p in (Path(folder) / "r" / "index").iterdir() if p.name[0] != "."]
        return file.read_bytes()


TABLES = [_sealed_table(), _sealed_table(IDS[0].hex(), IDS[1].hex())]
BODY = Table.build(BlobType.DATA, PACKS).body.tobytes()
SEAL_END = 32


def _remembered() -> bytes:
    directories = Directories(b"", ())
    for id in IDS:
        directories.remember(id, remembered.Remembered(b"d" * 16, 3, 4))
    return directories.content([IDS[0].hex()])


REMEMBERED = _remembered()


# Calls that need more than the content.
def _open_key(inner: bytes) -> object:
    user_key = _user_key("secret", b"s" * 64, _CHEAP)
    key = KeyFile(kdf="scrypt", n=2, r=1, p=1, salt=b"s" * 64, data=bytes(user_key.seal(IV, inner)))
    return open_key(key, "secret", "k")


def _key_and_open(stored: bytes) -> object:
    key = decode_key(stored, "k")
    if ScryptCost(key.n, key.r, key.p).memory_bytes() > 1 << 20 or key.n * key.r * key.p > 1 << 12:
        return KEY  # within the limits that test_memory looks at, but too slow to be tried often
    return open_key(key, "secret", "k")


def _load(payload: bytes) -> object:
    storage = MemoryStorage()
    sealed = bytes(KEY.seal(IV, payload))
    name = hashlib.sha256(sealed).hexdigest()
    storage.put(f"snapshots/{name}", sealed)
    return Objects(storage, KEY).load(Folder.SNAPSHOTS, name)


def _sealed_header(header: bytes) -> object:
    sealed = KEY.seal(IV, header)
    return open_pack(bytes(150) + sealed + struct.pack("<I", len(sealed)), KEY, WHAT)


def _stored_header(pack: bytes) -> object:
    storage, id = MemoryStorage(), PackId(IDS[0])
    storage.put(pack_key(id), pack)
    return read_header(Objects(storage, KEY), id, len(pack))


def _journal(content: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "journal.x").write_bytes(content)
        gone = Inheritance(Path(folder))
        gone.settle()
    assert all(len(pack) == 32 for pack in gone.left.packs)
    return gone.left


def _tree(content: bytes) -> object:
    entries = decode_tree(content)
    try:
        check_order(entries)
    except MalformedData:
        return entries
    encode_tree(entries, utc)  # what was read can be stored again
    return entries


def _lenient(content: bytes) -> object:
    refused: list[MalformedData] = []
    found = decode_tree(content, refused)
    assert all(isinstance(error, MalformedData) for error in refused)
    return found


def _in_pieces(content: bytes) -> object:
    """Read a tree in pieces, which reads as in one if it does."""
    pieces = [content[at : at + 100] for at in range(0, len(content), 100)]
    with mock.patch.object(longtree, "READ_BYTES", 200):
        found = list(longtree.decode_pieces(pieces))
    assert found == decode_tree(content)
    return found


def _fetched(sealed: bytes) -> object:
    """Fetch a long tree for each length that an index may claim, and read it."""
    storage, last = MemoryStorage(), None
    storage.put(pack_key(PackId(IDS[0])), sealed)
    found: list[Entry] = []
    for plain_length in (0, len(TREE), 1, 9 << 20):
        blob = PackedBlob(BlobType.TREE, _TREE_ID, 0, len(sealed), plain_length)
        try:
            found = list(fetch_tree(storage, Found(PackId(IDS[0]), blob), KEY, None, NEVER))
        except DamagedBlob as error:
            last = error
    if not found and last is not None:
        raise last
    return found


_TREE_ID = BlobId(hashlib.sha256(TREE).digest())
_PACKED_TREE = zstandard.ZstdCompressor(write_content_size=False).compress(TREE)
_SEALED_TREES = [bytes(KEY.seal(IV, TREE)), bytes(KEY.seal(IV, _PACKED_TREE))]

_OPENER = BlobOpener(KEY)
_KERNELS = blob_kernel(KEY, 2, 1), PlainKernel(KEY, 2, 1)
_SEALED_BLOBS = [bytes(KEY.seal(IV, PLAIN)), bytes(KEY.seal(IV, FRAMES))]
_PLAIN_ID = BlobId(hashlib.sha256(PLAIN).digest())


def _open_blob(sealed: bytes) -> object:
    """Open what is sealed for each length that an index may claim."""
    last: DamagedBlob | None = None
    found = b""
    for plain_length in (0, len(PLAIN), 1, 9 << 20):
        blob = PackedBlob(BlobType.DATA, _PLAIN_ID, 3, len(sealed), plain_length)
        try:
            found = _OPENER.open(sealed, blob)
        except DamagedBlob as error:
            last = error
    if not found and last is not None:
        raise last
    return found


def _open_authentic(plain: bytes) -> object:
    return _open_blob(bytes(KEY.seal(IV, plain)))


def _open_records(packed: bytes) -> object:
    """Both kernels say the same of records that nobody checked, and neither leaves its buffers."""
    records = packed[: len(packed) // SEALED.size * SEALED.size]
    data = b"".join(_SEALED_BLOBS)
    answers: list[object] = []
    for kernel in _KERNELS:
        out = bytearray(1 << 16)
        try:
            answers.append(list(kernel.open(data, records, out)))
        except ValueError:
            answers.append(ValueError)
    assert answers[0] == answers[1]
    return answers


RECORDS = b"".join(
    SEALED.pack(offset, len(sealed), plain_length, _PLAIN_ID)
    for offset, sealed, plain_length in zip(
        (0, len(_SEALED_BLOBS[0])), _SEALED_BLOBS, (0, len(PLAIN)), strict=True
    )
)


def _cached(content: bytes) -> object:
    """Load a cached file whose seal is right, and look at all that it says."""
    body = content[SEAL_END:]
    stored = cache._MAGIC + xxhash.xxh3_128_digest(body) + body
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "r" / "index"
        index.mkdir(parents=True)
        (index / "merged").write_bytes(stored)
        found = Cache(CacheDir(Path(folder)), "r")._open("merged")
    for table in found.tables if found is not None else ():
        _look_at(table)
    return found


def _look_at(table: Table) -> None:
    """Use a table that lies. Only we seal, so it may be refused anywhere, but must not crash us."""
    for place in itertools.islice(table, 100):
        table.find(place.blob.id)
    table.known(b"".join(IDS), bytearray(len(IDS)))
    for use in (table.sums, lambda: Table.merge(table.type, [table, table])):
        with contextlib.suppress(ValueError):
            use()
    table.divided({PackId(IDS[0])})


def _body(content: bytes) -> object:
    """Do everything that there is to do with a table of some bytes."""
    end = len(BODY)
    for count in (0, 1, 2, 3, 70_000, 1 << 32, -1):
        for call in (
            lambda n=count: _table.find(content, n, IDS[1]),
            lambda n=count: _table.positions(content, n, b"".join(IDS)),
            lambda n=count: _table.rows(content, n, 0, n),
            lambda n=count: _table.sums(content, n, 2, 41, 37),
            lambda n=count: _table.select(content, n, b"\1\0", True),
            lambda n=count: [
                _table.merge(((content, n, 0), (BODY, 2, 7)), byte, 1, end) for byte in range(256)
            ],
        ):
            try:
                call()
            except ValueError:
                continue
    return content


def _recall(content: bytes) -> object:
    same = remembered.circumstances() + content[16:]
    directories = Directories(same, [IDS[0].hex()])
    return [directories.recall(id) for id in (*IDS, b"\0" * 32, b"\xff" * 32)]


_MALFORMED = (MalformedData,)
_USAGE = (UsageError,)

DECODERS = [
    Decoder("key file", lambda c: decode_key(c, "k"), "json", [KEY_FILE], _MALFORMED, KeyFile, ("agent.repository.keyfile.decode_key",)),
    Decoder("key file, opened", _key_and_open, "json", [KEY_FILE], (MalformedData, WrongPassword), Key, ("agent.repository.keyfile.open_key",)),
    Decoder("master key", _open_key, "json", [MASTER], (MalformedData, WrongPassword), Key, ("agent.repository.keyfile.open_key",)),
    Decoder("password", lambda t: open_key(decode_key(KEY_FILE, "k"), t, "k"), "text", ["secret"], (MalformedData, WrongPassword, UsageError), Key, ("agent.repository.keyfile.open_key",)),
    Decoder("config", decode_config, "json", [CONFIG], (MalformedData, UnsupportedFormat), RepositoryConfig, ("agent.repository.parameters.decode_config",)),
    Decoder("sealed bytes", lambda c: KEY.unseal(c, WHAT), "bytes", [bytes(KEY.seal(IV, b"x" * 40))], _MALFORMED, bytes),
    Decoder("payload", lambda c: unwrap(c, 1000, WHAT), "bytes", [wrap(SNAPSHOT), SNAPSHOT], _MALFORMED, bytes, ("agent.repository.unpacked.unwrap",)),
    Decoder("sealed file", _load, "bytes", [wrap(SNAPSHOT), SNAPSHOT], _MALFORMED, bytes),
    Decoder("zstd frames", lambda c: inflate(c, 2000, WHAT), "bytes", [FRAMES, FRAMES * 2], _MALFORMED, bytes, ("agent.repository.unpacked.inflate",)),
    Decoder("index", lambda c: decode_index(c, WHAT), "json", [INDEX], _MALFORMED, list, ("agent.repository.indexfile.decode_index",), _WORDS),
    Decoder("lock", lambda c: decode_lock(c, WHAT), "json", [LOCK], _MALFORMED, Lock, ("agent.repository.lockfile.decode_lock",), _WORDS),
    Decoder("lock, described", lambda c: decode_lock(c, WHAT).describe(0), "json", [LOCK], _MALFORMED, str),
    Decoder("snapshot", lambda c: decode_snapshot(c, "id"), "json", [SNAPSHOT], _MALFORMED, Snapshot, ("agent.repository.snapshot.decode_snapshot",), _WORDS),
    Decoder("snapshot, again", lambda c: encode_snapshot(decode_snapshot(c, "id"), utc), "json", [SNAPSHOT], _MALFORMED, bytes, (), _WORDS),
    Decoder("snapshot, aged", lambda c: Duration(years=1, months=7, days=9).before(decode_snapshot(c, "id").time_ns, 3600), "json", [SNAPSHOT], _MALFORMED, int),
    Decoder("pack header", lambda c: decode_header(c, WHAT), "bytes", [HEADER], _MALFORMED, list, ("agent.repository.pack.decode_header",)),
    Decoder("pack header, sealed", _sealed_header, "bytes", [HEADER], _MALFORMED, list),
    Decoder("pack", lambda c: open_pack(c, KEY, WHAT), "bytes", [PACK], _MALFORMED, list, ("agent.repository.pack.open_pack",)),
    Decoder("stored header", _stored_header, "bytes", [PACK], _MALFORMED, list, ("agent.repository.headers.read_header",)),
    Decoder("journal", _journal, "bytes", [b"P" + IDS[0] + b"L" + IDS[1]], (), tuple, ("agent.repository.journal.Inheritance",)),
    Decoder("end of a pack", lambda c: header_span(c[-4:], len(c), WHAT), "bytes", [PACK], _MALFORMED, tuple, ("agent.repository.pack.header_span",)),
    Decoder("tree", _tree, "json", [TREE, SMALL_TREE], _MALFORMED, list, ("agent.repository.tree.decode_tree",), _WORDS),
    Decoder("tree, leniently", _lenient, "json", [TREE], _MALFORMED, list, ("agent.repository.tree.decode_tree",), _WORDS),
    Decoder("tree, in pieces", _in_pieces, "json", [TREE, SMALL_TREE], _MALFORMED, list, ("agent.repository.longtree.decode_pieces",), _WORDS, share=0.5),
    Decoder("long tree", _fetched, "bytes", _SEALED_TREES, (DamagedBlob,), list, ("agent.repository.longblob",), share=0.5),
    Decoder("long tree, authentic", lambda c: _fetched(bytes(KEY.seal(IV, c))), "bytes", [_PACKED_TREE, TREE], (DamagedBlob,), list, share=0.5),
    Decoder("list of nodes", decode_nodes, "json", [json.dumps(json.loads(TREE)["nodes"]).encode()], _MALFORMED, list, ("agent.repository.tree.decode_nodes",), _WORDS),
    Decoder("bare nodes", read_node_list, "json", [json.dumps(json.loads(TREE)["nodes"]).encode()], _MALFORMED, list, ("agent.repository.node.read_node_list",), _WORDS, share=0.5),
    Decoder("raw bare nodes", read_raw_list, "json", [json.dumps(json.loads(TREE)["nodes"]).encode()], _MALFORMED, list, ("agent.repository.node.read_raw_list",), _WORDS, share=0.5),
    Decoder("nodes", read_nodes, "json", [TREE], _MALFORMED, list, ("agent.repository.node.read_nodes", "agent.repository.node.read_json"), _WORDS),
    Decoder("raw nodes", read_raw_nodes, "json", [TREE], _MALFORMED, list, ("agent.repository.node.read_raw_nodes",), _WORDS),
    Decoder("node", read_node, "json", [json.dumps(json.loads(SMALL_TREE)["nodes"][0]).encode()], _MALFORMED, Node, ("agent.repository.node.read_node",), _WORDS),
    Decoder("id", parse_id, "text", [IDS[0].hex(), IDS[0].hex().upper()], _MALFORMED, bytes, ("agent.repository.node.parse_id",)),
    Decoder("id in bytes", parse_id, "bytes", [IDS[0].hex().encode()], _MALFORMED, bytes, ("agent.repository.node.parse_id",)),
    Decoder("name", unquote_name, "text", [r"a\xff\u00e9\"\n\U0001f600\377"], _MALFORMED, bytes, ("agent.repository.gojson.unquote_name",)),
    Decoder("invalid JSON text", lambda c: replace_invalid(c).decode(), "json", [TREE], (), str),
    Decoder("time", parse_time, "text", ["2026-01-02T03:04:05.123456789+01:00", "2026-01-02T3:04:05,6-24:60", "0000-01-01T00:00:00Z"], _MALFORMED, int, ("agent.repository.times.parse_time",)),
    Decoder("offset", parse_offset, "text", ["2026-01-02T03:04:05.123456789+01:00"], _MALFORMED, int, ("agent.repository.times.parse_offset",)),
    Decoder("sealed blob", _open_blob, "bytes", _SEALED_BLOBS, (DamagedBlob,), bytes),
    Decoder("authentic blob", _open_authentic, "bytes", [FRAMES, PLAIN], (DamagedBlob,), bytes),
    Decoder("records of blobs", _open_records, "bytes", [RECORDS], (), list, ("agent.repository.plainkernel", "agent.repository.kernel")),
    Decoder("cached tables", _cached, "bytes", TABLES, (), (cache.Merged, type(None)), ("agent.repository.cache",), share=0.4),
    Decoder("body of a table", _body, "bytes", [BODY], (), bytes, ("agent.repository.table",), share=0.2),
    Decoder("remembered directories", _recall, "bytes", [REMEMBERED], (), list, ("agent.repository.remembered",)),
    Decoder("duration", parse_duration, "text", ["1y5m7d2h", "24h"], _USAGE, Duration, ("agent.repository.retention.parse_duration",)),
    Decoder("span of time", lambda t: parse_duration(t).before(_TIME_NS, 3600), "text", ["1y5m7d2h", "24h"], _USAGE, int),
    Decoder("size", parse_size, "text", ["500M", "20g", "1"], _USAGE, int, ("agent.repository.pruneplan.parse_size",)),
    Decoder("tolerance", parse_tolerance, "text", ["5%", "0.5%", "unlimited", "1G"], _USAGE, Tolerance, ("agent.repository.pruneplan.parse_tolerance",)),
    Decoder("tolerated waste", lambda t: parse_tolerance(t).limit(10**12), "text", ["5%", "0.5%", "unlimited", "1G"], _USAGE, (int, type(None))),
    Decoder("subset", parse_subset, "text", ["5%", "1G", "1/7", "week/8"], _USAGE, Subset, ("agent.repository.subset.parse_subset",)),
]  # fmt: skip
