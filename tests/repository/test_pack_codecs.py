"""Packs, index files and tables: there and back, and nothing worse (see ``test_codecs``)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import MalformedData
from agent.repository.crypto import OVERHEAD, Key
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import decode_index, encode_index
from agent.repository.objects import Folder, names, pack_key
from agent.repository.opening import open_repository
from agent.repository.pack import (
    PackBuilder,
    PackedBlob,
    decode_header,
    encode_header,
    header_span,
    open_pack,
    packed_size,
)
from agent.repository.reader import BlobOpener
from agent.repository.table import Table
from tests.repository.making import (
    FROZEN_PASSWORD,
    frozen_repository,
)
from tests.repository.mutation import mutated

KEY = Key(bytes(range(32)), bytes(range(1, 17)), bytes(range(2, 18)))
IV = bytes(range(1, 17))
POLYNOMIAL = "2267609e04675b"  # of restic-format.md section 6

ids = st.binary(min_size=32, max_size=32).map(BlobId)
lengths = st.integers(OVERHEAD, 1 << 24)


@st.composite
def packed_blobs(draw: st.DrawFn) -> list[PackedBlob]:
    offset, blobs = 0, []
    for id, length, plain in draw(
        st.lists(st.tuples(ids, lengths, st.integers(0, 1 << 24)), min_size=1, max_size=20)
    ):
        type = draw(st.sampled_from(BlobType))
        blobs.append(PackedBlob(type, id, offset, length, plain))
        offset += length
    return blobs


class TestPacks:
    def test_restics_own_open(self) -> None:
        storage = frozen_repository()
        key = open_repository(storage, FROZEN_PASSWORD).objects.key
        packs = [
            storage.get(pack_key(PackId(bytes.fromhex(n)))) for n in names(storage, Folder.DATA)
        ]
        found = [open_pack(pack, key, "pack") for pack in packs]
        assert sorted(len(blobs) for blobs in found) == [2, 2]
        for pack, blobs in zip(packs, found, strict=True):
            offset, size = header_span(pack[-4:], len(pack), "pack")
            header = key.unseal(pack[offset : offset + size], "header")
            assert encode_header(blobs) == header
            for blob in blobs:
                sealed = pack[blob.offset : blob.offset + blob.length]
                assert len(BlobOpener(key).open(sealed, blob)) == blob.content_bytes

    @given(packed_blobs())
    def test_headers_come_back(self, blobs: list[PackedBlob]) -> None:
        header = encode_header(blobs)
        assert decode_header(header, "it") == blobs
        size = sum(b.length for b in blobs) + len(header) + OVERHEAD + 4
        assert packed_size(blobs) == size

    @given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=10))
    def test_a_built_pack_opens_to_what_went_in(self, plains: list[bytes]) -> None:
        builder = PackBuilder(BlobType.DATA)
        for number, plain in enumerate(plains):
            builder.append(BlobId(bytes([number]) * 32), KEY.seal(IV, plain), 0)
        pack = bytes(builder.finish(KEY, IV))
        blobs = open_pack(pack, KEY, "it")
        assert blobs == builder.blobs
        opened = [KEY.unseal(pack[b.offset : b.offset + b.length], "blob") for b in blobs]
        assert opened == plains

    @given(st.binary(max_size=200))
    def test_foreign_headers_raise_only_our_error(self, junk: bytes) -> None:
        try:
            blobs = decode_header(junk, "it")
        except MalformedData:
            return
        assert all(b.length >= OVERHEAD for b in blobs)

    @given(st.integers(0), st.binary(max_size=4), st.integers(0, 4))
    def test_a_mutated_pack_raises_only_our_error(
        self, place: int, inserted: bytes, removed: int
    ) -> None:
        builder = PackBuilder(BlobType.TREE)
        builder.append(BlobId(bytes(32)), KEY.seal(IV, b"plain"), 5)
        pack = bytes(builder.finish(KEY, IV))
        changed = mutated(pack, place, inserted, removed)
        try:
            blobs = open_pack(changed, KEY, "it")
        except MalformedData:
            return
        assert blobs == builder.blobs  # only a blob itself was hit, which its own seal shows

    @pytest.mark.parametrize("pack", [b"", b"abc", bytes(40), b"\xff" * 100])
    def test_what_is_no_pack_is_refused(self, pack: bytes) -> None:
        with pytest.raises(MalformedData, match="the pack is damaged"):
            open_pack(pack, KEY, "the pack")


class TestIndexFiles:
    def test_restics_own_is_written_the_same(self) -> None:
        storage = frozen_repository()
        objects = open_repository(storage, FROZEN_PASSWORD).objects
        (name,) = names(storage, Folder.INDEX)
        json = objects.load(Folder.INDEX, name)
        packs = decode_index(json, "it")
        assert sum(len(blobs) for _, blobs in packs) == 4
        assert encode_index(packs) == json

    @given(st.lists(st.tuples(ids.map(PackId), packed_blobs()), max_size=4))
    def test_packs_come_back(self, packs: list[tuple[PackId, list[PackedBlob]]]) -> None:
        assert decode_index(encode_index(packs), "it") == packs

    @pytest.mark.parametrize("json", [b"{}", b'{"packs":null}', b'{"packs":[],"supersedes":[]}'])
    def test_an_empty_index_is_harmless(self, json: bytes) -> None:
        assert decode_index(json, "it") == []

    @pytest.mark.parametrize(
        "blob",
        [
            {"id": "zz", "type": "data", "offset": 0, "length": 40},
            {"id": "a" * 64, "type": "blob", "offset": 0, "length": 40},
            {"id": "a" * 64, "type": "data", "offset": 0, "length": 31},
            {"id": "a" * 64, "type": "data", "offset": -1, "length": 40},
            {"id": "a" * 64, "type": "data", "offset": 0, "length": 1 << 32},
            {"id": "a" * 64, "type": "data", "offset": 0},
        ],
    )
    def test_impossible_blobs_are_refused(self, blob: dict[str, Any]) -> None:
        index = {"packs": [{"id": "b" * 64, "blobs": [blob]}]}
        with pytest.raises(MalformedData, match="index/x is damaged"):
            decode_index(json.dumps(index).encode(), "index/x")

    @given(st.integers(0), st.binary(max_size=4), st.integers(0, 4))
    def test_mutated_bytes_raise_only_our_error(
        self, place: int, inserted: bytes, removed: int
    ) -> None:
        blob = PackedBlob(BlobType.DATA, BlobId(b"b" * 32), 0, 40, 0)
        data = encode_index([(PackId(b"p" * 32), [blob])])
        try:
            packs = decode_index(mutated(data, place, inserted, removed), "it")
        except MalformedData:
            return
        assert len(packs) <= 1


class TestTables:
    @given(st.lists(st.tuples(ids.map(PackId), packed_blobs()), max_size=4))
    def test_every_blob_is_found_where_it_is(
        self, packs: list[tuple[PackId, list[PackedBlob]]]
    ) -> None:
        halves = [Table.build(BlobType.DATA, part) for part in (packs[:2], packs[2:])]
        merged = Table.merge(BlobType.DATA, halves)
        whole = [(p, b) for p, blobs in packs for b in blobs if b.type is BlobType.DATA]
        assert len(merged) == len(whole)
        for pack, blob in whole:
            assert blob.id in merged
            assert (pack, blob) in [(f.pack, f.blob) for f in merged.find(blob.id)]
        assert sorted(f.blob.id for f in merged) == [f.blob.id for f in merged]

    @given(ids, packed_blobs())
    def test_what_is_not_there_is_not_found(self, id: BlobId, blobs: list[PackedBlob]) -> None:
        others = [b for b in blobs if b.id != id]
        table = Table.build(BlobType.TREE, [(PackId(b"p" * 32), others)])
        assert id not in table
        assert table.find(id) == []
