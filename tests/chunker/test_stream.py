import hashlib
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker import ChunkStream, Parameters, ZeroChunks, reference
from tests.chunker.contents import MIB, noise
from tests.chunker.cutting import cut, fed, stream_of, taken
from tests.chunker.golden import GOLDEN

POLYNOMIAL = next(iter(GOLDEN))
RESTICS = Parameters(POLYNOMIAL)

SMALL = [
    Parameters(POLYNOMIAL, min_size=100, max_size=400, mask_bits=6),
    Parameters(POLYNOMIAL, min_size=64, max_size=64, mask_bits=3),
    Parameters(POLYNOMIAL, min_size=64, max_size=90, mask_bits=2),
    Parameters(POLYNOMIAL, min_size=1000, max_size=1500, mask_bits=9),
]


def state_machine(content: bytes, parameters: Parameters) -> list[bytes]:
    """Cut as restic-format.md section 10 writes it down, byte by byte."""
    out = struct.unpack("=256Q", parameters.tables.out)
    mod = struct.unpack("=256Q", parameters.tables.mod)
    chunks, start = [], 0
    while start < len(content):
        window, digest, position = [1] + [0] * 63, 1, 1
        count = parameters.min_size - 64
        while start + count < len(content):
            byte = content[start + count]
            count += 1
            digest ^= out[window[position]]
            window[position] = byte
            position = (position + 1) % 64
            digest = ((digest << 8) | byte) ^ mod[digest >> 45]
            if count >= parameters.min_size and (
                digest & parameters.mask == 0 or count >= parameters.max_size
            ):
                break
        end = min(start + count, len(content))
        chunks.append(content[start:end])
        start = end
    return chunks


def flat(parts: list[bytes | int]) -> bytes:
    return b"".join(bytes(part) if isinstance(part, int) else part for part in parts)


pieces = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda seed, size: noise(f"piece {seed}", size), st.integers(0, 99), st.integers(0, 4000)
    ),
)
holes = st.one_of(st.integers(0, 200), st.integers(0, 5000))


@settings(deadline=None)
@given(st.lists(st.one_of(pieces, holes.map(bytes)), max_size=8), st.sampled_from(SMALL))
def test_cuts_are_those_of_the_state_machine_whatever_the_buffers(
    parts: list[bytes | int], parameters: Parameters
) -> None:
    assert cut(parts, stream_of(parameters)) == state_machine(flat(parts), parameters)


@settings(deadline=None)
@given(st.lists(st.one_of(pieces, holes), max_size=8), st.sampled_from(SMALL))
def test_holes_are_cut_like_the_zeros_that_they_stand_for(
    parts: list[bytes | int], parameters: Parameters
) -> None:
    assert cut(parts, stream_of(parameters)) == state_machine(flat(parts), parameters)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.sampled_from(SMALL))
def test_buffers_of_one_size_give_the_cuts_of_the_whole(size: int, parameters: Parameters) -> None:
    content = noise("steady", 9_000) + bytes(2_000) + noise("again", 3_000)
    parts: list[bytes | int] = [content[at : at + size] for at in range(0, len(content), size)]
    assert cut(parts, stream_of(parameters)) == cut([content], stream_of(parameters))


def test_the_twin_cuts_like_the_kernel() -> None:
    content = noise("twin", 20_000)
    twin = stream_of(SMALL[0], scan=reference.scan)
    assert cut([content], twin) == cut([content], stream_of(SMALL[0]))


@pytest.mark.parametrize("size", [17, 64 * 1024 - 1, 512 * 1024, 4 * MIB, 30 * MIB])
def test_restics_sizes_are_kept_over_buffers_of_any_size(size: int) -> None:
    content = noise("sizes", 9 * MIB) + b"\xff" * (9 * MIB) + noise("tail", 100)
    if size == 17:
        content = content[: 2 * MIB]
    parts: list[bytes | int] = [content[at : at + size] for at in range(0, len(content), size)]
    chunks = cut(parts, stream_of(RESTICS))
    assert chunks == cut([content], stream_of(RESTICS))
    assert b"".join(chunks) == content
    assert all(512 * 1024 <= len(chunk) <= 8 * MIB for chunk in chunks[:-1])


def test_an_empty_file_has_no_chunk() -> None:
    stream = stream_of(RESTICS)
    assert cut([], stream) == []
    assert cut([b"", 0, b""], stream) == []


def test_a_short_file_is_one_chunk() -> None:
    for content in (b"x", noise("short", 524_287)):
        assert cut([content], stream_of(RESTICS)) == [content]


def test_a_stream_serves_one_file_after_the_other() -> None:
    stream, files = stream_of(SMALL[0]), [noise(f"file {i}", 777 * i) for i in range(6)]
    for content in files:
        assert cut([content], stream) == state_machine(content, SMALL[0])


def test_zeros_are_cut_at_the_minimum_into_the_chunk_that_restic_knows() -> None:
    chunks = cut([bytes(3 * 524_288 + 5)], stream_of(RESTICS))
    assert [len(chunk) for chunk in chunks] == [524_288] * 3 + [5]
    assert (
        hashlib.sha256(chunks[0]).hexdigest()
        == "07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541"
    )


def test_zeros_of_a_hole_lie_nowhere() -> None:
    stream = stream_of(RESTICS)
    for before, hole in ((0, 2), (0, 7), (100, 5)):
        chunks = fed(stream, b"x" * before)
        pieces = stream.zeros(hole * 524_288)
        counts = [piece.count for piece in pieces if isinstance(piece, ZeroChunks)]
        assert counts == [hole - (before > 0)]
        chunks += taken(stream, pieces) + taken(stream, stream.finish())
        assert b"".join(chunks) == b"x" * before + bytes(hole * 524_288)


def test_a_hole_of_a_tebibyte_takes_no_memory() -> None:
    stream = stream_of(RESTICS)
    head = fed(stream, b"x" * 1000)
    tracemalloc.start()
    try:
        first, hole = stream.zeros(2**40)
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()
    assert head == []
    assert taken(stream, [first]) == [b"x" * 1000 + bytes(524_288 - 1000)]
    assert hole == ZeroChunks(2**40 // 524_288 - 1)
    assert [len(chunk) for chunk in taken(stream, stream.finish())] == [1000]


@settings(deadline=None)
@given(
    st.lists(st.one_of(pieces, holes), max_size=8),
    st.sampled_from(SMALL),
    st.integers(1, 2000),
    st.integers(0, 1000),
)
def test_when_a_buffer_is_given_away_changes_nothing(
    parts: list[bytes | int], parameters: Parameters, enough: int, spare: int
) -> None:
    stream = ChunkStream(parameters, lambda: bytearray(parameters.max_size + spare), enough=enough)
    assert cut(parts, stream) == state_machine(flat(parts), parameters)


def test_a_file_that_was_dropped_leaves_nothing_behind() -> None:
    stream = stream_of(SMALL[0])
    for size in (50, 333, 5000):
        fed(stream, noise("dropped", size))
        stream.drop()
        content = noise("next", 4000)
        assert cut([content], stream) == state_machine(content, SMALL[0])


def test_a_hole_of_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        stream_of(RESTICS).zeros(-1)
