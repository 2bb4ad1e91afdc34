"""The checksum that goes out with an object, so that a service that verifies refuses damage.

It is made before and sent as a header: made while sending it would need a framing of the body that
several services store as if it were content (s3.md section 2). SHA-256 is the default, because
a pack's is known already, and nothing is stronger.
"""

import base64
import hashlib
from typing import Literal
from zlib import crc32

from agent.storage.contract import Buffer

Checksum = Literal["", "CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"]
"""The names that S3 has for them; "" is none."""


def checksum_header(kind: Checksum, body: Buffer, sha256: bytes | None = None) -> dict[str, str]:
    """Return the parameter of a put that carries the checksum; ``sha256`` is known already if given."""
    if not kind:
        return {}
    digest = sha256 if kind == "SHA256" and sha256 is not None else _digest(kind, body)
    return {f"Checksum{kind}": base64.b64encode(digest).decode()}


def _digest(kind: Checksum, body: Buffer) -> bytes:
    if kind == "SHA256":
        return hashlib.sha256(body).digest()
    if kind == "SHA1":
        return hashlib.sha1(body, usedforsecurity=False).digest()
    if kind == "CRC32":
        return crc32(body).to_bytes(4, "big")
    from agent.storage import _crc  # few locations ask for one of these

    if kind == "CRC32C":
        return _crc.crc32c(body).to_bytes(4, "big")
    return _crc.crc64nvme(body).to_bytes(8, "big")
