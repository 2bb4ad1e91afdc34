"""A BackupStorageLocation turned into S3 settings and the repository's prefix; pure.

The one rule guarded here: a location's credentials go to its own endpoint and bucket, nowhere
else, whatever a PodVolumeBackup says. What each key of ``spec.config`` means: ``locationkeys``.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.cluster.locationkeys import Config, CustomerKey
from agent.cluster.objects import BackupStorageLocation, KeyReference, LocationStatus
from agent.cluster.paths import checked
from agent.errors import ClusterError, UsageError
from agent.storage.address import LocalAddress, parse_repository, same_place
from agent.storage.checksums import Checksum
from agent.storage.keeping import Keeping
from agent.storage.settings import S3Settings

VALID_SECONDS = 300
"""For how long what Velero's server says of a location is believed: it looks once a minute by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """What a BackupStorageLocation means to podlift.

    ``credential``, ``ca_secret`` and ``customer_key`` still have to be fetched. ``remarks`` are what
    an operator should be told once.
    """

    name: str
    endpoint_url: str | None
    bucket: str
    prefix: str
    region: str | None
    path_style: bool
    insecure: bool
    ca_pem: bytes
    ca_secret: KeyReference | None
    profile: str | None
    credential: KeyReference | None
    credentials_file: Path | None
    checksum: Checksum
    encryption: str = ""
    kms_key_id: str = ""
    customer_key: CustomerKey | None = None
    tagging: str = ""
    read_only: bool = False
    status: LocationStatus = field(default_factory=LocationStatus)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the shell has fetched for a location: files where boto3 wants files, and SSE-C's key."""

    credentials: Path | None = None
    ca_bundle: Path | None = None
    customer_key: bytes = field(default=b"", repr=False)


def read_location(name: str, location: BackupStorageLocation) -> Location:
    """Understand a location; raises ``ClusterError`` for one that is not of our kind."""
    spec, where = location.spec, f"BackupStorageLocation {name}"
    config = Config(where, spec.config or {})
    _check_provider(where, spec.provider, config.values)
    if not spec.object_storage.bucket:
        raise ClusterError(f"{where} names no bucket: set objectStorage.bucket")
    endpoint_url = config.endpoint()
    customer_key = config.customer_key()
    encryption, kms_key_id = config.encryption()
    file = config.values.get("credentialsFile")
    return Location(
        name=name,
        endpoint_url=endpoint_url,
        bucket=spec.object_storage.bucket,
        prefix=(spec.object_storage.prefix or "").strip("/"),
        region=config.values.get("region") or ("us-east-1" if endpoint_url else None),
        path_style=config.flag("s3ForcePathStyle"),
        insecure=config.flag("insecureSkipTLSVerify"),
        ca_pem=spec.object_storage.ca_cert or b"",
        ca_secret=spec.object_storage.ca_cert_ref,
        profile=config.values.get("profile") or None,
        credential=_credential(spec.credential),
        credentials_file=Path(file) if file else None,
        checksum=config.checksum(),
        encryption=encryption,
        kms_key_id=kms_key_id,
        customer_key=customer_key,
        tagging=config.tagging(),
        read_only=spec.access_mode == "ReadOnly",
        status=location.status,
        remarks=config.remarks(),
    )


def require_writable(location: Location) -> None:
    """Raise ``ClusterError`` for a location that takes no backups."""
    if location.read_only:
        raise ClusterError(
            f"BackupStorageLocation {location.name} is read-only: set accessMode ReadWrite to "
            "back up to it"
        )


def require_available(location: Location, now: datetime.datetime) -> None:
    """Raise ``ClusterError`` for a location that Velero's server could not use a moment ago.

    It could not store the backup that a volume belongs to. An older word is not believed: whoever
    said it may have stopped looking, so the bucket itself is asked.
    """
    status = location.status
    if status.phase == "Unavailable" and _recent(status.last_validation_time, now):
        why = f" ({status.message})" if status.message else ""
        raise ClusterError(
            f"BackupStorageLocation {location.name} is unavailable to Velero's server{why}: mend"
            " that, then back up again"
        )


