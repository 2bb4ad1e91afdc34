"""The blob kernel: one class of tests over the native one and over its twin in Python."""

import hashlib
import itertools
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Compression
from agent.repository import _blobs, kernel
from agent.repository.crypto import OVERHEAD, Key
from agent.repository.identity import BlobType
from agent.repository.kernel import BlobKernel, why_not_native
from agent.repository.plainkernel import (
    ANOTHER_ID,
    NO_ROOM,
    NOT_AUTHENTIC,
    NOT_INFLATED,
    PLAIN,
    SEALED,
    SMALL_BYTES,
    SPAN,
    STORED,
    PlainKernel,
)
from agent.repository.sealing import Sealer

ROOT = Path(__file__).parents[2]
ENCRYPT, MAC_K, MAC_R = bytes(range(1, 33)), bytes(range(40, 56)), bytes(range(60, 76))
KEY = Key(ENCRYPT, MAC_K, MAC_R)
RANDOM = os.urandom(300_000)
TEXT = b" ".join(hashlib.sha256(b"%d" % n).hexdigest()[:7].encode() for n in range(40_000))


def kernels() -> list[BlobKernel]:
    assert why_not_native() == ""
    return [PlainKernel(KEY, 2, 1), _blobs.Kernel(ENCRYPT, MAC_K, MAC_R, 2, 1)]


@pytest.fixture(params=["plain", "native"])
def one(request: pytest.FixtureRequest) -> BlobKernel:
    return kernels()[request.param == "native"]


def iv(number: int) -> bytes:
    return hashlib.sha256(b"iv %d" % number).digest()[:16]


def spans_of(plains: Sequence[bytes]) -> list[tuple[int, int]]:
    starts = itertools.accumulate(map(len, plains), initial=0)
    return list(zip(starts, map(len, plains), strict=False))


