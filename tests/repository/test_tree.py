"""Trees against restic's: its bytes are ours, its reading is ours, and nothing worse gets in."""

import datetime
import hashlib
import json
import os
import stat
import zoneinfo
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.entry import Entry, Kind
from agent.errors import MalformedData, RepositoryError
from agent.repository.times import ZERO_TIME_NS, Zone, fixed_zone, utc
from agent.repository.tree import check_order, decode_tree, encode_node, encode_tree, join_nodes
from tests.support.restic import Restic

GOLDEN = Path(__file__).parent / "golden"
ZONES = ["UTC", "America/New_York", "Asia/Kolkata"]
ID = bytes(range(32))
EMPTY_TREE_ID = "ac08ce34ba4f8123618661bef2425f7028ffb9ac740578a3ee88684d2523fee8"

COMMON_NAMES = [
    b"plain.txt",
    b"with space",
    b'quo"te',
    b"back\\slash",
    b"new\nline",
    b"control\x01\x07\x08\x0b\x0c\x1b\x7f",
    b"<html>&amp;",
    "line\u2028separator\u2029".encode(),
    "zero\u200djoiner\u00a0and\ufeffmark".encode(),
    "grüße-日本語-🎉".encode(),
    "private-\ue000-\U000f0000".encode(),
    "replacement-\ufffd".encode(),
    b"bad\xff\xc3utf8\xed\xa0\x80",
    b"-starts-with-dash",
    b"UPPER",
    b"\x80first-invalid",
]
NEW_NAMES = ["unicode-15-\U0001fae8-16-\U0001fadf".encode()]
MTIMES_NS = [
    1_700_000_000_123_456_789,
    1_720_000_000_500_000_000,
    -1_000_000_000_000_000_001,
    0,
    -2_100_000_000_000_000_000,
    1_710_054_000_000_000_000,
]
"""Winter, summer, half a second, before 1970, 1903, the change to summer time in New York."""


def zone_named(name: str) -> Zone:
    info = zoneinfo.ZoneInfo(name)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

    def zone(seconds: int) -> int:
        local = (epoch + datetime.timedelta(seconds=seconds)).astimezone(info)
        offset = local.utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    return zone


def make_volume(root: Path, *, newest: bool) -> None:
    """Fill ``root`` with an entry of every kind; ``newest``: also what old restics write else."""
    base = os.fsencode(root)
    for i, name in enumerate(COMMON_NAMES + (NEW_NAMES if newest else [])):
        path = base + b"/" + name
        with open(path, "wb") as file:
            file.write(b"x" * (i % 4) * 100)
        os.utime(path, ns=(0, MTIMES_NS[i % len(MTIMES_NS)]))
    (root / "directory" / "empty").mkdir(parents=True)
    (root / "directory" / "inner").write_bytes(b"inner")
    (root / "directory").chmod(0o1777)
    os.link(root / "plain.txt", root / "hard-link")
    os.symlink("plain.txt", root / "symlink")
    os.symlink("<nowhere>&\u2028 \"quoted\\'", root / "symlink-odd")
    os.mkfifo(root / "fifo", 0o640)
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1644), ("none", 0)):
        (root / name).write_bytes(name.encode())
        (root / name).chmod(mode)
    os.setxattr(root / "plain.txt", b"user.empty", b"")
    os.setxattr(root / "plain.txt", b"user.binary", bytes(range(256)))
    os.setxattr(root / "directory", "user.grüße<>".encode(), b"value")
    os.setxattr(root / "setuid", b"user.bad\xff", b"x")
    if newest:
        os.symlink(b"bad\xff\ntarget\x08\x0c", os.fsencode(root / "symlink-invalid"))
    if os.geteuid() == 0:
        os.mknod(root / "block", 0o660 | stat.S_IFBLK, os.makedev(7, 0))
        os.mknod(root / "character", 0o644 | stat.S_IFCHR, os.makedev(240, 300))
        os.chown(root / "with space", 4_294_967_294, 123_456)
        os.chown(root / "symlink", 1000, 1000, follow_symlinks=False)


def entries_of(directory: bytes, zone: Zone) -> list[Entry]:
    return [entry_at(directory + b"/" + name, zone) for name in os.listdir(directory)]


