import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunker.rabin import (
    DEGREE,
    Parameters,
    Tables,
    degree,
    generate_polynomial,
    greatest_common_divisor,
    is_irreducible,
    remainder,
    squared,
)
from tests.chunker.golden import GOLDEN

POLYNOMIAL = next(iter(GOLDEN))
polynomials = st.integers(min_value=0, max_value=2**70)


def product(left: int, right: int) -> int:
    result = 0
    for shift in range(right.bit_length()):
        if right >> shift & 1:
            result ^= left << shift
    return result


@given(polynomials, polynomials.filter(bool), st.integers(min_value=0, max_value=2**40))
def test_a_remainder_is_smaller_than_the_divisor_and_the_same_for_every_multiple(
    dividend: int, divisor: int, factor: int
) -> None:
    rest = remainder(dividend, divisor)
    assert degree(rest) < degree(divisor) or (rest == 0 and divisor == 1)
    assert remainder(dividend ^ product(divisor, factor), divisor) == rest


def test_nothing_can_be_divided_by_zero() -> None:
    with pytest.raises(ZeroDivisionError, match="zero polynomial"):
        remainder(5, 0)


@given(polynomials)
def test_squaring_is_multiplying_by_itself(polynomial: int) -> None:
    assert squared(polynomial) == product(polynomial, polynomial)


@given(*[polynomials.filter(bool)] * 3)
def test_a_common_factor_is_found(left: int, right: int, factor: int) -> None:
    common = greatest_common_divisor(product(left, factor), product(right, factor))
    assert remainder(common, factor) == 0
    assert remainder(product(left, factor), common) == 0
    assert remainder(product(right, factor), common) == 0


def test_irreducible_polynomials_of_small_degree_are_those_that_no_product_makes() -> None:
    small = range(2, 2**5)
    products = {product(a, b) for a, b in itertools.product(small, repeat=2)}
    for polynomial in range(2**5):
        expected = polynomial >= 2 and polynomial not in products
        assert is_irreducible(polynomial) == expected, bin(polynomial)


def test_polynomials_that_restic_drew_are_irreducible() -> None:
    for polynomial in [*GOLDEN, 0x2267609E04675B]:
        assert is_irreducible(polynomial)


@given(
    st.integers(min_value=2, max_value=2**DEGREE - 1),
    st.integers(min_value=2, max_value=2**DEGREE - 1),
)
def test_a_product_is_never_irreducible(left: int, right: int) -> None:
    assert not is_irreducible(product(left, right))


@given(st.randoms(use_true_random=False))
def test_a_generated_polynomial_is_irreducible_of_degree_53(source: random.Random) -> None:
    polynomial = generate_polynomial(random.Random(source.random()).randbytes)
    assert degree(polynomial) == 53
    assert is_irreducible(polynomial)


def test_generation_takes_the_first_irreducible_of_the_drawn_numbers() -> None:
    even = POLYNOMIAL & ~1 | 0b111 << 61  # other bits than 1..52 do not matter
    draws = [(1 << 53 | 0b101), even]
    source = iter(draw.to_bytes(8, "little") for draw in draws)
    assert generate_polynomial(lambda size: next(source)) == POLYNOMIAL


def test_a_source_that_is_not_random_is_refused() -> None:
    with pytest.raises(ValueError, match="check the source of random bytes"):
        generate_polynomial(bytes)


@pytest.mark.parametrize("polynomial", GOLDEN, ids=hex)
def test_tables_hold_what_a_byte_becomes(polynomial: int) -> None:
    tables = Tables.of(polynomial)
    out, mod = struct.unpack("=256Q", tables.out), struct.unpack("=256Q", tables.mod)
    for byte in (0, 1, 0x80, 0xFF):
        assert out[byte] == remainder(byte << 8 * 63, polynomial)
        assert remainder(mod[byte], polynomial) == 0
        assert mod[byte] >> 53 == byte


def test_parameters_are_restics_unless_told() -> None:
    parameters = Parameters(POLYNOMIAL)
    assert (parameters.min_size, parameters.max_size) == (524_288, 8_388_608)
    assert parameters.mask == 0xFFFFF
    assert parameters.zero_chunk == bytes(524_288)
    assert parameters == Parameters(POLYNOMIAL)
    assert parameters.tables == Tables.of(POLYNOMIAL)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"polynomial": POLYNOMIAL ^ 1}, "is not irreducible"),
        ({"polynomial": 1 << 53}, "is not irreducible"),
        ({"polynomial": 0b111}, "has degree 2; it must be 53"),
        ({"polynomial": 0}, "has degree -1"),
        ({"polynomial": POLYNOMIAL << 1}, "has degree 54"),
        ({"polynomial": POLYNOMIAL, "min_size": 63}, "64 <= minimum <= maximum"),
        ({"polynomial": POLYNOMIAL, "max_size": 524_287}, "64 <= minimum <= maximum"),
        ({"polynomial": POLYNOMIAL, "mask_bits": 0}, "mask_bits must be 1 to 53"),
        ({"polynomial": POLYNOMIAL, "mask_bits": 54}, "mask_bits must be 1 to 53"),
    ],
)
def test_parameters_that_restic_would_refuse_are_refused(
    arguments: dict[str, int], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Parameters(**arguments)
