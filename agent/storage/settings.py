"""Everything that decides how a bucket is reached, as plain values that show no secret.

Credentials are not among them: boto3's own chain finds those, steered by ``profile`` and
``credentials_file``. ``trust_also`` exists because boto3's ``verify`` replaces the system's
certificate authorities, while a location's certificate is meant to be added (s3.md section 5).
"""

import dataclasses
import os
import ssl
from pathlib import Path

from agent.errors import UsageError
from agent.storage.address import S3Address, amazon_endpoint, parse_endpoint
from agent.storage.checksums import Checksum
from agent.storage.keeping import AS_IT_IS, Keeping

_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long one attempt may take, in seconds.

    While a body is sent, ``connect_seconds`` bounds each slice of it, and ``read_seconds`` the
    wait for the answer (s3.md section 2, "Timeout trap"). A whole attempt may take
    ``attempt_seconds`` and what its bytes need at ``floor_bytes_per_second``. Within
    ``rival_seconds`` of us, others who make the same new object have written theirs.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    attempt_seconds: float = 60.0
    floor_bytes_per_second: int = 64 << 10
    rival_seconds: float = 5.0

    def deadline_seconds(self, size: int) -> float:
        """Return how long an attempt that moves ``size`` bytes may take."""
        return self.attempt_seconds + size / self.floor_bytes_per_second


@dataclasses.dataclass(frozen=True)
class S3Settings:
    """One prefix of one bucket, and how to talk to its service.

    ``endpoint_url`` is None for Amazon's own. ``verify`` is True for the system's authorities,
    False for none, or the path of a bundle that replaces them (see ``trust_also``).
    ``checksum`` is sent along with each object, unless the service turns out to refuse it.
    ``keeping`` is how objects are to be kept.
    ``workers`` is how many threads will use the storage at once.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    path_style: bool = True
    verify: bool | str = True
    profile: str | None = None
    credentials_file: str | None = None
    checksum: Checksum = "SHA256"
    keeping: Keeping = AS_IT_IS
    workers: int = 4
    patience: Patience = Patience()

    @property
    def address(self) -> S3Address:
        """Return the place that these settings reach; raises ``UsageError`` for a bad URL."""
        endpoint = (
            parse_endpoint(self.endpoint_url)
            if self.endpoint_url is not None
            else amazon_endpoint(self.region)
        )
        return S3Address(endpoint.host, endpoint.tls, self.bucket, self.prefix)


def settings_for(address: S3Address) -> S3Settings:
    """Return the settings that an address implies: Amazon's own service by region, or another.

    Amazon serves buckets as host names (path style is on its way out there); of others no
    more is known than that the path works. boto3 knows Amazon's plain endpoints by region;
    a special one (dual stack, without TLS) is used as it is written.
    """
    plain = amazon_endpoint(address.aws_region)
    written = address.service.url.replace("//s3-", "//s3.")
    return S3Settings(
        bucket=address.bucket,
        prefix=address.prefix,
        endpoint_url=None if written == plain.url else address.endpoint_url,
        region=address.aws_region,
        path_style=not address.service.is_aws,
    )


def trust_also(authorities: bytes, bundle: Path) -> Path:
    """Write the system's certificate authorities and ``authorities`` (PEM) to ``bundle``.

    Returns ``bundle``, which is what ``S3Settings.verify`` takes; others may write the same one at
    the same moment. Raises ``UsageError`` when ``authorities`` holds no certificate.
    """
    try:
        ssl.create_default_context().load_verify_locations(cadata=authorities.decode("ascii"))
    except (ValueError, OSError) as error:  # among them what ssl raises
        raise UsageError(
            "the location's CA certificate is not PEM: it must contain"
            " -----BEGIN CERTIFICATE----- blocks"
        ) from error
    system = _system_bundle().read_bytes()
    temporary = bundle.with_name(f"{bundle.name}.{os.urandom(8).hex()}")
    temporary.write_bytes(system.rstrip() + b"\n" + authorities.strip() + b"\n")
    os.replace(temporary, bundle)
    return bundle


def _system_bundle() -> Path:
    named = ssl.get_default_verify_paths().cafile  # honours SSL_CERT_FILE
    for candidate in (named, *_SYSTEM_BUNDLES):
        if candidate and os.path.isfile(candidate):
            return Path(candidate)
    from botocore.httpsession import where as bundled_authorities  # S3 only, and slow to import

    return Path(bundled_authorities())
