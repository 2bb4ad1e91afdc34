"""What operators write: addresses, patterns, options, the environment; and answers of S3 services."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import click

from agent import access
from agent.commands import retention
from agent.config import (
    ENVIRONMENT,
    AgentSettings,
    ClusterSettings,
    agent_settings,
    cluster_settings,
    repository_password,
)
from agent.errors import PodliftError, StorageError, UsageError
from agent.storage import s3client, s3errors
from agent.storage.address import (
    Endpoint,
    LocalAddress,
    S3Address,
    parse_endpoint,
    parse_repository,
)
from agent.storage.keys import check_key
from agent.storage.s3errors import FAILURES, translate
from agent.storage.settings import S3Settings, settings_for
from agent.transfer.selection import Selection
from agent.volume.exclude import Exclude
from chunker import kernel, reference
from chunker.rabin import Tables
from tests.fuzz.decoder import Decoder

_USAGE = (UsageError,)


def _address(text: str) -> S3Address | LocalAddress:
    found = parse_repository(text)
    if isinstance(found, S3Address):
        assert parse_repository(str(found)) == found
        assert settings_for(found).address.bucket == found.bucket
    return found


def _patterns(text: str) -> Exclude:
    return Exclude(text.split("\n"))


def _chosen(text: str) -> Selection:
    chosen = Selection(text.split("\n"), text.split("\n")[:1])
    chosen.wants(b"a/\xff", False)
    return chosen


def _with_variable(make: Callable[..., Any], variable: str) -> Callable[[str], Any]:
    return lambda text: make({}, {"NODE_NAME": "n", variable: text})


def _password_file(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "password"
        path.write_bytes(content)
        return access._password_in(path)


LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>
<Contents><Key>data/00%2F</Key><Size>17</Size></Contents></ListBucketResult>"""


def _listing(body: bytes) -> object:
    """Take keys and sizes as the hook does; what it raises must be what a call translates."""
    answer: dict[str, Any] = {}
    try:
        s3client._take_listing({"status_code": 200, "body": body}, answer)
    except FAILURES as error:
        raise translate(error, "list", "") from error
    for key, size in answer.get(s3client.LISTED, ()):
        assert isinstance(key, str)
        assert size >= 0
    return answer


def _pause(text: str) -> float | None:
    answer: Any = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPHeaders": {"retry-after": text}},
    }
    return s3errors._retry_after(boto.ClientError(answer, "PutObject"))


AWS_FILE = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n[p]\nregion = x\n"


def _client(text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "credentials"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        settings = S3Settings(
            "bucket", endpoint_url="http://127.0.0.1:9", region="r", credentials_file=str(path)
        )
        try:
            made = s3client.make_client(settings)
            made.close()
        except FAILURES as error:
            raise translate(error, "list", "") from error
        return "made"


def _scan(content: bytes) -> bytes:
    """The kernel and its twin find the same in whatever a file holds."""
    out, mod = Tables.of(0x3DA3358B4DC173)
    found = kernel.scan(content, b"h" * 64, out, mod, 0x1F)
    assert found == reference.scan(content, b"h" * 64, out, mod, 0x1F)
    return found


_VALUES = {
    "metrics_address": ["0.0.0.0:8085", "[::1]:80"],
    "uploader_types": ["restic,kopia"],
    "other_uploader_types": ["ignore"],
    "restores": ["serve"],
    "concurrency": ["4"],
    "cache_mib": ["2048"],
    "grace_seconds": ["2.5"],
    "startup_seconds": ["1e2"],
    "compression": ["better"],
    "log_format": ["json"],
}

DECODERS: list[Decoder] = [
    Decoder("address", _address, "text", ["s3:https://s3.example.org:9000/bucket/a%20b", "s3:host/bucket", "/srv/repo", "local:x", "s3:http://[::1]:80/b"], _USAGE, (S3Address, LocalAddress), ("agent.storage.address.parse_repository",)),
    Decoder("endpoint", parse_endpoint, "text", ["https://s3.example.org:9000/", "http://[::1]"], _USAGE, Endpoint, ("agent.storage.address.parse_endpoint",)),
    Decoder("key", check_key, "text", ["data/00/aa", "config"], (StorageError,), str),
    Decoder("exclude patterns", _patterns, "text", ["*.log\n/cache/**/[!a-z]?\n\\!x/", "a/b"], _USAGE, Exclude),
    Decoder("selection", _chosen, "text", ["a*\n**/b", "/x/"], _USAGE, Selection, share=0.5),
    *[
        Decoder(f"{ENVIRONMENT[name]}", _with_variable(agent_settings, ENVIRONMENT[name]), "text", _VALUES.get(name, ["x"]), _USAGE, AgentSettings, share=1.0 if name in _VALUES else 0.2)
        for name in ENVIRONMENT
    ],
    Decoder("settings of a command", _with_variable(cluster_settings, "PODLIFT_CACHE_MIB"), "text", ["20"], _USAGE, ClusterSettings),
    Decoder("PODLIFT_PASSWORD", lambda t: repository_password({"PODLIFT_PASSWORD": t}), "text", ["secret"], (), (str, type(None))),
    Decoder("password file", _password_file, "bytes", [b"secret\n", b"\xef\xbb\xbfsecret"], _USAGE, str, share=0.5),
    Decoder("tags", lambda t: access.tag_pairs(t.split("\n")), "text", ["a=1\nb=2"], _USAGE, dict),
    Decoder("--grace", lambda t: access.duration(None, None, t), "text", ["72h", "1d"], (click.BadParameter,), float),
    Decoder("--keep-daily", lambda t: retention._count(t, "daily"), "text", ["7", "unlimited", "-1"], _USAGE, int),
    Decoder("listing of S3", _listing, "bytes", [LISTING, LISTING.replace(b"17", b"-4"), LISTING.replace(b"17", b"1" * 5000)], (PodliftError,), dict, ("agent.storage.s3client",)),
    Decoder("Retry-After of S3", _pause, "text", ["7"], (), (float, type(None))),
    Decoder("credentials file", _client, "text", [AWS_FILE], (PodliftError,), str, share=0.2),
    Decoder("content of a file", _scan, "bytes", [b"podlift" * 300], (), bytes, share=0.3),
]  # fmt: skip
