"""Which ranges bring a set of blobs, and how their places are found in a table."""

import bisect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.repository.fetching import FETCH_BYTES, Fetch, plan_fetches
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.pack import PackedBlob
from agent.repository.table import Found, Table

A, B = PackId(b"a" * 32), PackId(b"b" * 32)


def place(offset: int, length: int, pack: PackId = A) -> Found:
    id = BlobId(offset.to_bytes(32) if pack == A else offset.to_bytes(16) + bytes(15) + b"b")
    return Found(pack, PackedBlob(BlobType.DATA, id, offset, length, 0))


def spans(fetches: list[Fetch]) -> list[tuple[bytes, int, int]]:
    return [(bytes(fetch.pack[:1]), fetch.offset, fetch.length) for fetch in fetches]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([place(7, 3)], [(b"a", 7, 3)]),
        ([place(100, 50), place(0, 100)], [(b"a", 0, 150)]),
        ([place(0, 100), place(108, 100)], [(b"a", 0, 208)]),
        ([place(0, 100), place(109, 100)], [(b"a", 0, 100), (b"a", 109, 100)]),
        ([place(0, 900), place(902, 90), place(1030, 100)], [(b"a", 0, 1130)]),
        ([place(0, 900), place(910, 90), place(1040, 10)], [(b"a", 0, 1000), (b"a", 1040, 10)]),
        ([place(5, 5, B), place(0, 5), place(0, 5, B)], [(b"b", 0, 10), (b"a", 0, 5)]),
    ],
)
def test_ranges_are_joined_over_small_gaps(
    places: list[Found], expected: list[tuple[bytes, int, int]]
) -> None:
    assert spans(plan_fetches(places)) == expected


def test_a_blob_larger_than_the_limit_is_fetched_alone() -> None:
    big = FETCH_BYTES + 1
    found = spans(plan_fetches([place(0, 10), place(10, big), place(10 + big, 10)]))
    assert found == [(b"a", 0, 10), (b"a", 10, big), (b"a", 10 + big, 10)]


_BLOBS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3000), st.booleans()), max_size=60)


@given(_BLOBS, _BLOBS, st.randoms(use_true_random=False), st.integers(1, 20_000))
def test_every_blob_is_in_one_range_and_little_is_read_in_vain(
    first: list[tuple[int, int, bool]],
    second: list[tuple[int, int, bool]],
    draw: random.Random,
    most: int,
) -> None:
    wanted = []
    for pack, blobs in ((A, first), (B, second)):
        offset = 0
        for gap, length, is_wanted in blobs:
            offset += gap
            if is_wanted:
                wanted.append(place(offset, length, pack))
            offset += length
    draw.shuffle(wanted)
    fetches = plan_fetches(wanted, most)
    got = [(fetch.pack, blob) for fetch in fetches for blob in fetch.blobs]
    assert sorted(got, key=repr) == sorted(((p.pack, p.blob) for p in wanted), key=repr)
    for fetch in fetches:
        assert len(fetch.blobs) == 1 or fetch.length <= most
        offsets = [blob.offset for blob in fetch.blobs]
        assert offsets == sorted(offsets)
        assert fetch.offset == offsets[0]
        assert fetch.offset + fetch.length == fetch.blobs[-1].offset + fetch.blobs[-1].length
    for pack in (A, B):
        needed = sum(p.blob.length for p in wanted if p.pack == pack)
        assert sum(f.length for f in fetches if f.pack == pack) <= needed * 1.04
    assert list(dict.fromkeys(f.pack for f in fetches)) == list(
        dict.fromkeys(p.pack for p in wanted)
    )


def ids_of(shape: str) -> list[bytes]:
    draw = random.Random(shape)
    if shape == "hashes":
        return [draw.randbytes(32) for _ in range(3000)]
    if shape == "clustered":
        return [b"\x7f" * 12 + draw.randbytes(20) for _ in range(1500)] + [bytes(32), b"\xff" * 32]
    if shape == "powers":
        return [(1 << bit).to_bytes(32) for bit in range(256)]
    if shape == "ends":
        return [bytes(31) + bytes([n]) for n in range(200)] + [
            b"\xff" * 31 + bytes([n]) for n in range(200)
        ]
    if shape == "repeated":
        return [bytes([n // 3]) * 32 for n in range(300)]
    return [draw.randbytes(32)] if shape == "one" else []


@pytest.mark.parametrize(
    "shape", ["hashes", "clustered", "powers", "ends", "repeated", "one", "none"]
)
def test_a_place_is_found_as_by_plain_bisection(shape: str) -> None:
    ids = ids_of(shape)
    blobs = [PackedBlob(BlobType.DATA, BlobId(id), n, 100, 0) for n, id in enumerate(ids)]
    table = Table.build(BlobType.DATA, [(A, blobs[::2]), (B, blobs[1::2])])
    ordered, known = sorted(ids), set(ids)
    draw = random.Random(1)
    near = [(min(int.from_bytes(id) + 1, (1 << 256) - 1)).to_bytes(32) for id in ids[:300]]
    asked = [*ids, *near, bytes(32), b"\xff" * 32, *(draw.randbytes(32) for _ in range(100))]
    for id in asked:
        assert table.locate(id) == (bisect.bisect_left(ordered, id) if id in known else None)
        assert (id in table) is (id in known)
        assert len(table.find(BlobId(id))) == bisect.bisect(ordered, id) - bisect.bisect_left(
            ordered, id
        )
    for some in (asked, asked[:3], []):
        many = table.find_many(set(some))
        assert set(many) == set(some) & set(ids)
        assert all(found in table.find(BlobId(id)) for id, found in many.items())
