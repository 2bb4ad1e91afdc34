"""The whole agent over the stand-in and the real kube-apiserver; only the mover is a fake."""

import asyncio
import base64
import datetime
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.cancel import CancelToken
from agent.cluster import run
from agent.cluster.assignment import Assignment, Movers, Outcome
from agent.cluster.run import run_agent
from agent.config import ClusterAccess
from agent.errors import Canceled, ClusterError, StorageError, UsageError
from agent.monitor import Monitor
from tests.cluster.agents import agent_on
from tests.cluster.fakemover import SNAPSHOT, FakeMover, raising
from tests.cluster.scene import NODE, until
from tests.cluster.stage import Stage, check_private
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer


@pytest.fixture
def stage(api_server: ApiServer, tmp_path: Path) -> Stage:
    return Stage(api_server, tmp_path)


async def test_a_backup_is_completed_with_every_field(stage: Stage, mover: FakeMover) -> None:
    stage.pvb("b-1")
    async with agent_on(stage, mover, verify_stored="all") as running:
        status = await stage.ended("b-1")
        assert await until(lambda: running.ask("readyz")[0] == 200, "readiness")
        assert (await asyncio.to_thread(running.ask, "healthz"))[0] == 200
        _, metrics = await asyncio.to_thread(running.ask, "metrics")
    started, completed = status.pop("startTimestamp"), status.pop("completionTimestamp")
    assert started <= completed
    assert status.pop("acceptedTimestamp") == started
    assert status == {
        "phase": "Completed",
        "snapshotID": SNAPSHOT,
        "path": str(stage.volume),
        "progress": {"totalBytes": 4096, "bytesDone": 4096},
    }
    (assignment,) = mover.assignments
    assert assignment.volume_path == stage.volume
    assert assignment.password == "pass"
    assert assignment.repository == "s3:https://s3.example.org/bucket/velero/restic/app"
    assert assignment.storage.prefix == "velero/restic/app"
    assert assignment.tags == {"backup": "nightly", "ns": "app"}
    assert assignment.verify_stored == "all"
    assert assignment.storage.credentials_file is not None
    check_private(Path(assignment.storage.credentials_file))
    assert "pass" not in repr(assignment)
    assert threading.get_ident() not in mover.threads
    assert 'podlift_backups_total{result="completed"} 1.0' in metrics
    assert 'podlift_claims_total{result="won"} 1.0' in metrics
    assert "podlift_uploaded_bytes_total 1000.0" in metrics
    assert 'podlift_lists_total{resource="podvolumebackups"} 1.0' in metrics


async def test_a_backup_carries_what_is_wished_of_it(stage: Stage, mover: FakeMover) -> None:
    pod = {"podlift.io/compression": "fastest", "podlift.io/exclude": "*.log"}
    stage.server.patch(stage.server.path("pods", "db-0"), {"metadata": {"annotations": pod}})
    stage.pvb("b-1", uploaderSettings={"ParallelFilesUpload": "7"})
    backup = {"podlift.io/compression": "better", "podlift.io/on-read-error": "fail"}
    path = stage.server.path("podvolumebackups", "b-1")
    stage.server.patch(path, {"metadata": {"annotations": backup}})
    async with agent_on(stage, mover, compression="default"):
        assert (await stage.ended("b-1"))["phase"] == "Completed"
    (assignment,) = mover.assignments
    assert (assignment.compression, assignment.on_read_error) == ("better", "fail")
    assert [pattern.glob for pattern in assignment.excludes] == ["*.log"]
    assert assignment.files_at_once == 7


