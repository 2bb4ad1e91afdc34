"""From an address to a storage that is ready for use."""

import dataclasses
from typing import TypedDict, Unpack

from agent.budget import Rates
from agent.monitor import Count
from agent.storage.address import LocalAddress, S3Address
from agent.storage.checksums import Checksum
from agent.storage.contract import Storage
from agent.storage.keeping import Keeping
from agent.storage.local import LocalStorage
from agent.storage.retry import Retrying, RetryPolicy
from agent.storage.settings import S3Settings, settings_for


class Overrides(TypedDict, total=False):
    """What an operator may set apart from the address; the fields of ``S3Settings``."""

    region: str | None
    path_style: bool
    verify: bool | str
    profile: str | None
    credentials_file: str | None
    checksum: Checksum
    keeping: Keeping
    workers: int


def open_storage(
    address: S3Address | LocalAddress,
    *,
    create: bool = False,
    policy: RetryPolicy | None = None,
    rates: Rates | None = None,
    **overrides: Unpack[Overrides],
) -> Storage:
    """Return the storage at ``address``; nothing is sent before its first call.

    ``create`` makes a missing directory; a bucket is never made. ``rates`` are limits that it
    shares with other storages. ``overrides`` mean something to S3 only; credentials come from
    boto3's own chain.
    """
    if isinstance(address, LocalAddress):
        make = LocalStorage.create if create else LocalStorage
        return make(address.path, rates)
    return open_s3(dataclasses.replace(settings_for(address), **overrides), policy, rates)


def open_s3(
    settings: S3Settings,
    policy: RetryPolicy | None = None,
    rates: Rates | None = None,
    count: Count | None = None,
) -> Storage:
    """Return the S3 storage of ``settings`` behind the retry wrapper, which counts by ``count``."""
    from agent.storage.s3 import S3Storage  # botocore takes a third of a local run's start-up

    return Retrying(S3Storage(settings, rates), policy, count=count)
