"""The S3 storage and its settings against real servers: trust, credentials, memory, regions."""

import base64
import contextlib
import dataclasses
import http.server
import logging
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import pytest

from agent.budget import Rate
from agent.cancel import NEVER
from agent.demo.authority import make_certificates
from agent.errors import (
    AccessDenied,
    BucketMissing,
    CredentialsExpired,
    IntegrityRefused,
    StorageError,
    StorageFull,
    Throttled,
    Unreachable,
    UsageError,
)
from agent.storage.address import LocalAddress, parse_repository
from agent.storage.contract import Listed, read_range
from agent.storage.opening import open_storage
from agent.storage.retry import Retrying
from agent.storage.s3 import S3Storage
from agent.storage.s3body import SLICE_BYTES, Body, Guard
from agent.storage.s3client import LISTED, _take_listing, find_region, make_client
from agent.storage.s3errors import FAILURES, translate
from agent.storage.settings import S3Settings, settings_for, trust_also
from tests.support.s3servers import S3Server

CALLS: list[Callable[[S3Storage], object]] = [
    lambda s: s.put("x", b"1"),
    lambda s: s.put_new("x", b"1"),
    lambda s: s.get("x"),
    lambda s: read_range(s, "x", 0, 1),
    lambda s: s.size("x"),
    lambda s: list(s.list("")),
    lambda s: s.delete("x"),
]


def test_a_bucket_that_does_not_exist_is_named_by_every_call(direct: S3Settings) -> None:
    storage = S3Storage(dataclasses.replace(direct, bucket="no-such-bucket"))
    for call in CALLS:
        with pytest.raises(BucketMissing, match=r"no-such-bucket.*create the bucket"):
            call(storage)


def test_credentials_without_rights_are_denied_by_every_call(
    checking_server: S3Server, direct: S3Settings
) -> None:
    weak = checking_server.credentials_file(
        checking_server.weak_access_key, checking_server.weak_secret_key
    )
    storage = S3Storage(dataclasses.replace(direct, credentials_file=str(weak)))
    for call in CALLS:
        with pytest.raises(AccessDenied, match="check the access key and its rights"):
            call(storage)


