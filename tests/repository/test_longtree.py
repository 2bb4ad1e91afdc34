"""Long trees: the same text and the same entries as of one piece, wherever the pieces end."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cancel import NEVER
from agent.entry import Entry
from agent.errors import DamagedBlob, MalformedData, RepositoryError, TreeTooLarge
from agent.monitor import Monitor
from agent.repository import longblob, longtree
from agent.repository.contract import TreeWriter
from agent.repository.identity import BlobType
from agent.repository.longblob import LongTree
from agent.repository.longtree import TreeText, decode_pieces, in_order
from agent.repository.repository import Repository
from agent.repository.table import Found
from agent.repository.times import utc
from agent.repository.tree import decode_tree, encode_tree
from agent.repository.writer import Writer
from agent.storage.memory import MemoryStorage
from tests.repository.making import keys
from tests.repository.test_tree import GOLDEN_TREE, entries_in_range, file_entry
from tests.support.longdirs import lower_limits

TEXT = encode_tree(
    [file_entry(name=b'%d{"]\\' % n, xattrs=((b"user.a", b"b"),) * n) for n in range(9)], utc
)


def cut(text: bytes, size: int) -> Iterator[bytes]:
    stream = io.BytesIO(text)
    return iter(lambda: stream.read(size), b"")


def in_pieces(text: bytes, size: int, read_bytes: int) -> list[Entry]:
    with mock.patch.object(longtree, "READ_BYTES", read_bytes):
        return list(decode_pieces(cut(text, size)))


@settings(deadline=None)
@given(
    st.lists(entries_in_range(), max_size=6, unique_by=lambda entry: entry.name),
    st.integers(1, 3),
    st.sampled_from([1, 300, 1 << 20]),
    st.integers(1, 2000),
    st.sampled_from([0, 400, 1 << 20]),
)
def test_pieces_are_the_tree_and_come_back(
    entries: list[Entry], stretch: int, piece_bytes: int, size: int, read_bytes: int
) -> None:
    entries.sort(key=lambda entry: entry.name)
    try:
        whole = encode_tree(entries, utc)
    except RepositoryError:
        return  # a time that no tree can hold
    text = TreeText(utc)
    with mock.patch.object(longtree, "PIECE_BYTES", piece_bytes):
        parts = [
            piece
            for start in range(0, len(entries), stretch)
            for piece in text.pieces(entries[start : start + stretch])
        ]
    assert b"".join([*parts, text.finish()]) == whole
    assert in_pieces(whole, size, read_bytes) == decode_tree(whole)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([GOLDEN_TREE, TEXT]),
    st.floats(0, 1),
    st.one_of(
        st.binary(max_size=3),
        st.sampled_from([b'],"x":[', b'{"name":"', b'},{"name":"', b'"', b"\\", b"[", b"}", b" "]),
    ),
    st.integers(0, 5),
    st.integers(1, 500),
    st.sampled_from([0, 300]),
)
def test_a_mutated_tree_reads_in_pieces_as_it_reads_in_one(
    text: bytes, place: float, inserted: bytes, removed: int, size: int, read_bytes: int
) -> None:
    at = int(place * len(text))
    mutated = text[:at] + inserted + text[at + removed :]
    try:
        whole = decode_tree(mutated)
    except MalformedData:
        with pytest.raises(MalformedData):
            in_pieces(mutated, size, read_bytes)
    else:
        assert in_pieces(mutated, size, read_bytes) == whole


def node(name: str) -> bytes:
    return b'{"name":"%b","type":"fifo"}' % name.encode()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b'{"nodes":[]}', []),
        (b' {"a":[{}],"b":"\\"nodes\\":[", "nodes" : [ %b , %b ] , "z":[{"name":"x"}]}\n', "ab"),
        (b'{"z":{"nodes":[%b]},"nodes":[%b]}', "b"),
        (b'{"nodes":[%b],"x":[{"name":"q"},%b,{"name":"r"}]}', "a"),
    ],
)
@pytest.mark.parametrize("read_bytes", [0, 1 << 20])
def test_what_stands_around_the_nodes_is_skipped(text: bytes, names: str, read_bytes: int) -> None:
    nodes = (node("a"), node("b"))[: text.count(b"%b")]
    found = in_pieces(text % nodes, 7, read_bytes)
    assert [entry.name for entry in found] == [name.encode() for name in names]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{}", b'{"nodes":null}', b'{"nodes":{}}', b'{"nodes":[', b'{"nodes":[]', b'["nodes":[]]',
        b'{"nodes":[%b,]}', b'{"nodes":[,%b]}', b'{"nodes":[%b%b]}', b'{"nodes":[%b,,%b]}', b'{"nodes":[%b}]}',
        b'{"nodes":[1]}', b'{"nodes":[%b,1]}', b'{"nodes":[%b]}}', b'{"nodes":[%b]} 1', b'{"nodes":[%b],"nodes":[%b]}',
        b'{"a\\"nodes":[%b]}', b'{"nodes":[%b],}', b'{"nodes":[{"name":"x","type":"fifo","a":[1}]}', b'{"nodes":[%b}', b'x{"nodes":[]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("read_bytes", [0, 1 << 20])
def test_what_is_no_tree_is_refused(text: bytes, read_bytes: int) -> None:
    nodes = (node("a"), node("b"))[: text.count(b"%b")]
    with pytest.raises(MalformedData):
        in_pieces(text % nodes, 3, read_bytes)


def test_too_much_around_the_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longtree, "MOST_FRAME_BYTES", 100)
    for text in (b'{"a":[%b],"nodes":[]}' % (b"{}," * 99), b'{"nodes":[]%b}' % (b" " * 200)):
        with pytest.raises(MalformedData):
            in_pieces(text, 50, 1)


def test_a_bad_entry_does_not_cost_its_siblings() -> None:
    bad = b'{"name":"b","type":"what"}'
    text = b'{"nodes":[%b]}' % b",".join([node("a"), bad, node("c")])
    refused: list[MalformedData] = []
    with mock.patch.object(longtree, "READ_BYTES", 0):
        found = [entry.name for entry in decode_pieces(cut(text, 9), refused)]
    assert (found, len(refused)) == ([b"a", b"c"], 1)


def test_names_have_to_rise() -> None:
    text = TreeText(utc)
    list(text.pieces([file_entry(name=b"b")]))
    for name in (b"a", b"b"):
        with pytest.raises(RepositoryError, match="out of order"):
            list(text.pieces([file_entry(name=name)]))
    with pytest.raises(MalformedData, match="out of order"):
        list(in_order([file_entry(name=b"b"), file_entry(name=b"a")]))


# -- as blobs -------------------------------------------------------------------------------------


@pytest.fixture
def written(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    lower_limits(monkeypatch.setattr)
    with repository.locked(exclusive=False) as lock, repository.writing(lock, Monitor()) as writer:
        yield writer


ENTRIES = [file_entry(name=b"%03d" % n, inode=n + 1) for n in range(20)]


def store(writer: TreeWriter) -> bytes:
    for start in range(0, len(ENTRIES), 7):
        writer.add(ENTRIES[start : start + 7])
    return writer.finish()


def test_a_long_tree_is_a_pack_of_its_own_and_comes_back(
    storage: MemoryStorage, written: Writer
) -> None:
    id = store(written.begin_tree())
    assert store(written.begin_tree()) == id  # known: not stored again
    assert written.store_tree(ENTRIES) == id
    written._uploads.drain()
    assert len(keys(storage, "data")) == 1
    found = written.load_tree(id)
    assert isinstance(found, LongTree)
    assert list(found) == list(found) == ENTRIES


def test_a_tree_of_nothing_is_the_empty_one(written: Writer) -> None:
    assert written.begin_tree().finish() == written.store_tree([])


@pytest.mark.parametrize("place", [0, 15, 16, 200, -17, -1, None])
def test_damage_is_told_before_anything_is_read(
    storage: MemoryStorage, repository: Repository, written: Writer, place: int | None
) -> None:
    id = store(written.begin_tree())
    written._uploads.drain()
    (key,) = keys(storage, "data")
    (found,) = repository.load_index().find(BlobType.TREE, id)  # type: ignore[arg-type]
    pack = bytearray(storage.get(key))
    if place is None:
        del pack[found.blob.length // 2 :]
    else:
        pack[place % found.blob.length] ^= 1
    storage.put(key, bytes(pack))
    with pytest.raises(DamagedBlob, match="cut short" if place is None else "authentication code"):
        repository.reading().load_tree(id)


@pytest.mark.parametrize(("claimed", "reason"), [(-1, "more than"), (1, "does not match")])
def test_another_content_than_was_promised_is_damage(
    storage: MemoryStorage, written: Writer, claimed: int, reason: str
) -> None:
    id = store(written.begin_tree())
    written._uploads.drain()
    place = written._session.view.find(BlobType.TREE, id)[0]  # type: ignore[arg-type]
    blob = place.blob
    changes = {"plain_length": blob.plain_length + claimed} if claimed < 0 else {"id": bytes(32)}
    lying = Found(place.pack, msgspec.structs.replace(blob, **changes))
    with pytest.raises(DamagedBlob, match=reason):
        longblob.fetch_tree(storage, lying, written._session.objects.key, None, NEVER)


@pytest.mark.parametrize("place", [3, 30])
def test_a_tree_that_does_not_survive_being_sealed_is_not_stored(
    storage: MemoryStorage, written: Writer, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    pread = os.pread

    def flipped(file: int, size: int, start: int) -> bytes:
        piece = bytearray(pread(file, size, start))
        if start <= place < start + len(piece):
            piece[place - start] ^= 4
        return bytes(piece)

    tree = written.begin_tree()
    monkeypatch.setattr(longblob.os, "pread", flipped)
    with pytest.raises(DamagedBlob, match="did not survive being sealed"):
        store(tree)
    assert keys(storage, "data") == []


def test_a_tree_that_no_pack_holds_is_too_large(
    written: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longblob, "MAX_BLOB_BYTES", 3000)
    tree = written.begin_tree()
    with pytest.raises(TreeTooLarge, match="no pack holds"):
        store(tree)
    tree.close()
    tree.close()


def test_no_room_for_the_file_is_said(
    written: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = written._session.objects.key
    assert longblob.Spool(tmp_path / "is not there").size == 0  # then it lies elsewhere
    monkeypatch.setattr(longblob.tempfile, "tempdir", str(tmp_path / "neither is this"))
    with pytest.raises(TreeTooLarge, match="no room for a temporary file"):
        written.begin_tree()
    with open("/dev/full", "r+b", buffering=0) as full:
        monkeypatch.setattr(longblob, "_nameless", lambda _: os.dup(full.fileno()))
        with pytest.raises(TreeTooLarge, match="No space left"):
            longblob.LongBlob(key, 1, None)
