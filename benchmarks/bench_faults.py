"""Storage faults: what throttling, broken lines and a server that is away cost, beside boto3.

Uploads 16 MiB objects through a proxy that does what networks and overloaded services do
(tests/support/faultproxy.py), once by podlift's storage layer and once by boto3 with its
defaults. The two take turns, row by row. Times are pauses far more than work, and pauses are
random: rows differ by half from run to run. To hold: podlift loses no object and no worker in any
row, and where nothing can heal it fails with the error that says so.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from report import about, write
from workspace import HERE, parser, workspace

sys.path.append(str(HERE.parent))  # the proxy, the servers and the rows are those of the tests

from agent.storage.opening import open_s3
from agent.storage.settings import Patience, S3Settings
from tests.support.faultproxy import FaultProxy
from tests.support.faultrows import Outcome, Player, Row, Scale, Side, rows
from tests.support.s3servers import S3Server, ministack

MIB = 1 << 20
SLOW = {"A3", "A5", "A6", "A7", "B2", "D2", "D3", "E1", "E2", "E3"}
"""Rows that --quick leaves out."""


class Podlift:
    """Our storage layer with its own patience."""

    def __init__(self, settings: S3Settings) -> None:
        self._storage = open_s3(settings)

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""
        self._storage.put(key, body)

    def put_new(self, key: str, body: bytes) -> None:
        """Store an object that must be ours."""
        if not self._storage.put_new(key, body):
            raise RuntimeError("taken for somebody else's")

    def close(self) -> None:
        """Close the connections."""
        self._storage.close()


class Boto:
    """boto3 as it comes."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body)

    def put_new(self, key: str, body: bytes) -> None:
        """Store an object that must be ours."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Stage:
    """A server, the proxy before it, and both sides on the same bucket."""

    def __init__(self, server: S3Server, proxy: FaultProxy, size: int) -> None:
        self._server = server
        self._proxy = proxy
        self._player = Player(server, proxy, Scale(size))

    def play(self, row: Row, side: str) -> Outcome:
        """Play a row with a new client."""
        made: Side
        with contextlib.closing(
            self._podlift(row) if side == "podlift" else self._boto(row)
        ) as made:
            return self._player.play(row, made)

    def close(self) -> None:
        """Close what looks at the objects."""
        self._player.close()

    def _podlift(self, row: Row) -> Podlift:
        seconds = row.patience_seconds
        patience = Patience() if seconds is None else Patience(seconds, seconds)
        settings = self._server.settings(
            bucket=self._player.bucket,
            endpoint_url=self._proxy.endpoint_url,
            verify=str(self._proxy.ca),
            workers=row.workers,
            patience=patience,
        )
        return Podlift(settings)

    def _boto(self, row: Row) -> Boto:
        seconds = row.patience_seconds
        config = (
            Config() if seconds is None else Config(connect_timeout=seconds, read_timeout=seconds)
        )
        client = boto3.client(
            "s3",
            endpoint_url=self._proxy.endpoint_url,
            verify=str(self._proxy.ca),
            region_name="us-east-1",
            aws_access_key_id=self._server.access_key,
            aws_secret_access_key=self._server.secret_key,
            config=config,
        )
        return Boto(client, self._player.bucket)


@contextlib.contextmanager
def stage(folder: Path, size: int) -> Iterator[Stage]:
    """Run server and proxy for a scope."""
    with (
        ministack(folder) as server,
        FaultProxy(server) as proxy,
        contextlib.closing(Stage(server, proxy, size)) as made,
    ):
        yield made


def said(row: Row, outcome: Outcome) -> str:
    """Return what came of a row in a few words."""
    if outcome.lost:
        return f"**{len(outcome.lost)} objects LOST**"
    if outcome.idle:
        return f"{outcome.idle} of {row.workers} workers lost"
    if not outcome.errors:
        return "survived" if row.fails is None else "**no error**"
    error = outcome.errors[0]
    code = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__
    return f"{len(outcome.errors)} of {row.puts} fail: {code}"


def play_all(played: Stage, chosen: list[Row]) -> tuple[list[list[str]], list[str]]:
    """Play rows by both sides in turn and print them; return the table and what should not be."""
    table, wrong = [], []
    for row in chosen:
        ours, theirs = played.play(row, "podlift"), played.play(row, "boto3")
        if not ours.survived(row):
            wrong.append(row.name)
        table.append(line(row, ours, theirs))
        print("  ".join(cell.ljust(width) for cell, width in zip(table[-1], WIDTHS, strict=True)))
    return table, wrong


def main() -> int:
    """Play the rows, print the table, and end with a verdict."""
    made = parser(__doc__)
    made.add_argument("--rows", nargs="*", help="only these")
    options = made.parse_args()
    logging.getLogger("agent").setLevel(logging.ERROR)  # each retry is a warning
    scale = Scale(2 * MIB, pace=0.2) if options.quick else Scale(16 * MIB)
    chosen = [
        row for row in rows(scale)
        if (row.name in options.rows if options.rows else not (options.quick and row.name in SLOW))
    ]  # fmt: skip
    with workspace(2 << 30) as folder, stage(folder, scale.size) as played:
        table, wrong = play_all(played, chosen)
    verdict = f"NOT held: {', '.join(wrong)}" if wrong else f"held: all {len(table)} rows"
    print(f"Verdict: {verdict}")
    versions = [f"boto3 {boto3.__version__}", f"{scale.size // MIB} MiB an object"]
    result = {"about": about(versions, options.quick), "columns": COLUMNS, "rows": table}
    write(options.out, "faults", result | {"verdicts": [verdict]})
    return 1 if wrong else 0


COLUMNS = ["row", "fault", "podlift s", "MiB sent", "podlift", "boto3 s", "MiB sent", "boto3"]
WIDTHS = (3, 44, 6, 5, 28, 6, 5, 28)


def line(row: Row, ours: Outcome, theirs: Outcome) -> list[str]:
    """Return the cells of a row."""
    cells = [row.name, row.what]
    for each in (ours, theirs):
        cells += [f"{each.seconds:.1f}", f"{each.sent_bytes / MIB:.0f}", said(row, each)]
    return cells


if __name__ == "__main__":
    sys.exit(main())
