"""Polynomials over GF(2), and the parameters of a repository's chunking.

A polynomial is an integer, bit i being the coefficient of x^i; adding is XOR. A repository
has one irreducible polynomial of degree 53 and cuts every file by it, so two repositories cut
the same file in different places and sizes of chunks tell an eavesdropper little. The rule
guarded here: nothing is ever cut by a polynomial that restic would refuse.

Everything is a pure function of values; randomness is the caller's.
"""

import dataclasses
import struct
from collections.abc import Callable
from typing import NamedTuple

DEGREE = 53
"""Degree of every polynomial (restic-format.md section 10)."""

WINDOW_SIZE = 64
"""Bytes that decide whether a position is a candidate (restic-format.md section 10)."""

MIN_SIZE = 512 * 1024
MAX_SIZE = 8 * 1024 * 1024
MASK_BITS = 20

GENERATION_TRIES = 10_000
"""One in 27 is irreducible; who fails this often has a broken source of randomness."""


def degree(polynomial: int) -> int:
    """Return the degree; -1 for zero."""
    return polynomial.bit_length() - 1


def remainder(dividend: int, divisor: int) -> int:
    """Return ``dividend`` mod ``divisor``; raises ``ZeroDivisionError`` for a zero divisor."""
    if divisor == 0:
        raise ZeroDivisionError("division by the zero polynomial")
    while (excess := dividend.bit_length() - divisor.bit_length()) >= 0:
        dividend ^= divisor << excess
    return dividend


def greatest_common_divisor(left: int, right: int) -> int:
    """Return the greatest common divisor of two polynomials."""
    while right:
        left, right = right, remainder(left, right)
    return left


def squared(polynomial: int) -> int:
    """Return the square: over GF(2), the same bits with a zero after each."""
    return int(f"{polynomial:b}", 4)


def is_irreducible(polynomial: int) -> bool:
    """Tell whether no polynomial but itself and 1 divides it (Ben-Or's test).

    x^(2^i) - x is the product of all irreducible polynomials whose degree divides i, so a
    factor of degree i shows as a common divisor, and a reducible polynomial has one of at
    most half its degree (restic-format.md section 10).
    """
    if degree(polynomial) < 1:
        return False
    x = 0b10
    power = x
    for _ in range(degree(polynomial) // 2):
        power = remainder(squared(power), polynomial)
        if greatest_common_divisor(polynomial, power ^ x) != 1:
            return False
    return True


def generate_polynomial(random_bytes: Callable[[int], bytes]) -> int:
    """Return a random irreducible polynomial of degree 53 (restic-format.md section 10).

    ``random_bytes(8)`` is called about 27 times; give it ``secrets.token_bytes``. Raises
    ``ValueError`` if the source cannot be random.
    """
    for _ in range(GENERATION_TRIES):
        drawn = int.from_bytes(random_bytes(8), "little")
        polynomial = drawn & ((1 << (DEGREE + 1)) - 1) | 1 << DEGREE | 1
        if is_irreducible(polynomial):
            return polynomial
    raise ValueError(
        f"no irreducible polynomial in {GENERATION_TRIES} tries; check the source of random bytes"
    )


class Tables(NamedTuple):
    """What a scan looks up: 256 native 64-bit integers each (restic-format.md section 10)."""

    out: bytes
    mod: bytes

    @classmethod
    def of(cls, polynomial: int) -> "Tables":
        """Return the tables of a polynomial of degree 53."""
        out = _of_bytes(8 * (WINDOW_SIZE - 1), polynomial)
        mod = [rest | byte << DEGREE for byte, rest in enumerate(_of_bytes(DEGREE, polynomial))]
        return cls(struct.pack("=256Q", *out), struct.pack("=256Q", *mod))


def _of_bytes(shift: int, polynomial: int) -> list[int]:
    """Return the remainder of every byte times x to the ``shift``: sums of those of its bits."""
    found = [0]
    for bit in range(8):
        power = remainder(1 << shift + bit, polynomial)
        found += [power ^ each for each in found]
    return found


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How one repository cuts; sizes in bytes. Make it once a repository: it keeps its tables.

    ``zero_chunk`` is what runs of zeros are cut into: their digest is 0, so every position is
    a candidate and the first legal one is taken, after ``min_size`` bytes (restic-format.md
    section 10). Chunk streams yield this very object.

    The sizes and ``mask_bits`` are restic's, and only tests have a reason to change them.
    Raises ``ValueError`` for a polynomial that is not irreducible of degree 53, a minimum
    below the window of 64 bytes, a maximum below the minimum, or a mask beyond the degree.
    """

    polynomial: int
    min_size: int = MIN_SIZE
    max_size: int = MAX_SIZE
    mask_bits: int = MASK_BITS
    tables: Tables = dataclasses.field(init=False, repr=False, compare=False)
    zero_chunk: bytes = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if degree(self.polynomial) != DEGREE:
            raise ValueError(
                f"chunker polynomial {self.polynomial:#x} has degree {degree(self.polynomial)}; "
                f"it must be {DEGREE}"
            )
        if not is_irreducible(self.polynomial):
            raise ValueError(f"chunker polynomial {self.polynomial:#x} is not irreducible")
        if not WINDOW_SIZE <= self.min_size <= self.max_size:
            raise ValueError(
                f"chunk sizes must satisfy {WINDOW_SIZE} <= minimum <= maximum, "
                f"not {self.min_size} and {self.max_size}"
            )
        if not 1 <= self.mask_bits <= DEGREE:
            raise ValueError(f"mask_bits must be 1 to {DEGREE}, not {self.mask_bits}")
        object.__setattr__(self, "tables", Tables.of(self.polynomial))
        object.__setattr__(self, "zero_chunk", bytes(self.min_size))

    @property
    def mask(self) -> int:
        """Return the bits of a digest that are all zero at a candidate."""
        return (1 << self.mask_bits) - 1
