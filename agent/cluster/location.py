"""A BackupStorageLocation turned into S3 settings and the repository's prefix; pure.

The one rule guarded here: a location's credentials go to its own endpoint and bucket, nowhere
else, whatever a PodVolumeBackup says. What each key means: s3.md section 5 and velero.md
section 5.2 (the behaviour of Velero's AWS plugin).
"""

from dataclasses import dataclass
from pathlib import Path

from agent.cluster.objects import BackupStorageLocation, KeyReference
from agent.cluster.paths import checked
from agent.errors import ClusterError, UsageError
from agent.storage.address import (
    LocalAddress,
    parse_endpoint,
    parse_repository,
    same_place,
)
from agent.storage.settings import S3Settings

NOT_APPLIED = (
    "serverSideEncryption",
    "kmsKeyId",
    "customerKeyEncryptionFile",
    "customerKeyEncryptionSecret",
    "tagging",
)
"""Keys that change how objects are stored and that podlift does not apply yet."""

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """What a BackupStorageLocation means to podlift.

    ``credential`` and ``ca_secret`` are Secrets that still have to be fetched; ``not_applied``
    are the keys that an operator should be warned about.
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
    checksum: bool
    read_only: bool = False
    not_applied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Files:
    """Where the shell has put what boto3 only takes as files."""

    credentials: Path | None = None
    ca_bundle: Path | None = None


def read_location(name: str, location: BackupStorageLocation) -> Location:
    """Understand a location; raises ``ClusterError`` for one that is not of our kind."""
    spec, config = location.spec, dict(location.spec.config or {})
    where = f"BackupStorageLocation {name}"
    _check_provider(where, spec.provider, config)
    if not spec.object_storage.bucket:
        raise ClusterError(f"{where} names no bucket: set objectStorage.bucket")
    endpoint_url = _endpoint(where, config.get("s3Url", ""))
    region = config.get("region") or ("us-east-1" if endpoint_url else None)
    file = config.get("credentialsFile")
    return Location(
        name=name,
        endpoint_url=endpoint_url,
        bucket=spec.object_storage.bucket,
        prefix=(spec.object_storage.prefix or "").strip("/"),
        region=region,
        path_style=_flag(where, config, "s3ForcePathStyle"),
        insecure=_flag(where, config, "insecureSkipTLSVerify"),
        ca_pem=spec.object_storage.ca_cert or b"",
        ca_secret=spec.object_storage.ca_cert_ref,
        profile=config.get("profile") or None,
        credential=_credential(spec.credential),
        credentials_file=Path(file) if file else None,
        checksum=config.get("checksumAlgorithm") != "",
        read_only=spec.access_mode == "ReadOnly",
        not_applied=tuple(key for key in NOT_APPLIED if config.get(key)),
    )


def require_writable(location: Location) -> None:
    """Raise ``ClusterError`` for a location that takes no backups."""
    if location.read_only:
        raise ClusterError(
            f"BackupStorageLocation {location.name} is read-only: set accessMode ReadWrite to "
            "back up to it"
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


def s3_settings(location: Location, prefix: str, files: Files, workers: int) -> S3Settings:
    """Return the storage's settings for one repository.

    A credentials file goes with an explicit profile: without one, web identity variables of
    the pod would win over the file (s3.md section 5, trap a).
    """
    verify: bool | str = True
    if location.insecure:
        verify = False
    elif files.ca_bundle is not None:
        verify = str(files.ca_bundle)
    credentials = files.credentials or location.credentials_file
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
        workers=workers,
    )


def _check_provider(where: str, provider: str, config: dict[str, str]) -> None:
    full = provider if "/" in provider else f"velero.io/{provider}"
    known_others = {"velero.io/azure", "velero.io/gcp", "velero.io/fs"}
    if full == "velero.io/aws" or (full not in known_others and config.get("s3Url")):
        return
    raise ClusterError(
        f"{where} has provider {provider!r}: podlift stores in S3 only (provider aws, or any "
        "other whose config has s3Url)"
    )


def _endpoint(where: str, url: str) -> str | None:
    if not url:
        return None
    try:
        return parse_endpoint(url).url
    except UsageError as error:
        raise ClusterError(f"{where}, config.s3Url: {error}") from error


def _flag(where: str, config: dict[str, str], key: str) -> bool:
    text = config.get(key, "")
    if text in _TRUE:
        return True
    if text in _FALSE or not text:
        return False
    raise ClusterError(f"{where}, config.{key}: {text!r} is neither true nor false")


def _credential(reference: KeyReference | None) -> KeyReference | None:
    return reference if reference is not None and reference.name else None


def _service(location: Location) -> str:
    if location.endpoint_url:
        return location.endpoint_url
    suffix = "amazonaws.com.cn" if (location.region or "").startswith("cn-") else "amazonaws.com"
    host = f"s3.{location.region}" if location.region else "s3"
    return f"https://{host}.{suffix}"
