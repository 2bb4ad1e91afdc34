"""What the tests of the S3 storage share: a proxy before the server, and a clock that flies."""

import dataclasses
from collections.abc import Iterator

import pytest

from agent.cancel import CancelToken
from agent.storage.settings import Patience, S3Settings
from tests.support.faultproxy import FaultProxy
from tests.support.s3servers import S3Server

PATIENCE = Patience(connect_seconds=2.0, read_seconds=2.0, rival_seconds=0.0)


class FlyingClock:
    """Time passes at once."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float, cancel: CancelToken) -> None:
        cancel.check()
        self.time += seconds


@pytest.fixture(scope="session")
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def direct(s3_server: S3Server, bucket: str, request: pytest.FixtureRequest) -> S3Settings:
    """Return settings of a prefix of this test's own."""
    return s3_server.settings(f"tests/{abs(hash(request.node.nodeid))}", bucket=bucket)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: FaultProxy, direct: S3Settings) -> S3Settings:
    """Return the same settings by way of the proxy."""
    return dataclasses.replace(
        direct, endpoint_url=proxy.endpoint_url, verify=str(proxy.ca), patience=PATIENCE
    )
