"""Where a repository is, as the operator writes it: ``s3:…`` or a directory.

The string means to podlift exactly what it means to restic (restic-format.md section 2.1), so
that either opens what the other wrote. Where restic accepts a form that it will not find again
(a prefix that begins with a slash, a URL without a host), podlift refuses it and says why.

``same_place`` answers the question on which credentials depend: does an address name the
endpoint and the bucket of this location? Credentials are sent nowhere else.
"""

import dataclasses
import posixpath
import re
import urllib.parse

from agent.errors import UsageError

_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # what botocore takes, without ARNs
_AWS = re.compile(
    r"s3(?:[.-](?:dualstack\.)?(?P<region>(?!fips)[a-z]+(?:-[a-z]+)+-[0-9]+))?"
    r"\.(?P<partition>amazonaws\.com(?:\.cn)?)"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+-]*")
_DEFAULT_PORT = {True: 443, False: 80}
_FORMS = "write s3:https://HOST[:PORT]/BUCKET[/PREFIX], or the path of a directory"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Host, port and TLS of an S3 service; the host in lower case, a default port left out."""

    host: str
    tls: bool = True

    @property
    def url(self) -> str:
        """Return the endpoint as a URL without a path."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def is_aws(self) -> bool:
        """Tell whether this is Amazon's own S3."""
        return _AWS.fullmatch(self.host) is not None

    @property
    def aws_region(self) -> str | None:
        """Return the region that Amazon's host name carries; None for any other host."""
        match = _AWS.fullmatch(self.host)
        return match["region"] if match else None

    def same_service(self, other: "Endpoint") -> bool:
        """Tell whether both are one service.

        Amazon's host names are one service when they are of one partition (its suffix) and
        their regions agree; the global name carries none and agrees with all, because bucket
        names are unique in a partition.
        """
        if self.tls != other.tls:
            return False
        ours, theirs = _AWS.fullmatch(self.host), _AWS.fullmatch(other.host)
        if not ours or not theirs:
            return self.host == other.host
        if ours["partition"] != theirs["partition"]:
            return False
        return None in (ours["region"], theirs["region"]) or ours["region"] == theirs["region"]


@dataclasses.dataclass(frozen=True)
class S3Address:
    """A prefix of a bucket; ``prefix`` is clean: no slash at either end, "" for the root."""

    endpoint: str
    tls: bool
    bucket: str
    prefix: str

    @property
    def service(self) -> Endpoint:
        """Return the service that holds the bucket."""
        return Endpoint(self.endpoint, self.tls)

    @property
    def endpoint_url(self) -> str:
        """Return the endpoint as a URL without a path."""
        return self.service.url

    @property
    def aws_region(self) -> str | None:
        """Return the region that Amazon's host name carries; None for any other host."""
        return self.service.aws_region

    def __str__(self) -> str:
        path = "/".join(part for part in (self.bucket, self.prefix) if part)
        return f"s3:{self.endpoint_url}/{urllib.parse.quote(path)}"


@dataclasses.dataclass(frozen=True)
class LocalAddress:
    """A directory."""

    path: str

    def __str__(self) -> str:
        return self.path


def parse_repository(text: str) -> S3Address | LocalAddress:
    """Read a repository string by restic's rules; raises ``UsageError``."""
    if not text or not text.isprintable():
        raise UsageError(f"{text!r} names no repository; {_FORMS}")
    if text.startswith(("/", "./", "../")):
        return LocalAddress(text)
    scheme, colon, rest = text.partition(":")
    if not colon:
        return LocalAddress(text)
    if scheme == "local" and rest:
        return LocalAddress(rest)
    if scheme == "s3":
        return _parse_s3(text, rest)
    if _SCHEME.fullmatch(scheme) and scheme != "local":
        raise UsageError(
            f"{_shown(text)}: podlift serves no {scheme!r} repositories; {_FORMS}"
            " (with local: before it, if it contains a colon)"
        )
    raise UsageError(f"{_shown(text)} names no repository; {_FORMS}")