def sealed(
    one: BlobKernel, plains: Sequence[bytes], *, always: bool = False
) -> tuple[bytearray, list[tuple[int, int]]]:
    """Return what was written, and (length, plain length) of each blob."""
    data, spans = b"".join(plains), spans_of(plains)
    _, seals = one.hash(data, b"".join(SPAN.pack(*span) for span in spans))
    marks = struct.unpack(f"={len(spans)}Q", seals)
    blobs = b"".join(
        PLAIN.pack(*s, m, iv(n)) for n, (s, m) in enumerate(zip(spans, marks, strict=True))
    )
    out = bytearray(len(data) + len(data) // 200 + len(plains) * 200)
    status, stored = one.seal(data, blobs, always, out)
    assert status == 0
    return out, list(STORED.iter_unpack(stored))


def records(plains: Sequence[bytes], stored: Sequence[tuple[int, int]]) -> list[bytes]:
    offsets = itertools.accumulate((length for length, _ in stored), initial=0)
    return [
        SEALED.pack(offset, length, plain_length, hashlib.sha256(plain).digest())
        for plain, (length, plain_length), offset in zip(plains, stored, offsets, strict=False)
    ]


PLAINS = [
    b"",
    b"a",
    b"a" * 5000,
    RANDOM[:4000],
    TEXT[: SMALL_BYTES - 1],
    TEXT[:SMALL_BYTES],
    RANDOM,
]


class TestBothKernels:
    def test_ids_and_seals_are_those_of_the_libraries(self, one: BlobKernel) -> None:
        spans = b"".join(SPAN.pack(*span) for span in spans_of(PLAINS))
        ids, seals = one.hash(b"".join(PLAINS), spans)
        assert ids == b"".join(hashlib.sha256(plain).digest() for plain in PLAINS)
        assert struct.unpack("=7Q", seals) == tuple(map(xxhash.xxh3_64_intdigest, PLAINS))

    @pytest.mark.parametrize("always", [False, True])
    def test_what_one_seals_everyone_opens(self, one: BlobKernel, always: bool) -> None:
        plains = PLAINS[always:]  # no tree is empty
        out, stored = sealed(one, plains, always=always)
        for other in kernels():
            room = bytearray(sum(map(len, plains)))
            assert not any(other.open(out, b"".join(records(plains, stored)), room))
            assert room == b"".join(plains)
        offset = 0
        for plain, (length, plain_length) in zip(plains, stored, strict=True):
            opened = KEY.unseal(out[offset : offset + length], "it")
            assert bytes(out[offset : offset + 16]) == iv(plains.index(plain))
            if plain_length or always:
                opened = zstandard.ZstdDecompressor().decompress(opened)
            assert opened == plain
            offset += length

    def test_data_is_compressed_where_that_pays_and_trees_always(self, one: BlobKernel) -> None:
        assert [bool(plain) for _, plain in sealed(one, PLAINS)[1]] == [
            False, False, True, False, True, True, False,
        ]  # fmt: skip
        lengths = [plain for _, plain in sealed(one, PLAINS, always=True)[1]]
        assert lengths == list(map(len, PLAINS))

    @given(st.lists(st.binary(max_size=300), max_size=20))
    def test_any_blobs_come_back(self, plains: list[bytes]) -> None:
        for one, other in itertools.permutations(kernels(), 2):
            out, stored = sealed(one, plains)
            room = bytearray(sum(map(len, plains)))
            assert not any(other.open(out, b"".join(records(plains, stored)), room))
            assert room == b"".join(plains)

    @given(st.integers(0), st.integers(0, 7))
    def test_a_flipped_bit_is_found_wherever_it_is(self, place: int, bit: int) -> None:
        for one, other in itertools.permutations(kernels(), 2):
            out, stored = sealed(one, [b"a" * 500, RANDOM[:100]])
            out[place % sum(length for length, _ in stored)] ^= 1 << bit
            wanted = b"".join(records([b"a" * 500, RANDOM[:100]], stored))
            assert sorted(other.open(out, wanted, bytearray(600))) == [0, NOT_AUTHENTIC]

    def test_a_blob_that_lies_about_itself_is_refused(self, one: BlobKernel) -> None:
        out, stored = sealed(one, [b"a" * 500, RANDOM[:100]])
        (first, plain_length), (second, _) = stored
        good = hashlib.sha256(b"a" * 500).digest()
        for record, status in [
            (SEALED.pack(0, first, plain_length, bytes(32)), ANOTHER_ID),
            (SEALED.pack(0, first, plain_length + 1, good), NOT_INFLATED),
            (SEALED.pack(0, first, plain_length - 1, good), NOT_INFLATED),
            (SEALED.pack(0, first, 0, good), ANOTHER_ID),
            (SEALED.pack(first, second, 100, good), NOT_INFLATED),
            (SEALED.pack(0, first - 1, plain_length, good), NOT_AUTHENTIC),
            (SEALED.pack(0, OVERHEAD - 1, 5, good), NOT_AUTHENTIC),
            (SEALED.pack(0, 0, 0, good), NOT_AUTHENTIC),
        ]:
            assert one.open(out, record, bytearray(600)) == bytes([status])

    def test_what_a_frame_declares_is_not_made_room_for(self, one: BlobKernel) -> None:
        frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + b"\x0b\0\0 "
        sealed = bytes(KEY.seal(iv(1), frame))
        record = SEALED.pack(0, len(sealed), 100, bytes(32))
        assert one.open(sealed, record, bytearray(100)) == bytes([NOT_INFLATED])

    def test_an_iv_of_zeros_is_not_authentic(self, one: BlobKernel) -> None:
        forged = Key.seal.__get__(KEY)
        ciphertext = bytearray(forged(iv(0), b"plain"))
        ciphertext[:16] = bytes(16)
        tag = KEY._one_time(bytes(16))
        tag.update(bytes(ciphertext[16:-16]))
        ciphertext[-16:] = tag.finalize()
        record = SEALED.pack(0, len(ciphertext), 0, bytes(32))
        assert one.open(ciphertext, record, bytearray(5)) == bytes([NOT_AUTHENTIC])

    def test_a_seal_that_is_not_that_of_the_plaintext_is_told(self, one: BlobKernel) -> None:
        for plain in (b"a" * 500, RANDOM[:100]):
            blob = PLAIN.pack(0, len(plain), xxhash.xxh3_64_intdigest(plain) ^ 1, iv(1))
            assert one.seal(plain, blob, False, bytearray(1000))[0] == ANOTHER_ID

    def test_nothing_is_written_past_the_end(self, one: BlobKernel) -> None:
        blob = PLAIN.pack(0, 500, xxhash.xxh3_64_intdigest(RANDOM[:500]), iv(1))
        for size in (0, 31, 40, 500 + OVERHEAD - 1):
            out = bytearray(b"x" * 600)
            with memoryview(out) as view:
                assert one.seal(RANDOM[:500], blob, False, view[:size])[0] == NO_ROOM
            assert out[size:] == b"x" * (600 - size)

    @pytest.mark.parametrize(
        ("start", "size"), [(0, 11), (11, 0), (5, 6), (2**64 - 1, 2), (1, 2**64 - 1)]
    )
    def test_what_does_not_lie_in_the_buffer_is_refused(
        self, one: BlobKernel, start: int, size: int
    ) -> None:
        with pytest.raises((ValueError, OverflowError)):
            one.hash(bytes(10), SPAN.pack(start, size))
        with pytest.raises((ValueError, OverflowError)):
            one.seal(bytes(10), PLAIN.pack(start, size, 0, iv(0)), False, bytearray(100))

    def test_what_is_to_be_opened_lies_in_the_buffers(self, one: BlobKernel) -> None:
        out, stored = sealed(one, [b"a" * 500])
        (record,) = records([b"a" * 500], stored)
        with pytest.raises(ValueError, match="do not fit"):
            one.open(out, record, bytearray(499))
        short = bytes(out[: stored[0][0] - 1])
        assert one.open(short, record, bytearray(500)) != b"\0"

    def test_many_threads_at_once(self, one: BlobKernel) -> None:
        import concurrent.futures

        def round_trip(number: int) -> bool:
            plains = [b"%d" % number * 50, RANDOM[number : number + 3000]] * 20
            out, stored = sealed(one, plains)
            room = bytearray(sum(map(len, plains)))
            return not any(
                one.open(out, b"".join(records(plains, stored)), room)
            ) and room == b"".join(plains)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(round_trip, range(40)))


