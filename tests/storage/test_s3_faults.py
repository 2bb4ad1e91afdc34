"""What the S3 storage makes of a bad line and an overloaded service, through a real proxy."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import email.utils
import hashlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from agent.cancel import CancelToken
from agent.errors import (
    AccessDenied,
    Canceled,
    CredentialsExpired,
    IntegrityRefused,
    ObjectMissing,
    StorageError,
    Throttled,
    Unreachable,
)
from agent.storage.contract import read_range
from agent.storage.retry import Retrying
from agent.storage.s3 import S3Storage
from agent.storage.settings import Patience, S3Settings
from tests.storage.conftest import FlyingClock
from tests.support.faultproxy import Fault, FaultProxy, Kind, reply
from tests.support.ports import free_port
from tests.support.s3servers import S3Server, write_credentials

BODY = random.Random(5).randbytes(3 << 20)
HUGE = bytes(24 << 20)  # more than the buffers of loopback hold
PATIENT = Patience()
SHORT = Patience(connect_seconds=0.4, read_seconds=0.4)


def test_an_early_503_costs_no_body_and_is_throttling(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    proxy.add(reply(503, "SlowDown", retry_after="3"), "PUT")
    with pytest.raises(Throttled, match="answered SlowDown") as caught:
        S3Storage(proxied).put("x", BODY)
    assert caught.value.retry_after_seconds == 3
    assert caught.value.key == "x"
    assert [r.body_bytes for r in proxy.requests] == [0]


@pytest.mark.parametrize("late", [False, True])
def test_a_burst_of_503_is_survived(proxy: FaultProxy, proxied: S3Settings, late: bool) -> None:
    proxy.add(reply(503, "SlowDown", late=late), "PUT", times=5)
    storage = Retrying(S3Storage(proxied), clock=FlyingClock())
    storage.put("x", BODY)
    assert storage.get("x") == BODY
    assert [r.method for r in proxy.requests] == ["PUT"] * 6 + ["GET"]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "InternalError", Unreachable),
        (502, "", Unreachable),
        (503, "ServiceUnavailable", Throttled),
        (429, "TooManyRequests", Throttled),
        (400, "RequestTimeout", Unreachable),
        (403, "RequestTimeTooSkewed", Unreachable),
        (400, "ExpiredToken", CredentialsExpired),
        (403, "AccessDenied", AccessDenied),
        (501, "NotImplemented", StorageError),
    ],
)
def test_each_answer_is_one_kind_and_boto_repeats_nothing(
    proxy: FaultProxy, proxied: S3Settings, status: int, code: str, kind: type[StorageError]
) -> None:
    proxy.add(reply(status, code), "GET", times=99)
    proxy.add(reply(status, code), "HEAD", times=99)
    proxy.add(reply(status, code), "DELETE", times=99)
    storage = S3Storage(proxied)
    for call in (storage.get, storage.delete, lambda key: list(storage.list(key))):
        proxy.requests.clear()
        with pytest.raises(StorageError) as caught:
            call("x")
        assert type(caught.value) is kind
        assert len(proxy.requests) == 1
    with pytest.raises(StorageError) as caught:
        storage.size("x")  # HEAD tells no code: a GET does
    assert type(caught.value) is kind


def test_a_reset_in_the_middle_of_a_body_is_survived(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    proxy.add(Fault(Kind.RESET, at=1 << 20), "PUT", times=4)
    storage = Retrying(S3Storage(proxied), clock=FlyingClock())
    storage.put("x", BODY, sha256=hashlib.sha256(BODY).digest())
    assert storage.get("x") == BODY
    assert len(proxy.requests) == 6


def test_a_lost_reply_is_unreachable_and_the_object_is_there(
    proxy: FaultProxy, proxied: S3Settings, direct: S3Settings
) -> None:
    proxy.add(Fault(Kind.LOST_REPLY), "PUT")
    with pytest.raises(Unreachable):
        S3Storage(proxied).put("x", BODY)
    assert S3Storage(direct).get("x") == BODY


def test_a_new_object_whose_reply_was_lost_is_still_ours(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    proxy.add(Fault(Kind.LOST_REPLY), "PUT")
    storage = Retrying(S3Storage(proxied), clock=FlyingClock())
    assert storage.put_new("config", b"ours")
    assert not storage.put_new("config", b"theirs")


def through(proxy: FaultProxy, server: S3Server) -> S3Settings:
    return server.settings(
        endpoint_url=proxy.endpoint_url, verify=str(proxy.ca), patience=Patience(rival_seconds=0)
    )


def test_a_service_that_ignores_conditions_still_has_one_winner(moto_server: S3Server) -> None:
    with FaultProxy(moto_server) as proxy:
        proxy.add(Fault(Kind.IGNORE_CONDITION), "PUT", times=99)
        settings = through(proxy, moto_server)
        storage, rival = S3Storage(settings), S3Storage(settings)

        class RivalWritesMeanwhile(CancelToken):
            def pause(self, seconds: float) -> None:
                rival.put("config", b"the rival came last")

        assert not storage.put_new("config", b"ours", cancel=RivalWritesMeanwhile())
        assert storage.put_new("other", b"alone")


def test_a_new_object_that_is_refused_for_another_reason_is_an_error(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    proxy.add(reply(403, "AccessDenied"), "PUT")
    proxy.add(Fault(Kind.RESET), "PUT")
    for kind in (AccessDenied, Unreachable):
        with pytest.raises(kind):
            S3Storage(proxied).put_new("config", b"1")


def test_a_peer_that_stops_reading_is_noticed(proxy: FaultProxy, proxied: S3Settings) -> None:
    proxy.add(Fault(Kind.STALL, at=1 << 20), "PUT")
    with pytest.raises(Unreachable):
        S3Storage(dataclasses.replace(proxied, patience=SHORT)).put("x", HUGE)


def test_a_peer_that_never_answers_is_noticed(proxy: FaultProxy, proxied: S3Settings) -> None:
    proxy.add(Fault(Kind.STALL, at=len(BODY)), "PUT")
    proxy.add(Fault(Kind.STALL), "GET")
    storage = S3Storage(dataclasses.replace(proxied, patience=SHORT))
    with pytest.raises(Unreachable, match="check the endpoint and the network"):
        storage.put("x", BODY)
    with pytest.raises(Unreachable):
        storage.get("x")


def test_an_attempt_ends_at_its_deadline_and_the_client_stays_usable(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    hurried = dataclasses.replace(PATIENT, attempt_seconds=-1.0)
    late = S3Storage(dataclasses.replace(proxied, patience=hurried))
    with pytest.raises(Unreachable, match="seconds of one attempt"):
        late.put("x", bytes(1024))
    S3Storage(proxied).put("x", BODY)
    much_too_late = dataclasses.replace(PATIENT, attempt_seconds=-999.0)
    with pytest.raises(Unreachable, match="seconds of one attempt"):
        S3Storage(dataclasses.replace(proxied, patience=much_too_late)).get("x")
    late.put("empty", b"")
    assert late.size("empty") == 0


@pytest.mark.parametrize("kind", [Kind.TRUNCATE_DOWNLOAD, Kind.STALL_DOWNLOAD])
def test_a_download_that_breaks_off_is_repeated(
    proxy: FaultProxy, proxied: S3Settings, kind: Kind
) -> None:
    S3Storage(proxied).put("x", BODY)
    inner = S3Storage(dataclasses.replace(proxied, patience=SHORT))
    proxy.add(Fault(kind, at=100_000), "GET", times=3)
    with pytest.raises(Unreachable):
        inner.get("x")
    with pytest.raises(Unreachable):
        read_range(inner, "x", 10, 200_000)
    assert Retrying(inner, clock=FlyingClock()).get("x") == BODY


def test_a_range_that_is_longer_than_it_was_announced_goes_nowhere_and_is_repeated(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    inner = S3Storage(proxied)
    inner.put("x", b"0123456789")
    proxy.add(Fault(Kind.LONG_DOWNLOAD, at=3), "GET", times=2)
    lent = bytearray(b"--------")
    with pytest.raises(Unreachable, match="more than the 4 bytes"):
        inner.get_range("x", 2, memoryview(lent)[2:6])
    Retrying(inner, clock=FlyingClock()).get_range("x", 2, memoryview(lent)[2:6])
    assert lent == b"--2345--"


def test_a_corrupt_download_is_the_readers_to_find(proxy: FaultProxy, proxied: S3Settings) -> None:
    storage = S3Storage(proxied)
    storage.put("x", b"0123456789")
    proxy.add(Fault(Kind.CORRUPT_DOWNLOAD, at=3), "GET")
    assert storage.get("x") == b"0122456789"
    assert storage.get("x") == b"0123456789"


def test_a_corrupt_upload_is_refused_by_a_service_that_checks_and_sent_again(
    checking_server: S3Server, proxy: FaultProxy, proxied: S3Settings
) -> None:
    proxy.add(Fault(Kind.CORRUPT_UPLOAD, at=1 << 20), "PUT", times=2)
    inner = S3Storage(proxied)
    with pytest.raises(IntegrityRefused, match="changed on the way"):
        inner.put("x", BODY)
    with pytest.raises(ObjectMissing):
        inner.get("x")
    Retrying(inner, clock=FlyingClock()).put("x", BODY)
    assert inner.get("x") == BODY


def test_renewed_credentials_are_read_from_the_file(
    s3_server: S3Server, proxy: FaultProxy, proxied: S3Settings
) -> None:
    assert proxied.credentials_file is not None
    path = s3_server.credentials_file("OLDKEYOLDKEYOLDKEY", "old")
    proxy.add(reply(400, "ExpiredToken"), "PUT")
    inner = S3Storage(dataclasses.replace(proxied, credentials_file=str(path)))
    with pytest.raises(CredentialsExpired):
        inner.put("x", b"1")
    write_credentials(path, s3_server.access_key, s3_server.secret_key)
    proxy.add(reply(400, "ExpiredToken"), "PUT")
    Retrying(inner, clock=FlyingClock()).put("x", b"1")
    used = [r.headers["authorization"] for r in proxy.requests]
    assert ["OLDKEY" in used[0], "OLDKEY" in used[1], "OLDKEY" in used[2]] == [True, True, False]
    assert inner.get("x") == b"1"


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_a_key_that_was_exchanged_is_read_again_and_one_that_never_worked_is_wrong(
    s3_server: S3Server, proxy: FaultProxy, proxied: S3Settings, code: str
) -> None:
    proxy.add(reply(403, code), "PUT")
    with pytest.raises(AccessDenied, match=code):
        Retrying(S3Storage(proxied), clock=FlyingClock()).put("x", b"1")
    path = s3_server.credentials_file()
    storage = S3Storage(dataclasses.replace(proxied, credentials_file=str(path)))
    storage.put("x", b"1")
    proxy.add(reply(403, code), "PUT", times=2)  # until the changed file arrives
    proxy.requests.clear()
    clock = FlyingClock()
    retrying = Retrying(storage, clock=clock)
    assert retrying.get("x") == b"1"
    retrying.put("x", b"1")
    assert clock.time == 15
    proxy.add(reply(403, code), "PUT", times=99)
    with pytest.raises(CredentialsExpired, match="worked and are refused now"):
        retrying.put("x", b"1")


@pytest.mark.parametrize(("ahead", "words"), [(3600, "behind"), (-7200, "ahead of")])
def test_requests_are_signed_by_the_services_clock_when_ours_is_wrong(
    moto_server: S3Server, caplog: pytest.LogCaptureFixture, ahead: int, words: str
) -> None:
    with FaultProxy(moto_server) as proxy:
        inner = S3Storage(through(proxy, moto_server))
        there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
        date = email.utils.format_datetime(there)
        proxy.add(reply(403, "RequestTimeTooSkewed", date=date), "PUT", times=1)
        storage = Retrying(inner, clock=FlyingClock())
        storage.put("x", BODY)
        inner.renew()
        assert storage.get("x") == BODY
    used = [
        datetime.datetime.strptime(r.headers["x-amz-date"], "%Y%m%dT%H%M%S%z") - there
        for r in proxy.requests
    ]
    near = [abs(each) < datetime.timedelta(seconds=60) for each in used]
    assert near == [False, True, True]
    scopes = [r.headers["authorization"].partition("/")[2][:8] for r in proxy.requests]
    assert scopes == [r.headers["x-amz-date"][:8] for r in proxy.requests]
    assert f"seconds {words} that of" in caplog.text


def test_a_clock_that_is_said_to_be_wrong_without_saying_how_is_left(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    for headers in ({}, {"date": "no date"}):
        proxy.add(reply(403, "RequestTimeTooSkewed", **headers), "PUT")
    Retrying(S3Storage(proxied), clock=FlyingClock()).put("x", BODY)
    assert len(proxy.requests) == 3


def test_a_service_that_ignores_ranges_is_an_error(moto_server: S3Server) -> None:
    with FaultProxy(moto_server) as proxy:
        storage = S3Storage(through(proxy, moto_server))
        storage.put("x", BODY)
        proxy.add(Fault(Kind.IGNORE_RANGE), "GET")
        with pytest.raises(StorageError, match="10 bytes from 5 were asked for"):
            read_range(storage, "x", 5, 10)


def test_a_server_that_is_down_is_unreachable(direct: S3Settings) -> None:
    down = dataclasses.replace(direct, endpoint_url=f"https://127.0.0.1:{free_port()}")
    with pytest.raises(Unreachable, match="check the endpoint"):
        S3Storage(down).get("x")


def test_a_head_that_fails_alone_is_passing(proxy: FaultProxy, proxied: S3Settings) -> None:
    storage = S3Storage(proxied)
    storage.put("x", b"1")
    proxy.add(reply(503, "SlowDown"), "HEAD")
    with pytest.raises(Unreachable, match="HEAD failed where GET did not"):
        storage.size("x")


def test_what_goes_over_the_line_is_lean(proxy: FaultProxy, proxied: S3Settings) -> None:
    digest = hashlib.sha256(BODY)
    S3Storage(proxied).put("x", BODY, sha256=digest.digest())
    S3Storage(dataclasses.replace(proxied, checksum="")).put("x", BODY)
    with_checksum, without = (r.headers for r in proxy.requests)
    assert with_checksum["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert with_checksum["content-length"] == str(len(BODY))
    assert with_checksum["expect"] == "100-continue"
    assert "content-encoding" not in with_checksum
    assert "transfer-encoding" not in with_checksum
    sums = [{n: v for n, v in h.items() if "checksum" in n or "md5" in n or "trailer" in n}
            for h in (with_checksum, without)]  # fmt: skip
    assert list(sums[0]) == ["x-amz-checksum-sha256"]
    assert sums[1] == {}


@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidArgument"), (400, "InvalidRequest"), (501, "NotImplemented")]
)
def test_a_service_that_refuses_checksums_is_served_without(
    proxy: FaultProxy,
    proxied: S3Settings,
    caplog: pytest.LogCaptureFixture,
    status: int,
    code: str,
) -> None:
    proxy.add(reply(status, code), "PUT", times=99, header="x-amz-checksum-")
    storage = S3Storage(proxied)
    assert storage.put_new("config", b"1")
    for key in ("x", "y"):
        storage.put(key, BODY)
        assert storage.get(key) == BODY
    puts = [r for r in proxy.requests if r.method == "PUT"]
    assert [("x-amz-checksum-sha256" in r.headers) for r in puts] == [True, *[False] * 4]
    assert len([r for r in caplog.records if "refuses checksum headers" in r.message]) == 1


def test_a_request_that_is_refused_without_checksum_too_is_refused_for_itself(
    proxy: FaultProxy, proxied: S3Settings, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.add(reply(400, "InvalidArgument"), "PUT", times=2)
    storage = S3Storage(proxied)
    with pytest.raises(StorageError, match="InvalidArgument"):
        storage.put("x", BODY)
    storage.put("x", BODY)
    proxy.add(reply(400, "InvalidArgument"), "PUT")  # by now checksums are known to be accepted
    with pytest.raises(StorageError, match="InvalidArgument"):
        storage.put("y", BODY)
    puts = [r for r in proxy.requests if r.method == "PUT"]
    assert [("x-amz-checksum-sha256" in r.headers) for r in puts] == [True, False, True, True]
    assert "refuses checksum" not in caplog.text


def test_a_delete_that_finds_nothing_is_done_and_one_that_breaks_is_not(
    proxy: FaultProxy, proxied: S3Settings
) -> None:
    storage = S3Storage(proxied)
    proxy.add(reply(404, "NoSuchKey"), "DELETE")  # as some services answer
    storage.delete("x")
    proxy.add(Fault(Kind.RESET), "DELETE")
    with pytest.raises(Unreachable):
        storage.delete("x")


STALLS: list[tuple[str, Fault, str, Callable[[S3Storage, CancelToken], object]]] = [
    ("a body that nobody takes", Fault(Kind.STALL, at=1 << 20), "PUT",
     lambda s, cancel: s.put("x", HUGE, cancel=cancel)),
    ("no answer to a put", Fault(Kind.STALL, at=len(BODY)), "PUT",
     lambda s, cancel: s.put("x", BODY, cancel=cancel)),
    ("no answer to a get", Fault(Kind.STALL), "GET", lambda s, cancel: s.get("y", cancel=cancel)),
    ("a download that stops", Fault(Kind.STALL_DOWNLOAD, at=100_000), "GET",
     lambda s, cancel: read_range(s, "y", 0, 1 << 20, cancel=cancel)),
    ("no answer to a look", Fault(Kind.STALL), "HEAD", lambda s, cancel: s.size("y", cancel=cancel)),
    ("no answer to a listing", Fault(Kind.STALL), "GET",
     lambda s, cancel: list(s.list("", cancel=cancel))),
    ("no answer to a delete", Fault(Kind.STALL), "DELETE",
     lambda s, cancel: s.delete("y", cancel=cancel)),
]  # fmt: skip


@pytest.mark.parametrize("fresh", [False, True], ids=["kept line", "new line"])
@pytest.mark.parametrize(
    ("fault", "method", "call"), [each[1:] for each in STALLS], ids=[each[0] for each in STALLS]
)
def test_a_cancel_ends_a_stalled_call_at_once_and_the_client_stays_usable(
    proxy: FaultProxy,
    proxied: S3Settings,
    fault: Fault,
    method: str,
    call: Callable[[S3Storage, CancelToken], object],
    fresh: bool,
) -> None:
    storage = S3Storage(dataclasses.replace(proxied, patience=Patience()))  # would wait for 60 s
    storage.put("y", BODY)
    if fresh:
        storage.renew()
    proxy.add(fault, method)
    cancel = CancelToken()
    before = len(proxy.requests)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(call, storage, cancel)
        while len(proxy.requests) == before and not stalled.done():
            time.sleep(0.01)
        time.sleep(0.1)
        assert not stalled.done()
        cancel.cancel("the pod is asked to end")
        with pytest.raises(Canceled, match="asked to end"):
            stalled.result(timeout=5)
    storage.put("z", BODY)
    assert storage.get("z") == BODY


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """Listen on a port whose queue is full, so that no connection is made."""
    with contextlib.ExitStack() as lines:
        listener = lines.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            line = lines.enter_context(socket.socket())
            line.setblocking(False)
            line.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """Listen on a port where connections are made and nothing is said, not even of TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("peer", [deaf, mute])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_cancel_ends_the_wait_for_a_connection(
    direct: S3Settings, peer: Callable[[], AbstractContextManager[int]], scheme: str
) -> None:
    cancel = CancelToken()
    with peer() as port, concurrent.futures.ThreadPoolExecutor(1) as pool:
        there = dataclasses.replace(direct, endpoint_url=f"{scheme}://127.0.0.1:{port}")
        waiting = pool.submit(S3Storage(there).get, "x", cancel=cancel)
        time.sleep(0.5)
        assert not waiting.done()
        cancel.cancel("the pod is asked to end")
        with pytest.raises(Canceled, match="asked to end"):
            waiting.result(timeout=5)


def test_a_call_leaves_no_descriptor_behind(direct: S3Settings) -> None:
    storage = S3Storage(direct)
    storage.put("x", BODY)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        storage.put("x", BODY)
        storage.get("x")
    assert len(os.listdir("/proc/self/fd")) == before
