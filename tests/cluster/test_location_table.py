"""Every key of a BackupStorageLocation, each against a server that can tell.

The server is ministack, which checks signatures, keys and checksums. Before it stands a proxy that
notes every header, and before that one that takes any host name, so that Amazon's own endpoints and
buckets in host names are real requests too.
"""

import base64
import datetime
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agent.cluster import location, objects
from agent.cluster.location import require_available, require_writable
from agent.cluster.locationkeys import KEYS
from agent.cluster.places import Places
from agent.cluster.secrets import PrivateFiles
from agent.demo.authority import make_certificates
from agent.errors import AccessDenied, ClusterError, StorageError, UsageError
from agent.storage.checksums import Checksum
from agent.storage.contract import read_range
from agent.storage.s3 import S3Storage
from tests.cluster.reaching import Cluster, Reaching
from tests.support.anyhost import AnyHost
from tests.support.faultproxy import FaultProxy, Request
from tests.support.s3servers import S3Server, write_credentials

HOST = "s3.podlift.example"
REGION = "eu-central-1"
HOSTS = (HOST, f"*.{HOST}", "*.s3.amazonaws.com", f"*.s3.{REGION}.amazonaws.com")
KEY, OTHER_KEY = b"thirty-two bytes, as AES-256 has", b"another of these thirty-two byte"
BODY = b"what is stored"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
BAD = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "nobody")

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # urllib3 says so, rightly


class Wire(Reaching):
    """Reaches locations by way of the proxies, and asks the server what came of it."""

    def __init__(self, s3: S3Server, proxy: FaultProxy, any_host: AnyHost, folder: Path) -> None:
        super().__init__(proxy.endpoint_url, proxy.ca, s3.make_bucket(), folder)
        self.s3, self.proxy, self.any_host = s3, proxy, any_host
        self.default_credentials = s3.credentials_file()

    def head(self, **asked: Any) -> Any:
        """Return what the server says of the one object of these tests."""
        return self.s3.kept_client.head_object(
            Bucket=self.bucket, Key="velero/restic/app/x", ChecksumMode="ENABLED", **asked
        )

    async def stored(self, config: dict[str, str] | None = None, **spec: Any) -> S3Storage:
        """Store the object in a location, read it back in every way, and return the storage."""
        storage = await self.open(config, **spec)
        storage.put("x", BODY)
        assert storage.get("x") == BODY
        assert read_range(storage, "x", 5, 2) == BODY[5:7]
        assert storage.size("x") == len(BODY)
        assert storage.put_new("y", BODY)
        assert not storage.put_new("y", b"other")
        assert [entry.key for entry in storage.list("")] == ["x", "y"]
        storage.delete("y")
        return storage

    def last(self, method: str) -> Request:
        """Return the last request for the object."""
        seen = [r for r in self.proxy.requests if r.method == method and r.path.endswith("/x")]
        return seen[-1]


