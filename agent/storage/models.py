"""botocore's descriptions of services, as far as a client of S3 needs them.

botocore parses 2 MB of JSON for its first client and keeps them: every sentence of S3's manual, and
where in the world each of 300 services is. That is 6 MiB of small objects which an agent would hold for
ever, in memory that is too scattered to be given back. Here the sentences and the other services
are left out while they are read, which also makes a first client in half the time (78 for 157 ms of CPU).
"""

import functools
import gzip
import os
from typing import Any

import msgspec
from botocore.loaders import JSONFileLoader, Loader

SERVICES = frozenset({"s3", "sts", "sso", "portal.sso", "oidc"})
"""S3, and those that botocore's chain of credentials may ask, by their names in the endpoints."""

_ENDINGS = ((".json", open), (".json.gz", gzip.open))


@functools.cache
def models() -> Loader:
    """Return the descriptions, each parsed once: 80 ms of CPU a client otherwise."""
    return Loader(file_loader=_Reader())


class _Reader(JSONFileLoader):
    """Reads one file of botocore's data; it looks for names without their ending."""

    def load_file(self, file_path: str) -> Any:
        """Return what is needed of a file, or None if there is none of that name."""
        for ending, opened in _ENDINGS:
            if os.path.isfile(file_path + ending):
                with opened(file_path + ending, "rb") as file:
                    found = msgspec.json.decode(file.read())
                if os.path.basename(file_path) == "endpoints":
                    _forget_services(found)
                _forget_sentences(found)
                return found
        return None


def _forget_services(endpoints: Any) -> None:
    for partition in endpoints["partitions"]:
        known = partition["services"]
        partition["services"] = {name: known[name] for name in SERVICES & known.keys()}


def _forget_sentences(found: Any) -> None:
    """Empty texts called documentation; what is no text under that name is a part of the service."""
    if isinstance(found, dict):
        if isinstance(found.get("documentation"), str):
            found["documentation"] = ""
        for value in found.values():
            _forget_sentences(value)
    elif isinstance(found, list):
        for value in found:
            _forget_sentences(value)