async def test_memory_is_returned_once_all_work_has_ended(
    standin: StandinServer, mover: FakeMover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, returned = Stage(standin, tmp_path), []

    def phases() -> list[str]:
        return [stage.status(name).get("phase", "") for name in ("b-1", "b-2")]

    monkeypatch.setattr(run, "return_memory", lambda: returned.append(phases()))
    stage.pvb("b-1")
    stage.pvb("b-2")
    async with agent_on(stage, mover):
        await stage.ended("b-2")
        await until(lambda: returned, "memory to be returned")
    assert returned == [["Completed", "Completed"]]


async def test_progress_is_reported_while_the_backup_runs(stage: Stage, mover: FakeMover) -> None:
    mover.go_on.clear()
    progressed = threading.Event()

    def act(assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
        monitor.add(bytes_total=1000, bytes_done=400)
        while not progressed.wait(0.01):
            cancel.check()
        monitor.add(bytes_total=1000, bytes_done=1600)
        return Outcome(snapshot_id=SNAPSHOT, size_bytes=2000)

    mover.act = act
    mover.go_on.set()
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        await until(
            lambda: stage.status("b-1").get("progress") == {"totalBytes": 1000, "bytesDone": 400},
            "progress",
        )
        progressed.set()
        status = await stage.ended("b-1")
    assert status["progress"] == {"totalBytes": 2000, "bytesDone": 2000}


async def test_problems_are_named_and_the_backup_completes(stage: Stage, mover: FakeMover) -> None:
    names = tuple(f"f{n}: permission denied" for n in range(10))
    mover.act = lambda *_: Outcome(
        snapshot_id=SNAPSHOT, size_bytes=9, problems=12, problem_names=names
    )
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        status = await stage.ended("b-1")
    assert status["phase"] == "Completed"
    assert status["message"].startswith("12 entries were left out: f0: permission denied")
    assert status["message"].endswith("and 2 more")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            raising(StorageError("the bucket is full")),
            "data path backup failed: the bucket is full",
        ),
        (raising(Canceled("enough")), "canceled: enough"),
        (raising(ZeroDivisionError("bug")), "data path backup failed: internal error ZeroDiv"),
        (lambda *_: Outcome(snapshot_id="", size_bytes=0), "data path backup failed: the data"),
    ],
)
async def test_a_failure_of_the_mover_fails_the_backup_alone(
    standin: ApiServer, tmp_path: Path, mover: FakeMover, act: Any, message: str
) -> None:
    stage = Stage(standin, tmp_path)
    mover.act = act
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        status = await stage.ended("b-1")
        mover.act = mover.succeed
        stage.pvb("b-2")
        assert (await stage.ended("b-2"))["phase"] == "Completed"
    assert status["phase"] == "Failed"
    assert status["message"].startswith(message)
    assert "snapshotID" not in status


async def test_load_concurrency_is_followed_while_the_agent_runs(
    stage: Stage, mover: FakeMover, request: pytest.FixtureRequest
) -> None:
    def rules(number: int) -> str:
        matching = {"nodeSelector": {"matchLabels": {"pool": "big"}}, "number": number}
        return json.dumps({"loadConcurrency": {"globalConfig": 1, "perNodeConfig": [matching]}})

    mover.go_on.clear()
    server = stage.server
    server.create("/api/v1/nodes", {"metadata": {"name": NODE, "labels": {"pool": "big"}}})
    request.addfinalizer(lambda: server.delete(f"/api/v1/nodes/{NODE}"))  # in no namespace
    for number in range(4):
        stage.pvb(f"b-{number}")
    async with agent_on(stage, mover) as running:
        await until(lambda: mover.running == 1, "the first volume")
        config_map = {"metadata": {"name": "node-agent-config"}, "data": {"c": rules(3)}}
        server.create(server.path("configmaps"), config_map)
        await until(lambda: mover.running == 3, "two more volumes")
        other = {"metadata": {"name": "another"}, "data": {"c": rules(4)}}
        server.create(server.path("configmaps"), other)
        path = server.path("configmaps", "node-agent-config")
        server.patch(path, {"data": {"c": rules(2)}})
        metric = "podlift_volumes_at_a_time 2.0"
        await until(lambda: metric in running.ask("metrics")[1], "the number to be taken back")
        mover.go_on.set()
        for number in range(4):
            await stage.ended(f"b-{number}")
    assert mover.most_running == 3


async def test_spec_cancel_ends_the_backup_as_failed(stage: Stage, mover: FakeMover) -> None:
    mover.go_on.clear()
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        await stage.phase("b-1", "InProgress")
        path = stage.server.path("podvolumebackups", "b-1")
        stage.server.patch(path, {"spec": {"cancel": True}})
        status = await stage.ended("b-1")
    assert status["phase"] == "Failed"
    assert status["message"] == "canceled: spec.cancel was set"


async def test_a_deleted_object_stops_the_work(stage: Stage, mover: FakeMover) -> None:
    mover.go_on.clear()
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        await stage.phase("b-1", "InProgress")
        await until(lambda: mover.running == 1, "the mover")
        stage.server.delete(stage.server.path("podvolumebackups", "b-1"))
        await until(lambda: mover.running == 0, "the mover's end")


