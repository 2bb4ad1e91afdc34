"""The repository's config: version, id and the polynomial that cuts its chunks.

Sealed, never compressed (restic-format.md section 6). A polynomial that is reducible or not of
degree 53 is refused: restic refuses it too, and chunks cut by it would dedup with nothing.
"""

import msgspec

from agent.errors import MalformedData, UnsupportedFormat
from chunker import Parameters

VERSION = 2


class RepositoryConfig(msgspec.Struct, frozen=True):
    """What ``config`` holds; ``chunker_polynomial`` is lower-case hexadecimal."""

    version: int
    id: str
    chunker_polynomial: str

    def chunking(self) -> Parameters:
        """Return the chunker's parameters; raise ``UnsupportedFormat`` for a bad polynomial."""
        try:
            return Parameters(int(self.chunker_polynomial, 16))
        except ValueError as error:
            raise UnsupportedFormat(
                f"the repository's chunker polynomial {self.chunker_polynomial!r} cannot be used:"
                f" {error}; restore config from a copy"
            ) from None


def encode_config(config: RepositoryConfig) -> bytes:
    """Return the config's JSON in restic's field order."""
    return msgspec.json.encode(config)


def decode_config(json: bytes) -> RepositoryConfig:
    """Parse and check; raise ``MalformedData`` or ``UnsupportedFormat``."""
    try:
        config = msgspec.json.decode(json, type=RepositoryConfig)
    except msgspec.DecodeError as error:
        raise MalformedData("the repository's config", str(error)) from None
    if config.version != VERSION:
        raise UnsupportedFormat(
            f"the repository has format version {config.version}; podlift serves version 2"
            + (" (restic migrate upgrade_repo_v2 upgrades it)" if config.version == 1 else "")
        )
    config.chunking()
    return config
