"""One suite over both scans; then the two against each other on whatever hypothesis finds."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker import reference
from chunker.kernel import Buffer, Scan
from chunker.kernel import scan as native
from chunker.rabin import Tables, remainder
from tests.chunker.contents import noise
from tests.chunker.golden import GOLDEN

POLYNOMIAL = next(iter(GOLDEN))
OUT, MOD = Tables.of(POLYNOMIAL)

LONG_BLOCK = 8 * 65 * 64  # of the kernel's lanes, after the first 64 bytes
SHORT_BLOCK = 8 * 4 * 64


def runs_of(scan: Scan, data: Buffer, history: Buffer = b"", mask: int = 0xF) -> list[list[int]]:
    flat = memoryview(scan(data, history, OUT, MOD, mask)).cast("Q").tolist()
    return [flat[at : at + 2] for at in range(0, len(flat), 2)]


def positions_of(runs: list[list[int]]) -> list[int]:
    return [position for first, last in runs for position in range(first, last + 1)]


def positions_by_definition(data: bytes, history: bytes, mask: int) -> list[int]:
    """The window as one big number is already the sum of byte * x^(8j)."""
    history = history[-63:]
    joined = history + data
    return [
        end - len(history)
        for end in range(64, len(joined) + 1)
        if remainder(int.from_bytes(joined[end - 64 : end], "big"), POLYNOMIAL) & mask == 0
    ]


@pytest.mark.parametrize("scan", [native, reference.scan], ids=["native", "twin"])
class TestScan:
    @pytest.mark.parametrize("before", [0, 1, 5, 62, 63, 64, 200])
    @pytest.mark.parametrize("size", [0, 1, 2, 62, 63, 64, 65, 127, 128, 129, 600])
    def test_candidates_are_those_of_the_definition(
        self, scan: Scan, size: int, before: int
    ) -> None:
        data, history = noise("data", size), noise("history", before)
        runs = runs_of(scan, data, history, mask=0x3)
        assert positions_of(runs) == positions_by_definition(data, history, 0x3)

    def test_runs_rise_and_never_adjoin(self, scan: Scan) -> None:
        runs = runs_of(scan, noise("runs", 20_000), mask=0x1)
        assert len(runs) > 64
        assert all(first <= last for first, last in runs)
        assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(runs))

    def test_zeros_are_one_run_whatever_their_length(self, scan: Scan) -> None:
        assert runs_of(scan, bytes(100_000), mask=0xFFFFF) == [[64, 100_000]]
        assert runs_of(scan, bytes(100_000), bytes(63), mask=0xFFFFF) == [[1, 100_000]]
        assert runs_of(scan, bytes(100), b"\x01" + bytes(62), mask=0xFFFFF) == [[2, 100]]

    def test_too_few_bytes_for_a_window_give_no_candidate(self, scan: Scan) -> None:
        assert runs_of(scan, bytes(63)) == []
        assert runs_of(scan, b"", bytes(63)) == []
        assert runs_of(scan, bytes(33), bytes(30)) == []
        assert runs_of(scan, bytes(33), bytes(31)) == [[33, 33]]

    def test_every_kind_of_buffer_is_taken_at_any_alignment(self, scan: Scan) -> None:
        data = noise("kinds", 4_000)
        expected = runs_of(scan, data)
        assert expected
        assert runs_of(scan, bytearray(data)) == expected
        for shift in range(1, 9):
            shifted = memoryview(bytes(shift) + data)[shift:]
            assert runs_of(scan, shifted, memoryview(b"")) == expected

    def test_each_mask_bit_counts(self, scan: Scan) -> None:
        data = noise("mask", 3_000)
        for mask in (1, 1 << 7, 0b101 << 19, 1 << 45, 1 << 52):
            expected = positions_by_definition(data, b"", mask)
            assert positions_of(runs_of(scan, data, mask=mask)) == expected

    @pytest.mark.parametrize(
        ("out", "mod"),
        [
            (OUT[:-1], MOD),
            (OUT, MOD + b"\0"),
            (b"", b""),
            (b"\xff" * 2048, MOD),
            (OUT, bytes(2048)),
            (MOD, OUT),
        ],
    )
    def test_foreign_tables_are_refused(self, scan: Scan, out: bytes, mod: bytes) -> None:
        with pytest.raises(ValueError, match=r"take them from chunker\.rabin\.Tables"):
            scan(bytes(100), b"", out, mod, 0xFFFFF)

    @pytest.mark.parametrize("mask", [0, -1, 1 << 53, (1 << 64) - 1, 1 << 70])
    def test_a_mask_beyond_the_digest_is_refused(self, scan: Scan, mask: int) -> None:
        with pytest.raises(ValueError, match="mask must be between 1 and"):
            scan(bytes(100), b"", OUT, MOD, mask)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("text", b"", OUT, MOD, 1),
            (b"", None, OUT, MOD, 1),
            (b"", b"", OUT, MOD, 1.5),
            (b"", b"", OUT, MOD, "1"),
            (b"", b"", 7, MOD, 1),
            (b"", b"", OUT, MOD),
        ],
    )
    def test_arguments_of_another_type_are_refused(
        self, scan: Scan, arguments: tuple[object, ...]
    ) -> None:
        with pytest.raises(TypeError):
            scan(*arguments)  # type: ignore[arg-type]


def with_zeros(data: bytes, runs: list[tuple[int, int]]) -> bytes:
    content = bytearray(data)
    for start, length in runs:
        if start < len(content):
            content[start : start + length] = bytes(min(length, len(content) - start))
    return bytes(content)


BORDERS = [
    64 + long * LONG_BLOCK + short * SHORT_BLOCK for long in (0, 1, 2) for short in (0, 1, 2)
]


@pytest.mark.parametrize("size", [b + d for b in BORDERS for d in (-1, 0, 1)])
def test_kernel_and_twin_agree_around_every_border_of_the_lanes(size: int) -> None:
    zeros = [(at - 70, 140) for at in BORDERS[1:]] + [(64 + 64 * 65 - 64, 128), (64 + 256, 65)]
    data = with_zeros(noise("borders", size), zeros)
    history = noise("before", 63)
    found = native(data, history, OUT, MOD, 0x7F)
    assert found == reference.scan(data, history, OUT, MOD, 0x7F)


small = st.binary(max_size=400)
large = st.builds(
    lambda seed, size, zeros: with_zeros(noise(f"seed {seed}", size), zeros),
    st.integers(0, 1000),
    st.integers(0, LONG_BLOCK + 3 * SHORT_BLOCK),
    st.lists(st.tuples(st.integers(0, LONG_BLOCK), st.integers(1, 5000)), max_size=4),
)


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(small, large),
    st.binary(max_size=130),
    st.integers(0, 20),
    st.sampled_from(list(GOLDEN)),
)
def test_kernel_and_twin_agree_on_everything(
    data: bytes, history: bytes, mask_bits: int, polynomial: int
) -> None:
    out, mod = Tables.of(polynomial)
    mask = (2 << mask_bits) - 1
    assert native(data, history, out, mod, mask) == reference.scan(data, history, out, mod, mask)


@settings(deadline=None, max_examples=50)
@given(large, st.integers(0, LONG_BLOCK))
def test_a_buffer_in_two_parts_has_the_same_candidates(data: bytes, at: int) -> None:
    head, tail = data[:at], data[at:]
    both = [
        *positions_of(runs_of(native, head)),
        *(len(head) + position for position in positions_of(runs_of(native, tail, head))),
    ]
    assert both == positions_of(runs_of(native, data))


def test_eight_mebibytes_of_zeros_cost_sixteen_bytes() -> None:
    assert len(native(bytes(8 << 20), b"", OUT, MOD, 0xFFFFF)) == 16