def repository_prefix(location: Location, identifier: str, namespace: str) -> str:
    """Return the prefix of the repository in the location's bucket.

    ``identifier`` is ``spec.repoIdentifier``; "" means the location's own place for the
    namespace that was backed up (velero.md section 5.1). Raises ``ClusterError`` if it lies anywhere else.
    """
    if not identifier:
        parts = (location.prefix, "restic", checked(namespace, "namespace"))
        return "/".join(part for part in parts if part)
    try:
        address = parse_repository(identifier)
    except UsageError as error:
        raise ClusterError(f"spec.repoIdentifier cannot be used: {error}") from error
    if isinstance(address, LocalAddress):
        raise ClusterError(
            f"spec.repoIdentifier {identifier!r} is not in S3: volumes are stored in "
            f"the bucket of BackupStorageLocation {location.name}"
        )
    if not same_place(address, location.endpoint_url, location.region, location.bucket):
        raise ClusterError(
            f"spec.repoIdentifier {identifier!r} is outside of BackupStorageLocation "
            f"{location.name} ({_service(location)}/{location.bucket}), and its credentials are "
            "not sent anywhere else: correct the location's s3Url, bucket or resticRepoPrefix"
        )
    if not address.prefix:
        raise ClusterError(
            f"spec.repoIdentifier {identifier!r} has no prefix: a repository at the root of the "
            "bucket would lie among Velero's own objects"
        )
    return address.prefix


def s3_settings(location: Location, prefix: str, fetched: Fetched, workers: int) -> S3Settings:
    """Return the storage's settings for one repository.

    A credentials file goes with an explicit profile: without one, web identity variables of
    the pod would win over the file (s3.md section 5, trap a).
    """
    verify: bool | str = True
    if location.insecure:
        verify = False
    elif fetched.ca_bundle is not None:
        verify = str(fetched.ca_bundle)
    credentials = fetched.credentials or location.credentials_file
    return S3Settings(
        endpoint_url=location.endpoint_url,
        bucket=location.bucket,
        prefix=prefix,
        region=location.region,
        path_style=location.path_style,
        verify=verify,
        profile=location.profile or ("default" if credentials else None),
        credentials_file=str(credentials) if credentials else None,
        checksum=location.checksum,
        keeping=Keeping(
            encryption=location.encryption,
            kms_key_id=location.kms_key_id,
            customer_key=fetched.customer_key,
            tagging=location.tagging,
        ),
        workers=workers,
    )


def _check_provider(where: str, provider: str, config: Mapping[str, str]) -> None:
    full = provider if "/" in provider else f"velero.io/{provider}"
    known_others = {"velero.io/azure", "velero.io/gcp", "velero.io/fs"}
    if full == "velero.io/aws" or (full not in known_others and config.get("s3Url")):
        return
    raise ClusterError(
        f"{where} has provider {provider!r}: podlift stores in S3 only (provider aws, or any "
        "other whose config has s3Url)"
    )


def _recent(moment: str | None, now: datetime.datetime) -> bool:
    try:
        said = datetime.datetime.fromisoformat(moment or "")
        return abs((now - said).total_seconds()) < VALID_SECONDS
    except (TypeError, ValueError, OverflowError):  # a time without a zone, and what is no time
        return False


def _credential(reference: KeyReference | None) -> KeyReference | None:
    return reference if reference is not None and reference.name else None


def _service(location: Location) -> str:
    if location.endpoint_url:
        return location.endpoint_url
    suffix = "amazonaws.com.cn" if (location.region or "").startswith("cn-") else "amazonaws.com"
    host = f"s3.{location.region}" if location.region else "s3"
    return f"https://{host}.{suffix}"
