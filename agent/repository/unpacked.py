"""Unpacked files: config, snapshots, indexes and locks, each sealed as one.

``stored = seal(0x02 || zstd(JSON))`` for all but the config, which is ``seal(JSON)`` and never
compressed (restic-format.md section 6). Payloads that start with ``{`` or ``[`` are plain JSON.
"""

import io

import zstandard

from agent.errors import MalformedData
from agent.repository.crypto import Buffer

_ZSTD = b"\x02"
"""First byte of a payload that is compressed JSON; plain JSON begins with a bracket."""

MAX_WINDOW_BYTES = 1 << 27
"""The largest zstd window that is read (restic-format.md section 6)."""

_STEP = 4 << 20


def wrap(json: Buffer) -> bytes:
    """Compress JSON into the payload of an unpacked file."""
    return _ZSTD + zstandard.ZstdCompressor(level=3).compress(json)


def unwrap(payload: bytes, limit: int, what: str) -> bytes:
    """Return the JSON of a payload, ``limit`` bytes at most; raise ``MalformedData`` naming ``what``."""
    if payload[:1] in (b"{", b"["):
        if len(payload) > limit:
            raise MalformedData(what, f"it has more than {limit} bytes")
        return payload
    if payload[:1] != _ZSTD:
        raise MalformedData(what, f"its first byte is {payload[:1].hex() or 'missing'}")
    return inflate(payload[1:], limit, what)


def inflate(compressed: bytes | memoryview, limit: int, what: str) -> bytes:
    """Decompress zstd frames up to ``limit`` bytes; frames may lack their content size."""
    try:
        stream = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
            compressed, read_across_frames=True
        )
        plain = io.BytesIO()  # grows in place: what is large is in memory once
        while plain.tell() <= limit:
            part = stream.read(min(limit + 1 - plain.tell(), _STEP))
            if not part:
                break
            plain.write(part)
    except zstandard.ZstdError as error:
        raise MalformedData(what, f"zstd: {error}") from None
    if plain.tell() > limit:
        raise MalformedData(what, f"it decompresses to more than {limit} bytes")
    return plain.getvalue()