def test_wrong_credentials_are_denied_and_not_repeated_in_the_message(
    checking_server: S3Server, direct: S3Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for access, secret, code in (
        (checking_server.access_key, "not-the-secret-at-all", "SignatureDoesNotMatch"),
        ("AKIAIOSFODNN7EXAMPLE", "not-the-secret-at-all", "InvalidAccessKeyId"),
    ):
        file = checking_server.credentials_file(access, secret)
        storage = S3Storage(dataclasses.replace(direct, credentials_file=str(file)))
        with pytest.raises(AccessDenied, match=code) as caught:
            storage.put("x", b"1")
        assert "not-the-secret" not in str(caught.value)
    assert "not-the-secret" not in caplog.text


def test_no_credentials_at_all_is_said(
    direct: S3Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AccessDenied, match="no S3 credentials were found"):
        S3Storage(dataclasses.replace(direct, credentials_file=None)).get("x")


def test_a_profile_that_is_not_in_the_file_is_said(direct: S3Settings) -> None:
    with pytest.raises(UsageError, match="nobody"):
        S3Storage(dataclasses.replace(direct, profile="nobody")).get("x")


def test_a_server_of_another_authority_is_not_trusted(direct: S3Settings, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", "somebody else's CA")
    with pytest.raises(StorageError, match="does not prove its identity") as caught:
        S3Storage(dataclasses.replace(direct, verify=str(other.ca))).get("x")
    assert not isinstance(caught.value, Unreachable)
    with pytest.raises(StorageError, match="does not prove its identity"):
        S3Storage(dataclasses.replace(direct, verify=True)).get("x")


def test_a_bundle_that_is_not_there_is_said(direct: S3Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.pem does not exist"):
        S3Storage(dataclasses.replace(direct, verify=str(tmp_path / "gone.pem"))).get("x")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # urllib3 says so, rightly
def test_a_server_is_trusted_blindly_only_on_request(direct: S3Settings) -> None:
    storage = S3Storage(dataclasses.replace(direct, verify=False))
    storage.put("x", b"1")
    assert storage.get("x") == b"1"


def test_an_authority_is_added_to_those_of_the_system(
    s3_server: S3Server, direct: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = make_certificates(tmp_path / "system").ca
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    bundle = trust_also(s3_server.ca.read_bytes(), tmp_path / "bundle.pem")
    assert system.read_bytes().strip() in bundle.read_bytes()
    storage = S3Storage(dataclasses.replace(direct, verify=str(bundle)))
    storage.put("x", b"1")
    assert storage.get("x") == b"1"
    monkeypatch.delenv("SSL_CERT_FILE")
    assert trust_also(s3_server.ca.read_bytes(), bundle).read_bytes().count(b"BEGIN") > 10


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nx"])
def test_an_authority_that_is_no_certificate_is_refused(junk: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not PEM"):
        trust_also(junk, tmp_path / "bundle.pem")


def test_an_upload_copies_nothing(direct: S3Settings) -> None:
    storage = S3Storage(dataclasses.replace(direct, checksum=""))
    storage.put("warm", b"1")
    body = bytearray(random.Random(9).randbytes(16 << 20))
    tracemalloc.start()
    try:
        storage.put("x", body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    assert storage.get("x") == body


def test_wrong_bytes_for_the_digest_are_refused_by_a_service_that_checks(
    checking_server: S3Server, direct: S3Settings
) -> None:
    with pytest.raises(IntegrityRefused, match="BadDigest"):
        S3Storage(direct).put("x", b"1", sha256=bytes(32))


def test_it_works_again_after_renewal_and_close_is_quiet(direct: S3Settings) -> None:
    storage = S3Storage(direct)
    storage.close()
    storage.put("x", b"1")
    storage.renew()
    assert storage.get("x") == b"1"
    storage.close()
    storage.close()


def test_an_object_at_the_buckets_root_has_no_prefix(s3_server: S3Server) -> None:
    storage = S3Storage(s3_server.settings())
    storage.put("config", b"1")
    assert list(storage.list("")) == [Listed("config", 1)]


def test_a_neighbouring_prefix_is_not_listed(direct: S3Settings) -> None:
    S3Storage(dataclasses.replace(direct, prefix=direct.prefix + "-other")).put("x", b"1")
    assert list(S3Storage(direct).list("")) == []


def test_the_region_is_asked_for_where_only_amazon_knows_it(
    s3_server: S3Server, direct: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(make_client(direct)) as client:
        assert client.meta.region_name == "us-east-1"
        assert find_region(client, direct.bucket) == "us-east-1"
        with pytest.raises(boto.ClientError):
            find_region(client, "no-such-bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint_url)  # in Amazon's place
    amazon = dataclasses.replace(direct, endpoint_url=None)
    with contextlib.closing(make_client(amazon)) as client:
        assert client.meta.region_name == "us-east-1"
    with pytest.raises(StorageError):
        S3Storage(dataclasses.replace(amazon, bucket="no-such-bucket")).get("x")


class HeaderOnly:
    """A client whose HEAD is denied with the region in a header, as Amazon does."""

    def head_bucket(self, **_: str) -> None:
        metadata = {"HTTPStatusCode": 403, "HTTPHeaders": {"x-amz-bucket-region": "eu-north-1"}}
        raise boto.ClientError(
            {"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": metadata},  # type: ignore[typeddict-item]
            "HeadBucket",
        )


def test_a_denied_bucket_still_tells_its_region() -> None:
    assert find_region(HeaderOnly(), "b") == "eu-north-1"  # type: ignore[arg-type]


def test_a_listing_is_taken_with_and_without_a_namespace() -> None:
    for namespace in ("", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'):
        body = (
            f"<ListBucketResult{namespace}><EncodingType>url</EncodingType>"
            "<Contents><Key>a+b%2Bc/%C3%A9</Key><Size>5</Size></Contents>"
            "<IsTruncated>false</IsTruncated></ListBucketResult>"
        ).encode()
        response = {"status_code": 200, "body": body}
        custom: dict[str, Any] = {}
        _take_listing(response_dict=response, customized_response_dict=custom)
        assert custom[LISTED] == [("a b+c/é", 5)]
        assert b"Contents" not in bytes(response["body"])  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["-1", "1.5", "many", "9" * 5000])
def test_a_size_that_is_none_is_no_usable_answer(size: str) -> None:
    body = (
        f"<ListBucketResult><Contents><Key>a</Key><Size>{size}</Size></Contents></ListBucketResult>"
    )
    response = {"status_code": 200, "body": body.encode()}
    with pytest.raises(FAILURES) as caught:
        _take_listing(response_dict=response, customized_response_dict={})
    assert isinstance(translate(caught.value, "list", ""), Unreachable)


@pytest.mark.parametrize("encoding", ["UVF-8", "cp932"])
def test_a_listing_in_an_encoding_of_its_own_is_no_usable_answer(encoding: str) -> None:
    body = f'<?xml version="1.0" encoding="{encoding}"?><ListBucketResult/>'
    response = {"status_code": 200, "body": body.encode()}
    with pytest.raises(FAILURES) as caught:
        _take_listing(response_dict=response, customized_response_dict={})
    assert isinstance(translate(caught.value, "list", ""), Unreachable)


@pytest.mark.parametrize("response", [(500, b"<a/>"), (200, b"<ListBucketResult><Cont")])
def test_what_is_no_listing_is_left_to_botocore(response: tuple[int, bytes]) -> None:
    custom: dict[str, Any] = {}
    given = {"status_code": response[0], "body": response[1]}
    _take_listing(response_dict=given, customized_response_dict=custom)
    assert given["body"] == response[1]
    assert custom == {}


def answered(code: str, status: int) -> boto.ClientError:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": {}}
    error = {"Error": {"Code": code, "Message": "said\nthis"}, "ResponseMetadata": metadata}
    return boto.ClientError(error, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status", "kind", "advice"),
    [
        ("InvalidToken", 400, CredentialsExpired, "renew"),
        ("Throttling", 400, Throttled, "fewer requests"),
        ("RequestTimeTooSkewed", 403, Unreachable, "set the clock"),
        ("XAmzContentChecksumMismatch", 400, IntegrityRefused, "changed on the way"),
        ("OperationAborted", 409, Unreachable, "look at the service"),
        ("PermanentRedirect", 301, StorageError, "set the region"),
        ("AuthorizationHeaderMalformed", 400, StorageError, "set the region"),
        ("InvalidAccessKeyId", 403, AccessDenied, "access key"),
        ("XMinioStorageFull", 507, StorageFull, "the storage is full: add capacity"),
        ("QuotaExceeded", 403, StorageFull, "the storage is full: add capacity"),
        ("InsufficientStorage", 503, StorageFull, "remove backups"),
        ("Whatever", 507, StorageFull, "the storage is full: add capacity"),
        ("NotImplemented", 501, StorageError, "location's settings"),
        ("EntityTooLarge", 400, StorageError, "location's settings"),
    ],
)
def test_each_code_has_its_kind_and_advice(
    code: str, status: int, kind: type[StorageError], advice: str
) -> None:
    error = translate(answered(code, status), "put x to the place", "x")
    assert type(error) is kind
    assert advice in str(error)
    assert str(error).startswith(f"put x to the place: the service answered {code} (said this)")
    assert isinstance(error, StorageError)
    assert error.key == "x"


def test_credentials_that_cannot_be_fetched_are_worth_a_new_client() -> None:
    error = boto.CredentialRetrievalError(provider="pod identity", error_msg="401")
    assert isinstance(translate(error, "get x", "x"), CredentialsExpired)


def test_a_very_long_answer_is_cut() -> None:
    error = boto.HTTPClientError(error=ValueError("x" * 5000))
    assert len(str(translate(error, "get x", "x"))) < 500


def test_a_body_reads_in_slices_and_rewinds() -> None:
    data = random.Random(2).randbytes(SLICE_BYTES + 10)
    body = Body(data, Guard(NEVER, 60, Rate()))
    assert len(body) == len(data)
    assert bytes(body.read(8192)) == data[:SLICE_BYTES]
    assert body.tell() == SLICE_BYTES
    assert bytes(body.read()) == data[SLICE_BYTES:]
    assert bytes(body.read(1)) == b""
    assert body.seek(-10, 2) == SLICE_BYTES
    assert body.seek(5, 1) == SLICE_BYTES + 5
    assert body.seek(0) == 0
    assert bytes(body.read(-1)) == data


def test_amazon_is_reached_by_region_and_others_by_url() -> None:
    amazon = settings_for(parse("s3:s3-eu-west-1.amazonaws.com/b/p"))
    assert (amazon.endpoint_url, amazon.region, amazon.path_style) == (None, "eu-west-1", False)
    assert str(amazon.address) == "s3:https://s3.eu-west-1.amazonaws.com/b/p"
    anywhere = settings_for(parse("s3:s3.amazonaws.com/b"))
    assert (anywhere.endpoint_url, anywhere.region) == (None, None)
    assert str(anywhere.address) == "s3:https://s3.amazonaws.com/b"
    china = settings_for(parse("s3:s3.cn-north-1.amazonaws.com.cn/b"))
    assert (china.endpoint_url, china.region) == (None, "cn-north-1")
    assert str(china.address) == "s3:https://s3.cn-north-1.amazonaws.com.cn/b"
    for special in ("s3.dualstack.eu-west-1.amazonaws.com", "s3.amazonaws.com.cn"):
        settings = settings_for(parse(f"s3:{special}/b"))
        assert (settings.endpoint_url, settings.path_style) == (f"https://{special}", False)
    other = settings_for(parse("s3:http://h.example:9000/b/p"))
    assert other == S3Settings("b", "p", "http://h.example:9000", path_style=True)
    assert str(other.address) == "s3:http://h.example:9000/b/p"


def test_a_bucket_is_part_of_the_host_unless_a_dot_forbids_it(direct: S3Settings) -> None:
    by_host = dataclasses.replace(direct, path_style=False, bucket="plain")
    dotted = dataclasses.replace(by_host, bucket="dot.ted")
    for settings, url in ((by_host, "https://plain.h.example/k"), (dotted, "h.example/dot.ted/k")):
        there = dataclasses.replace(settings, endpoint_url="https://h.example", verify=True)
        with contextlib.closing(make_client(there)) as client:
            signed = client.generate_presigned_url(
                "get_object", Params={"Bucket": there.bucket, "Key": "k"}
            )
            assert url in signed


def parse(text: str) -> Any:
    return parse_repository(text)


def test_a_storage_is_opened_by_its_address(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    storage = open_storage(
        parse_repository(s3_server.repository(bucket, "opened/here")),
        verify=str(s3_server.ca),
        credentials_file=str(s3_server.credentials_file()),
    )
    assert isinstance(storage, Retrying)
    assert storage.place == f"s3:{s3_server.endpoint_url}/{bucket}/opened/here"
    storage.put("config", b"1")
    assert storage.get("config") == b"1"
    storage.close()
    local = LocalAddress(str(tmp_path / "new"))
    with pytest.raises(BucketMissing):
        open_storage(local).put("config", b"1")
    open_storage(local, create=True).put("config", b"1")
    assert open_storage(local).get("config") == b"1"


def test_the_checksum_that_is_stored_is_the_objects_sha256(
    s3_server: S3Server, direct: S3Settings
) -> None:
    S3Storage(direct).put("x", b"abc")
    with contextlib.closing(s3_server.client()) as client:
        head = client.head_object(
            Bucket=direct.bucket, Key=f"{direct.prefix}/x", ChecksumMode="ENABLED"
        )
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert base64.b64decode(head["ChecksumSHA256"]).hex() == expected


def test_https_to_a_port_without_tls_says_so_and_is_final(tmp_path: Path) -> None:
    with plain_http() as port:
        settings = S3Settings(
            bucket="bucket", endpoint_url=f"https://127.0.0.1:{port}", region="us-east-1",
            profile=None, credentials_file=str(credentials_in(tmp_path)),
        )  # fmt: skip
        with pytest.raises(StorageError, match="does not speak TLS; write http://") as caught:
            S3Storage(settings).get("x")
    assert not isinstance(caught.value, Unreachable)


def credentials_in(folder: Path) -> Path:
    file = folder / "credentials"
    file.write_text("[default]\naws_access_key_id=a\naws_secret_access_key=b\n")
    return file


@contextlib.contextmanager
def plain_http() -> Iterator[int]:
    """Serve HTTP without TLS on a free port, each answer an empty page."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
