"""The keys of a location's ``spec.config``, each read as Velero's AWS plugin reads it; pure.

What each means: s3.md section 5 and velero.md section 5.2. A value that the plugin refuses is
refused here as well, with words that say what to write. A key that is not known is never an error:
another plugin may have it, and a newer one may have more.
"""

import re
import string
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from agent.cluster.objects import KeyReference
from agent.errors import ClusterError, UsageError
from agent.storage.address import parse_endpoint
from agent.storage.checksums import Checksum

KEYS = (
    "region",
    "s3Url",
    "s3ForcePathStyle",
    "insecureSkipTLSVerify",
    "profile",
    "credentialsFile",
    "serverSideEncryption",
    "kmsKeyId",
    "customerKeyEncryptionFile",
    "customerKeyEncryptionSecret",
    "tagging",
    "checksumAlgorithm",
    "enableSharedConfig",
    "signatureVersion",
    "publicUrl",
    "resticRepoPrefix",
)
"""All that are known; docs/locations.md says of each what podlift does."""

_CUSTOMER_KEYS = ("customerKeyEncryptionFile", "customerKeyEncryptionSecret")
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False", ""})
_TAGS = 10
_TAG_KEY_CHARACTERS, _TAG_VALUE_CHARACTERS = 128, 256  # S3's limits, of a tag and of their number
_HEADER = re.compile(r"[!-~]*", re.ASCII)
_QUERY = frozenset(string.ascii_letters + string.digits + "-._~!$'()*+,;:@/?%")
"""What a query string may hold beside the signs that separate its pairs (RFC 3986 section 3.4)."""


CustomerKey = Path | KeyReference
"""Where the key of SSE-C is kept: in a file of this pod, or in a Secret."""


@dataclass(frozen=True, slots=True)
class Config:
    """The ``spec.config`` of one location; ``where`` names it in messages."""

    where: str
    values: Mapping[str, str]

    def text(self, key: str) -> str:
        """Return a value that a request carries as it is, "" if there is none."""
        value = self.values.get(key, "")
        if _HEADER.fullmatch(value) is None:
            raise self._wrong(key, f"{value!r} has characters that no HTTP header can carry")
        return value

    def flag(self, key: str) -> bool:
        """Return a switch, off unless it is set."""
        text = self.values.get(key, "")
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise self._wrong(key, f"{text!r} is neither true nor false")

    def endpoint(self) -> str | None:
        """Return ``s3Url`` as a URL without a path."""
        url = self.values.get("s3Url", "")
        try:
            return parse_endpoint(url).url if url else None
        except UsageError as error:
            raise self._wrong("s3Url", str(error)) from error

    def checksum(self) -> Checksum:
        """Return the checksum that uploads carry; "" turns it off, and SHA-256 is the default."""
        name = self.values.get("checksumAlgorithm", "SHA256")
        if name not in get_args(Checksum):
            known = ", ".join(filter(None, get_args(Checksum)))
            raise self._wrong("checksumAlgorithm", f'{name!r} is none of {known} and ""')
        return cast(Checksum, name)

    def encryption(self) -> tuple[str, str]:
        """Return what the service encrypts by, and which key of its own; a key decides over all else."""
        kms_key_id = self.text("kmsKeyId")
        if kms_key_id:
            return "aws:kms", kms_key_id
        if self.customer_key() is not None:
            return "", ""
        return self.text("serverSideEncryption"), ""

    def customer_key(self) -> CustomerKey | None:
        """Return where the customer's key is; raises ``ClusterError`` for two keys at once."""
        keys = [key for key in ("kmsKeyId", *_CUSTOMER_KEYS) if self.values.get(key)]
        if len(keys) > 1:
            raise ClusterError(
                f"{self.where} sets {' and '.join(keys)}, but an object is encrypted by one key: set"
                " one of them"
            )
        file, secret = (self.values.get(key, "") for key in _CUSTOMER_KEYS)
        if not file and not secret:
            return None
        if (self.endpoint() or "").startswith("http://"):
            raise ClusterError(
                f"{self.where} sets {keys[0]} with an s3Url of http://: the key would go over the"
                " network for all to read, and services refuse it; use https://"
            )
        if file:
            return Path(file)
        name, slash, key = secret.partition("/")
        if not name or not slash or not key or "/" in key:
            raise self._wrong(
                "customerKeyEncryptionSecret", f"{secret!r} is not NAME/KEY of a Secret"
            )
        return KeyReference(name, key)

    def tagging(self) -> str:
        """Return the tags as S3 wants them, a query string."""
        text = self.values.get("tagging", "")
        if not text:
            return ""
        pairs = [part.partition("=") for part in text.split("&")]
        names = [urllib.parse.unquote_plus(name) for name, _, _ in pairs]
        values = [urllib.parse.unquote_plus(value) for _, _, value in pairs]
        if (
            not all(equals and name and {*name, *value} <= _QUERY for name, equals, value in pairs)
            or not all(len(name) <= _TAG_KEY_CHARACTERS for name in names)
            or not all(len(value) <= _TAG_VALUE_CHARACTERS for value in values)
        ):
            raise self._wrong(
                "tagging",
                f"{text!r} is not NAME=VALUE&NAME=VALUE (names of up to {_TAG_KEY_CHARACTERS}"
                f" characters, values of up to {_TAG_VALUE_CHARACTERS}, others than letters and"
                " digits written as in a URL)",
            )
        if len(set(names)) < len(names) or len(names) > _TAGS:
            raise self._wrong("tagging", f"S3 takes {_TAGS} tags at most, and each name once")
        return text

    def remarks(self) -> tuple[str, ...]:
        """Return what an operator should know: of keys without effect, and of a key that is exposed."""
        remarks = []
        if unknown := sorted(self.values.keys() - set(KEYS)):
            remarks.append(f"sets {', '.join(unknown)}, which podlift does not know: no effect")
        if self.values.get("signatureVersion", "") not in ("", "4"):
            remarks.append(
                "sets a signatureVersion: podlift makes no download URLs, and signs by 4"
            )
        if self.customer_key() is not None and self.flag("insecureSkipTLSVerify"):
            remarks.append(
                "skips TLS verification, so its customer key goes to whoever answers: add caCert instead"
            )
        return tuple(remarks)

    def _wrong(self, key: str, why: str) -> ClusterError:
        return ClusterError(f"{self.where}, config.{key}: {why}")
