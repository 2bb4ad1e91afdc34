"""Tables: kernel and twin say the same, and nothing that a torn file may hold ends the process."""

import os
import random
import struct
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.repository import _table
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.pack import PackedBlob
from agent.repository.table import Table, columns
from tests.repository import table_twin

_ROW = struct.Struct("<32sIIII")
u32 = st.integers(0, (1 << 32) - 1)
ids = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.builds(lambda head, tail: head + bytes(31 - len(tail)) + bytes([head[0]]) + tail,
              st.binary(min_size=1, max_size=1), st.binary(min_size=31, max_size=31)).map(lambda b: b[:32]),
    st.sampled_from([bytes(32), b"\xff" * 32, b"same" * 8]),
)  # fmt: skip
rows = st.lists(st.builds(_ROW.pack, ids, st.integers(0, 4), u32, u32, u32), max_size=30)


@pytest.fixture(params=[_table, table_twin], ids=["kernel", "twin"])
def table(request: pytest.FixtureRequest) -> ModuleType:
    made: ModuleType = request.param
    return made


def many(count: int, seed: int = 1) -> bytes:
    chance = random.Random(seed)
    return b"".join(_ROW.pack(chance.randbytes(32), n % 7, n, 40 + n, 0) for n in range(count))


class TestKernel:
    @pytest.mark.parametrize("count", [0, 1, 300])
    def test_rows_come_back_sorted(self, table: ModuleType, count: int) -> None:
        content = many(count)
        body = table.build(content)
        assert len(body) == columns(count)[-1]
        wanted = sorted(content[at : at + 48] for at in range(0, len(content), 48))
        assert table.rows(body, count, 0, count) == b"".join(wanted)
        assert [table.rows(body, count, n, n + 1) for n in range(count)] == wanted

    def test_a_blob_is_found_first_of_its_copies_and_others_are_not(
        self, table: ModuleType
    ) -> None:
        twice, other = b"t" * 32, b"t" * 31 + b"u"
        body = table.build(many(50) + _ROW.pack(twice, 1, 0, 40, 0) + _ROW.pack(twice, 0, 9, 40, 0))
        position = table.find(body, 52, twice)
        assert [table.rows(body, 52, position + n, position + n + 1)[:32] for n in (0, 1)] == [
            twice
        ] * 2
        assert table.rows(body, 52, position - 1, position)[:32] != twice
        assert table.find(body, 52, other) == -1
        marks = bytearray(b"\0\0\1")
        table.known(body, 52, twice + other + other, marks)
        assert marks == b"\1\0\1"
        found = struct.unpack("2q", table.positions(body, 52, other + twice))
        assert found == (-1, position)

    def test_what_does_not_fit_together_is_refused(self, table: ModuleType) -> None:
        body = table.build(many(3))
        id = bytes(32)
        for use in (
            lambda: table.build(b"x" * 47),
            lambda: table.find(body, 4, id),
            lambda: table.find(body[:-1], 3, id),
            lambda: table.find(body, -1, id),
            lambda: table.find(body, 3, id + id),
            lambda: table.positions(body, 3, b"x" * 33),
            lambda: table.known(body, 3, id, bytearray(2)),
            lambda: table.rows(body, 3, 2, 4),
            lambda: table.rows(body, 3, -1, 2),
            lambda: table.rows(body, 3, 2, 1),
            lambda: table.sums(body, 3, 2, 41, 37),
            lambda: table.merge(((body, 4, 0),), 0, 1, 0),
            lambda: table.merge(((body, 3, 0),), 256, 1, 0),
            lambda: table.merge(((body, 3, 0),), 0, 3, 0),
        ):
            with pytest.raises(ValueError, match=r"."):
                use()


