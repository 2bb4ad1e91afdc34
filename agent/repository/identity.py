"""The identities of a repository: types, so that a pack's id is never taken for a blob's.

All of them are the 32 raw bytes of a SHA-256 digest; hexadecimal exists only in file names and
in JSON (restic-format.md sections 1 and 3).
"""

import enum
import re
from typing import NewType

BlobId = NewType("BlobId", bytes)
"""SHA-256 of a blob's plaintext."""

PackId = NewType("PackId", bytes)
"""SHA-256 of a whole pack as it is stored."""

ID_SIZE = 32
_HEX_ID = re.compile(r"[0-9a-f]{64}")


class BlobType(enum.IntEnum):
    """The two name spaces of blobs; the key of every lookup is (type, id)."""

    DATA = 0
    TREE = 1

    @property
    def word(self) -> str:
        """Return the name that index files use."""
        return self.name.lower()


def is_object_name(name: str) -> bool:
    """Tell whether a file name is an id; everything else in a repository is ignored."""
    return _HEX_ID.fullmatch(name) is not None