def entry_at(path: bytes, zone: Zone) -> Entry:
    found = os.lstat(path)
    kind = {
        stat.S_IFREG: Kind.FILE,
        stat.S_IFDIR: Kind.DIRECTORY,
        stat.S_IFLNK: Kind.SYMLINK,
        stat.S_IFIFO: Kind.FIFO,
        stat.S_IFBLK: Kind.BLOCK_DEVICE,
        stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    }[stat.S_IFMT(found.st_mode)]
    data = Path(os.fsdecode(path)).read_bytes() if kind is Kind.FILE else b""
    subtree = None
    if kind is Kind.DIRECTORY:
        subtree = hashlib.sha256(encode_tree(entries_of(path, zone), zone)).digest()
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    return Entry(
        name=os.path.basename(path),
        kind=kind,
        permissions=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        inode=found.st_ino,
        device=found.st_dev,
        links=1 if kind in (Kind.DIRECTORY, Kind.FIFO) else found.st_nlink,
        size=len(data),
        user=name_in("/etc/passwd", found.st_uid),
        group=name_in("/etc/group", found.st_gid),
        link_target=os.readlink(path) if kind is Kind.SYMLINK else b"",
        rdev=found.st_rdev,
        xattrs=tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in names),
        content=chunks(data) if kind is Kind.FILE else None,
        subtree=subtree,
    )


def name_in(database: str, number: int) -> str:
    rows = [line.split(":") for line in Path(database).read_text().splitlines()]
    return next((row[0] for row in rows if row[2] == str(number)), "")


def chunks(data: bytes) -> tuple[bytes, ...]:
    return (hashlib.sha256(data).digest(),) if data else ()


def test_the_tree_is_the_one_that_restic_stores(restic: Restic, tmp_path: Path) -> None:
    newest = tuple(map(int, restic.version.split(".")[:2])) >= (0, 19)
    volume, repo = tmp_path / "volume", str(tmp_path / "repo")
    volume.mkdir()
    make_volume(volume, newest=newest)
    restic.run(repo, "init")
    for name in ZONES:
        restic.run(repo, "backup", ".", "--tag", name, cwd=volume, env={"TZ": name})
    snapshots = json.loads(restic.run(repo, "snapshots", "--json").stdout)
    stored_ids = {snapshot["tags"][0]: snapshot["tree"] for snapshot in snapshots}

    for name in ZONES:
        zone = zone_named(name)
        ours = encode_tree(entries_of(os.fsencode(volume), zone), zone)
        if hashlib.sha256(ours).hexdigest() != stored_ids[name]:
            assert ours.decode() == restic.run(repo, "cat", "blob", stored_ids[name]).stdout
    assert len(set(stored_ids.values())) == len(ZONES)


@pytest.mark.parametrize("zone_name", ZONES)
def test_a_tree_once_stored_by_restic_is_still_written_alike(zone_name: str) -> None:
    """Frozen from restic 0.19.1: if these bytes move, every tree in every repository does."""
    entries = msgspec.json.decode((GOLDEN / "entries.json").read_bytes(), type=list[Entry])
    golden = (GOLDEN / f"tree-{zone_name.replace('/', '-')}.json").read_bytes()
    stored = {node["name"]: node.get("subtree") for node in json.loads(golden)["nodes"]}
    subtree = bytes.fromhex(stored["directory"])  # its own text depends on the zone, too
    entries = [
        msgspec.structs.replace(entry, subtree=subtree) if entry.subtree else entry
        for entry in entries
    ]

    assert encode_tree(entries, zone_named(zone_name)) == golden


def test_a_tree_once_stored_by_restic_reads_back_as_the_directory_was() -> None:
    entries = msgspec.json.decode((GOLDEN / "entries.json").read_bytes(), type=list[Entry])

    decoded = decode_tree((GOLDEN / "tree-UTC.json").read_bytes())

    lossy = {b"setuid"}  # an attribute's name that is not UTF-8, stored with U+FFFD
    expected = {entry.name: entry for entry in entries}
    assert [entry.name for entry in decoded] == sorted(expected)
    for entry in decoded:
        if entry.name not in lossy:
            assert entry == expected[entry.name]
    assert dict(next(e for e in decoded if e.name == b"setuid").xattrs) == {
        "user.bad\ufffd".encode(): b"x"
    }


def test_the_empty_directory_has_the_known_id() -> None:
    assert hashlib.sha256(encode_tree([], utc)).hexdigest() == EMPTY_TREE_ID