class TestNative:
    def test_incompressible_data_is_told_by_samples(self) -> None:
        native = kernels()[1]
        mixed = RANDOM[:200_000] + bytes(200_000)
        assert [bool(plain) for _, plain in sealed(native, [RANDOM, mixed])[1]] == [False, True]

    def test_a_wrong_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match="32, 16 and 16"):
            _blobs.Kernel(ENCRYPT[1:], MAC_K, MAC_R, 2, 1)

    @pytest.mark.parametrize("library", ["no-such-library.so.9", "libm.so.6"])
    def test_without_its_libraries_the_twin_works_and_the_log_says_so(
        self, library: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(kernel, "LIBCRYPTO", library)
        kernel.why_not_native.cache_clear()
        try:
            assert isinstance(kernel.blob_kernel(KEY, 2, 1), PlainKernel)
            assert "the blob kernel does not find" in caplog.text
        finally:
            monkeypatch.undo()
            kernel.why_not_native.cache_clear()
            assert why_not_native() == ""

    def test_a_library_that_computes_something_else_is_not_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernel, "_native", lambda key, *levels: PlainKernel(KEY, *levels))
        kernel.why_not_native.cache_clear()
        try:
            assert "disagree" in why_not_native()
        finally:
            monkeypatch.undo()
            kernel.why_not_native.cache_clear()


@pytest.mark.parametrize(("less", "more"), [("fastest", "default"), ("default", "better")])
def test_more_time_makes_smaller_blobs(less: Compression, more: Compression) -> None:
    source = b"".join(path.read_bytes() for path in sorted(ROOT.rglob("agent/**/*.py")))
    sizes = []
    for compression in (less, more):
        sealer = Sealer(KEY, compression)
        hashed = sealer.hash(source, [(0, len(source))])
        (blobs,) = sealer.seal(BlobType.DATA, source, hashed, [0])
        sizes.append(len(blobs[0].bytes))
    assert sizes[1] < sizes[0] < len(source)
