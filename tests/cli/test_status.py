"""``podlift status`` over both API servers: a table, JSON, changes, and a live screen on a terminal."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.commands.statusview import span_text
from tests.cli.conftest import PROJECT, Run, started
from tests.cluster.scene import NODE, create_pvb, pvr_object
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer

LONG_AGO = "2026-01-01T00:00:00Z"
DEADLINE_SECONDS = 30.0


def now(seconds_ago: float = 0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds_ago))


def filled(server: ApiServer) -> ApiServer:
    """Make one that runs, one that waits, a restore, one that failed and one that is long over."""
    server.apply_velero_crds("v1.17.2")
    for name in ("runs", "waits", "failed", "over"):
        create_pvb(server, name, node=NODE if name != "waits" else "node-2")
    restore = server.path("podvolumerestores")
    server.create(restore, pvr_object("back"))
    mark = json.dumps({"node": "node-2", "pod": "p", "podUid": "u", "attempt": "a"})
    path = server.path("podvolumerestores", "back")
    server.patch(path, {"metadata": {"annotations": {"podlift.io/owner": mark}}})
    server.patch_status(path, {"phase": "InProgress", "startTimestamp": now()})
    statuses = {
        "runs": {
            "phase": "InProgress",
            "startTimestamp": now(100),
            "progress": {"totalBytes": 4 << 30, "bytesDone": 1 << 30},
        },
        "failed": {
            "phase": "Failed",
            "startTimestamp": now(60),
            "completionTimestamp": now(30),
            "message": "data path backup failed: [bold]no space\x1b[31m\nleft " + "x" * 300,
        },
        "over": {"phase": "Completed", "startTimestamp": LONG_AGO, "completionTimestamp": LONG_AGO},
    }
    for name, status in statuses.items():
        server.patch_status(server.path("podvolumebackups", name), status)
    return server


@pytest.fixture
def cluster(api_server: ApiServer) -> ApiServer:
    return filled(api_server)


@pytest.fixture
def standin_cluster(standin: StandinServer) -> ApiServer:
    return filled(standin)


def how(server: ApiServer) -> tuple[str, ...]:
    return ("status", "--kubeconfig", str(server.kubeconfig), "--namespace", server.namespace)


def test_the_table_has_what_runs_waits_and_has_just_ended(podlift: Run, cluster: ApiServer) -> None:
    done = podlift(*how(cluster))
    assert done.code == 0
    heading, *rows = done.out.splitlines()
    assert heading.split()[:5] == ["Kind", "Name", "Node", "Pod/Volume", "Phase"]
    assert [row.split()[:2] for row in rows] == [
        ["backup", "runs"],
        ["restore", "back"],
        ["backup", "waits"],
        ["backup", "failed"],
    ]
    in_columns = (
        rf"{NODE} +app/db-0/data +InProgress +1.0 GiB / 4.0 GiB +[\d.]+ MiB/s +\d+m(\d+s)? +"
    )
    assert re.search(in_columns, rows[0]), rows[0]
    assert "node-2" in rows[1]
    assert "New" in rows[2]
    assert rows[3].endswith("failed: [bold]no space\\x1b[31m\\nleft " + "x" * 300)
    assert re.fullmatch(r"2 at work \([\d.]+ MiB/s\), 1 waiting\n", done.err)


def test_json_has_every_field_and_numbers_as_they_are(podlift: Run, cluster: ApiServer) -> None:
    done = podlift(*how(cluster), "--json", "--since", "9999d")
    found = {each["name"]: each for each in done.json}
    assert found.keys() == {"runs", "back", "waits", "failed", "over"}
    runs = found["runs"]
    assert (runs["kind"], runs["node"], runs["phase"]) == ("PodVolumeBackup", NODE, "InProgress")
    assert (runs["bytes_done"], runs["bytes_total"]) == (1 << 30, 4 << 30)
    assert runs["seconds"] >= 100
    assert runs["bytes_per_second"] == pytest.approx((1 << 30) / runs["seconds"], rel=0.01)
    assert runs["left_seconds"] == pytest.approx(3 * runs["seconds"], rel=0.01)
    assert found["waits"]["bytes_per_second"] is None
    assert found["back"]["snapshot_id"] == "5a" * 32
    assert found["failed"]["message"].startswith("data path backup failed: [bold]no space\x1b")


def test_only_one_nodes_are_shown_on_demand(podlift: Run, standin_cluster: ApiServer) -> None:
    done = podlift(*how(standin_cluster), "--json", "--node", "node-2")
    assert {each["name"] for each in done.json} == {"back", "waits"}
    assert podlift(*how(standin_cluster), "--json", "--node", "none").json == []


def test_without_access_it_says_what_to_give(podlift: Run, tmp_path: Path) -> None:
    done = podlift("status")
    assert done.code == 1
    assert "give --kubeconfig, or set KUBECONFIG, or run in a pod" in done.err
    done = podlift("status", "--kubeconfig", tmp_path / "none")
    assert done.code == 1
    assert "does not exist" in done.err


@pytest.mark.parametrize("more", [(), ("--watch",)], ids=["once", "watch"])
def test_a_right_that_is_missing_is_named(
    podlift: Run, standin_cluster: StandinServer, more: tuple[str, ...]
) -> None:
    standin_cluster.faults.deny("list", "podvolumerestores")
    done = podlift(*how(standin_cluster), *more)
    assert done.code == 1
    assert "the API server forbids" in done.err
    assert "podvolumerestores" in done.err
    assert done.out == ""


def test_watch_tells_changes_where_there_is_no_terminal(cluster: ApiServer) -> None:
    with started(*how(cluster), "--watch", "--json") as process:
        assert process.stdout is not None
        lines: Iterator[dict[str, object]] = map(json.loads, process.stdout)
        first = {str(next(lines)["name"]) for _ in range(4)}
        assert first == {"runs", "back", "waits", "failed"}
        path = cluster.path("podvolumebackups", "runs")
        progress = {"totalBytes": 4 << 30, "bytesDone": 2 << 30}
        cluster.patch_status(path, {"progress": progress})
        assert next(line for line in lines if line["name"] == "runs")["bytes_done"] == 2 << 30
        create_pvb(cluster, "another")
        assert next(lines)["name"] == "another"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_the_watch_quietly(standin_cluster: ApiServer) -> None:
    with started(*how(standin_cluster), "--watch") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("backup  runs")
        process.stdout.close()
        create_pvb(standin_cluster, "another")
        assert process.wait(DEADLINE_SECONDS) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stdout = None


def test_on_a_terminal_watch_draws_one_table_that_changes(cluster: ApiServer) -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "7"}
    command = [sys.executable, "-m", "agent", *how(cluster), "--watch"]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        drawn = read_until(ours, b"1 more")
        assert b"2 at work" in drawn
        assert b"1.0 GiB / 4.0 GiB" in drawn
        assert b"failed" not in drawn.split(b"1 more")[0]  # there is room for three
        status = {"progress": {"totalBytes": 4 << 30, "bytesDone": 3 << 30}}
        cluster.patch_status(cluster.path("podvolumebackups", "runs"), status)
        read_until(ours, b"3.0 GiB / 4.0 GiB")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, words: bytes) -> bytes:
    """Return what was drawn until some words were."""
    end = time.monotonic() + DEADLINE_SECONDS
    drawn = b""
    while words not in drawn:
        assert time.monotonic() < end, drawn
        drawn += os.read(terminal, 65536)
    return drawn


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""), (0, "0s"), (59.6, "1m"), (61, "1m1s"), (3600, "1h"), (3661, "1h1m"),
        (86400, "1d"), (90000, "1d1h"), (86461, "1d"),
    ],
)  # fmt: skip
def test_a_span_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert span_text(seconds) == text