def file_entry(**changes: object) -> Entry:
    plain = Entry(
        name=b"f",
        kind=Kind.FILE,
        permissions=0o644,
        uid=0,
        gid=0,
        mtime_ns=0,
        ctime_ns=0,
        inode=1,
        device=1,
        content=(),
    )
    return msgspec.structs.replace(plain, **changes)


def test_entries_are_sorted_by_raw_bytes_not_by_their_quoted_form() -> None:
    names = [b"\xff", b"a", b"\x01", b"Z", "é".encode()]

    tree = encode_tree([file_entry(name=name) for name in names], utc)

    assert [entry.name for entry in decode_tree(tree)] == sorted(names)
    check_order(decode_tree(tree))


@pytest.mark.parametrize(
    ("kind", "permissions", "mode"),
    [
        (Kind.FILE, 0o644, 420),
        (Kind.DIRECTORY, 0o755, 2147484141),
        (Kind.SYMLINK, 0o777, 134218239),
        (Kind.FIFO, 0o640, 33554848),
        (Kind.BLOCK_DEVICE, 0o640, 67109280),
        (Kind.CHARACTER_DEVICE, 0o644, 69206436),
        (Kind.FILE, 0o6755, 12583405),
        (Kind.DIRECTORY, 0o1777, 2148532735),
        (Kind.SOCKET, 0o755, (1 << 24) + 0o755),
    ],
)
def test_modes_are_those_of_go(kind: Kind, permissions: int, mode: int) -> None:
    entry = file_entry(
        kind=kind,
        permissions=permissions,
        content=() if kind is Kind.FILE else None,
        subtree=ID if kind is Kind.DIRECTORY else None,
    )

    tree = encode_tree([entry], utc)

    assert json.loads(tree)["nodes"][0]["mode"] == mode
    assert decode_tree(tree)[0].permissions == permissions


@pytest.mark.parametrize(
    "changes",
    [
        {"name": b""},
        {"name": b"."},
        {"name": b".."},
        {"name": b"a/b"},
        {"name": b"a\0b"},
        {"uid": -1},
        {"gid": 1 << 32},
        {"permissions": 0o10000},
        {"size": -1},
        {"inode": 1 << 64},
        {"content": None},
        {"content": (b"short",)},
        {"subtree": ID},
        {"kind": Kind.DIRECTORY, "content": None},
        {"kind": Kind.DIRECTORY, "content": None, "subtree": b"short"},
        {"kind": Kind.FIFO},
    ],
    ids=repr,
)
def test_an_entry_that_no_tree_can_hold_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RepositoryError, match="cannot store the entry"):
        encode_tree([file_entry(**changes)], utc)


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(RepositoryError, match="twice"):
        encode_tree([file_entry(), file_entry(inode=2)], utc)


def node(**fields: object) -> dict[str, object]:
    return {"name": "f", "type": "file", "content": [], **fields}


def tree_of(*nodes: object) -> bytes:
    return json.dumps({"nodes": nodes}).encode()


def test_missing_optional_fields_read_as_restic_reads_them() -> None:
    [entry] = decode_tree(tree_of(node()))

    assert entry.mtime_ns == entry.ctime_ns == ZERO_TIME_NS
    assert (entry.uid, entry.gid, entry.inode, entry.size, entry.links) == (0, 0, 0, 0, 0)
    assert entry.user == entry.group == ""


def test_null_reads_as_a_missing_field() -> None:
    keys = "mode mtime atime ctime uid gid user group inode device_id size links linktarget"
    keys += " linktarget_raw extended_attributes device subtree"

    nulls = decode_tree(tree_of(node(**dict.fromkeys(keys.split()))))

    assert nulls == decode_tree(tree_of(node()))


def test_unknown_keys_other_orders_and_white_space_are_accepted() -> None:
    data = b' {"x":{"y":[1]},\n"nodes" : [ {"content":[],"new":{"a":null},"type":"file",'
    data += b'"name":"f"}\t], "z":3}'

    assert decode_tree(data) == decode_tree(tree_of(node()))


def test_upper_case_ids_are_accepted() -> None:
    [entry] = decode_tree(tree_of(node(content=[ID.hex().upper()])))

    assert entry.content == (ID,)


def test_text_that_is_not_utf_8_reads_with_replacement_characters() -> None:
    data = tree_of(node(user="USER")).replace(b"USER", b"a\xffb\\ud800c\\ud83d\\ude00")

    assert decode_tree(data)[0].user == "a\ufffdb\ufffdc😀"


