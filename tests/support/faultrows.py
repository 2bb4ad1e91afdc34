"""The fault table: what goes wrong between us and a service, as rows that any client can play.

The rows are those of s3.md section 4 and of what came after it. A row uploads objects by its
workers through a fault proxy. Tests play them small and fast, ``benchmarks/bench_faults.py``
plays them with 16 MiB and beside boto3.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from agent.errors import AccessDenied, BucketMissing, CredentialsExpired, StorageError, StorageFull
from tests.support.faultproxy import Fault, FaultProxy, Kind, reply
from tests.support.s3servers import S3Server

ALWAYS = 1_000_000
CHECKSUM_HEADERS = "x-amz-checksum-|x-amz-sdk-checksum|x-amz-trailer"


class Side(Protocol):
    """A client with an opinion about faults."""

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""

    def put_new(self, key: str, body: bytes) -> None:
        """Store an object that nobody else may have stored."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large and how slow: ``size`` bytes an object; ``pace`` stretches all seconds."""

    size: int
    pace: float = 1.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    ``down_seconds`` is how long the server is away, ``most`` how many uploads it takes at a
    time, ``patience_seconds`` the time-outs of connection and answer (None: the client's own).
    ``fails`` is the error that is right, where none can be avoided.
    """

    name: str
    what: str
    faults: tuple[tuple[Fault, int], ...] = ()
    puts: int = 1
    workers: int = 4
    new: bool = False
    down_seconds: float = 0.0
    most: int = 0
    header: str = ""
    patience_seconds: float | None = None
    fails: type[StorageError] | None = None


def rows(scale: Scale) -> list[Row]:
    """Return the table."""
    return [*_throttled(), *_broken(scale), *_slow(scale), *_away(scale), *_refused()]


def _throttled() -> Iterator[Row]:
    yield Row("A2", "5 x 503 before the body", ((reply(503, "SlowDown"), 5),))
    yield Row("A3", "5 x 503 after the body", ((reply(503, "SlowDown", late=True), 5),))
    yield Row(
        "A5", "60 x 503 over 40 puts, 8 workers", ((reply(503, "SlowDown"), 60),), 40, workers=8
    )
    yield Row("A6", "503 beyond 2 at a time, 24 puts, 8 workers", puts=24, workers=8, most=2)
    yield Row("A7", "20 x 500 over 16 puts", ((reply(500, "InternalError"), 20),), puts=16)


def _broken(scale: Scale) -> Iterator[Row]:
    yield Row("B2", "4 resets in the body", ((Fault(Kind.RESET, at=scale.size // 4), 4),))
    lost = Fault(Kind.LOST_REPLY)
    yield Row("C2", "reply lost after the store", ((lost, 1),))
    yield Row("C3", "the same, If-None-Match: *", ((lost, 1),), new=True)
    yield Row("B3", "a bit flips on the way, twice", ((Fault(Kind.CORRUPT_UPLOAD, at=99), 2),))


def _slow(scale: Scale) -> Iterator[Row]:
    patience, rate = 5 * scale.pace, scale.size / (8 * scale.pace)
    for name, what, fault in (
        ("D1", "no answer", Fault(Kind.STALL, at=scale.size)),
        ("D2", "stalls in the body", Fault(Kind.STALL, at=scale.size // 2)),
        ("D3", f"a link of {rate / (1 << 20):g} MiB/s", Fault(Kind.SLOW, rate=rate)),
    ):
        said = f"{what}; time-outs {patience:g} s"
        yield Row(name, said, ((fault, 1),), patience_seconds=patience)


def _away(scale: Scale) -> Iterator[Row]:
    for name, seconds, puts in (("E1", 6, 1), ("E2", 6, 16), ("E3", 150, 16)):
        down = seconds * scale.pace
        yield Row(name, f"server down {down:g} s, {puts} puts", puts=puts, down_seconds=down)


def _refused() -> Iterator[Row]:
    yield Row("F1", "2 x RequestTimeTooSkewed", ((reply(403, "RequestTimeTooSkewed"), 2),))
    yield Row("F2", "2 x ExpiredToken", ((reply(400, "ExpiredToken"), 2),))
    yield Row(
        "F3", "ExpiredToken for ever", ((reply(400, "ExpiredToken"), ALWAYS),),
        fails=CredentialsExpired,
    )  # fmt: skip
    yield Row(
        "G1", "AccessDenied", ((reply(403, "AccessDenied"), ALWAYS),), fails=AccessDenied
    )  # fmt: skip
    yield Row(
        "G2", "NoSuchBucket", ((reply(404, "NoSuchBucket"), ALWAYS),), fails=BucketMissing
    )  # fmt: skip
    full = reply(507, "XMinioStorageFull")
    yield Row("G3", "the storage is full", ((full, ALWAYS),), fails=StorageFull)
    refused = reply(400, "InvalidArgument")
    yield Row(
        "H1", "400 for a checksum header, 8 puts", ((refused, ALWAYS),), puts=8,
        header=CHECKSUM_HEADERS,
    )  # fmt: skip


@dataclasses.dataclass
class Outcome:
    """How it went: ``errors`` of puts that failed, ``lost`` keys that were acknowledged and are
    not there or not whole, ``idle`` workers that took no task afterwards."""

    seconds: float
    sent_bytes: int
    requests: int
    errors: list[Exception]
    lost: list[str]
    idle: int

    def survived(self, row: Row) -> bool:
        """Tell whether this is what should come of the row."""
        if row.fails is not None:
            right = len(self.errors) == row.puts
            return right and all(type(error) is row.fails for error in self.errors)
        return not self.errors and not self.lost and not self.idle


class Player:
    """Plays rows against one bucket of a server."""

    def __init__(self, server: S3Server, proxy: FaultProxy, scale: Scale) -> None:
        self._proxy = proxy
        self._scale = scale
        self._base = bytearray(hashlib.shake_256(b"fault table").digest(scale.size))
        self._direct = server.client()
        self.bucket = server.make_bucket()

    def close(self) -> None:
        """Close the client that looks at what arrived."""
        self._direct.close()

    def play(self, row: Row, side: Side) -> Outcome:
        """Upload the row's objects while its faults happen, then look at what came of it."""
        keys = [f"{row.name}-{number}" for number in range(row.puts)]
        self._proxy.requests.clear()
        for fault, times in row.faults:
            self._proxy.add(fault, "PUT", times=times, header=row.header)
        self._proxy.most = row.most
        with concurrent.futures.ThreadPoolExecutor(row.workers) as pool:
            began = time.monotonic()
            with self._away(row.down_seconds):
                puts = {key: pool.submit(self._put, row, side, key) for key in keys}
                concurrent.futures.wait(puts.values())
                seconds = time.monotonic() - began
            requests = [each for each in self._proxy.requests if each.method == "PUT"]
            sent, count = sum(each.body_bytes for each in requests), len(requests)
            self._proxy.clear()
            self._proxy.most = 0
            errors = [e for each in puts.values() if isinstance(e := each.exception(), Exception)]
            lost = [k for k, each in puts.items() if not each.exception() and not self._whole(k)]
            idle = self._idle(row, side, pool)
        self._remove(keys)
        return Outcome(seconds, sent, count, errors, lost, idle)

    def _put(self, row: Row, side: Side, key: str) -> None:
        (side.put_new if row.new else side.put)(key, self._body(key))

    def _body(self, key: str) -> bytes:
        """Return a body that no other key has."""
        return key.encode().ljust(32) + bytes(memoryview(self._base)[32:])

    def _whole(self, key: str) -> bool:
        with contextlib.suppress(self._direct.exceptions.ClientError):
            answer = self._direct.get_object(Bucket=self.bucket, Key=key)
            return bool(answer["Body"].read() == self._body(key))
        return False

    def _idle(self, row: Row, side: Side, pool: concurrent.futures.Executor) -> int:
        """Return how many workers do not take one more task, all at the same time."""
        together = threading.Barrier(row.workers)

        def task(number: int) -> None:
            together.wait(30)
            side.put(f"{row.name}-after-{number}", b"still here")

        tasks = [pool.submit(task, number) for number in range(row.workers)]
        return sum(each.exception() is not None for each in tasks)

    def _remove(self, keys: list[str]) -> None:
        for key in keys:
            self._direct.delete_object(Bucket=self.bucket, Key=key)

    @contextlib.contextmanager
    def _away(self, seconds: float) -> Iterator[None]:
        """Take the server away for ``seconds`` from now, and wait for its return at the end."""
        if not seconds:
            yield
            return
        self._proxy.down()
        timer = threading.Timer(seconds, self._proxy.up)
        timer.start()
        try:
            yield
        finally:
            timer.join()
