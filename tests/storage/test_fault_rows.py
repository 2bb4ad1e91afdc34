"""The fault table (s3.md section 4) by our storage layer, small and fast: all rows are survived.

``benchmarks/bench_faults.py`` plays the same rows at full size and with real patience.
"""

import contextlib

import pytest

from agent.storage.opening import open_s3
from agent.storage.retry import RetryPolicy
from agent.storage.settings import Patience, S3Settings
from tests.support.faultproxy import FaultProxy
from tests.support.faultrows import Outcome, Player, Row, Scale, rows
from tests.support.s3servers import S3Server

SMALL, LARGE = Scale(1 << 20, pace=0.1), Scale(16 << 20, pace=0.1)
LONG = {"D3"}  # must not fit into the buffers of loopback
QUICK = RetryPolicy(
    budget_seconds=60,
    first_seconds=0.02,
    longest_seconds=0.3,
    throttled_first_seconds=0.02,
    throttled_longest_seconds=0.3,
)
TABLE = [
    *((row, SMALL) for row in rows(SMALL) if row.name not in LONG | {"E3"}),
    *((row, LARGE) for row in rows(LARGE) if row.name in LONG),
]


class Ours:
    def __init__(self, settings: S3Settings) -> None:
        self.storage = open_s3(settings, QUICK)

    def put(self, key: str, body: bytes) -> None:
        self.storage.put(key, body)

    def put_new(self, key: str, body: bytes) -> None:
        assert self.storage.put_new(key, body)


def play(server: S3Server, proxy: FaultProxy, row: Row, scale: Scale) -> Outcome:
    with contextlib.closing(Player(server, proxy, scale)) as player:
        seconds = row.patience_seconds
        settings = server.settings(
            bucket=player.bucket,
            endpoint_url=proxy.endpoint_url,
            verify=str(proxy.ca),
            workers=row.workers,
            patience=Patience() if seconds is None else Patience(seconds, seconds),
        )
        ours = Ours(settings)
        with contextlib.closing(ours.storage):
            return player.play(row, ours)


@pytest.mark.parametrize(("row", "scale"), TABLE, ids=[row.name for row, _ in TABLE])
def test_a_row_of_the_fault_table_loses_no_byte_and_no_worker(
    checking_server: S3Server, proxy: FaultProxy, row: Row, scale: Scale
) -> None:
    outcome = play(checking_server, proxy, row, scale)
    assert outcome.lost == []
    assert outcome.idle == 0
    assert {type(error) for error in outcome.errors} == ({row.fails} if row.fails else set())
    assert outcome.survived(row)
