"""Requests signed by the service's clock where ours is wrong.

A signature carries its time, and a service refuses one that is a quarter of an hour from its own
clock. The refusal tells what time it is there, so the next request can be signed for that.
"""

import datetime
import email.utils
import logging
from typing import TYPE_CHECKING, Any

import botocore.auth
import botocore.exceptions as boto

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_log = logging.getLogger(__name__)

_SIGNER = "podlift-s3v4"
_AHEAD = "podlift-ahead"
_KNOWN = datetime.timedelta(seconds=60)


class ServiceClock:
    """How far the clock of one service is ahead of ours, as far as it complained."""

    def __init__(self) -> None:
        self._ahead = datetime.timedelta()

    def learn(self, error: boto.ClientError, place: str) -> None:
        """Take the time out of a refusal that is about time; any other is left alone."""
        if error.response["Error"].get("Code") != "RequestTimeTooSkewed":
            return
        headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        try:
            there = email.utils.parsedate_to_datetime(headers.get("date", ""))
            before, self._ahead = self._ahead, there - datetime.datetime.now(datetime.UTC)
        except (TypeError, ValueError):
            return
        if abs(self._ahead - before) < _KNOWN:
            return  # another thread has said it
        seconds = self._ahead.total_seconds()
        _log.warning(
            "the clock of this machine is %.0f seconds %s that of %s, by which requests are signed"
            " from now on: set the clock of this machine",
            abs(seconds), "behind" if seconds > 0 else "ahead of", place,
        )  # fmt: skip

    def govern(self, client: "S3Client") -> None:
        """Let a new client sign by this clock."""
        events = client.meta.events
        events.register("choose-signer.s3", self._choose_signer)  # type: ignore[arg-type] # may answer
        events.register("before-sign.s3", self._before_sign)

    def _choose_signer(self, signature_version: Any, **_: Any) -> str | None:
        return _SIGNER if self._ahead and signature_version == "s3v4" else None

    def _before_sign(self, request: Any, **_: Any) -> None:
        request.context[_AHEAD] = self._ahead


class _ByServiceClock(botocore.auth.S3SigV4Auth):
    """Signs as ever, for another time."""

    def _modify_request_before_signing(self, request: Any) -> None:
        format = botocore.auth.SIGV4_TIMESTAMP
        ours = datetime.datetime.strptime(request.context["timestamp"], format)  # noqa: DTZ007 - UTC
        request.context["timestamp"] = (ours + request.context[_AHEAD]).strftime(format)
        super()._modify_request_before_signing(request)  # type: ignore[misc] # not in the stubs


botocore.auth.AUTH_TYPE_MAPS[_SIGNER] = _ByServiceClock  # how botocore finds a signer by its name
