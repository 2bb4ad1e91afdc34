"""scrypt (RFC 7914) for the keys of a repository, with its blocks side by side.

It is made to take long, and every command pays for it: half a second where OpenSSL does the work, which
takes one block after the other, and half of that and less with ``_romix.c`` on two cores. What it derives is not
believed: the first time in a process it has to derive what OpenSSL derives, or it is not used. A key that is
about to be written is always derived by OpenSSL (``derived_slowly``).
"""

import functools
import hashlib
import logging
import os

import msgspec

from agent.repository._romix import romix
from agent.threads import Threads

SIDE_BY_SIDE_BYTES = 64 << 20
"""What blocks that are worked on at the same time may take: two of the usual 32 MiB."""

MOST_BLOCKS = 64
"""A key file may name a million tiny blocks, each of which would be a task; restic's have one to a dozen."""

DERIVED_SIZE = 64

log = logging.getLogger(__name__)


class ScryptCost(msgspec.Struct, frozen=True):
    """scrypt's parameters: N (a power of two), r, p."""

    n: int = 32768
    r: int = 8
    p: int = 5

    @property
    def block_bytes(self) -> int:
        """Return the size of one of the p blocks."""
        return 128 * self.r

    def memory_bytes(self) -> int:
        """Return an upper bound of what one derivation needs if it takes block by block."""
        return self.block_bytes * (self.n + self.p + 2) + 65536


def derived(password: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    """Return the 64 bytes that are derived; raises ``ValueError`` for a cost that cannot be."""
    if cost.p > MOST_BLOCKS or not _agrees():
        return derived_slowly(password, salt, cost)
    return _side_by_side(password, salt, cost)


def derived_slowly(password: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    """Return the same by OpenSSL."""
    return hashlib.scrypt(
        password,
        salt=salt,
        n=cost.n,
        r=cost.r,
        p=cost.p,
        maxmem=cost.memory_bytes(),
        dklen=DERIVED_SIZE,
    )


def _side_by_side(password: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    size = cost.block_bytes
    mixed = bytearray(hashlib.pbkdf2_hmac("sha256", password, salt, 1, cost.p * size))
    blocks = [memoryview(mixed)[at : at + size] for at in range(0, len(mixed), size)]
    at_a_time = min(SIDE_BY_SIDE_BYTES // (size * cost.n), len(blocks), os.cpu_count() or 1)
    if at_a_time > 1:
        with Threads(at_a_time, "scrypt") as pool:
            list(pool.map(romix, blocks, [cost.n] * len(blocks)))
    else:
        for block in blocks:
            romix(block, cost.n)
    return hashlib.pbkdf2_hmac("sha256", password, mixed, 1, DERIVED_SIZE)


@functools.cache
def _agrees() -> bool:
    """Tell whether both ways come to the same, at a cost that takes no time."""
    password, salt, cost = os.urandom(9), os.urandom(DERIVED_SIZE), ScryptCost(n=64, r=8, p=3)
    if _side_by_side(password, salt, cost) == derived_slowly(password, salt, cost):
        return True
    log.warning(
        "passwords take longer to check: our own scrypt derives something else than OpenSSL's"
    )
    return False
