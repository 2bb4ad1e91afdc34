"""Deterministic contents to cut, the same for ever: golden cut points depend on every byte."""

import functools
import hashlib

MIB = 1024 * 1024

WORDS = [hashlib.shake_128(b"word %d" % i).hexdigest(1 + i % 5).encode() for i in range(256)]


def noise(name: str, size: int) -> bytes:
    """Return ``size`` incompressible bytes."""
    return hashlib.shake_256(f"podlift {name}".encode()).digest(size)


def text(name: str, words: int) -> bytes:
    """Return lines of few different words."""
    picks = noise(name, words)
    return b"\n".join(
        b" ".join(WORDS[pick] for pick in picks[at : at + 12]) for at in range(0, words, 12)
    )


@functools.cache
def contents() -> dict[str, bytes]:
    """Return the files of the golden test by name."""
    return {
        "noise": noise("noise", 24 * MIB + 12_345),
        "text": text("text", 2 * MIB),
        # A run of zeros that begins and ends in the middle of chunks.
        "hole": noise("before", 700_001) + bytes(3 * MIB + 77) + noise("after", 900_003),
        # No candidate at all, so the maximum cuts.
        "same": b"\xff" * (17 * MIB),
        "short": noise("short", 524_287),
        "minimal": noise("minimal", 524_288),
    }