def parse_endpoint(url: str) -> Endpoint:
    """Read the URL of an S3 service (http or https, no path); raises ``UsageError``."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("http", "https"):
        raise UsageError(f"{_shown(url)} is not an endpoint; write https://HOST[:PORT]")
    rest = rest.removesuffix("/")
    if "/" in rest:
        raise UsageError(f"{_shown(url)}: an endpoint has no path; write https://HOST[:PORT]")
    return _endpoint(rest, scheme == "https", url)


def amazon_endpoint(region: str | None) -> Endpoint:
    """Return Amazon's endpoint for a region, or the global one."""
    suffix = "amazonaws.com.cn" if (region or "").startswith("cn-") else "amazonaws.com"
    return Endpoint(f"s3.{region}.{suffix}" if region else f"s3.{suffix}")


def same_place(
    address: S3Address, endpoint_url: str | None, region: str | None, bucket: str
) -> bool:
    """Tell whether ``address`` lies in this bucket of this service.

    ``endpoint_url`` is None for Amazon's own, of which ``region`` says the part (None: not
    known). Raises ``UsageError`` if ``endpoint_url`` is not one.
    """
    if address.bucket != bucket:
        return False
    if endpoint_url is not None:
        return address.service.same_service(parse_endpoint(endpoint_url))
    return address.service.same_service(amazon_endpoint(region))


def _parse_s3(text: str, rest: str) -> S3Address:
    if rest.startswith("http"):
        return _parse_url(text, rest)
    host, _, path = rest.removeprefix("//").partition("/")
    return _address(_endpoint(host, True, text), path, text)


def _parse_url(text: str, url: str) -> S3Address:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("http", "https"):
        raise UsageError(f"{_shown(text)}: what begins with s3:http must be a URL; {_FORMS}")
    host, _, path = rest.partition("/")
    if re.search(r"%(?![0-9A-Fa-f]{2})", path) or "?" in rest or "#" in rest:
        raise UsageError(
            f"{_shown(text)}: write %25, %3F and %23 for the characters %, ? and # in a URL"
        )
    try:
        path = urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise UsageError(f"{_shown(text)}: the percent signs do not decode to UTF-8") from None
    return _address(_endpoint(host, scheme == "https", text), path, text)


def _endpoint(host_and_port: str, tls: bool, text: str) -> Endpoint:
    if "@" in host_and_port:
        raise UsageError(
            f"{_shown(text)}: a repository's address carries no credentials;"
            " give them by the environment or a credentials file"
        )
    match = _HOST.fullmatch(host_and_port)
    if match is None or not 0 < int(match["port"] or 1) < 65536:
        raise UsageError(f"{_shown(text)}: {host_and_port!r} is not a HOST[:PORT]; {_FORMS}")
    host, port = match["host"].lower(), int(match["port"] or 0)
    if port in (0, _DEFAULT_PORT[tls]):
        return Endpoint(host, tls)
    return Endpoint(f"{host}:{port}", tls)


def _address(endpoint: Endpoint, path: str, text: str) -> S3Address:
    bucket, _, prefix = path.partition("/")
    if not bucket:
        raise UsageError(f"{_shown(text)}: the bucket's name is missing; {_FORMS}")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{_shown(text)}: {bucket!r} cannot be the name of a bucket")
    if prefix.startswith("/"):
        raise UsageError(
            f"{_shown(text)}: two slashes after the bucket make a prefix that begins with a"
            " slash, where nothing would be found again; write one"
        )
    clean = posixpath.normpath(prefix) if prefix else ""
    clean = "" if clean == "." else clean
    if clean == ".." or clean.startswith("../") or not clean.isprintable():
        raise UsageError(f"{_shown(text)}: the prefix must be a plain path inside the bucket")
    return S3Address(endpoint.host, endpoint.tls, bucket, clean)


def _shown(text: str) -> str:
    """Return ``text`` for a message, without what might be a password before the host."""
    return repr(re.sub(r"(//|:)[^/@]*@", r"\1...@", text, count=1))
