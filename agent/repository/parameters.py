"""The repository's config: version, id and the polynomial that cuts its chunks.

Sealed, never compressed (restic-format.md section 6). A polynomial that is reducible or not of
degree 53 is refused: restic refuses it too, and chunks cut by it would dedup with nothing.
"""

import re

import msgspec

from agent.errors import MalformedData, UnsupportedFormat
from agent.repository.identity import is_object_name
from agent.repository.node import read_json
from chunker import Parameters

VERSION = 2
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{1,16}")


class RepositoryConfig(msgspec.Struct, frozen=True):
    """What ``config`` holds; ``chunker_polynomial`` is lower-case hexadecimal."""

    version: int
    id: str
    chunker_polynomial: str

    def chunking(self) -> Parameters:
        """Return the chunker's parameters; raise ``UnsupportedFormat`` for a bad polynomial."""
        text = self.chunker_polynomial
        try:
            if _HEXADECIMAL.fullmatch(text) is None:
                raise ValueError("it is not a number of 64 bits in hexadecimal")
            return Parameters(int(text, 16))
        except ValueError as error:
            raise UnsupportedFormat(
                f"the repository's chunker polynomial {text[:80]!r} cannot be used: {error};"
                " restore config from a copy"
            ) from None


_decoder = msgspec.json.Decoder(RepositoryConfig)


def encode_config(config: RepositoryConfig) -> bytes:
    """Return the config's JSON in restic's field order."""
    return msgspec.json.encode(config)


def decode_config(json: bytes) -> RepositoryConfig:
    """Parse and check; raise ``MalformedData`` or ``UnsupportedFormat``."""
    config = read_json(_decoder, json, "the repository's config")
    if config.version != VERSION:
        raise UnsupportedFormat(
            f"the repository has format version {config.version}; podlift serves version 2"
            + (" (restic migrate upgrade_repo_v2 upgrades it)" if config.version == 1 else "")
        )
    if not is_object_name(config.id):
        raise MalformedData("the repository's config", f"its id is {config.id[:80]!r}")
    config.chunking()
    return config
