"""Repository strings mean what restic reads in them, or are refused with the reason."""

import posixpath
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.storage.address import (
    Endpoint,
    LocalAddress,
    S3Address,
    parse_endpoint,
    parse_repository,
    same_place,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3:http://localhost:9000/bucket", ("localhost:9000", False, "bucket", "")),
        ("s3:http://localhost:9000/bucket/pre/fix", ("localhost:9000", False, "bucket", "pre/fix")),
        ("s3:https://h.example/bucket/pre/", ("h.example", True, "bucket", "pre")),
        ("s3:https://h.example/bucket/", ("h.example", True, "bucket", "")),
        ("s3://h.example/bucket/pre", ("h.example", True, "bucket", "pre")),
        ("s3:h.example/bucket/pre", ("h.example", True, "bucket", "pre")),
        ("s3:h.example:8443/bucket", ("h.example:8443", True, "bucket", "")),
        ("s3:https://h.example/b/a/./x/../c/", ("h.example", True, "b", "a/c")),
        ("s3:https://h.example/b/a//c", ("h.example", True, "b", "a/c")),
        ("s3:https://h.example/b/.", ("h.example", True, "b", "")),
        ("s3:https://h.example/b/a%20b%2Fc", ("h.example", True, "b", "a b/c")),
        ("s3:https://h.example/b%2Fc", ("h.example", True, "b", "c")),
        ("s3:h.example/b/a%20b", ("h.example", True, "b", "a%20b")),
        ("s3:h.example/b/a?b#c", ("h.example", True, "b", "a?b#c")),
        ("s3:https://H.Example:443/b", ("h.example", True, "b", "")),
        ("s3:http://h.example:80/b", ("h.example", False, "b", "")),
        ("s3:http://h.example:443/b", ("h.example:443", False, "b", "")),
        ("s3:https://[::1]:9000/b/p", ("[::1]:9000", True, "b", "p")),
        ("s3:s3.us-east-1.amazonaws.com/b/p", ("s3.us-east-1.amazonaws.com", True, "b", "p")),
        ("s3:s3.amazonaws.com/b", ("s3.amazonaws.com", True, "b", "")),
    ],
)
def test_every_form_of_s3_is_read(text: str, expected: tuple[str, bool, str, str]) -> None:
    assert parse_repository(text) == S3Address(*expected)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/srv/repo", "/srv/repo"),
        ("./repo", "./repo"),
        ("../repo:1", "../repo:1"),
        ("repo", "repo"),
        ("repo/sub", "repo/sub"),
        ("local:/srv/repo", "/srv/repo"),
        ("local:s3:x", "s3:x"),
        ("/a:b", "/a:b"),
    ],
)
def test_a_directory_is_read(text: str, path: str) -> None:
    assert parse_repository(text) == LocalAddress(path)
    assert str(LocalAddress(path)) == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no repository"),
        ("local:", "names no repository"),
        (":x", "names no repository"),
        ("s3:a\nb/c", "names no repository"),
        ("s3:", "is not a HOST"),
        ("s3:///bucket", "is not a HOST"),
        ("s3:https:///bucket", "is not a HOST"),
        ("s3:HTTP://h.example/b", "is not a HOST"),
        ("s3:h.example:0/b", "is not a HOST"),
        ("s3:h.example:65536/b", "is not a HOST"),
        ("s3:h example/b", "is not a HOST"),
        ("s3:h.example", "bucket's name is missing"),
        ("s3:h.example/", "bucket's name is missing"),
        ("s3:https://h.example", "bucket's name is missing"),
        ("s3:https://h.example//b", "bucket's name is missing"),
        ("s3:https://h.example/..", "cannot be the name of a bucket"),
        ("s3:h.example/arn:aws:s3:::b", "cannot be the name of a bucket"),
        ("s3:https://h.example/b//p", "two slashes"),
        ("s3:https://h.example/b/%2Fp", "two slashes"),
        ("s3:https://h.example/b//", "two slashes"),
        ("s3:h.example/b/a/../..", "inside the bucket"),
        ("s3:h.example/b/../x", "inside the bucket"),
        ("s3:https://h.example/b/a%00", "inside the bucket"),
        ("s3:https://h.example/b/a%zz", "write %25"),
        ("s3:https://h.example/b/a?b", "write %25"),
        ("s3:https://h.example/b/%ff", "UTF-8"),
        ("s3:httpbin.example/b", "must be a URL"),
        ("s3:httpx://h.example/b", "must be a URL"),
        ("rest:http://h.example/", "no 'rest' repositories"),
        ("sftp:me@host:/x", "no 'sftp' repositories"),
        ("a:b", "local: before it"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_repository(text)


@pytest.mark.parametrize("text", ["s3:https://me:hunter2@h.example/b", "s3:me:hunter2@h.example/b"])
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="no credentials") as caught:
        parse_repository(text)
    assert "hunter2" not in str(caught.value)


