"""How a service is asked to keep objects: encrypted by which key, and with which tags.

The one rule guarded here: a customer's key goes to the service and nowhere else. It is in no
representation, and the service keeps only its digest, so whoever reads must bring it again.
"""

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

from agent.errors import UsageError

KEY_BYTES = 32
"""What AES-256 takes, the one cipher of customers' keys in S3."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """What every object of a place is stored with; at most one kind of key.

    ``encryption`` and ``kms_key_id`` are S3's words (SSE-S3, SSE-KMS), ``customer_key`` the key itself
    of SSE-C, b"" for none. ``tagging`` is a query string: "a=1&b=2".
    """

    encryption: str = ""
    kms_key_id: str = ""
    customer_key: bytes = dataclasses.field(default=b"", repr=False)
    tagging: str = ""

    def to_write(self) -> dict[str, Any]:
        """Return the parameters of a put."""
        asked = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "Tagging": self.tagging,
        }
        return {name: value for name, value in asked.items() if value} | self.to_read()

    def to_read(self) -> dict[str, Any]:
        """Return the parameters of a get or head of an object that was stored so."""
        if not self.customer_key:
            return {}
        return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": self.customer_key}


AS_IT_IS = Keeping()
"""As the bucket keeps objects by itself."""


def customer_key_in(path: Path) -> bytes:
    """Return the key that a file begins with, which is all that Velero's plugin looks at too.

    Raises ``UsageError``, which tells nothing of what the file holds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"the customer key {path} is not a file")
            key = file.read(KEY_BYTES)
    except (OSError, ValueError) as error:
        raise UsageError(f"the customer key {path} cannot be read: {error}") from None
    if len(key) < KEY_BYTES:
        raise UsageError(f"the customer key {path} must hold {KEY_BYTES} bytes, not base64 of them")
    return key