async def test_a_stop_leaves_what_runs_to_the_next_agent_and_claims_nothing_more(
    stage: Stage, mover: FakeMover
) -> None:
    mover.go_on.clear()
    stage.pvb("b-1")
    stage.pvb("b-2")
    async with agent_on(stage, mover, grace_seconds=6.0) as running:
        await stage.phase("b-1", "InProgress")
        await until(lambda: mover.running == 1, "the mover")
        running.stop.set()
        await until(lambda: mover.running == 0, "the mover's end")
    left = stage.status("b-1")
    assert (left["phase"], left.get("message")) == ("InProgress", None)
    assert stage.status("b-2") == {}
    mover.go_on.set()
    async with agent_on(stage, mover):
        end = await stage.ended("b-1")
        await stage.ended("b-2")
    assert (end["phase"], end["startTimestamp"]) == ("Completed", left["startTimestamp"])
    assert sorted(assignment.name for assignment in mover.assignments) == ["b-1", "b-1", "b-2"]


async def test_a_backup_that_winds_down_is_not_stopped_before_its_time(
    standin: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Stage(standin, tmp_path)
    stage.pvb("b-1")
    kept: list[str] = []

    def wind_down(_assignment: Assignment, _monitor: Monitor, cancel: CancelToken) -> Outcome:
        while not cancel.winding_down:
            cancel.pause(0.01)
        kept.append("a checkpoint")
        cancel.cancel("done")
        raise Canceled("done")

    mover.act = wind_down
    async with agent_on(stage, mover, grace_seconds=60.0) as running:
        await until(lambda: mover.running == 1, "the mover")
        running.stop.set()
    assert kept == ["a checkpoint"]
    assert stage.status("b-1")["phase"] == "InProgress"


async def test_a_backup_that_ends_while_the_agent_stops_is_completed(
    standin: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Stage(standin, tmp_path)
    stage.pvb("b-1")

    def finish(assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
        while not cancel.winding_down:
            cancel.pause(0.01)
        return mover.succeed(assignment, monitor, cancel)

    mover.act = finish
    async with agent_on(stage, mover, grace_seconds=60.0) as running:
        await until(lambda: mover.running == 1, "the mover")
        running.stop.set()
    assert stage.status("b-1")["phase"] == "Completed"


async def test_a_changed_secret_reaches_who_uses_it(
    stage: Stage,
    mover: FakeMover,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="agent")  # whatever level a test before has given it
    monkeypatch.setattr("agent.cluster.work.REFRESH_SECONDS", 0.0)
    mover.go_on.clear()
    stage.pvb("b-1")
    async with agent_on(stage, mover):
        await until(lambda: mover.assignments, "the mover's start")
        file = Path(mover.assignments[0].storage.credentials_file)
        check_private(file)
        path = stage.server.path("secrets", "cloud")
        stage.server.patch(path, {"data": {"file": base64.b64encode(b"newer").decode()}})
        await until(lambda: file.read_bytes() == b"newer", "the new credentials")
        stage.server.delete(path)
        await until(lambda: "credentials were not refreshed" in caplog.text, "a word about it")
        mover.go_on.set()
        await stage.ended("b-1")


async def test_a_volume_that_takes_too_long_fails_and_says_so(
    stage: Stage, mover: FakeMover
) -> None:
    mover.go_on.clear()
    stage.pvb("b-1")
    async with agent_on(stage, mover, deadline_seconds=1.5):
        status = await stage.ended("b-1")
    assert status["phase"] == "Failed"
    assert "failed: not done within 1.5 seconds (--deadline-seconds)" in status["message"]
    assert mover.running == 0


async def test_a_mover_that_hangs_does_not_hold_up_the_end(
    standin: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Stage(standin, tmp_path)
    release = threading.Event()
    mover.act = lambda *_: (release.wait(30), mover.succeed(*_))[1]
    stage.pvb("b-1")
    try:
        async with agent_on(stage, mover, grace_seconds=6.0) as running:
            await until(lambda: mover.running == 1, "the mover")
            running.stop.set()
        assert stage.status("b-1")["phase"] == "InProgress"
        assert mover.running == 1
    finally:
        release.set()
    await until(lambda: mover.running == 0, "the thread's end")


async def test_only_as_many_run_at_once_as_are_allowed(stage: Stage, mover: FakeMover) -> None:
    mover.go_on.clear()
    for number in range(5):
        stage.pvb(f"b-{number}")
    async with agent_on(stage, mover, concurrency=2):
        await until(lambda: mover.running == 2, "two movers")
        phases = [stage.status(f"b-{n}").get("phase") for n in range(5)]
        assert phases.count("InProgress") == 2
        assert phases.count(None) == 3
        mover.go_on.set()
        for number in range(5):
            assert (await stage.ended(f"b-{number}"))["phase"] == "Completed"
    assert mover.most_running == 2
    assert len(mover.assignments) == 5


async def test_what_an_earlier_process_left_goes_on(stage: Stage, mover: FakeMover) -> None:
    began = "2026-01-01T00:00:00Z"
    stage.pvb("b-1")
    stage.left_by_the_dead("b-1", began=began)
    async with agent_on(stage, mover, pod_name="agent-y", pod_uid="new"):
        status = await stage.ended("b-1")
    assert (status["phase"], status["startTimestamp"]) == ("Completed", began)
    assert len(mover.assignments) == 1


async def test_an_unavailable_location_takes_no_new_backup_and_keeps_what_is_under_way(
    stage: Stage, mover: FakeMover
) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = {"phase": "Unavailable", "message": "no such bucket", "lastValidationTime": now}
    stage.server.patch(stage.server.path("backupstoragelocations", "default"), {"status": said})
    for name in ("b-1", "b-2"):
        stage.pvb(name)
    stage.left_by_the_dead("b-1")
    async with agent_on(stage, mover, pod_name="agent-y", pod_uid="new"):
        assert (await stage.ended("b-1"))["phase"] == "Completed"
        refused = await stage.ended("b-2")
    assert refused["phase"] == "Failed"
    assert "unavailable to Velero's server (no such bucket): mend that" in refused["message"]


async def test_what_ended_its_agent_too_often_is_given_up(stage: Stage, mover: FakeMover) -> None:
    stage.pvb("b-1")
    stage.left_by_the_dead("b-1", earlier=[f"pod agent-{number} from x" for number in range(4)])
    async with agent_on(stage, mover, pod_name="agent-y", pod_uid="new"):
        status = await stage.ended("b-1")
    assert status["phase"] == "Failed"
    assert "given up after 5 attempts" in status["message"]
    assert not mover.assignments


async def test_two_agents_on_one_node_share_the_work_and_take_nothing_twice(
    stage: Stage, mover: FakeMover
) -> None:
    def agent_pod(name: str) -> dict[str, str]:
        spec = {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}]}
        body = {"metadata": {"name": name}, "spec": spec}
        pod = stage.server.create(stage.server.path("pods"), body)
        return {"pod_name": name, "pod_uid": pod["metadata"]["uid"]}

    other = FakeMover()
    names = [f"b-{number:02}" for number in range(20)]
    async with (
        agent_on(stage, mover, concurrency=3, **agent_pod("agent-1")),
        agent_on(stage, other, concurrency=3, **agent_pod("agent-2")),
    ):
        for name in names:
            stage.pvb(name)
        ends = [await stage.ended(name) for name in names]
    assert {end["phase"] for end in ends} == {"Completed"}
    taken = [assignment.name for assignment in mover.assignments + other.assignments]
    assert sorted(taken) == names


@pytest.mark.parametrize(
    ("verb", "plural", "changes", "end"),
    [
        ("patch", "podvolumebackups", {}, "Completed"),
        ("patch", "podvolumebackups", {"uploaderType": "kopia"}, "Failed"),
        ("get", "pods", {}, "Completed"),
    ],
)
async def test_a_right_that_is_missing_is_tried_again_once_it_is_there(
    standin: StandinServer,
    tmp_path: Path,
    mover: FakeMover,
    verb: str,
    plural: str,
    changes: Any,
    end: str,
) -> None:
    stage = Stage(standin, tmp_path)
    stage.pvb("b-1", **changes)
    path = standin.path("podvolumebackups", "b-1")
    if plural == "pods":
        stage.left_by_the_dead("b-1")
    standin.faults.deny(verb, plural)
    async with agent_on(stage, mover):
        await until(lambda: 403 in {seen.status for seen in standin.requests}, "a refusal")
        assert stage.status("b-1").get("phase") != end
        standin.faults.clear()
        standin.patch(path, {"metadata": {"labels": {"rights": "given"}}})
        assert (await stage.ended("b-1"))["phase"] == end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uploaderType": "kopia"}, "uploader type kopia is not taken"),
        ({"volume": "nothing"}, "has no volume 'nothing'"),
        ({"backupStorageLocation": "none"}, "/none does not exist"),
        ({"repoIdentifier": "s3:https://evil.example.org/bucket/x"}, "outside of BackupStorage"),
        ({"pod": {"namespace": "x", "name": "gone", "uid": "u"}}, "pod x/gone does not exist"),
        ({"pod": {"namespace": "x", "name": "../../secrets", "uid": "u"}}, "not a Kubernetes name"),
        ({"pod": {"namespace": "x", "name": "y"}}, "malformed: spec.pod.uid missing"),
    ],
)
async def test_bad_input_fails_with_a_message_of_its_own(
    standin: ApiServer, tmp_path: Path, mover: FakeMover, changes: Any, message: str
) -> None:
    stage = Stage(standin, tmp_path)
    stage.pvb("b-1", **changes)
    async with agent_on(stage, mover):
        status = await stage.ended("b-1")
    assert status["phase"] == "Failed"
    assert message in status["message"]
    assert not mover.assignments