def test_the_raw_link_target_wins() -> None:
    link = node(type="symlink", content=None, linktarget="a\ufffd", linktarget_raw="Yf8=")

    assert decode_tree(tree_of(link))[0].link_target == b"a\xff"


def test_content_where_none_belongs_is_dropped() -> None:
    fifo, file = decode_tree(
        tree_of(node(type="fifo", content=[ID.hex()]), node(name="x", subtree=ID.hex()))
    )

    assert fifo.content is None
    assert file.subtree is None


def test_a_socket_reads_as_a_socket() -> None:
    [entry] = decode_tree(tree_of(node(type="socket", content=None)))

    assert entry.kind is Kind.SOCKET
    assert entry.content is None


BAD_NODES = {
    "null": None,
    "not an object": [],
    "no name": {"type": "file", "content": []},
    "dot": node(name="."),
    "dot dot": node(name=".."),
    "dot dot escaped": node(name="\\x2e\\x2e"),
    "slash": node(name="../evil"),
    "slash escaped": node(name="..\\x2fevil"),
    "NUL escaped": node(name="a\\x00"),
    "raw newline": node(name="a\nb"),
    "bare quote": node(name='a"b'),
    "bad escape": node(name="a\\q"),
    "surrogate escape": node(name="\\ud800"),
    "too large escape": node(name="\\U00110000"),
    "number as name": node(name=1),
    "no type": {"name": "f", "content": []},
    "unknown type": node(type="irregular"),
    "negative uid": node(uid=-1),
    "large gid": node(gid=1 << 32),
    "uid as text": node(uid="0"),
    "uid as float": node(uid=1.0),
    "uid as bool": node(uid=True),
    "large mode": node(mode=1 << 32),
    "large inode": node(inode=1 << 64),
    "negative size": node(size=-1),
    "year of five digits": node(mtime="10000-01-01T00:00:00Z"),
    "naive time": node(ctime="2023-01-01T00:00:00"),
    "bad access time": node(atime="yesterday"),
    "number as time": node(mtime=0),
    "file without content": {"name": "f", "type": "file"},
    "content is null": node(content=None),
    "id is null": node(content=[None]),
    "id too short": node(content=["ab"]),
    "id with blanks": node(content=[ID.hex()[:-2] + "  "]),
    "id not hex": node(content=["zz" * 32]),
    "directory without subtree": node(type="dir"),
    "subtree too short": node(type="dir", subtree="ab"),
    "bad content of a fifo": node(type="fifo", content=["ab"]),
    "bad subtree of a file": node(subtree="ab"),
    "NUL in link target": node(type="symlink", linktarget="a\0b"),
    "raw link target not base64": node(type="symlink", linktarget_raw="?"),
    "attribute without name": node(extended_attributes=[{"value": ""}]),
    "attribute with NUL": node(extended_attributes=[{"name": "a\0", "value": ""}]),
    "attribute null": node(extended_attributes=[None]),
}


@pytest.mark.parametrize("bad", BAD_NODES.values(), ids=BAD_NODES.keys())
def test_a_node_that_cannot_be_used_is_refused(bad: object) -> None:
    with pytest.raises(MalformedData, match=r"tree.* is damaged: "):
        decode_tree(tree_of(node(name="before"), bad, node(name="x")))


@pytest.mark.parametrize("bad", BAD_NODES.values(), ids=BAD_NODES.keys())
def test_a_node_that_cannot_be_used_does_not_cost_its_siblings(bad: object) -> None:
    refused: list[MalformedData] = []

    entries = decode_tree(tree_of(node(name="before"), bad, node(name="x")), refused)

    assert [entry.name for entry in entries] == [b"before", b"x"]
    assert len(refused) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"nodes":null}',
        b'{"nodes":{}}',
        b'{"nodes":[]',
        b'{"nodes":[]} x',
        b'{"nodes":[]}\0',
        b"\xff",
        b'{"x":' + b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_bytes_that_are_no_tree_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedData, match="tree is damaged"):
        decode_tree(data)
    with pytest.raises(MalformedData, match="tree is damaged"):
        decode_tree(data, [])


@pytest.mark.parametrize(
    "crowd", [b'{"nodes":[%s{}]}', b'{"nodes":[{"extended_attributes":[%s{}]}]}']
)
def test_more_entries_than_there_is_room_for_are_not_even_counted(crowd: bytes) -> None:
    for refused in (None, []):
        with pytest.raises(MalformedData, match="more entries than its size"):
            decode_tree(crowd % (b"{}," * 2000), refused)


