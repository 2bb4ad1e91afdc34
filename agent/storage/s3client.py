"""Our way to make a client of S3: no retries, no hidden copies, cheap listings.

It is botocore's, as boto3's is, without what boto3 adds to it for transfers of files. The defaults
cost twice the CPU and break several services that are not Amazon's; each setting below was measured
(s3.md sections 1, 2 and 6). The retry is ours alone (``retry.py``), so botocore gets one attempt.
"""

import contextlib
import os
import re
import urllib.parse
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any, cast

import botocore.exceptions as boto
import botocore.session
from botocore.config import Config
from botocore.parsers import ResponseParserError

from agent.errors import UsageError
from agent.storage.models import models
from agent.storage.s3clock import ServiceClock
from agent.storage.s3lines import make_cuttable
from agent.storage.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

LISTED = "PodliftListed"
"""Where the listing hook leaves its (key, size) pairs in botocore's answer."""

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

FALLBACK_REGION = "us-east-1"  # what the S3 plugin of Velero signs for (s3.md section 5)


def make_client(settings: S3Settings, clock: ServiceClock | None = None) -> "S3Client":
    """Return a new client with credentials read afresh; it may ask Amazon for the region.

    ``clock`` is that of the service, where it is known to differ from ours.
    """
    clock = clock or ServiceClock()
    region = settings.region
    if region is None:
        region = FALLBACK_REGION
        if settings.endpoint_url is None:
            with contextlib.closing(_client(settings, region, clock)) as client:
                region = find_region(client, settings.bucket)
    return _client(settings, region, clock)


def find_region(client: "S3Client", bucket: str) -> str:
    """Return the region of ``bucket``, which even an answer that denies access carries."""
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except boto.ClientError as error:
        headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        if "x-amz-bucket-region" not in headers:
            raise
    return headers.get("x-amz-bucket-region", FALLBACK_REGION)


def _client(settings: S3Settings, region: str, clock: ServiceClock) -> "S3Client":
    if isinstance(settings.verify, str) and not os.path.isfile(settings.verify):
        raise UsageError(f"the CA bundle {settings.verify} does not exist; correct its path")
    if settings.keeping.customer_key and not settings.address.tls:
        raise UsageError(f"{settings.address}: a customer key goes over TLS only; write https://")
    core = botocore.session.Session(profile=_profile(settings))
    if settings.credentials_file is not None:
        core.set_config_variable("credentials_file", settings.credentials_file)
        core.set_config_variable("config_file", settings.credentials_file)
    core.register_component("data_loader", models())
    made = core.create_client(
        "s3",
        region_name=region,
        endpoint_url=settings.endpoint_url,
        verify=None if settings.verify is True else settings.verify,  # None heeds AWS_CA_BUNDLE
        config=_config(settings),
    )
    client = cast("S3Client", made)
    make_cuttable(client)
    clock.govern(client)
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_listing)
    return client


def _profile(settings: S3Settings) -> str | None:
    """Return the profile; a credentials file wins over a node's role only with one named."""
    if settings.credentials_file is not None:
        return settings.profile or "default"
    return settings.profile


def _config(settings: S3Settings) -> Config:
    by_path = settings.path_style or "." in settings.bucket  # no certificate covers a.b.host
    return Config(
        signature_version="s3v4",
        s3={
            "addressing_style": "path" if by_path else "virtual",
            "payload_signing_enabled": False,
        },
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=settings.patience.connect_seconds,
        read_timeout=settings.patience.read_seconds,
        tcp_keepalive=True,
        max_pool_connections=settings.workers + 2,
    )


def _take_listing(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Take keys and sizes out of a listing before botocore's slow parser sees them."""
    if response_dict["status_code"] != 200:
        return
    try:
        root = ET.fromstring(response_dict["body"])  # noqa: S314 - as botocore does
    except ET.ParseError:
        return  # botocore finds the same and says so in its own way
    except ValueError as error:  # an encoding that expat cannot read
        raise ResponseParserError(f"a listing that is no XML: {error}") from error
    namespace = root.tag.rpartition("}")[0] + "}" if root.tag.startswith("{") else ""
    encoded = root.findtext(f"{namespace}EncodingType") == "url"
    listed = []
    for contents in root.findall(f"{namespace}Contents"):
        key = contents.findtext(f"{namespace}Key") or ""
        size = _size(contents.findtext(f"{namespace}Size") or "0")
        listed.append((urllib.parse.unquote_plus(key) if encoded else key, size))
        root.remove(contents)
    customized_response_dict[LISTED] = listed
    response_dict["body"] = ET.tostring(root)


def _size(text: str) -> int:
    """Return an object's size; raise one of the errors that the storage translates."""
    if _NUMBER.fullmatch(text.strip()) is None:
        raise ResponseParserError(f"a listing gives an object a size of {text[:80]!r}")
    return int(text)
