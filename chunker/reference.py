"""The scan in Python: the specification of the kernel, and its twin in tests.

Where the two differ, this one is right. It is about a thousand times slower and must not be
used for real data.
"""

import operator
import struct

from chunker.kernel import Buffer
from chunker.rabin import DEGREE, WINDOW_SIZE

TABLE_FORMAT = "=256Q"


def scan(data: Buffer, history: Buffer, out: bytes, mod: bytes, mask: int, /) -> bytes:
    """Return every cut candidate of ``data`` as runs of positions.

    A position counts bytes from the start of ``data``; it is one past the byte that completes
    a window of 64 bytes, and a candidate if ``digest(window) & mask == 0``. ``history`` is
    what came before ``data``: its last 63 bytes begin the first windows, more is ignored, and
    with less there are fewer windows. ``out`` and ``mod`` are the tables of restic-format.md
    section 10, 256 native 64-bit integers each (``chunker.rabin.Tables``).

    The result holds two native 64-bit integers a run, the first and the last position of it,
    rising, never adjoining: ``memoryview(result).cast("Q")``. Hence zeros, where every
    position is a candidate, cost 16 bytes. The most that hostile data can reach is a run for
    every other byte.

    Raises ``ValueError`` for tables that are not those of a polynomial of degree 53 and for a
    mask that is not between 1 and 2**53 - 1; ``TypeError`` for what is not bytes or an integer.
    """
    outs, mods = _tables(out, mod, mask)
    before = bytes(history)[-(WINDOW_SIZE - 1) :]
    joined = before + bytes(data)
    runs: list[int] = []
    digest = 0
    for index, entering in enumerate(joined):
        if index >= WINDOW_SIZE:
            digest ^= outs[joined[index - WINDOW_SIZE]]
        digest = ((digest << 8) | entering) ^ mods[digest >> (DEGREE - 8)]
        position = index + 1 - len(before)
        if index + 1 >= WINDOW_SIZE and digest & mask == 0:
            if runs and runs[-1] + 1 == position:
                runs[-1] = position
            else:
                runs += position, position
    return struct.pack(f"={len(runs)}Q", *runs)


def _tables(out: bytes, mod: bytes, mask: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = struct.calcsize(TABLE_FORMAT)
    if len(out) != size or len(mod) != size:
        raise ValueError(
            f"out and mod must have 256 64-bit entries each ({size} bytes), not "
            f"{len(out)} and {len(mod)} bytes; take them from chunker.rabin.Tables"
        )
    if not 1 <= operator.index(mask) < 1 << DEGREE:
        raise ValueError("mask must be between 1 and 2**53 - 1")
    outs, mods = struct.unpack(TABLE_FORMAT, out), struct.unpack(TABLE_FORMAT, mod)
    if any(entry >> DEGREE for entry in outs) or any(
        entry >> DEGREE != byte for byte, entry in enumerate(mods)
    ):
        raise ValueError(
            "out and mod are not the tables of a polynomial of degree 53; "
            "take them from chunker.rabin.Tables"
        )
    return outs, mods
