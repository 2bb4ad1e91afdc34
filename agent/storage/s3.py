"""A prefix of an S3 bucket: one PUT an object, one attempt a call.

Nothing is retried here; ``Retrying`` does that by the kind of error. An object goes out as
an unsigned payload under TLS with a checksum header, so a service that verifies refuses what
was changed on the way (s3.md sections 1 and 2). Most services do not verify: whoever reads must
check what arrives against its name.

Where the location has a customer's key (SSE-C), it goes with every put, get and head. What was
stored before it had one is still read: a service that says the key does not apply is asked without.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import botocore.exceptions as boto

from agent.budget import Rates
from agent.cancel import NEVER, CancelToken
from agent.errors import ObjectMissing, ObjectTooLarge, StorageError, Unreachable
from agent.storage.checksums import checksum_header
from agent.storage.contract import WHATEVER_BYTES, Buffer, Listed, Page, Room
from agent.storage.keys import check_folder, check_key, check_offset, check_prefix
from agent.storage.s3body import SLICE_BYTES, Body, Guard, Stopped
from agent.storage.s3client import LISTED, make_client
from agent.storage.s3clock import ServiceClock
from agent.storage.s3errors import FAILURES, dislikes_request, has_code, refuse
from agent.storage.s3lines import cut_by
from agent.storage.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")
_log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
"""How much of a download is read between two looks at the cancel token."""


class S3Storage:
    """The objects below one prefix. The client is made at the first call, and by ``renew``."""

    def __init__(self, settings: S3Settings, rates: Rates | None = None) -> None:
        self._settings = settings
        self._rates = rates or Rates()
        self._place = str(settings.address)
        self._reading = settings.keeping.to_read()
        self._writing = settings.keeping.to_write()
        self._lock = threading.Lock()
        self._made: S3Client | None = None
        self._worked = False
        self._clock = ServiceClock()
        self._checksum = settings.checksum
        self._checksum_proven = False

    @property
    def place(self) -> str:
        """Return the address, which carries no secret."""
        return self._place

    @property
    def waits(self) -> bool:
        """A service is far away."""
        return True

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        """Store ``body`` in one request that copies nothing of it."""
        with self._call(f"put {key} to", key, cancel):
            self._send(key, body, sha256, cancel)

    def put_new(self, key: str, body: Buffer, *, cancel: CancelToken = NEVER) -> bool:
        """Store ``body`` unless the key exists; exactly one of several callers gets True.

        The condition is ``If-None-Match: *``. Writing a second time shows whether the service
        heeds it; where it does not, the last writer's bytes stay and decide
        (s3.md section 3, "silently ignore conditional writes").
        """
        try:
            self.size(key, cancel=cancel)
        except ObjectMissing:
            pass
        else:
            return self._holds(key, body, cancel)
        for _ in range(2):
            if not self._send_new(key, body, cancel):
                return self._holds(key, body, cancel)
        cancel.pause(self._settings.patience.rival_seconds)
        return self._holds(key, body, cancel)

    def get(
        self, key: str, *, most_bytes: int = WHATEVER_BYTES, cancel: CancelToken = NEVER
    ) -> bytes:
        """Return the whole object; raises ``ObjectMissing`` and ``ObjectTooLarge``."""
        with self._call(f"get {key} from", key, cancel):
            answer = self._get(key)
            if (size := answer["ContentLength"]) > most_bytes:
                answer["Body"].close()
                raise ObjectTooLarge(key, self._place, size, most_bytes)
            parts = list(self._parts(answer, cancel))
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        """Fill ``out`` with the bytes from ``offset``."""
        check_offset(key, offset)
        length = len(out)
        if length == 0:
            self._get_nothing(key, offset, cancel)
            return
        with self._call(f"get {key} from", key, cancel):
            answer = self._get(key, Range=f"bytes={offset}-{offset + length - 1}")
            if answer["ContentLength"] != length:
                answer["Body"].close()
                raise StorageError(
                    f"get {key} from {self._place}: {length} bytes from {offset} were asked for"
                    f" and {answer['ContentLength']} came; the object was cut short, or the"
                    " service does not serve ranges",
                    key=key,
                )
            done = 0
            for part in self._parts(answer, cancel):
                if done + len(part) > length:  # in chunks, whatever the length that was announced
                    raise Unreachable(
                        f"get {key} from {self._place}: more than the {length} bytes that were asked"
                        " for came; check what stands between here and the service",
                        key=key,
                    )
                out[done : done + len(part)] = part
                done += len(part)

    def size(self, key: str, *, cancel: CancelToken = NEVER) -> int:
        """Return the object's size in bytes; raises ``ObjectMissing``."""
        name = self._name(key)
        with self._call(f"look for {key} in", key, cancel):
            try:
                ask = functools.partial(self._client().head_object, Bucket=self._settings.bucket)
                return self._with_key(functools.partial(ask, Key=name))["ContentLength"]
            except boto.ClientError as error:
                if has_code(error):
                    raise
            with contextlib.closing(self._get(key)["Body"]):  # says in words what HEAD cannot
                raise Unreachable(
                    f"look for {key} in {self._place}: HEAD failed where GET did not", key=key
                )

    def list(self, prefix: str, *, cancel: CancelToken = NEVER) -> Iterator[Listed]:
        """Yield every object whose key starts with ``prefix``."""
        token: str | None = None
        while True:
            page = self.page(prefix, token, cancel=cancel)
            yield from page.listed
            if (token := page.next_token) is None:
                return

    def page(self, prefix: str, token: str | None, *, cancel: CancelToken = NEVER) -> Page:
        """Return one page of a listing, which is what can be retried."""
        root = self._root()
        asked: dict[str, Any] = {"Prefix": root + check_prefix(prefix)}
        if token is not None:
            asked["ContinuationToken"] = token
        with self._call(f"list {prefix} in", prefix, cancel):
            answer = self._client().list_objects_v2(Bucket=self._settings.bucket, **asked)
        pairs = answer[LISTED]  # type: ignore[literal-required] # left there by our own hook
        return Page(
            [Listed(key.removeprefix(root), size) for key, size in pairs],
            answer.get("NextContinuationToken") if answer["IsTruncated"] else None,
        )

    def folders(self, prefix: str, *, cancel: CancelToken = NEVER) -> tuple[str, ...]:
        """Return the folders right below ``prefix``, as the service groups them."""
        root = self._root() + check_folder(prefix)
        asked: dict[str, Any] = {"Prefix": root, "Delimiter": "/"}
        found: set[str] = set()
        while True:
            with self._call(f"list {prefix} in", prefix, cancel):
                answer = self._client().list_objects_v2(Bucket=self._settings.bucket, **asked)
            for group in answer.get("CommonPrefixes", ()):
                found.add(group["Prefix"].removeprefix(root).removesuffix("/"))
            if not answer["IsTruncated"]:
                return tuple(sorted(found))
            asked["ContinuationToken"] = answer["NextContinuationToken"]

    def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
        """Remove the object; removing what is not there is not an error."""
        name = self._name(key)
        with self._call(f"delete {key} in", key, cancel):
            try:
                self._client().delete_object(Bucket=self._settings.bucket, Key=name)
            except boto.ClientError as error:
                if error.response["Error"].get("Code") != "NoSuchKey":
                    raise

    def renew(self) -> None:
        """Forget the client: the next call reads the credentials again."""
        with self._lock:
            client, self._made = self._made, None
        if client is not None:
            client.close()

    def close(self) -> None:
        """Close the connections."""
        self.renew()

    @contextlib.contextmanager
    def _call(self, what: str, key: str, cancel: CancelToken) -> Iterator[None]:
        """Translate what goes wrong with a call of ``key``; a cancel cuts its connections."""
        cancel.check()
        try:
            with cut_by(cancel):
                yield
        except FAILURES as error:
            cancel.check()  # a line that was cut looks like one that broke
            if isinstance(error, boto.ClientError):
                self._clock.learn(error, self._place)
            key_in_use = " (with a customer key)" if self._reading else ""
            refuse(error, f"{what} {self._place}{key_in_use}", key, worked=self._worked)
        self._worked = True

    def _client(self) -> "S3Client":
        with self._lock:
            if self._made is None:
                self._made = make_client(self._settings, self._clock)
            return self._made

    def _root(self) -> str:
        return f"{self._settings.prefix}/" if self._settings.prefix else ""

    def _name(self, key: str) -> str:
        return self._root() + check_key(key)

    def _send(
        self, key: str, body: Buffer, sha256: bytes | None, cancel: CancelToken, **extra: Any
    ) -> None:
        """Store ``body`` with its checksum, unless the service knows no checksums.

        Whether it does is seen at the first upload: if that is refused as a request, and not
        without the header, then it was the header, and it is never sent again.
        """
        if not self._checksum:
            self._send_as(key, body, cancel, extra)
            return
        header = checksum_header(self._checksum, body, sha256)
        try:
            self._send_as(key, body, cancel, extra | header)
            self._checksum_proven = True
        except boto.ClientError as error:
            if self._checksum_proven or not dislikes_request(error):
                raise
            self._send_as(key, body, cancel, extra)
            self._do_without_checksum(error)

    def _do_without_checksum(self, error: boto.ClientError) -> None:
        with self._lock:
            known, self._checksum = not self._checksum, ""
        if not known:
            _log.warning(
                "%s refuses checksum headers (%s): objects are sent without, so nothing but TLS"
                " guards them on the way; set the location's checksumAlgorithm to \"\" to say so",
                self._place, error.response["Error"].get("Code"),
            )  # fmt: skip

    def _send_as(self, key: str, body: Buffer, cancel: CancelToken, extra: dict[str, Any]) -> None:
        name = self._name(key)
        size = memoryview(body).nbytes
        patience = self._settings.patience
        guard = Guard(cancel, patience.deadline_seconds(size), self._rates.upload)
        try:
            self._client().put_object(
                Bucket=self._settings.bucket,
                Key=name,
                Body=Body(body, guard),  # type: ignore[arg-type] # a file-like object is enough
                ContentLength=size,
                ContentType="application/octet-stream",
                **self._writing,
                **extra,
            )
        except Stopped:
            guard.check()
            raise

    def _send_new(self, key: str, body: Buffer, cancel: CancelToken) -> bool:
        """Store ``body`` and tell that the service has let us, or that the key exists."""
        with self._call(f"put {key} to", key, cancel):
            try:
                self._send(key, body, None, cancel, IfNoneMatch="*")
            except boto.ClientError as error:
                if error.response["ResponseMetadata"].get("HTTPStatusCode") == 412:
                    return False
                raise
        return True

    def _holds(self, key: str, body: Buffer, cancel: CancelToken) -> bool:
        """Tell whether the object is ``body``."""
        return self.get(key, cancel=cancel) == bytes(body)

    def _get(self, key: str, **extra: Any) -> "GetObjectOutputTypeDef":
        ask = functools.partial(self._client().get_object, Bucket=self._settings.bucket, **extra)
        return self._with_key(functools.partial(ask, Key=self._name(key)))

    def _with_key(self, ask: Callable[..., T]) -> T:
        """Ask for an object by the customer's key, and without if it does not apply to this one."""
        try:
            return ask(**self._reading)
        except boto.ClientError as error:
            if not self._reading or not dislikes_request(error):
                raise
            try:
                return ask()
            except boto.ClientError as other:
                raise (error if dislikes_request(other) else other) from None

    def _parts(self, answer: "GetObjectOutputTypeDef", cancel: CancelToken) -> Iterator[bytes]:
        size = answer["ContentLength"]
        rate = self._rates.download
        guard = Guard(cancel, self._settings.patience.deadline_seconds(size), rate)
        step = SLICE_BYTES if rate.limited else READ_BYTES
        with contextlib.closing(answer["Body"]) as body:
            while part := body.read(step):
                guard.move(len(part))
                yield part

    def _get_nothing(self, key: str, offset: int, cancel: CancelToken) -> None:
        """Look whether there is an empty range, which HTTP cannot ask for."""
        size = self.size(key, cancel=cancel)
        if offset > size:
            raise StorageError(
                f"{key} in {self._place} has {size} bytes; it has no byte {offset}", key=key
            )
