"""What an answer of an S3 service, or the lack of one, means in our own tree of errors.

The decision is by error code, status and exception type, never by text. Codes are Amazon's;
others use them too. An answer to HEAD has no body and hence no code: ``has_code`` tells, and
the storage asks again in a way that can answer.
"""

import ssl
from collections.abc import Callable
from typing import NoReturn

import botocore.exceptions as boto
import botocore.parsers
import urllib3.exceptions

from agent.errors import (
    AccessDenied,
    BucketMissing,
    CredentialsExpired,
    IntegrityRefused,
    ObjectMissing,
    StorageError,
    StorageFull,
    Throttled,
    Unreachable,
    UsageError,
)

FAILURES = (
    boto.BotoCoreError,
    boto.ClientError,
    botocore.parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,
    TimeoutError,
    LookupError,
)
"""Everything that a call through botocore raises for a reason outside of this program.

``LookupError`` is what an answer leads to that lacks a header, or is in an encoding of its own.
"""

_EXPIRED = {
    "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired",
    "RequestExpired",
}  # fmt: skip
_THROTTLED = {
    "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "TooManyRequests",
    "RequestLimitExceeded", "RequestThrottled", "BandwidthLimitExceeded",
}  # fmt: skip
_PASSING = {
    "InternalError", "RequestTimeout", "RequestTimeTooSkewed", "OperationAborted",
    "ConditionalRequestConflict", "IncompleteBody", "IDPCommunicationError",
}  # fmt: skip
_CORRUPT = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
_FULL = {
    "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage",
    "InsufficientCapacity", "ServiceQuotaExceededException",
}  # fmt: skip
_ELSEWHERE = {
    "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}  # fmt: skip
_WRONG_KEY = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId",
    "UnrecognizedClientException",
}  # fmt: skip
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem"} | _WRONG_KEY


def has_code(error: boto.ClientError) -> bool:
    """Tell whether the service said what is wrong, or botocore put the status in its place."""
    return not error.response["Error"].get("Code", "").isdigit()


def dislikes_request(error: boto.ClientError) -> bool:
    """Tell whether the service refused the request as such, and not for a reason that it names.

    Services that do not know checksum headers answer 400 or 501 with codes of their own choice
    (s3.md section 2, "Who accepts checksum headers").
    """
    code = error.response["Error"].get("Code", "")
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    known = _EXPIRED | _THROTTLED | _PASSING | _CORRUPT | _FULL | _ELSEWHERE | _DENIED
    return status in (400, 501) and code not in known


def translate(
    error: Exception, what: str, key: str, *, worked: bool = False
) -> StorageError | UsageError:
    """Return the error of our tree for one of ``FAILURES``; ``what`` names call and place.

    A key that is wrong now and ``worked`` before was exchanged, so it counts as expired.
    """
    if isinstance(error, boto.ClientError):
        exchanged = worked and error.response["Error"].get("Code") in _WRONG_KEY
        return _exchanged(error, what, key) if exchanged else _answered(error, what, key)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return AccessDenied(
            f"{what}: no S3 credentials were found; give them by the environment"
            " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a credentials file or the node's role",
            key=key,
        )
    if isinstance(error, boto.CredentialRetrievalError):
        return CredentialsExpired(
            f"{what}: the S3 credentials could not be fetched ({_line(error)}); check the role,"
            " its token and the service that hands credentials out",
            key=key,
        )
    if _wraps(error, lambda inner: getattr(inner, "reason", "") == "WRONG_VERSION_NUMBER"):
        return StorageError(
            f"{what}: this port does not speak TLS; write http:// instead of https://", key=key
        )
    if _wraps(error, lambda inner: isinstance(inner, ssl.SSLCertVerificationError)):
        return StorageError(
            f"{what}: the server does not prove its identity ({_line(error)}); add its CA"
            " certificate to the location, or correct the endpoint's host name",
            key=key,
        )
    if isinstance(error, _WRONG_REQUEST):
        return UsageError(f"{what}: {_line(error)}; correct the settings of this location")
    return Unreachable(
        f"{what}: no usable answer ({_line(error)}); check the endpoint and the network", key=key
    )


def refuse(error: Exception, what: str, key: str, *, worked: bool = False) -> NoReturn:
    """Raise what ``translate`` makes of ``error``."""
    raise translate(error, what, key, worked=worked) from error


_WRONG_REQUEST = (
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.ConfigNotFound,
    boto.ParamValidationError,
    boto.InvalidRegionError,
    boto.NoRegionError,
    boto.UnknownEndpointError,
)


def _exchanged(error: boto.ClientError, what: str, key: str) -> StorageError:
    return CredentialsExpired(
        f"{what}: the S3 credentials worked and are refused now ({_line(error)}); renew them",
        key=key,
    )


def _answered(error: boto.ClientError, what: str, key: str) -> StorageError:
    code = error.response["Error"].get("Code", "")
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    said = f"{what}: the service answered {code or status} ({_line(error)})"
    if code in _EXPIRED:
        return CredentialsExpired(f"{said}; renew the S3 credentials", key=key)
    if code in _FULL:
        return _final(said, code, status, key)  # whatever status goes with it
    if code in _THROTTLED or (status in (429, 503) and code not in _PASSING):
        return Throttled(
            f"{said}; it wants fewer requests at a time",
            key=key,
            retry_after_seconds=_retry_after(error),
        )
    if code == "RequestTimeTooSkewed":
        return Unreachable(f"{said}; set the clock of this machine", key=key)
    if code in _CORRUPT:
        return IntegrityRefused(
            f"{said}; the bytes were changed on the way: suspect memory, network or a proxy",
            key=key,
        )
    if code in _PASSING or status == 408 or (status >= 500 and status not in (501, 507)):
        return Unreachable(f"{said}; look at the service", key=key)
    return _final(said, code, status, key)


def _final(said: str, code: str, status: int, key: str) -> StorageError:
    """Return the error for an answer that no repetition changes."""
    if code == "NoSuchBucket":
        return BucketMissing(f"{said}; create the bucket, or correct its name", key=key)
    if code in ("NoSuchKey", "404") or (status == 404 and not code):
        return ObjectMissing(said, key=key)
    if code in _ELSEWHERE or status in (301, 307, 308):
        return StorageError(f"{said}; set the region in which the bucket is", key=key)
    if code in _FULL or status == 507:
        return StorageFull(
            f"{said}; the storage is full: add capacity or quota, or remove backups", key=key
        )
    if code in _DENIED or status in (401, 403):
        return AccessDenied(
            f"{said}; check the access key and its rights to this bucket and prefix", key=key
        )
    return StorageError(f"{said}; look at the service and the location's settings", key=key)


def _retry_after(error: boto.ClientError) -> float | None:
    """Return the seconds of a ``Retry-After`` header; its form as a date is left aside."""
    value = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


def _wraps(error: BaseException | None, wanted: Callable[[BaseException], bool]) -> bool:
    """Tell whether ``error``, or anything that it wraps, is what is wanted."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if wanted(error):
            return True
        seen.append(error)
        wrapped = getattr(error, "kwargs", {}).get("error") or next(iter(error.args), None)
        error = wrapped if isinstance(wrapped, BaseException) else error.__cause__
    return False


def _line(error: Exception) -> str:
    """Return the error's message as one short line of printable characters."""
    text = str(error)
    if isinstance(error, boto.ClientError):
        text = str(error.response["Error"].get("Message", ""))
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= 300 else f"{clean[:300]}..."
