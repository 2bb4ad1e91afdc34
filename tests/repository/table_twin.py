"""What agent/repository/_table.c does, in Python: its specification, and its twin in the tests."""

import bisect
import struct
from array import array
from collections.abc import Iterable

from agent.repository.crypto import Buffer

_ROW = struct.Struct("<32sIIII")
ID, HINT, PLACE, ROW = 32, 4, 16, 48


def _stem_size(count: int) -> int:
    return 1 if count < 65_536 else 2


def _read(body: Buffer, count: int) -> list[bytes]:
    """Return a table as rows."""
    stem = _stem_size(count)
    rest = ID - HINT - stem
    content = memoryview(body)
    hints = 4 * (256**stem + 1)
    rests, places = hints + HINT * count, hints + (HINT + rest) * count
    if not 0 <= count < 1 << 32 or len(content) != places + PLACE * count:
        raise ValueError("the bytes of a table do not fit its count")
    starts = [min(start, count) for (start,) in struct.iter_unpack("<I", content[:hints])]
    return [
        (bisect.bisect_right(starts, at, 0, len(starts) - 1) - 1).to_bytes(stem)
        + bytes(content[hints + HINT * at :][:HINT])
        + bytes(content[rests + rest * at :][:rest])
        + bytes(content[places + PLACE * at :][:PLACE])
        for at in range(count)
    ]


def _split(rows: Iterable[bytes], stem: int) -> tuple[bytes, bytes, bytes]:
    every = list(rows)
    return (
        b"".join(row[stem : stem + HINT] for row in every),
        b"".join(row[stem + HINT : ID] for row in every),
        b"".join(row[ID:] for row in every),
    )


def _ids(ids: Buffer) -> list[bytes]:
    content = bytes(ids)
    if len(content) % ID:
        raise ValueError("ids are 32 bytes each")
    return [content[at : at + ID] for at in range(0, len(content), ID)]


def build(rows: Buffer, /) -> bytes:
    content = bytes(rows)
    if len(content) % ROW:
        raise ValueError("rows are 48 bytes each")
    every = sorted(content[at : at + ROW] for at in range(0, len(content), ROW))
    stem = _stem_size(len(every))
    stems = [int.from_bytes(row[:stem]) for row in every]
    starts = [bisect.bisect_left(stems, number) for number in range(256**stem + 1)]
    return struct.pack(f"<{len(starts)}I", *starts) + b"".join(_split(every, stem))


def find(body: Buffer, count: int, id: bytes, /) -> int:
    rows = _read(body, count)
    if len(id) != ID:
        raise ValueError("an id is 32 bytes")
    position = bisect.bisect_left(rows, id)
    return position if position < count and rows[position][:ID] == id else -1


def positions(body: Buffer, count: int, ids: Buffer, /) -> bytes:
    return array("q", [find(body, count, id) for id in _ids(ids)]).tobytes()


def known(body: Buffer, count: int, ids: Buffer, marks: bytearray, /) -> None:
    wanted = _ids(ids)
    if len(marks) != len(wanted):
        raise ValueError("there is one mark for each id")
    for place, id in enumerate(wanted):
        if find(body, count, id) >= 0:
            marks[place] = 1


def rows(body: Buffer, count: int, first: int, end: int, /) -> bytes:
    if not 0 <= first <= end <= count:
        raise ValueError("there are no such positions")
    return b"".join(_read(body, count)[first:end])


def sums(body: Buffer, count: int, packs: int, entry: int, plain_entry: int, /) -> bytes:
    found = array("Q", bytes(8 * packs))
    for row in _read(body, count):
        _, pack, _, length, plain = _ROW.unpack(row)
        if pack >= packs:
            raise ValueError("a blob lies in a pack that there is not")
        found[pack] += length + (entry if plain else plain_entry)
    return found.tobytes()


def select(body: Buffer, count: int, marks: bytes, wanted: bool, /) -> bytes:
    def marked(row: bytes) -> bool:
        pack = _ROW.unpack(row)[1]
        return pack < len(marks) and marks[pack] != 0

    return b"".join(row for row in _read(body, count) if marked(row) == wanted)


def merge(
    tables: tuple[tuple[Buffer, int, int], ...], byte: int, stem: int, base: int, /
) -> tuple[bytes, bytes, bytes, bytes]:
    if byte > 255 or stem not in (1, 2):
        raise ValueError("at most 4096 tables, a byte, and stems of 1 or 2 bytes")
    every: list[bytes] = []
    for body, count, first in tables:
        for row in _read(body, count):
            id, pack, *place = _ROW.unpack(row)
            if id[0] == byte:
                every.append(_ROW.pack(id, pack + first, *place))
    every.sort(key=lambda row: row[:ID])  # equal ids stay in the order of their tables
    stems = [int.from_bytes(row[:stem]) for row in every]
    below = range(byte + 1, byte + 2) if stem == 1 else range(byte << 8 | 1, (byte + 1 << 8) + 1)
    starts = [base + bisect.bisect_left(stems, number) for number in below]
    return (struct.pack(f"<{len(starts)}I", *starts), *_split(every, stem))