async def test_a_wrong_pod_uid_a_missing_password_and_two_directories_are_told_apart(
    standin: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Stage(standin, tmp_path)
    metadata = stage.pod["metadata"]
    other = {"name": "db-0", "namespace": metadata["namespace"], "uid": "before"}
    async with agent_on(stage, mover):
        stage.pvb("uid", pod=other)
        assert "has been replaced" in (await stage.ended("uid"))["message"]
        (stage.volume.parents[1] / "second" / "data").mkdir(parents=True)
        stage.pvb("two")
        assert "expected one directory" in (await stage.ended("two"))["message"]
        (stage.volume.parents[1] / "second" / "data").rmdir()
        standin.delete(standin.path("secrets", "velero-repo-credentials"))
        stage.pvb("password")
        assert "password of the repositories" in (await stage.ended("password"))["message"]


async def test_a_claimed_volume_is_found_through_its_claim(stage: Stage, mover: FakeMover) -> None:
    server = stage.server
    spec = {
        "nodeName": NODE,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c-1"}}],
    }
    pod = server.create(server.path("pods"), {"metadata": {"name": "with-claim"}, "spec": spec})
    claim_spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "volumeName": f"pv-{server.namespace}",
    }
    claim = server.create(
        server.path("persistentvolumeclaims"), {"metadata": {"name": "c-1"}, "spec": claim_spec}
    )
    volume = {
        "metadata": {
            "name": f"pv-{server.namespace}",
            "annotations": {"pv.kubernetes.io/migrated-to": "ebs.csi.example.org"},
        },
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "nfs": {"server": "nfs.example.org", "path": "/"},
        },
    }
    server.create(server.path("persistentvolumes"), volume)
    driver = {"metadata": {"name": "ebs.csi.example.org"}, "spec": {}}
    server.create(server.path("csidrivers"), driver)
    metadata = pod["metadata"]
    place = stage.host_pods / metadata["uid"] / f"volumes/x/pv-{server.namespace}/mount"
    place.mkdir(parents=True)
    stage.pvb("b-1", pod={key: metadata[key] for key in ("name", "namespace", "uid")})
    async with agent_on(stage, mover):
        status = await stage.ended("b-1")
    assert status["phase"] == "Completed", status
    assert mover.assignments[0].volume_path == place
    assert mover.assignments[0].pvc_uid == claim["metadata"]["uid"]


async def test_sigterm_ends_the_agent_with_code_zero(
    standin: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Stage(standin, tmp_path)
    mover.go_on.clear()
    stage.pvb("b-1")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(
            run_agent(stage.settings(grace_seconds=6.0), Movers(mover, mover))
        )
        await stage.phase("b-1", "InProgress")
        os.kill(os.getpid(), signal.SIGTERM)
    assert running.result() == 0
    assert stage.status("b-1")["phase"] == "InProgress"


async def test_an_agent_that_cannot_start_says_why(
    standin: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Stage(standin, tmp_path)
    nowhere = ClusterAccess(kubeconfig=tmp_path / "none")
    with pytest.raises(ClusterError, match="does not exist"):
        await run_agent(stage.settings(access=nowhere), Movers(mover, mover))
    with pytest.raises(UsageError, match="--metrics-address"):
        await run_agent(stage.settings(metrics_address=("192.0.2.1", 1)), Movers(mover, mover))
    standin.stop()
    with pytest.raises(ClusterError, match="cannot be reached"):
        await run_agent(stage.settings(startup_seconds=0.01), Movers(mover, mover))
