import hashlib
import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker import ChunkStream, Parameters, reference
from tests.chunker.contents import MIB, noise
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


def cut(parts: list[bytes | int], stream: ChunkStream) -> list[bytes]:
    """Feed bytes as they are and numbers as holes."""
    chunks: list[bytes] = []
    for part in parts:
        chunks += stream.feed_zeros(part) if isinstance(part, int) else stream.feed(part)
    return [*chunks, *stream.finish()]


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
    assert cut(parts, ChunkStream(parameters)) == state_machine(flat(parts), parameters)


@settings(deadline=None)
@given(st.lists(st.one_of(pieces, holes), max_size=8), st.sampled_from(SMALL))
def test_holes_are_cut_like_the_zeros_that_they_stand_for(
    parts: list[bytes | int], parameters: Parameters
) -> None:
    assert cut(parts, ChunkStream(parameters)) == state_machine(flat(parts), parameters)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.sampled_from(SMALL))
def test_buffers_of_one_size_give_the_cuts_of_the_whole(size: int, parameters: Parameters) -> None:
    content = noise("steady", 9_000) + bytes(2_000) + noise("again", 3_000)
    parts: list[bytes | int] = [content[at : at + size] for at in range(0, len(content), size)]
    assert cut(parts, ChunkStream(parameters)) == cut([content], ChunkStream(parameters))


def test_the_twin_cuts_like_the_kernel() -> None:
    content = noise("twin", 20_000)
    twin = ChunkStream(SMALL[0], scan=reference.scan)
    assert cut([content], twin) == cut([content], ChunkStream(SMALL[0]))


@pytest.mark.parametrize("size", [17, 64 * 1024 - 1, 512 * 1024, 4 * MIB, 30 * MIB])
def test_restics_sizes_are_kept_over_buffers_of_any_size(size: int) -> None:
    content = noise("sizes", 9 * MIB) + b"\xff" * (9 * MIB) + noise("tail", 100)
    if size == 17:
        content = content[: 2 * MIB]
    parts: list[bytes | int] = [content[at : at + size] for at in range(0, len(content), size)]
    chunks = cut(parts, ChunkStream(RESTICS))
    assert chunks == cut([content], ChunkStream(RESTICS))
    assert b"".join(chunks) == content
    assert all(512 * 1024 <= len(chunk) <= 8 * MIB for chunk in chunks[:-1])


def test_an_empty_file_has_no_chunk() -> None:
    stream = ChunkStream(RESTICS)
    assert cut([], stream) == []
    assert cut([b"", 0, b""], stream) == []


def test_a_short_file_is_one_chunk() -> None:
    for content in (b"x", noise("short", 524_287)):
        assert cut([content], ChunkStream(RESTICS)) == [content]


def test_a_stream_serves_one_file_after_the_other() -> None:
    stream, files = ChunkStream(SMALL[0]), [noise(f"file {i}", 777 * i) for i in range(6)]
    for content in files:
        assert cut([content], stream) == state_machine(content, SMALL[0])


def test_zeros_are_cut_at_the_minimum_into_the_chunk_that_restic_knows() -> None:
    chunks = cut([bytes(3 * 524_288 + 5)], ChunkStream(RESTICS))
    assert [len(chunk) for chunk in chunks] == [524_288] * 3 + [5]
    assert (
        hashlib.sha256(chunks[0]).hexdigest()
        == "07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541"
    )


@pytest.mark.parametrize(
    "parts",
    [
        [2 * 524_288],
        [bytes(2 * 524_288)],
        [300_000, 2 * 524_288 - 300_000],
        [100, bytes(524_288), 524_188],
        [524_288, bytes(524_287), b"\0"],
    ],
)
def test_the_zero_chunk_is_one_object_however_its_zeros_came(parts: list[bytes | int]) -> None:
    stream = ChunkStream(RESTICS)
    chunks = cut(parts, stream)
    assert len(chunks) == 2
    assert all(chunk is stream.zero_chunk is RESTICS.zero_chunk for chunk in chunks)


def test_a_hole_of_a_tebibyte_takes_no_memory() -> None:
    stream = ChunkStream(RESTICS)
    tracemalloc.start()
    try:
        head = list(stream.feed(b"x" * 1000))
        hole = stream.feed_zeros(2**40)
        first = next(hole)
        zeros = sum(chunk is stream.zero_chunk for chunk in itertools.islice(hole, 100_000))
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()
    assert head == []
    assert first == b"x" * 1000 + bytes(524_288 - 1000)
    assert zeros == 100_000


def test_chunks_do_not_change_when_the_buffer_is_used_again() -> None:
    content = noise("reuse", 10_000)
    stream, buffer = ChunkStream(SMALL[0]), bytearray(700)
    chunks: list[bytes] = []
    for at in range(0, len(content), 700):
        part = content[at : at + 700]
        buffer[: len(part)] = part
        chunks += stream.feed(memoryview(buffer)[: len(part)])
        buffer[:] = b"\xee" * 700
    chunks += stream.finish()
    assert all(type(chunk) is bytes for chunk in chunks)
    assert chunks == state_machine(content, SMALL[0])


def test_a_buffer_is_let_go_when_its_chunks_are_taken() -> None:
    buffer, stream = bytearray(noise("let go", 5_000)), ChunkStream(SMALL[0])
    assert list(stream.feed(buffer))
    buffer.extend(b"a bytearray that is still in use would refuse to grow")
    assert len(buffer) > 5_000


def test_buffers_of_wider_items_count_in_bytes() -> None:
    content = noise("wide", 8_000)
    wide = memoryview(content).cast("Q")
    assert cut([wide], ChunkStream(SMALL[0])) == state_machine(content, SMALL[0])  # type: ignore[list-item]


@pytest.mark.parametrize("taken", [0, 1])
def test_chunks_that_were_not_taken_cannot_get_lost_unseen(taken: int) -> None:
    stream = ChunkStream(SMALL[0])
    iterator = stream.feed(noise("lost", 5_000))
    for _ in range(taken):
        next(iterator)
    del iterator
    refusal = "exhaust each one, or make a new ChunkStream"
    with pytest.raises(RuntimeError, match=refusal):
        stream.feed(b"")
    with pytest.raises(RuntimeError, match=refusal):
        stream.feed_zeros(1)
    with pytest.raises(RuntimeError, match=refusal):
        stream.finish()


def test_a_hole_of_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        ChunkStream(RESTICS).feed_zeros(-1)