@given(rows, rows, st.binary(min_size=5, max_size=5), st.lists(ids, max_size=4))
def test_kernel_and_twin_say_the_same(
    one: list[bytes], other: list[bytes], marks: bytes, wanted: list[bytes]
) -> None:
    bodies = [(_table.build(b"".join(part)), len(part)) for part in (one, other)]
    asked = b"".join(wanted + [row[:32] for row in one])
    for body, count in bodies:
        assert table_twin.build(_table.rows(body, count, 0, count)) == body
        assert table_twin.positions(body, count, asked) == _table.positions(body, count, asked)
        assert table_twin.sums(body, count, 5, 41, 37) == _table.sums(body, count, 5, 41, 37)
        for flag in (False, True):
            same = (
                table_twin.select(body, count, marks, flag),
                _table.select(body, count, marks, flag),
            )
            assert same[0] == same[1]
    sources = tuple((body, count, 5 * n) for n, (body, count) in enumerate(bodies))
    for byte, stem in ((0, 1), (0, 2), (255, 1), (255, 2), (ord("s"), 2)):
        merged = _table.merge(sources, byte, stem, 7)
        assert merged == table_twin.merge(sources, byte, stem, 7)


@given(st.integers(0, 200), st.randoms(use_true_random=False), st.binary(min_size=32, max_size=32))
def test_no_content_of_a_table_ends_the_process(
    count: int, chance: random.Random, id: bytes
) -> None:
    body = chance.randbytes(columns(count)[-1])
    _table.find(body, count, id)
    _table.rows(body, count, 0, count)
    _table.select(body, count, b"\1" * 9, True)
    for byte in (0, id[0], 255):
        for stem in (1, 2):
            _table.merge(((body, count, 0), (body, count, 9)), byte, stem, 0)


def test_a_large_table_has_stems_of_two_bytes_and_merges_with_small_ones() -> None:
    parts = [many(count, seed) for seed, count in enumerate((66_000, 10, 40_000, 0))]
    tables = [
        Table(BlobType.DATA, b"p" * 7 * 32, _table.build(part), len(part) // 48) for part in parts
    ]
    whole = Table.merge(BlobType.DATA, tables)
    wanted = sorted(
        (id, pack + 7 * number, *place)
        for number, table in enumerate(tables)
        for id, pack, *place in table.rows()
    )
    assert list(whole.rows()) == wanted
    assert columns(len(whole))[1] == 4 * 65_537
    for row in (wanted[0], wanted[50_000], wanted[-1]):
        position = whole.locate(row[0])
        assert position is not None
        assert whole.fields(position) == row
    strangers = os.urandom(32 * 1000)
    marks = bytearray(2000)
    whole.known(strangers + b"".join(row[0] for row in wanted[:1000]), marks)
    assert marks == bytes(1000) + b"\1" * 1000


def test_a_table_is_divided_by_packs() -> None:
    packs = [PackId(bytes([n]) * 32) for n in range(3)]
    blobs = [PackedBlob(BlobType.DATA, BlobId(bytes([9 - n]) * 32), n, 40, n) for n in range(6)]
    table = Table.build(
        BlobType.DATA, [(pack, blobs[2 * n : 2 * n + 2]) for n, pack in enumerate(packs)]
    )
    kept, dropped = table.divided({packs[1]})
    assert {found.pack for found in kept} == {packs[0], packs[2]}
    assert sorted(found.blob.offset for found in dropped) == [2, 3]
    assert list(memoryview(table.sums()).cast("Q")) == [40 + 37 + 40 + 41, 2 * 81, 2 * 81]
    same, nothing = table.divided({PackId(b"x" * 32)})
    assert same is table
    assert len(nothing) == 0


def test_a_mapped_file_needs_no_descriptor_and_stays_when_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content" * 1000)
    before = len(os.listdir("/proc/self/fd"))
    with path.open("rb") as file:
        mapping = _table.Mapping(file.fileno())
    assert len(os.listdir("/proc/self/fd")) == before
    path.unlink()
    part = memoryview(mapping)[7:14]
    mapping.release()
    del mapping
    assert bytes(part) == b"content"
    assert part.readonly
    path.write_bytes(b"")
    with path.open("rb") as file, pytest.raises(OSError, match="Invalid"):
        _table.Mapping(file.fileno())
    with pytest.raises(OSError, match="Bad file"):
        _table.Mapping(-1)
