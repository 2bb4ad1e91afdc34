"""Velero's finalizer holds no object up: what is deleted ends first, and then goes."""

import asyncio
from pathlib import Path

import pytest

from agent.cluster import controller
from agent.cluster.order import FINALIZER
from tests.cluster.agents import agent_on, ready
from tests.cluster.fakemover import FakeMover
from tests.cluster.scene import until
from tests.cluster.stage import RUNNING, RestoreStage
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer

OTHER = "example.org/other"


@pytest.fixture
def stage(api_server: ApiServer, tmp_path: Path) -> RestoreStage:
    return RestoreStage(api_server, tmp_path)


async def test_what_runs_or_waits_is_canceled_before_it_goes(
    stage: RestoreStage, mover: FakeMover
) -> None:
    mover.go_on.clear()
    stage.helper_is(RUNNING)
    running, restoring = stage.held("b-1"), stage.held("r-1")
    async with agent_on(stage, mover, concurrency=2):
        await until(lambda: mover.running == 2, "both movers")
        waiting = stage.held("b-2")
        for path in (waiting, running, restoring):
            seen = await asyncio.to_thread(stage.statuses_until_gone, path)
            kind = "PodVolumeRestore" if path == restoring else "PodVolumeBackup"
            began = " before the backup began" if path == waiting else ""
            assert seen[-1]["phase"] == "Failed"
            assert seen[-1]["message"].startswith(f"canceled: the {kind} is being deleted{began}")
        await until(lambda: mover.running == 0, "the movers' end")
    assert len(mover.assignments) == 2


async def test_what_has_ended_goes_and_finalizers_of_others_stay(
    stage: RestoreStage, mover: FakeMover
) -> None:
    stage.helper_is(RUNNING)
    kept = stage.held("b-kept", FINALIZER, OTHER)
    paths = [stage.held("b-1"), stage.held("r-1")]
    async with agent_on(stage, mover, concurrency=3):
        for name in ("b-kept", "b-1", "r-1"):
            await stage.ended(name)
        for path in (kept, *paths):
            stage.server.delete(path)
        for path in paths:
            await until(lambda path=path: stage.gone(path), "the deletion")
        await until(lambda: stage.server.get(kept)["metadata"]["finalizers"] == [OTHER], "the rest")
    stage.server.patch(kept, {"metadata": {"finalizers": None}})
    assert stage.gone(kept)


async def test_copies_that_are_of_no_node_here_are_released_by_anybody(
    stage: RestoreStage, mover: FakeMover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects that Velero has synced from another cluster name nodes and pods of that one."""
    monkeypatch.setattr(controller, "STRANGER_SECONDS", (0.0, 0.0))
    pod = {"name": "far", "namespace": "app", "uid": "far"}
    copies = [stage.held("b-copy", node="far"), stage.held("r-copy", pod=pod)]
    unended = stage.held("b-theirs", node="far")
    for path in copies:
        stage.server.patch_status(path, {"phase": "Completed"})
    for path in (unended, *copies):
        stage.server.delete(path)
    async with agent_on(stage, mover):
        for path in copies:
            await until(lambda path=path: stage.gone(path), "the deletion")
    assert stage.server.get(unended)["metadata"]["finalizers"] == [FINALIZER]
    assert "status" not in stage.server.get(unended)


async def test_an_object_of_another_node_is_left_to_its_own_agent_for_a_while(
    standin: StandinServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = RestoreStage(standin, tmp_path)
    theirs, ours = stage.held("b-theirs", node="far"), stage.held("b-ours")
    for path in (theirs, ours):
        stage.server.patch_status(path, {"phase": "Completed"})
        stage.server.delete(path)
    standin.faults.html_error(409, 1, method="PATCH")  # somebody was quicker
    async with agent_on(stage, mover) as running:
        await ready(running)
        await until(lambda: stage.gone(ours), "the deletion")
    assert not stage.gone(theirs)


async def test_a_restore_that_is_seen_before_its_pod_is_released_once_that_is_seen(
    standin: StandinServer, tmp_path: Path, mover: FakeMover
) -> None:
    """The first lists come in any order."""
    stage = RestoreStage(standin, tmp_path)
    stage.helper_is(RUNNING)
    path = stage.held("r-1")
    stage.server.patch_status(path, {"phase": "Completed"})
    stage.server.delete(path)
    standin.faults.deny("list", "pods")
    async with agent_on(stage, mover) as running:
        await until(lambda: running.agent._controller._not_before, "a restore of no pod here")
        standin.faults.clear()
        await until(lambda: stage.gone(path), "the deletion")
