import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cluster.location import (
    Fetched,
    read_location,
    repository_prefix,
    require_writable,
    s3_settings,
)
from agent.cluster.objects import BackupStorageLocation
from agent.errors import ClusterError

MINIO = {"region": "minio", "s3Url": "https://minio.example.org:9000", "s3ForcePathStyle": "true"}


def location(config: dict[str, str] | None = None, **spec: Any) -> BackupStorageLocation:
    storage = {"bucket": "backups", "prefix": "/cluster-1/"} | spec.pop("objectStorage", {})
    body = {"provider": "aws", "config": config, "objectStorage": storage, **spec}
    return msgspec.convert({"spec": body}, BackupStorageLocation)


def read(config: dict[str, str] | None = None, **spec: Any) -> Any:
    return read_location("default", location(config, **spec))


def test_every_key_reaches_the_settings() -> None:
    place = read(
        MINIO | {"insecureSkipTLSVerify": "false", "profile": "p", "checksumAlgorithm": ""}
    )
    settings = s3_settings(place, "cluster-1/restic/app", Fetched(Path("/c"), Path("/ca")), 3)
    assert settings.endpoint_url == "https://minio.example.org:9000"
    assert (settings.bucket, settings.prefix) == ("backups", "cluster-1/restic/app")
    assert settings.region == "minio"
    assert settings.path_style
    assert settings.verify == "/ca"
    assert settings.profile == "p"
    assert settings.credentials_file == "/c"
    assert settings.checksum == ""
    assert settings.workers == 3


def test_amazon_needs_no_endpoint_and_checks_everything() -> None:
    settings = s3_settings(read({"region": "eu-west-1"}), "p", Fetched(), 1)
    assert settings.endpoint_url is None
    assert settings.region == "eu-west-1"
    assert not settings.path_style
    assert settings.verify is True
    assert settings.checksum == "SHA256"
    assert settings.profile is None
    assert settings.credentials_file is None


def test_a_credentials_file_is_used_with_an_explicit_profile() -> None:
    assert s3_settings(read(), "p", Fetched(Path("/c")), 1).profile == "default"


def test_skipping_tls_verification_wins_over_a_certificate() -> None:
    place = read(MINIO | {"insecureSkipTLSVerify": "1"})
    assert s3_settings(place, "p", Fetched(ca_bundle=Path("/ca")), 1).verify is False


def test_an_endpoint_without_region_gets_one() -> None:
    assert read({"s3Url": "http://s3.local/"}).region == "us-east-1"
    assert read().region is None


def test_a_certificate_and_the_secrets_are_kept_for_the_shell() -> None:
    pem = b"-----BEGIN CERTIFICATE-----"
    place = read(
        {"kmsKeyId": "k", "tagging": ""},
        credential={"name": "creds", "key": "cloud"},
        objectStorage={
            "caCert": base64.b64encode(pem).decode(),
            "caCertRef": {"name": "ca", "key": "k"},
        },
    )
    assert place.ca_pem == pem
    assert place.ca_secret.name == "ca"
    assert (place.credential.name, place.credential.key) == ("creds", "cloud")
    assert place.kms_key_id == "k"


def test_a_read_only_location_takes_no_backups_but_can_be_restored_from() -> None:
    place = read(accessMode="ReadOnly")
    assert place.read_only
    with pytest.raises(ClusterError, match="default is read-only"):
        require_writable(place)
    require_writable(read(accessMode="ReadWrite"))
    require_writable(read())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"provider": "azure"}, "stores in S3 only"),
        ({"provider": "gcp", "config": {"s3Url": "https://x"}}, "stores in S3 only"),
        ({"provider": "example.org/other"}, "stores in S3 only"),
        ({"objectStorage": {"bucket": ""}}, "names no bucket"),
        ({"config": {"s3Url": "ftp://x"}}, "s3Url"),
        ({"config": {"s3Url": "https://x/path"}}, "no path"),
        ({"config": {"s3ForcePathStyle": "maybe"}}, "neither true nor false"),
    ],
)
def test_a_location_that_cannot_serve_says_why(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        read(spec.pop("config", None), **spec)


def test_another_provider_with_an_endpoint_counts_as_s3() -> None:
    assert read(MINIO, provider="example.org/minio").bucket == "backups"
    assert read(provider="velero.io/aws").bucket == "backups"


def test_an_empty_identifier_means_the_locations_own_place() -> None:
    assert repository_prefix(read(MINIO), "", "app") == "cluster-1/restic/app"
    bare = read(MINIO, objectStorage={"prefix": ""})
    assert repository_prefix(bare, "", "app") == "restic/app"


@pytest.mark.parametrize(
    "identifier",
    [
        "s3:https://minio.example.org:9000/backups/cluster-1/restic/app",
        "s3:https://minio.example.org:9000/backups/elsewhere/app/",
    ],
)
def test_an_identifier_in_the_locations_bucket_is_taken(identifier: str) -> None:
    assert repository_prefix(read(MINIO), identifier, "app").endswith("app")


@pytest.mark.parametrize(
    "identifier",
    [
        "s3:https://evil.example.org:9000/backups/cluster-1/restic/app",
        "s3:http://minio.example.org:9000/backups/cluster-1/restic/app",
        "s3:https://minio.example.org/backups/cluster-1/restic/app",
        "s3:https://minio.example.org:9000/other/cluster-1/restic/app",
        "s3:s3.amazonaws.com/backups/cluster-1/restic/app",
        "/srv/repo",
        "sftp:host:/repo",
        "s3:https://u:p@minio.example.org:9000/backups/x",
        "s3:https://minio.example.org:9000/backups",
        "s3:",
    ],
)
def test_credentials_are_sent_nowhere_but_to_the_location(identifier: str) -> None:
    with pytest.raises(ClusterError, match="repoIdentifier"):
        repository_prefix(read(MINIO), identifier, "app")


def test_amazons_names_for_one_region_are_one_place() -> None:
    place = read({"region": "us-west-2"})
    identifier = "s3:s3-us-west-2.amazonaws.com/backups/cluster-1/restic/app"
    assert repository_prefix(place, identifier, "app") == "cluster-1/restic/app"
    with pytest.raises(ClusterError, match="outside of"):
        repository_prefix(place, "s3:s3-eu-west-1.amazonaws.com/backups/x", "app")


def test_a_namespace_that_is_no_name_is_refused() -> None:
    with pytest.raises(ClusterError, match="not a Kubernetes name"):
        repository_prefix(read(MINIO), "", "../other")