@pytest.fixture
def wire(
    checking_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Wire]:
    for name, value in BAD.items():  # whoever falls back on these is refused
        monkeypatch.setenv(name, value)
    with (
        FaultProxy(checking_server, HOSTS) as proxy,
        AnyHost(proxy.host) as any_host,
    ):
        monkeypatch.setenv("HTTPS_PROXY", any_host.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        made = Wire(checking_server, proxy, any_host, tmp_path)
        try:
            yield made
        finally:
            made.close()


async def region(wire: Wire) -> None:
    """Signed for; without one, "us-east-1" for an s3Url, and of Amazon the bucket's own."""
    await wire.stored({"region": "-"})
    assert "/us-east-1/s3/" in wire.last("PUT").headers["authorization"]
    place = {"LocationConstraint": REGION}
    wire.bucket = f"{wire.bucket}-there"
    wire.s3.kept_client.create_bucket(Bucket=wire.bucket, CreateBucketConfiguration=place)
    await wire.stored({"region": REGION})
    assert f"/{REGION}/s3/" in wire.proxy.requests[-1].headers["authorization"]
    assert wire.any_host.hosts == []
    storage = await wire.stored({"region": "-", "s3Url": "-", "s3ForcePathStyle": "-"})
    assert storage.place == f"s3:https://s3.amazonaws.com/{wire.bucket}/velero/restic/app"
    first, *rest = wire.any_host.hosts
    assert first == f"{wire.bucket}.s3.amazonaws.com:443"
    assert set(rest) == {f"{wire.bucket}.s3.{REGION}.amazonaws.com:443"}
    assert f"/{REGION}/s3/" in wire.last("PUT").headers["authorization"]


async def s3_url(wire: Wire) -> None:
    """Where requests go; not a URL with a path."""
    await wire.stored()
    assert wire.last("PUT").headers["host"] == wire.proxy.host
    assert wire.any_host.hosts == []
    for wrong in ("ftp://x", f"{wire.endpoint_url}/path", "x"):
        with pytest.raises(ClusterError, match=r"config\.s3Url"):
            await wire.open({"s3Url": wrong})


async def path_style(wire: Wire) -> None:
    """The bucket in the path, or in the host's name."""
    named = {"s3Url": f"https://{HOST}"}
    await wire.stored(named | {"s3ForcePathStyle": "true"})
    by_path = wire.last("PUT")
    await wire.stored(named | {"s3ForcePathStyle": "false"})
    by_host = wire.last("PUT")
    assert by_path.headers["host"] == HOST
    assert by_path.path.startswith(f"/{wire.bucket}/velero/")
    assert by_host.headers["host"] == f"{wire.bucket}.{HOST}"
    assert by_host.path.startswith("/velero/")
    with pytest.raises(ClusterError, match="neither true nor false"):
        await wire.open({"s3ForcePathStyle": "sometimes"})


async def insecure(wire: Wire) -> None:
    """No certificate is asked for, not even of a wrong authority."""
    await wire.stored({"insecureSkipTLSVerify": "true"}, objectStorage={"caCert": None})
    wrong = base64.b64encode(make_certificates(wire.folder / "wrong").ca.read_bytes()).decode()
    await wire.stored({"insecureSkipTLSVerify": "1"}, objectStorage={"caCert": wrong})
    await refused_tls(wire, {"insecureSkipTLSVerify": "false"}, caCert=None)


async def refused_tls(wire: Wire, config: dict[str, str], **storage: Any) -> None:
    opened = await wire.open(config, objectStorage=storage)
    with pytest.raises(StorageError, match="does not prove its identity"):
        opened.get("x")


async def ca_cert(wire: Wire) -> None:
    """Added to the system's authorities: right, wrong, absent, and none at all."""
    storage = await wire.stored()
    bundle = read(storage._settings.verify)
    assert bundle.count(b"BEGIN CERTIFICATE") > wire.authorities.count(b"BEGIN CERTIFICATE")
    wrong = base64.b64encode(make_certificates(wire.folder / "wrong").ca.read_bytes()).decode()
    await refused_tls(wire, {}, caCert=wrong)
    await refused_tls(wire, {}, caCert=None)
    with pytest.raises(ClusterError, match="not PEM"):
        await wire.open(objectStorage={"caCert": base64.b64encode(b"nonsense").decode()})


def read(path: bool | str) -> bytes:
    return Path(str(path)).read_bytes()


async def ca_cert_ref(wire: Wire) -> None:
    """The same from a Secret, which is preferred."""
    wrong = base64.b64encode(make_certificates(wire.folder / "wrong").ca.read_bytes()).decode()
    reference = {"name": "authorities", "key": "ca.crt"}
    wire.secrets["authorities"] = {"ca.crt": wire.authorities}
    await wire.stored(objectStorage={"caCert": wrong, "caCertRef": reference})
    wire.secrets["authorities"] = {"ca.crt": base64.b64decode(wrong)}
    await refused_tls(wire, {}, caCertRef=reference)
    wire.secrets.clear()
    with pytest.raises(ClusterError, match=r"Secret velero/authorities.*does not exist"):
        await wire.open(objectStorage={"caCertRef": reference})


async def credential(wire: Wire) -> None:
    """A Secret's credentials file, before the cloud Secret and the environment."""
    wire.secrets["own"] = {"file": wire.s3.credentials_file().read_bytes()}
    reference = {"name": "own", "key": "file"}
    wire.default_credentials = wire.s3.credentials_file("nobody", "nobody")
    await wire.stored(credential=reference)
    with pytest.raises(AccessDenied):
        (await wire.open()).get("x")
    wire.default_credentials = None
    with pytest.raises(AccessDenied):
        (await wire.open()).get("x")
    with pytest.raises(ClusterError, match="has no value under 'cloud'"):
        await wire.open(credential=reference | {"key": "cloud"})


async def profile(wire: Wire) -> None:
    """The one of that name, in whichever file is used; "default" without."""
    file = wire.s3.credentials_file()
    text = file.read_text()
    write_credentials(file, wire.s3.weak_access_key, wire.s3.weak_secret_key)
    weak = file.read_text().replace("[default]", "[weak]")
    file.write_text(f"{weak}\n{text}")
    wire.default_credentials = file
    await wire.stored()
    await wire.stored({"profile": "default"})
    with pytest.raises(AccessDenied):
        (await wire.open({"profile": "weak"})).get("x")
    with pytest.raises(UsageError, match="nobody"):
        (await wire.open({"profile": "nobody"})).get("x")


async def credentials_file(wire: Wire) -> None:
    """A file of the pod, before the cloud Secret; spec.credential is before it."""
    strong, weak = wire.s3.credentials_file(), wire.s3.credentials_file("nobody", "nobody")
    wire.default_credentials = weak
    await wire.stored({"credentialsFile": str(strong)})
    wire.secrets["own"] = {"file": strong.read_bytes()}
    await wire.stored({"credentialsFile": str(weak)}, credential={"name": "own", "key": "file"})


async def encryption(wire: Wire) -> None:
    """The service's own key (SSE-S3); what the service refuses is said."""
    await wire.stored({"serverSideEncryption": "AES256"})
    assert wire.head()["ServerSideEncryption"] == "AES256"
    assert "x-amz-server-side-encryption" not in wire.last("GET").headers
    with pytest.raises(StorageError, match="InvalidArgument"):
        (await wire.open({"serverSideEncryption": "rot13"})).put("x", BODY)


async def kms_key(wire: Wire) -> None:
    """SSE-KMS, whatever serverSideEncryption says."""
    for more in ({}, {"serverSideEncryption": "AES256"}):
        await wire.stored({"kmsKeyId": "alias/backups", **more})
        head = wire.head()
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/backups")
    with pytest.raises(ClusterError, match="no HTTP header can carry"):
        await wire.open({"kmsKeyId": "two\nlines"})


async def customer_key_file(wire: Wire) -> None:
    """SSE-C by a file's first 32 bytes, with every put, get and head."""
    file = wire.folder / "customer-key"
    for content in (KEY, KEY + b"\n"):
        file.write_bytes(content)
        await customer_key(wire, {"customerKeyEncryptionFile": str(file)})
    file.write_bytes(KEY[:-1])
    with pytest.raises(ClusterError, match="must hold 32 bytes"):
        await wire.open({"customerKeyEncryptionFile": str(file)})
    for missing in (wire.folder / "none", wire.folder):
        with pytest.raises(ClusterError, match="customerKeyEncryptionFile"):
            await wire.open({"customerKeyEncryptionFile": str(missing)})


async def customer_key_secret(wire: Wire) -> None:
    """The same by a Secret's value of exactly 32 bytes."""
    config = {"customerKeyEncryptionSecret": "sse/customer-key"}
    wire.secrets["sse"] = {"customer-key": KEY, "other": OTHER_KEY}
    await customer_key(wire, config)
    other = await wire.open({"customerKeyEncryptionSecret": "sse/other"})
    with pytest.raises(
        AccessDenied, match=r"\(with a customer key\): the service answered AccessDenied"
    ) as caught:
        other.get("x")
    for secret in (OTHER_KEY, base64.b64encode(OTHER_KEY)):
        assert secret.decode() not in f"{caught.value} {caught.value.__cause__} {other._settings}"
    wire.secrets["sse"] = {"customer-key": KEY + b"\n"}
    with pytest.raises(ClusterError, match="must hold 32 bytes") as refused:
        await wire.open(config)
    assert KEY.decode() not in str(refused.value)
    wire.secrets["sse"] = {"customer-key": KEY}
    (remark,) = (await wire.place(config | {"insecureSkipTLSVerify": "true"}))[0].remarks
    assert remark.endswith("its customer key goes to whoever answers: add caCert instead")
    for wrong in ("sse", "sse/", "/customer-key", "velero/sse/customer-key"):
        with pytest.raises(ClusterError, match="is not NAME/KEY of a Secret"):
            await wire.open({"customerKeyEncryptionSecret": wrong})
    wire.secrets.clear()
    with pytest.raises(ClusterError, match=r"Secret velero/sse, the customer key.*does not exist"):
        await wire.open(config)


async def customer_key(wire: Wire, config: dict[str, str]) -> None:
    await wire.stored(config)
    for method in ("PUT", "GET", "HEAD"):
        headers = wire.last(method).headers
        sent = headers["x-amz-server-side-encryption-customer-key"]
        assert base64.b64decode(sent) == KEY
        assert headers["x-amz-server-side-encryption-customer-algorithm"] == "AES256"
    by_key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": KEY}
    assert wire.head(**by_key)["SSECustomerAlgorithm"] == "AES256"
    without = await wire.open()
    for read in (without.get, without.size):
        with pytest.raises(StorageError, match="stored using a form of Server Side Encryption"):
            read("x")
    kept = [path.read_bytes() for path in (wire.folder / "private").iterdir()]
    assert not [content for content in kept if KEY in content]


async def tagging(wire: Wire) -> None:
    """Tags on every object, written as in a URL."""
    await wire.stored({"tagging": "team=data%20base&cost-center=4711"})
    tags = wire.s3.kept_client.get_object_tagging(Bucket=wire.bucket, Key="velero/restic/app/x")
    found = {tag["Key"]: tag["Value"] for tag in tags["TagSet"]}
    assert found == {"team": "data base", "cost-center": "4711"}
    await wire.stored({"tagging": "one=alone"})
    too_many = "&".join(f"t{number}=1" for number in range(11))
    for wrong in ("a", "a=1&", "=1", "a=1&a=2", "a=b=c", "a=ü", f"a={'x' * 257}", too_many):
        with pytest.raises(ClusterError, match=r"config\.tagging"):
            await wire.open({"tagging": wrong})


async def checksum(wire: Wire) -> None:
    """Each by its name, verified by the server; none for "", and SHA-256 without the key."""
    for kind in get_args(Checksum):
        await wire.stored({"checksumAlgorithm": kind})
        sent = [h for h in wire.last("PUT").headers if h.startswith("x-amz-checksum-")]
        assert sent == ([f"x-amz-checksum-{kind.lower()}"] if kind else [])
        assert not kind or wire.head()[f"Checksum{kind}"]
    await wire.stored()
    assert wire.head()["ChecksumSHA256"]
    with pytest.raises(ClusterError, match=r"config\.checksumAlgorithm: 'MD6' is none of"):
        await wire.open({"checksumAlgorithm": "MD6"})


async def without_effect(wire: Wire, key: str, value: str) -> None:
    """Requests are the same with the key and without."""
    seen = []
    for config in ({}, {key: value}):
        wire.proxy.requests.clear()
        await wire.stored(config)
        passing = ("authorization", "x-amz-date", "amz-sdk-invocation-id")
        seen.append(
            [
                (
                    each.method,
                    each.path,
                    {k: v for k, v in each.headers.items() if k not in passing},
                )
                for each in wire.proxy.requests
            ]
        )
    assert seen[0] == seen[1]
    assert wire.any_host.hosts == []


async def shared_config(wire: Wire) -> None:
    """Accepted: credentials files are always read as configuration too."""
    await without_effect(wire, "enableSharedConfig", "true")


async def signature_version(wire: Wire) -> None:
    """For download URLs, of which podlift makes none: signed by 4, and another one is remarked on."""
    await without_effect(wire, "signatureVersion", "1")
    assert wire.last("PUT").headers["authorization"].startswith("AWS4-HMAC-SHA256")
    assert [bool((await wire.place({"signatureVersion": v}))[0].remarks) for v in "14"] == [
        True,
        False,
    ]


async def public_url(wire: Wire) -> None:
    """For download URLs: nothing goes there."""
    await without_effect(wire, "publicUrl", f"https://{HOST}")


async def restic_prefix(wire: Wire) -> None:
    """What Velero puts into repoIdentifier: followed inside of the location's bucket, and only there."""
    inside = f"s3:{wire.endpoint_url}/{wire.bucket}/elsewhere"
    place, _ = await wire.place({"resticRepoPrefix": inside})
    assert place.remarks == ()
    assert location.repository_prefix(place, f"{inside}/app", "app") == "elsewhere/app"
    with pytest.raises(ClusterError, match=r"correct the location's.*resticRepoPrefix"):
        location.repository_prefix(place, "s3:https://evil.example/b/app", "app")


async def bucket_and_prefix(wire: Wire) -> None:
    """Where objects lie; without a bucket nothing does."""
    await wire.stored(objectStorage={"prefix": "/velero/"})
    assert wire.head()["ContentLength"] == len(BODY)
    with pytest.raises(ClusterError, match="names no bucket"):
        await wire.open(objectStorage={"bucket": ""})


async def provider(wire: Wire) -> None:
    """S3 only, by whatever name it goes."""
    for name in ("aws", "velero.io/aws", "example.org/minio"):
        await wire.stored(provider=name)
    with pytest.raises(ClusterError, match="stores in S3 only"):
        await wire.open(provider="azure")


async def access_mode(wire: Wire) -> None:
    """A read-only location takes no backups; it can be reached to restore."""
    await wire.stored()
    place, settings = await wire.place(accessMode="ReadOnly")
    assert S3Storage(settings).get("x") == BODY
    with pytest.raises(ClusterError, match="is read-only: set accessMode ReadWrite"):
        require_writable(place)
    require_writable((await wire.place(accessMode="ReadWrite"))[0])


async def phase(wire: Wire) -> None:
    """What Velero's server said within five minutes counts, for backups; older words do not."""

    async def check(phase: str, said: str | None) -> None:
        status = {"phase": phase, "message": "no such bucket", "lastValidationTime": said}
        require_available((await wire.place(status=status))[0], NOW)

    with pytest.raises(ClusterError, match=r"unavailable to Velero's server \(no such bucket\)"):
        await check("Unavailable", "2026-01-02T03:03:05Z")
    for stale in ("2026-01-02T02:58:00Z", "yesterday", "2026-01-02T03:03:05", None):
        await check("Unavailable", stale)
    await check("Available", "2026-01-02T03:03:05Z")
    require_available((await wire.place())[0], NOW)


Row = Callable[[Wire], Awaitable[None]]

CONFIG: dict[str, Row] = {
    "region": region,
    "s3Url": s3_url,
    "s3ForcePathStyle": path_style,
    "insecureSkipTLSVerify": insecure,
    "profile": profile,
    "credentialsFile": credentials_file,
    "serverSideEncryption": encryption,
    "kmsKeyId": kms_key,
    "customerKeyEncryptionFile": customer_key_file,
    "customerKeyEncryptionSecret": customer_key_secret,
    "tagging": tagging,
    "checksumAlgorithm": checksum,
    "enableSharedConfig": shared_config,
    "signatureVersion": signature_version,
    "publicUrl": public_url,
    "resticRepoPrefix": restic_prefix,
}
SPEC: dict[str, Row] = {
    "provider": provider,
    "bucket": bucket_and_prefix,
    "prefix": bucket_and_prefix,
    "caCert": ca_cert,
    "caCertRef": ca_cert_ref,
    "credential": credential,
    "accessMode": access_mode,
    "phase": phase,
}
WITHOUT_ROW = {"objectStorage", "config", "message", "lastValidationTime"}
"""What holds others, or belongs to the phase."""


@pytest.mark.parametrize("key", sorted(CONFIG | SPEC))
async def test_the_server_can_tell(key: str, wire: Wire) -> None:
    await (CONFIG | SPEC)[key](wire)


def test_every_key_has_a_row() -> None:
    assert set(CONFIG) == set(KEYS)
    read = (objects.LocationSpec, objects.ObjectStorage, objects.LocationStatus)
    fields = {field.encode_name for each in read for field in msgspec.structs.fields(each)}
    assert fields - WITHOUT_ROW == set(SPEC)


@pytest.mark.parametrize("key", sorted(CONFIG | SPEC))
def test_the_manual_says_what_podlift_does(key: str) -> None:
    manual = Path(location.__file__).parents[2] / "docs/locations.md"
    assert re.search(rf"^\| .*`(\w+\.)*{key}`.*\| \S.* \|$", manual.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kmsKeyId": "k", "customerKeyEncryptionFile": "/f"}, "kmsKeyId and customerKeyEncryptionFile"),
        ({"kmsKeyId": "k", "customerKeyEncryptionSecret": "s/k"}, "kmsKeyId and customerKey"),
        ({"customerKeyEncryptionFile": "/f", "customerKeyEncryptionSecret": "s/k"}, "File and customer"),
        ({"s3Url": "http://h", "customerKeyEncryptionFile": "/f"}, "use https://"),
    ],
)  # fmt: skip
def test_keys_that_exclude_each_other_are_refused(config: dict[str, str], words: str) -> None:
    storage = objects.ObjectStorage(bucket="b")
    spec = objects.LocationSpec(provider="aws", object_storage=storage, config=config)
    with pytest.raises(ClusterError, match=words):
        location.read_location("default", objects.BackupStorageLocation(spec))


async def test_a_key_that_nobody_knows_is_named_once(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cluster = Cluster(wire.body({"b": "1", "a": "2"}))
    places = Places(cluster, "velero", None, PrivateFiles(wire.folder / "private"))
    for _ in range(3):
        await places.location("default")
    (said,) = caplog.messages
    assert said == (
        "BackupStorageLocation velero/default sets a, b, which podlift does not know: no effect"
    )


async def test_what_was_stored_before_there_was_a_key_is_still_read(wire: Wire) -> None:
    await wire.stored()
    wire.secrets["sse"] = {"k": KEY}
    storage = await wire.open({"customerKeyEncryptionSecret": "sse/k"})
    assert storage.get("x") == BODY
    assert read_range(storage, "x", 1, 3) == BODY[1:4]
    assert storage.size("x") == len(BODY)
    assert not storage.put_new("x", b"other")
    with pytest.raises(StorageError, match="NoSuchKey"):
        storage.get("missing")
