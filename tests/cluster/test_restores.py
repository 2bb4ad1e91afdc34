"""Restores through the whole agent, over both API servers; only the data path is a fake."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.cancel import CancelToken
from agent.cluster import controller, pods, work
from agent.cluster.assignment import Outcome, RestoreAssignment
from agent.demo.apiserver import Seen
from agent.errors import StorageError
from agent.monitor import Monitor
from tests.cluster.agents import agent_on, ready
from tests.cluster.fakemover import FakeMover, raising
from tests.cluster.scene import until
from tests.cluster.stage import RUNNING, RestoreStage, check_private
from tests.support.apihandle import ApiServer, Json
from tests.support.apiservers import StandinServer

MARK = '{"node":"node-1","pod":"agent-x","podUid":"gone","attempt":"old"}'


@pytest.fixture
def stage(api_server: ApiServer, tmp_path: Path) -> RestoreStage:
    return RestoreStage(api_server, tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look a pod that was never seen up at once."""
    monkeypatch.setattr(pods, "UNSEEN_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(pods, "STOPPED_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(work, "SETTLE_SECONDS", 0.0)


async def test_a_restore_is_completed_with_every_field(
    stage: RestoreStage, mover: FakeMover
) -> None:
    stage.pvr("r-1")
    async with agent_on(stage, mover) as running:
        await ready(running)
        assert stage.status("r-1") == {}
        stage.helper_is(RUNNING)
        status = await stage.ended("r-1")
        _, metrics = await asyncio.to_thread(running.ask, "metrics")
    assert status["acceptedTimestamp"] == status["startTimestamp"] <= status["completionTimestamp"]
    assert {name: value for name, value in status.items() if not name.endswith("Timestamp")} == {
        "phase": "Completed",
        "progress": {"totalBytes": 4096, "bytesDone": 4096},
    }
    (assignment,) = mover.assignments
    assert isinstance(assignment, RestoreAssignment)
    assert assignment.volume_path == stage.target
    assert assignment.snapshot_id == "5a" * 32
    assert assignment.done_name == "restore-uid"
    assert assignment.repository == "s3:https://s3.example.org/bucket/velero/restic/app"
    assert not assignment.read_only
    assert "kopia/app in BackupStorageLocation default" in assignment.elsewhere
    assert assignment.storage.credentials_file is not None
    check_private(Path(assignment.storage.credentials_file))
    assert "pass" not in repr(assignment)
    assert 'podlift_restores_total{result="completed"} 1.0' in metrics
    assert "podlift_restored_bytes_total 4096.0" in metrics
    assert "podlift_fetched_bytes_total 4096.0" in metrics
    assert "podlift_read_bytes_total 0.0" in metrics
    assert 'podlift_lists_total{resource="pods"} 1.0' in metrics
    assert 'podlift_backups_total{result="completed"} 0.0' in metrics


async def test_what_a_pod_wishes_of_its_backups_is_nothing_to_its_restore(
    stage: RestoreStage, mover: FakeMover
) -> None:
    wrong = {"podlift.io/compression": "wrong", "podlift.io/exclude": "[", "podlift.io/x": ""}
    stage.server.patch(stage.server.path("pods", "db-1"), {"metadata": {"annotations": wrong}})
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    async with agent_on(stage, mover):
        status = await stage.ended("r-1")
    assert (status["phase"], status.get("message")) == ("Completed", None)


async def test_problems_are_named_and_the_restore_completes(
    stage: RestoreStage, mover: FakeMover
) -> None:
    mover.act = lambda *_: Outcome(size_bytes=9, problems=1, problem_names=("f: owner",))
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    async with agent_on(stage, mover):
        status = await stage.ended("r-1")
    assert status["phase"] == "Completed"
    assert status["message"] == "1 entry was not restored in full: f: owner"


async def test_a_failure_of_the_data_path_fails_the_restore(
    stage: RestoreStage, mover: FakeMover
) -> None:
    mover.act = raising(StorageError("the bucket is gone"))
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    async with agent_on(stage, mover):
        status = await stage.ended("r-1")
    assert status["phase"] == "Failed"
    assert status["message"] == "data path restore failed: the bucket is gone"


def questions(standin: StandinServer) -> list[Seen]:
    """Return the requests that were sent so far, but not the Events, which are told at leisure."""
    return [seen for seen in standin.requests if not seen.path.endswith("/events")]


async def test_a_restore_that_waits_for_its_pod_asks_the_api_server_nothing(
    standin: StandinServer, tmp_path: Path, mover: FakeMover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "AGAIN_SECONDS", 0.01)
    stage = RestoreStage(standin, tmp_path)
    stage.pvr("r-1")
    stage.pvr("r-2", pod={"name": "db-1", "namespace": standin.namespace, "uid": "x"})
    async with agent_on(stage, mover) as running:
        await ready(running)
        assert "has been replaced" in (await stage.ended("r-2"))["message"]
        before = len(questions(standin))
        await until(lambda: running.agent._controller._words, "the wait")
        woken = 0

        def dispatched(tasks: asyncio.TaskGroup) -> None:
            nonlocal woken
            woken += 1
            original(tasks)

        original = running.agent._controller.dispatch
        monkeypatch.setattr(running.agent._controller, "dispatch", dispatched)
        await until(lambda: woken > 20, "twenty decisions")
        assert len(questions(standin)) == before
        stage.helper_is(RUNNING)
        assert (await stage.ended("r-1"))["phase"] == "Completed"


@pytest.mark.parametrize(
    ("pod", "message"),
    [
        ({"name": "db-1", "uid": "before"}, "has been replaced"),
        ({"name": "gone", "uid": "u"}, "does not exist (any more)"),
        ({"name": "../../secrets", "uid": "u"}, "not a Kubernetes name"),
        ({"name": "db-1"}, "malformed: spec.pod.uid missing"),
    ],
)
async def test_a_pod_that_is_nobodys_ends_its_restore(
    stage: RestoreStage, mover: FakeMover, pod: Json, message: str
) -> None:
    stage.pvr("r-1", pod={"namespace": stage.server.namespace, **pod})
    async with agent_on(stage, mover):
        status = await stage.ended("r-1")
    assert status["phase"] == "Failed"
    assert message in status["message"]
    assert not mover.assignments


async def test_a_restore_of_another_nodes_pod_is_left_alone_also_when_it_is_canceled(
    stage: RestoreStage, mover: FakeMover
) -> None:
    made, _ = stage.waiting_pod("far", node="node-2")
    pod = {key: made["metadata"][key] for key in ("name", "namespace", "uid")}
    stage.pvr("r-far", pod=pod)
    stage.pvr("r-stopped", pod=pod, cancel=True)
    stage.pvr("r-near")
    stage.helper_is(RUNNING)
    async with agent_on(stage, mover):
        assert (await stage.ended("r-near"))["phase"] == "Completed"
    assert stage.status("r-far") == {}
    assert stage.status("r-stopped") == {}
    assert len(mover.assignments) == 1


async def test_a_canceled_restore_whose_pod_has_no_node_is_ended_by_anybody(
    stage: RestoreStage, mover: FakeMover
) -> None:
    made, _ = stage.waiting_pod("pending", node="")
    pod = {key: made["metadata"][key] for key in ("name", "namespace", "uid")}
    stage.pvr("r-1", pod=pod, cancel=True)
    async with agent_on(stage, mover):
        status = await stage.ended("r-1")
    assert status["message"] == "canceled: spec.cancel was set before the restore began"


async def test_a_stopped_agent_leaves_its_restore_and_the_next_completes_it(
    stage: RestoreStage, mover: FakeMover
) -> None:
    mover.go_on.clear()
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    async with agent_on(stage, mover) as running:
        first = await stage.phase("r-1", "InProgress")
        await until(lambda: mover.running == 1, "the mover")
        running.stop.set()
        await until(lambda: mover.running == 0, "the stop")
    assert stage.status("r-1") == first
    mover.go_on.set()
    async with agent_on(stage, mover):
        status = await stage.ended("r-1")
    assert status["phase"] == "Completed"
    assert status["startTimestamp"] == first["startTimestamp"]
    assert len(mover.assignments) == 2


def left_by_the_dead(stage: RestoreStage, name: str) -> None:
    path = stage.server.path("podvolumerestores", name)
    stage.server.patch(path, {"metadata": {"annotations": {"podlift.io/owner": MARK}}})
    progress = {"totalBytes": 7, "bytesDone": 7}
    stage.server.patch_status(path, {"phase": "InProgress", "progress": progress})


@pytest.mark.parametrize("when", ["before", "while it settles", "at work"])
async def test_a_pod_that_was_let_go_completes_its_restore_which_is_not_begun_again(
    stage: RestoreStage, mover: FakeMover, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """An agent was killed between the done file and the status; the kubelet's word may come late."""
    monkeypatch.setattr(work, "SETTLE_SECONDS", 30.0 if when == "while it settles" else 0.0)
    mover.go_on.clear()
    let_go = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:00:00Z"}}
    stage.helper_is(let_go if when == "before" else RUNNING)
    stage.pvr("r-1")
    left_by_the_dead(stage, "r-1")
    async with agent_on(stage, mover, pod_name="agent-y", pod_uid="new") as running:
        if when != "before":
            await until(lambda: running.agent._controller._works, "the claim")
            await until(lambda: mover.running or when != "at work", "the mover")
            stage.helper_is(let_go, phase="Running")
        status = await stage.ended("r-1")
    assert status["phase"] == "Completed"
    assert status["progress"] == {"totalBytes": 7, "bytesDone": 7}
    assert "its pod was told that the data are there" in status["message"]
    assert len(mover.assignments) == (when == "at work")


@pytest.mark.parametrize("subresource", [False, True], ids=["main", "status"])
async def test_what_a_dead_agent_left_is_claimed_again_through_either_door(
    api_server: ApiServer, tmp_path: Path, mover: FakeMover, subresource: bool
) -> None:
    stage = RestoreStage(api_server, tmp_path)
    if subresource:
        api_server.apply_velero_crds("v1.17.2", status_subresource=True)
        stage.location("default")  # other definitions delete every Velero object
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    left_by_the_dead(stage, "r-1")
    async with agent_on(stage, mover, pod_name="agent-y", pod_uid="new"):
        status = await stage.ended("r-1")
    assert status["phase"] == "Completed"
    assert [(each.resumed, each.reported_bytes) for each in mover.assignments] == [(True, 7)]


async def test_backups_and_restores_share_the_room(stage: RestoreStage, mover: FakeMover) -> None:
    mover.go_on.clear()
    stage.helper_is(RUNNING)
    for number in range(2):
        stage.pvb(f"b-{number}")
        stage.pvr(f"r-{number}")
    names = ["b-0", "b-1", "r-0", "r-1"]
    async with agent_on(stage, mover, concurrency=3):
        await until(lambda: mover.running == 3, "three movers")
        phases = [stage.status(name).get("phase") for name in names]
        assert phases.count("InProgress") == 3
        mover.go_on.set()
        for name in names:
            assert (await stage.ended(name))["phase"] == "Completed"
    assert mover.most_running == 3


async def test_a_volume_whose_pod_has_gone_on_since_the_watch_saw_it_is_not_touched(
    standin: StandinServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = RestoreStage(standin, tmp_path)
    stage.helper_is(RUNNING)
    async with agent_on(stage, mover) as running:
        await ready(running)
        seen = dict(running.agent._controller.pods._pods)
        running.agent._controller.pods.changed = lambda pod: None  # type: ignore[method-assign]
        stage.helper_is({"terminated": {"exitCode": 0}}, phase="Running")
        assert seen
        stage.pvr("r-1")
        status = await stage.ended("r-1")
    assert status["phase"] == "Failed"
    assert "the volume is the pod's now" in status["message"]
    assert not mover.assignments


async def test_cancel_reaches_a_restore_at_work(stage: RestoreStage, mover: FakeMover) -> None:
    mover.go_on.clear()
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    async with agent_on(stage, mover):
        await stage.phase("r-1", "InProgress")
        path = stage.server.path("podvolumerestores", "r-1")
        stage.server.patch(path, {"spec": {"cancel": True}})
        status = await stage.ended("r-1")
    assert (status["phase"], status["message"]) == ("Failed", "canceled: spec.cancel was set")


async def test_a_restore_that_comes_to_its_end_is_completed_although_it_was_canceled(
    stage: RestoreStage, mover: FakeMover
) -> None:
    """The done file is there and the pod starts: to call that failed would be a lie."""

    def act(_assignment: Any, monitor: Monitor, cancel: CancelToken) -> Outcome:
        while not cancel.canceled:
            mover.go_on.wait(0.01)
        return Outcome(size_bytes=5)

    mover.act = act
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    async with agent_on(stage, mover):
        await until(lambda: mover.running == 1, "the mover")
        stage.helper_is({"terminated": {"exitCode": 0}}, phase="Running")
        status = await stage.ended("r-1")
    assert status["phase"] == "Completed"


async def test_who_ignores_restores_is_ready_without_any_right_that_only_they_need(
    standin: StandinServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = RestoreStage(standin, tmp_path)
    stage.helper_is(RUNNING)
    for verb, plural in (("list", "pods"), ("watch", "pods"), ("list", "podvolumerestores")):
        standin.faults.deny(verb, plural)
    stage.pvr("r-1")
    stage.pvb("b-1")
    async with agent_on(stage, mover, restores="ignore") as running:
        await ready(running)
        assert (await stage.ended("b-1"))["phase"] == "Completed"
    assert 403 not in {seen.status for seen in standin.requests}
    assert "status" not in stage.server.get(stage.server.path("podvolumerestores", "r-1"))