def test_names_may_be_all_braces() -> None:
    name = b'{"{\\{' * 40
    entries = [Entry(name + b"%d" % i, Kind.FIFO, 0, 0, 0, 0, 0, 0, 0) for i in range(9)]
    assert decode_tree(encode_tree(entries, utc)) == entries


@pytest.mark.parametrize(
    ("names", "fault"), [(["b", "a"], "comes after b'b'"), (["a", "a"], "occurs twice")]
)
def test_a_wrong_order_is_read_but_reported(names: list[str], fault: str) -> None:
    entries = decode_tree(tree_of(*(node(name=name) for name in names)))

    with pytest.raises(MalformedData, match=fault):
        check_order(entries)


names = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
raw_without_nul = st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw)
uint32 = st.integers(0, (1 << 32) - 1)
uint64 = st.integers(0, (1 << 64) - 1)
times_ns = st.integers(-62_167_219_200 * 10**9, 253_402_300_799 * 10**9)
ids = st.binary(min_size=32, max_size=32)


@st.composite
def entries_in_range(draw: Callable[..., object]) -> Entry:
    kind = draw(st.sampled_from(Kind))
    xattr_names = texts.filter(lambda name: name != "" and "\0" not in name).map(str.encode)
    fields = {
        "name": names,
        "permissions": st.integers(0, 0o7777),
        "uid": uint32,
        "gid": uint32,
        "mtime_ns": times_ns,
        "ctime_ns": times_ns,
        "inode": uint64,
        "device": uint64,
        "user": texts,
        "group": texts,
        "xattrs": st.lists(st.tuples(xattr_names, st.binary(max_size=30)), max_size=3).map(tuple),
    }
    if kind in (Kind.FILE, Kind.SYMLINK, Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE):
        fields["links"] = uint64
    if kind is Kind.FILE:
        fields |= {"size": uint64, "content": st.lists(ids, max_size=3).map(tuple)}
    if kind is Kind.DIRECTORY:
        fields["subtree"] = ids
    if kind is Kind.SYMLINK:
        fields["link_target"] = raw_without_nul
    if kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE):
        fields["rdev"] = uint64
    return Entry(kind=kind, **{key: draw(values) for key, values in fields.items()})


@settings(deadline=None)
@given(
    st.lists(entries_in_range(), max_size=4, unique_by=lambda entry: entry.name),
    st.integers(-14 * 60, 14 * 60).map(lambda minutes: minutes * 60),
)
def test_every_entry_in_range_comes_back(entries: list[Entry], offset: int) -> None:
    margin = 15 * 3600 * 10**9
    entries = [
        msgspec.structs.replace(
            entry,
            mtime_ns=min(max(entry.mtime_ns, -62_167_219_200 * 10**9 + margin), 10**20),
            ctime_ns=min(entry.ctime_ns + margin, 253_402_300_799 * 10**9 - margin),
        )
        for entry in entries
        if -62_167_219_200 * 10**9 + margin < entry.mtime_ns < 253_402_300_799 * 10**9 - margin
    ]

    tree = encode_tree(entries, fixed_zone(offset))

    ordered = sorted(entries, key=lambda entry: entry.name)
    assert decode_tree(tree) == ordered
    assert join_nodes(encode_node(entry, fixed_zone(offset)) for entry in ordered) == tree
    assert encode_tree(decode_tree(tree), fixed_zone(offset)) == tree


GOLDEN_TREE = (GOLDEN / "tree-UTC.json").read_bytes()


@settings(deadline=None)
@given(st.integers(0, len(GOLDEN_TREE) - 1), st.binary(max_size=3), st.integers(0, 5))
def test_a_mutated_tree_raises_only_our_error(place: int, inserted: bytes, removed: int) -> None:
    mutated = GOLDEN_TREE[:place] + inserted + GOLDEN_TREE[place + removed :]
    refused: list[MalformedData] = []

    try:
        entries = decode_tree(mutated, refused)
    except MalformedData:
        return
    assert len(entries) + len(refused) > 0
    for entry in entries:
        encode_tree([entry], utc)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(json.loads(GOLDEN_TREE)["nodes"][0])), json_values))
def test_a_node_of_wrong_types_raises_only_our_error(fields: dict[str, object]) -> None:
    tree = json.dumps({"nodes": [node(**fields)]}, allow_nan=False).encode()
    refused: list[MalformedData] = []

    assert len(decode_tree(tree, refused)) + len(refused) == 1
