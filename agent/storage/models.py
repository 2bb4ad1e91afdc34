"""botocore's descriptions of services, as far as a client of S3 needs them.

botocore parses 2 MB of JSON for its first client and keeps them: every sentence of S3's manual, the 109
things that S3 can do and that nobody here asks it for, and where in the world each of 300 services is. An
agent would hold that for ever, as small objects in memory that is too scattered to be given back. Here
operations and services are skipped where they stand in the text, and of what is left the sentences are
emptied; a first client is made in half the time.
"""

import functools
import gzip
import os
from collections.abc import Iterable
from typing import Any

import msgspec
from botocore.loaders import JSONFileLoader, Loader

SERVICES = frozenset({"s3", "sts", "sso", "portal.sso", "oidc"})
"""S3, and those that botocore's chain of credentials may ask, by their names in the endpoints."""

OPERATIONS = frozenset(
    {
        "CreateSession",  # botocore itself, for the buckets of one zone
        "DeleteObject",
        "GetObject",
        "HeadBucket",
        "HeadObject",
        "ListObjectsV2",
        "PutObject",
    }
)
"""What S3 is asked for."""

_ENDINGS = ((".json", open), (".json.gz", gzip.open))

_Parts = dict[str, msgspec.Raw]
_parts = msgspec.json.Decoder(_Parts).decode
_whole = msgspec.json.Decoder().decode


@functools.cache
def models() -> Loader:
    """Return the descriptions, each parsed once: 30 ms of CPU a client otherwise."""
    return Loader(file_loader=_Reader())


class _Reader(JSONFileLoader):
    """Reads one file of botocore's data; it looks for names without their ending."""

    def load_file(self, file_path: str) -> Any:
        """Return what is needed of a file, or None if there is none of that name."""
        for ending, opened in _ENDINGS:
            if os.path.isfile(file_path + ending):
                with opened(file_path + ending, "rb") as file:
                    found = _needed(os.path.basename(file_path), file.read())
                _forget_sentences(found)
                return found
        return None


def _needed(kind: str, text: bytes) -> Any:
    """Parse what is needed of a file of that kind."""
    if kind == "endpoints":
        return _parsed(_parts(text), partitions=_partitions)
    if kind == "service-2":
        service = _parts(text)
        if _whole(service["metadata"]).get("serviceId") == "S3":
            return _of_s3(service)
        return _parsed(service)
    return _whole(text)


def _parsed(parts: _Parts, **others: Any) -> dict[str, Any]:
    """Parse all parts, some of them in a way of their own."""
    return {name: others.get(name, _whole)(part) for name, part in parts.items()}


def _partitions(text: msgspec.Raw) -> list[dict[str, Any]]:
    return [
        _parsed(each, services=lambda text: _only(SERVICES, _parts(text)))
        for each in msgspec.json.decode(text, type=list[_Parts])
    ]


def _only(names: Iterable[str], known: _Parts) -> dict[str, Any]:
    return {name: _whole(part) for name, part in known.items() if name in names}


def _of_s3(service: _Parts) -> dict[str, Any]:
    """Parse the operations that are asked for, and the shapes that these are made of."""
    operations, shapes = _only(OPERATIONS, _parts(service["operations"])), _parts(service["shapes"])
    needed: dict[str, Any] = {}
    left = _names(operations)
    while left:
        name = left.pop()
        if name not in needed:
            needed[name] = _whole(shapes[name])
            left += _names(needed[name])
    return _parsed(
        service,
        operations=lambda text: operations,
        shapes=lambda text: {name: needed[name] for name in shapes if name in needed},
    )


def _names(found: Any) -> list[str]:
    """Return the names of shapes in a part of a description."""
    if isinstance(found, list):
        return [name for each in found for name in _names(each)]
    if not isinstance(found, dict):
        return []
    own = [found["shape"]] if isinstance(found.get("shape"), str) else []
    return own + [name for each in found.values() for name in _names(each)]


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
