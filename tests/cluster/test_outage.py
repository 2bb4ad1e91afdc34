"""The API server is away, for an hour and longer: the data path goes on, and every end is told.

Time passes by hand: a pause of the agent's takes no time, but moves its clock. What goes wrong in one
request is in ``test_faults``; here whole agents live through it.
"""

import asyncio
import dataclasses
import functools
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agent.cluster import run
from agent.cluster.ended import REMEMBERED, EndedTable
from agent.cluster.order import Order
from agent.cluster.status import Clock
from agent.cluster.watch import Pace, Watcher
from tests.cluster import agents
from tests.cluster.agents import Running, agent_on
from tests.cluster.fakemover import SNAPSHOT, FakeMover
from tests.cluster.scene import NO_TIME, until
from tests.cluster.stage import RUNNING, RestoreStage
from tests.support.apihandle import ApiServer, Json
from tests.support.apiservers import StandinServer

HOUR_SECONDS = 3600.0
OWNER = "podlift.io/owner"


class HandClock:
    """A clock that pauses push on, and a test does."""

    def __init__(self) -> None:
        self.pushed = 0.0

    def push(self, seconds: float) -> None:
        self.pushed += seconds

    async def sleep(self, seconds: float) -> None:
        self.push(seconds)
        await asyncio.sleep(0.005)

    def clock(self) -> Clock:
        return Clock(
            now=lambda: time.time() + self.pushed,
            monotonic=lambda: time.monotonic() + self.pushed,
            sleep=self.sleep,
            chance=lambda low, high: high,
        )


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """Give the agent a clock by hand, and watches that notice within a second."""
    hand = HandClock()
    pace = Pace(server_seconds=(1.0, 1.0), relist_seconds=(0.3, 0.3), longest_delay_seconds=0.2)
    monkeypatch.setattr(run, "Clock", hand.clock)
    monkeypatch.setattr(agents, "NO_TIME", dataclasses.replace(NO_TIME, attempts=1))

    def quick(source: Any, collection: Any, sink: Any, _pace: Any = None) -> Watcher[Any]:
        return Watcher(source, collection, sink, pace)

    monkeypatch.setattr(run, "Watcher", quick)
    return hand


@pytest.fixture
def stage(standin: StandinServer, tmp_path: Path) -> RestoreStage:
    return RestoreStage(standin, tmp_path)


async def both_at_work(stage: RestoreStage, mover: FakeMover) -> None:
    mover.go_on.clear()
    stage.helper_is(RUNNING)
    stage.pvb("b-1")
    stage.pvr("r-1")
    await stage.phase("b-1", "InProgress")
    await stage.phase("r-1", "InProgress")
    await until(lambda: mover.running == 2, "both movers")


def unstored(running: Running) -> bool:
    """Tell whether all work has ended and its end is not stored yet."""
    works = list(running.agent._controller._works.values())
    return bool(works) and all(work.end is not None for work in works)


def seconds_taken(status: Json) -> float:
    began, ended = (
        datetime.fromisoformat(status[f"{which}Timestamp"]) for which in ("start", "completion")
    )
    return (ended - began).total_seconds()


async def test_an_hour_without_an_api_server_in_the_middle_changes_nothing(
    api_server: ApiServer, tmp_path: Path, mover: FakeMover, hand: HandClock
) -> None:
    stage = RestoreStage(api_server, tmp_path)
    async with agent_on(stage, mover, concurrency=2) as running:
        await both_at_work(stage, mover)
        await asyncio.to_thread(api_server.stop)
        hand.push(HOUR_SECONDS)  # the data path goes on for an hour
        await asyncio.sleep(1.5)  # progress and credentials are due meanwhile
        assert mover.running == 2
        mover.go_on.set()
        await until(lambda: unstored(running), "both ends")
        ended_at = hand.pushed
        await until(lambda: hand.pushed > ended_at + HOUR_SECONDS, "an hour of tries")
        await asyncio.to_thread(api_server.restart)
        backup, restore = await stage.ended("b-1"), await stage.ended("r-1")
        await until(lambda: running.agent._controller.idle, "the end of all work")
    assert backup["phase"] == restore["phase"] == "Completed"
    assert backup["snapshotID"] == SNAPSHOT
    assert backup["progress"] == {"totalBytes": 4096, "bytesDone": 4096}
    assert HOUR_SECONDS <= seconds_taken(backup) < 1.5 * HOUR_SECONDS  # and not when it was told
    assert len(mover.assignments) == 2


async def test_a_server_that_does_not_serve_the_kind_yet_has_not_lost_the_object(
    stage: RestoreStage, mover: FakeMover, hand: HandClock
) -> None:
    async with agent_on(stage, mover, concurrency=2) as running:
        await both_at_work(stage, mover)
        stage.server.faults.html_error(404, 3, method="GET", path="/podvolumebackups/b-1")  # type: ignore[attr-defined]
        mover.go_on.set()
        await until(lambda: running.agent._controller.idle, "the end of all work")
    assert stage.status("b-1")["phase"] == "Completed"
    assert len(mover.assignments) == 2


async def test_a_backup_begins_late_if_the_api_server_goes_away_right_after_its_claim(
    stage: RestoreStage, mover: FakeMover, hand: HandClock
) -> None:
    for kind in ("pods", "secrets"):
        stage.server.faults.html_error(503, 40, method="GET", path=f"/{kind}/")  # type: ignore[attr-defined]
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        assert (await stage.ended("b-1"))["phase"] == "Completed"
    assert hand.pushed > 30.0
    assert len(mover.assignments) == 1