PART = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1)
PREFIX = st.lists(PART.filter(lambda p: p not in (".", "..")), max_size=4).map("/".join)
ADDRESS = st.builds(
    S3Address,
    endpoint=st.sampled_from(["h.example", "h.example:9000", "[::1]:81", "s3.amazonaws.com"]),
    tls=st.booleans(),
    bucket=st.text(string.ascii_lowercase + string.digits, min_size=3, max_size=20),
    prefix=PREFIX,
)


@given(ADDRESS)
def test_an_address_survives_being_written_and_read(address: S3Address) -> None:
    assert parse_repository(str(address)) == address


@given(st.text())
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    for candidate in (text, f"s3:{text}", f"s3:https://h.example/{text}", f"s3:h/b/{text}"):
        try:
            address = parse_repository(candidate)
        except UsageError:
            continue
        if isinstance(address, S3Address):
            assert address.prefix in ("", posixpath.normpath(address.prefix))
            assert not address.prefix.startswith(("/", "../"))
            assert parse_repository(str(address)) == address


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("s3-eu-central-1.amazonaws.com", "eu-central-1"),
        ("s3.dualstack.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("s3.amazonaws.com", None),
        ("s3-external-1.amazonaws.com", None),
        ("s3.eu-central-1.example.com", None),
        ("s3.eu-central-1.amazonaws.com.evil.example", None),
    ],
)
def test_amazons_hosts_carry_their_region(host: str, region: str | None) -> None:
    assert S3Address(host, True, "b", "").aws_region == region


def test_amazons_hosts_are_told_from_others() -> None:
    assert Endpoint("s3.amazonaws.com").is_aws
    assert not Endpoint("s3.amazonaws.com.evil.example").is_aws
    assert not Endpoint("s3.amazonaws.com:8443").is_aws


@pytest.mark.parametrize(
    ("text", "endpoint_url", "region", "inside"),
    [
        ("s3:https://h.example/b/p", "https://h.example", None, True),
        ("s3:https://H.EXAMPLE:443/b/p", "https://h.example/", "us-east-1", True),
        ("s3:h.example/b/p", "HTTPS://h.example:443", None, True),
        ("s3:http://h.example/b/p", "https://h.example", None, False),
        ("s3:https://h.example:9000/b", "https://h.example", None, False),
        ("s3:https://h.example/other/p", "https://h.example", None, False),
        ("s3:https://evil.example/b/p", "https://h.example", None, False),
        ("s3:https://h.example/b/p", None, "us-east-1", False),
        ("s3:s3.amazonaws.com/b/p", None, "eu-west-1", True),
        ("s3:s3.amazonaws.com/b/p", None, None, True),
        ("s3:s3-eu-west-1.amazonaws.com/b/p", None, "eu-west-1", True),
        ("s3:s3.eu-west-1.amazonaws.com/b", "https://s3.dualstack.eu-west-1.amazonaws.com",
         None, True),
        ("s3:s3.eu-west-1.amazonaws.com/b", None, "us-east-1", False),
        ("s3:http://s3.eu-west-1.amazonaws.com/b", None, "eu-west-1", False),
        ("s3:s3.cn-north-1.amazonaws.com.cn/b", None, "cn-north-1", True),
        ("s3:s3.amazonaws.com/b", None, "cn-north-1", False),
    ],
)  # fmt: skip
def test_a_place_is_the_same_only_by_service_and_bucket(
    text: str, endpoint_url: str | None, region: str | None, inside: bool
) -> None:
    address = parse_repository(text)
    assert isinstance(address, S3Address)
    assert same_place(address, endpoint_url, region, "b") is inside


@pytest.mark.parametrize("url", ["h.example", "ftp://h.example", "https://", "https://h/x", "//h"])
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(url)


def test_an_endpoint_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoint("https://me:hunter2@h.example")
    assert "hunter2" not in str(caught.value)
