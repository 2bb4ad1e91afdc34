"""What objects are stored with: checksums, keys and tags, on both implementations of S3."""

import base64
import dataclasses
import threading
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StorageError
from agent.storage import _crc
from agent.storage.checksums import Checksum, checksum_header
from agent.storage.keeping import AS_IT_IS, Keeping
from agent.storage.s3 import S3Storage
from agent.storage.settings import S3Settings
from tests.storage import crc_twin
from tests.support.faultproxy import FaultProxy, reply
from tests.support.s3servers import S3Server

KEY = b"0123456789abcdef0123456789abcdef"
KERNEL: dict[str, Callable[[bytes], int]] = {"crc32c": _crc.crc32c, "crc64nvme": _crc.crc64nvme}
TWIN: dict[str, Callable[[bytes], int]] = {
    "crc32c": crc_twin.crc32c,
    "crc64nvme": crc_twin.crc64nvme,
}


@pytest.mark.parametrize("implementation", [KERNEL, TWIN], ids=["kernel", "twin"])
class TestCrc:
    """Kernel and twin; the check values are those of the catalogue of CRCs for "123456789"."""

    def test_they_are_the_ones_of_that_name(
        self, implementation: dict[str, Callable[[bytes], int]]
    ) -> None:
        assert implementation["crc32c"](b"123456789") == 0xE3069283
        assert implementation["crc64nvme"](b"123456789") == 0xAE8B14860A799888
        assert implementation["crc32c"](b"") == implementation["crc64nvme"](b"") == 0


@given(st.binary(max_size=100))
def test_kernel_and_twin_agree(buffer: bytes) -> None:
    for name, kernel in KERNEL.items():
        assert kernel(buffer) == TWIN[name](buffer)
        assert kernel(memoryview(bytearray(b"x" + buffer))[1:]) == TWIN[name](buffer)  # type: ignore[arg-type]


def test_the_kernel_takes_a_buffer_and_nothing_else() -> None:
    for kernel in KERNEL.values():
        with pytest.raises(TypeError):
            kernel("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("CRC32", "y/Q5Jg=="),
        ("CRC32C", "4waSgw=="),
        ("SHA1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
        ("SHA256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ("CRC64NVME", "rosUhgp5mIg="),
    ],
)
def test_a_header_is_base64_of_the_big_end_first(kind: Checksum, value: str) -> None:
    assert checksum_header(kind, b"123456789") == {f"Checksum{kind}": value}


def test_a_digest_that_is_known_is_taken_where_it_is_the_one() -> None:
    known = bytes(32)
    assert checksum_header("SHA256", b"x", known) == {
        "ChecksumSHA256": base64.b64encode(known).decode()
    }
    assert checksum_header("CRC32", b"x", known) == checksum_header("CRC32", b"x")
    assert checksum_header("", b"x", known) == {}


@pytest.fixture(params=["s3_server", "moto_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("kind", get_args(Checksum))
def test_each_checksum_is_stored_by_its_name(s3_server: S3Server, kind: Checksum) -> None:
    """Moto keeps none that it has not made itself."""
    settings = s3_server.settings("p", checksum=kind)
    S3Storage(settings).put("x", b"123456789")
    head = s3_server.kept_client.head_object(
        Bucket=settings.bucket, Key="p/x", ChecksumMode="ENABLED"
    )
    expected = checksum_header(kind, b"123456789")
    assert {name: head.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("keeping", "told"),
    [
        (Keeping(encryption="AES256"), {"ServerSideEncryption": "AES256"}),
        (
            Keeping(encryption="aws:kms", kms_key_id="alias/k"),
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/k"},
        ),
        (Keeping(tagging="a=1&b=2"), {"TagCount": 2}),
        (AS_IT_IS, {}),
    ],
    ids=["SSE-S3", "SSE-KMS", "tags", "nothing"],
)
def test_the_service_tells_how_it_keeps_an_object(
    server: S3Server, keeping: Keeping, told: dict[str, Any]
) -> None:
    settings = server.settings("p", keeping=keeping)
    storage = S3Storage(settings)
    storage.put("x", b"1")
    assert storage.put_new("new", b"2")
    for key, content in (("x", b"1"), ("new", b"2")):
        head = server.kept_client.get_object(Bucket=settings.bucket, Key=f"p/{key}")
        assert head["Body"].read() == content
        assert told.items() <= head.items()
    if told.get("TagCount"):
        tags = server.kept_client.get_object_tagging(Bucket=settings.bucket, Key="p/x")
        assert {tag["Key"]: tag["Value"] for tag in tags["TagSet"]} == {"a": "1", "b": "2"}


def test_a_customers_key_is_in_no_representation() -> None:
    settings = S3Settings("b", keeping=Keeping(customer_key=KEY))
    assert KEY.decode() not in repr(settings) + str(settings.keeping) + str(settings.address)
    assert dataclasses.replace(settings, bucket="c").keeping.customer_key == KEY


def test_a_service_that_dislikes_checksums_is_asked_without_but_by_the_key(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    proxy.add(reply(501, "NotImplemented"), "PUT", times=100, header="x-amz-checksum-crc32c")
    keyed = dataclasses.replace(proxied, checksum="CRC32C", keeping=Keeping(customer_key=KEY))
    storage = S3Storage(keyed)
    storage.put("x", b"1")
    assert storage.get("x") == b"1"
    assert "x-amz-server-side-encryption-customer-key" in proxy.requests[-2].headers


def test_without_a_key_nothing_is_asked_twice(proxy: FaultProxy, proxied: S3Settings) -> None:
    proxy.add(reply(400, "InvalidRequest"), "GET")
    with pytest.raises(StorageError, match="InvalidRequest"):
        S3Storage(proxied).get("x")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("status", [400, 503])
def test_what_is_wrong_with_a_keyed_read_is_said_as_it_is(
    proxy: FaultProxy, proxied: S3Settings, status: int
) -> None:
    """Asked again without the key: refused in the same way, the first answer counts, else the second."""
    storage = S3Storage(dataclasses.replace(proxied, keeping=Keeping(customer_key=KEY)))
    proxy.add(reply(400, "FirstAnswer"), "GET")
    proxy.add(reply(status, "SecondAnswer"), "GET")
    with pytest.raises(StorageError, match="FirstAnswer" if status == 400 else "SecondAnswer"):
        storage.get("x")


def test_many_threads_use_one_key(s3_server: S3Server) -> None:
    storage = S3Storage(s3_server.settings("p", keeping=Keeping(customer_key=KEY)))
    threads = [threading.Thread(target=storage.put, args=(f"k{n}", b"1")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.get(entry.key) for entry in storage.list("")] == [b"1"] * 4