async def test_an_agent_that_is_stopped_without_an_api_server_leaves_the_end_to_the_next(
    stage: RestoreStage, mover: FakeMover, hand: HandClock
) -> None:
    async with agent_on(stage, mover, concurrency=2, grace_seconds=20.0) as running:
        await both_at_work(stage, mover)
        await asyncio.to_thread(stage.server.stop)
        mover.go_on.set()
        await until(lambda: unstored(running), "both ends")
        running.stop.set()
        before = hand.pushed
        await until(lambda: running.agent._controller.idle, "the end of the agent")
        assert hand.pushed - before < 25.0
    await asyncio.to_thread(stage.server.restart)
    assert stage.status("b-1")["phase"] == stage.status("r-1")["phase"] == "InProgress"
    async with agent_on(stage, mover, concurrency=2):
        assert (await stage.ended("b-1"))["phase"] == "Completed"
        assert (await stage.ended("r-1"))["phase"] == "Completed"


def exchange(file: Path, token: str, newer: str) -> None:
    file.write_text(file.read_text().replace(token, newer))


@pytest.mark.parametrize("wrong", ["forbidden", "token", "webhook", "conflicts"])
async def test_an_end_that_is_refused_is_told_once_that_is_mended_and_not_worked_for_again(
    standin: StandinServer, stage: RestoreStage, mover: FakeMover, hand: HandClock, wrong: str
) -> None:
    mover.go_on.clear()
    stage.pvb("b-1")
    async with agent_on(stage, mover) as running:
        await stage.phase("b-1", "InProgress")
        await until(lambda: mover.running, "the mover")
        if wrong == "forbidden":
            standin.faults.deny("patch", "podvolumebackups")
        elif wrong == "token":
            standin.faults.rotate_tokens("another")
        else:
            standin.faults.html_error(422 if wrong == "webhook" else 409, 30, method="PATCH")
        mover.go_on.set()
        await until(lambda: unstored(running) and hand.pushed > 60.0, "a minute of tries")
        standin.faults.clear()
        if wrong == "token":
            standin.token = "another"
            exchange(Path(standin.kubeconfig), ApiServer.token, "another")
        status = await stage.ended("b-1")
    assert status["phase"] == "Completed"
    assert len(mover.assignments) == 1


async def test_what_is_at_work_when_the_store_is_restored_is_claimed_again_and_completed(
    standin: StandinServer, stage: RestoreStage, mover: FakeMover, hand: HandClock
) -> None:
    stage.helper_is(RUNNING)
    stage.pvb("b-1")
    stage.pvr("r-1")
    before = standin.faults.snapshot()
    mover.go_on.clear()
    async with agent_on(stage, mover, concurrency=2):
        await until(lambda: mover.running == 2, "both movers")
        await asyncio.to_thread(standin.faults.restore, before)
        assert stage.status("b-1") == stage.status("r-1") == {}
        hand.push(20.0)  # a report is due
        for name in ("b-1", "r-1"):
            await stage.phase(name, "InProgress")
        assert OWNER in stage.object("b-1")["metadata"]["annotations"]
        mover.go_on.set()
        for name in ("b-1", "r-1"):
            assert (await stage.ended(name))["phase"] == "Completed"
    assert len(mover.assignments) == 2


def ended_in_time(stage: RestoreStage, hand: HandClock, name: str) -> Json | None:
    """Return the status of what has ended; else let time pass."""
    status = stage.status(name)
    if "completionTimestamp" in status:
        return status
    hand.push(1.0)
    return None


async def test_what_had_ended_when_the_store_is_restored_ends_again_without_the_work(
    standin: StandinServer, stage: RestoreStage, mover: FakeMover, hand: HandClock
) -> None:
    """A refusal is decided anew, an end of ours is told again, whoever held it in the copy."""
    mover.go_on.clear()
    stage.helper_is(RUNNING)
    for name in ("b-1", "b-2"):
        stage.pvb(name)
    stage.pvb("b-kopia", uploaderType="kopia")
    stage.pvr("r-1")
    stage.left_by_the_dead("b-2")
    copies = [standin.faults.snapshot()]
    names = ("b-1", "b-2", "r-1", "b-kopia")
    async with agent_on(stage, mover, concurrency=3):
        await until(lambda: mover.running == 3, "three movers")
        copies.append(standin.faults.snapshot())
        mover.go_on.set()
        ends = {name: await stage.ended(name) for name in names}
        for copy in copies:
            await asyncio.to_thread(standin.faults.restore, copy)
            assert "completionTimestamp" not in stage.status("b-1")
            for name, end in ends.items():
                again = await until(functools.partial(ended_in_time, stage, hand, name), name)
                for field in ("phase", "snapshotID"):
                    assert again.get(field) == end.get(field)
    assert sorted(assignment.name for assignment in mover.assignments) == ["b-1", "b-2", "r-1"]


def test_only_the_latest_ends_are_remembered() -> None:
    table = EndedTable()
    for number in range(REMEMBERED + 1):
        table.add(Order(uid=f"u-{number}"), None)
    assert "u-0" not in table
    assert "u-1" in table
    assert table.take("u-1")
    assert table.take("u-1") is None
