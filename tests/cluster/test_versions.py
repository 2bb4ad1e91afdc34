"""What Velero's definitions can change for the agent, over those of each release and on both API servers.

A schema refuses a phase that it does not have, and drops without a word a field that it does not have,
whoever writes it: Velero's server into ``spec``, the agent into ``status``. What differs between releases
is read from their definitions (``tests.support.velerocrds``); what follows from it is here. What they
cannot change (paths on the host, storage, rights, outages) is shown over those of one release elsewhere.
"""

import asyncio
import dataclasses
import datetime
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cancel import CancelToken
from agent.cluster.assignment import Assignment, BackupAssignment, Outcome, RestoreAssignment
from agent.cluster.client import Kube
from agent.cluster.order import FINAL_PHASES, RUNNING_PHASE, OrderKind
from agent.errors import ApiError, StorageError
from agent.monitor import Monitor
from tests.cluster.agents import agent_on, ready
from tests.cluster.fakemover import SNAPSHOT, FakeMover
from tests.cluster.scene import until
from tests.cluster.stage import OUR_PHASES, RUNNING, RestoreStage
from tests.support.apihandle import ApiServer, Json
from tests.support.velerocrds import NEWEST, VERSIONS, Kind, kind

BEGAN = "2026-01-01T00:00:00Z"
BACKUPS, RESTORES = (each.plural for each in OrderKind)
LOCATIONS = "backupstoragelocations"
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
MERGE = {"Content-Type": "application/merge-patch+json"}


@dataclasses.dataclass(frozen=True)
class Written:
    """A patch of the agent's, and what came of it; no answer if it was refused."""

    path: str
    body: Mapping[str, Any]
    code: int
    answer: Json

    @property
    def name(self) -> str:
        return self.path.split("/")[7]

    @property
    def status(self) -> Json:
        return dict(self.body.get("status", {}))

    def check(self, version: str) -> None:
        """Nothing is refused for what it holds, and of a status is stored all that the release knows."""
        theirs, newest = (kind(each, self.path.split("/")[6]) for each in (version, NEWEST))
        assert self.code in (200, 409), self
        assert self.status.get("phase", RUNNING_PHASE) in OUR_PHASES
        assert newest.kept("status", self.status) == self.status
        for name, value in self.status.items() if self.code == 200 else ():
            known = name in theirs.kept("status", self.status)
            assert self.answer["status"].get(name) == (value if known else None), (name, self)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, version: str) -> Iterator[list[Written]]:
    """Collect what the agent writes, and check each of it at the end."""
    send, found = Kube.patch, list[Written]()

    async def patch(self: Kube, path: str, body: Mapping[str, Any], *, attempts: int = 0) -> bytes:
        try:
            answer = await send(self, path, body, attempts=attempts)
        except ApiError as error:
            found.append(Written(path, body, error.status or 0, {}))
            raise
        found.append(Written(path, body, 200, json.loads(answer)))
        return answer

    monkeypatch.setattr(Kube, "patch", patch)
    yield found
    assert found
    for each in found:
        each.check(version)


class Release(RestoreStage):
    """The stage with the definitions of one release."""

    def __init__(self, server: ApiServer, directory: Path, velero: str) -> None:
        super().__init__(server, directory, velero)
        self.kinds = {"b": kind(velero, BACKUPS), "r": kind(velero, RESTORES)}
        self.locations = kind(velero, LOCATIONS)
        self.helper_is(RUNNING)
        self.secret("authority", "pem", Path(server.ca).read_bytes())

    def kind_of(self, name: str) -> Kind:
        return self.kinds[name[0]]

    def table(self, name: str) -> dict[str, str]:
        """Return what kubectl shows of an object, by the titles of its columns."""
        found = self.server.request("GET", self.path_of(name), headers=TABLE).json
        titles = [column["name"] for column in found["columnDefinitions"]]
        cells = ("" if cell is None else str(cell) for cell in found["rows"][0]["cells"])
        return dict(zip(titles, cells, strict=True))

    def told(self, name: str) -> set[str]:
        """Return the reasons of an object's Events, but for progress."""
        path = f"/api/v1/namespaces/{self.server.namespace}/events"
        items = self.server.list(path, fieldSelector=f"involvedObject.name={name}")["items"]
        reasons = {item["reason"].removeprefix("Data-Path-") for item in items}
        return reasons - {"Progress"}

    def check_end(self, name: str, status: Json, **fields: Any) -> None:
        """Compare a status with what it must hold, as far as the release knows the fields."""
        known = self.kind_of(name)
        times = {key: value for key, value in status.items() if key.endswith("Timestamp")}
        began = times["startTimestamp"]
        assert began <= times.pop("completionTimestamp")
        assert times == known.kept("status", {"acceptedTimestamp": began, "startTimestamp": began})
        others = {key: value for key, value in status.items() if not key.endswith("Timestamp")}
        assert others == known.kept("status", fields)


@pytest.fixture(params=VERSIONS, scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """Return each release for all tests in a row: the real server takes seconds to change over."""
    return str(request.param)


@pytest.fixture
def stage(api_server: ApiServer, tmp_path: Path, version: str) -> Release:
    return Release(api_server, tmp_path, version)


@pytest.mark.usefixtures("quick")
class TestEveryRelease:
    async def test_every_end_is_stored_shown_and_told(
        self, stage: Release, mover: FakeMover, written: list[Written]
    ) -> None:
        go_on = threading.Event()

        def move(assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
            if assignment.name.endswith("bad"):
                raise StorageError("the bucket is full")
            monitor.add(bytes_total=1000, bytes_done=400)
            while not go_on.wait(0.01):
                cancel.check()
            made = {"snapshot_id": SNAPSHOT} if isinstance(assignment, BackupAssignment) else {}
            odd = ("f: gone",) if assignment.name.endswith("odd") else ()
            return Outcome(
                size_bytes=2000, incremental_bytes=70, problems=len(odd), problem_names=odd, **made
            )

        mover.act = move
        for name in ("b-good", "b-odd", "b-bad"):
            stage.order(name, parentSnapshot="none", uploaderSettings={"ParallelFilesUpload": "3"})
        for name in ("r-good", "r-bad"):
            stage.order(name, snapshotSize=2000)
        running = {"totalBytes": 1000, "bytesDone": 400}
        async with agent_on(stage, mover, concurrency=5) as agent:
            for name in ("b-good", "r-good"):
                await until(
                    lambda name=name: stage.status(name).get("progress") == running, "progress"
                )
            go_on.set()
            ends = {name: await stage.ended(name) for name in ("b-good", "b-odd", "r-good")}
            failed = {name: await stage.ended(name) for name in ("b-bad", "r-bad")}
            for name in (*ends, *failed):
                told = {"Started", "Failed" if name in failed else "Completed"}
                await until(lambda name=name, told=told: stage.told(name) == told, "the Events")
            doors = agent.agent._controller._bench.desk._subresources
        full = {"phase": "Completed", "progress": {"totalBytes": 2000, "bytesDone": 2000}}
        made = {"snapshotID": SNAPSHOT, "path": str(stage.volume), "incrementalBytes": 70, **full}
        stage.check_end("b-good", ends["b-good"], **made)
        stage.check_end("b-odd", ends["b-odd"], message="1 entry was left out: f: gone", **made)
        stage.check_end("r-good", ends["r-good"], **full)
        for name, status in failed.items():
            words = f"data path {'backup' if name == 'b-bad' else 'restore'} failed"
            stage.check_end(name, status, phase="Failed", message=f"{words}: the bucket is full")
        for name in ("b-good", "r-good"):
            shown = stage.table(name)
            assert list(shown) == ["Name", *stage.kind_of(name).columns]
            assert {title for title in shown if not shown[title]} == shown.keys() & {"Node"}
        wish = stage.kinds["b"].kept("spec", {"parentSnapshot": "none"})
        for assignment in mover.assignments:
            if isinstance(assignment, BackupAssignment):
                assert assignment.parent == wish.get("parentSnapshot", "")
                assert assignment.files_at_once == 3
        assert doors == {each for each in OrderKind if stage.kinds[each.noun[0]].has_status}

    async def test_a_cancel_ends_it_as_failed_and_is_no_wish_where_the_field_is_not_known(
        self, stage: Release, mover: FakeMover, written: list[Written]
    ) -> None:
        go_on = threading.Event()

        def move(assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
            while not go_on.wait(0.01):
                if assignment.name == "b-late" and cancel.canceled:
                    break  # it was at its end already
                if assignment.name != "b-late":
                    cancel.check()
            return mover.succeed(assignment, monitor, cancel)

        mover.act = move
        names = ["b-1", "r-1", "b-late"]
        for name in names:
            stage.order(name)
        async with agent_on(stage, mover, concurrency=3):
            await until(lambda: mover.running == 3, "three movers")
            stage.order("b-waits")
            for name in (*names, "b-waits"):
                said = {"message": "Cancel PVB on pod volume timeout"}  # as a server of 1.18 says
                kept = stage.server.patch(
                    stage.path_of(name), {"spec": {"cancel": True}, "status": said}
                )
                wished = kept["spec"].get("cancel", False)
                assert wished is ("spec.cancel" in stage.kind_of(name).fields)
            if not wished:
                go_on.set()
            ends = {name: await stage.ended(name) for name in (*names, "b-waits")}
        for name, status in ends.items():
            if wished and name != "b-late":
                assert status["phase"] == "Failed"
                assert status["message"].startswith("canceled: spec.cancel was set")
            else:
                assert (status["phase"], status.get("message")) == ("Completed", None)

    async def test_of_all_phases_and_types_only_what_is_ours_is_touched(
        self, stage: Release, mover: FakeMover, written: list[Written]
    ) -> None:
        ours, finals, others = {}, [], []
        for letter, theirs in stage.kinds.items():
            for phase in theirs.phases:
                path = stage.held(name := f"{letter}-{phase.lower()}")
                stage.server.patch(path, {"status": {"phase": phase}})
                if phase in FINAL_PHASES:
                    finals.append(path)
                    stage.server.delete(path)
                elif phase in ("New", RUNNING_PHASE):
                    ours[name] = phase
                else:
                    others.append((name, {"phase": phase}))
            for phase in set(kind(NEWEST, BACKUPS).phases) - set(theirs.phases):
                wrong = {"status": {"phase": phase}}
                assert stage.server.request("PATCH", path, wrong, headers=MERGE).status == 422
            for uploader in set(theirs.choices("spec", "uploaderType")) - {"restic", ""}:
                stage.order(name := f"{letter}-{uploader}", uploaderType=uploader)
                others.append((name, {}))
        async with agent_on(stage, mover, concurrency=2, other_uploader_types="ignore"):
            for name, phase in ours.items():
                status = await stage.ended(name)
                assert status["phase"] == ("Completed" if phase == "New" else "Failed")
                assert ("without podlift's mark" in status.get("message", "")) is (phase != "New")
            for path in finals:
                await until(lambda path=path: stage.gone(path), "the deletion")
        assert len(finals) == 2 * len(FINAL_PHASES & set(stage.kinds["b"].phases))
        for name, status in others:
            assert stage.status(name) == status
        assert {each.name for each in written if each.status} == ours.keys()

    async def test_what_is_deleted_ends_as_failed_first_if_it_can(
        self, stage: Release, mover: FakeMover, written: list[Written]
    ) -> None:
        mover.go_on.clear()
        held = [stage.held("b-held"), stage.held("r-held")]
        free = stage.order("b-free")
        async with agent_on(stage, mover, concurrency=3):
            await until(lambda: mover.running == 3, "three movers")
            for path in held:
                seen = await asyncio.to_thread(stage.statuses_until_gone, path)
                assert seen[-1]["phase"] == "Failed"
                assert "is being deleted" in seen[-1]["message"]
            stage.server.delete(free)
            await until(lambda: mover.running == 0, "the movers' end")
        assert stage.gone(free)

    async def test_the_next_agent_goes_on_and_each_location_is_what_it_says(
        self, stage: Release, mover: FakeMover, written: list[Written]
    ) -> None:
        reference = {"caCertRef": {"name": "authority", "key": "pem"}}
        checked = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        stage.location("away", status={"phase": "Unavailable", "lastValidationTime": checked})
        stage.location("fixed", accessMode="ReadOnly")
        stage.location("trusting", reference)
        stage.order("b-left", backupStorageLocation="away")
        stage.order("b-away", backupStorageLocation="away")
        stage.order("b-fixed", backupStorageLocation="fixed")
        stage.order("b-trusting", backupStorageLocation="trusting")
        stage.order("r-left")
        stage.order("r-fixed", backupStorageLocation="fixed")
        for name in ("b-left", "r-left"):
            stage.left_by_the_dead(name, began=BEGAN)
        names = ["b-left", "r-left", "b-trusting", "r-fixed", "b-away", "b-fixed"]
        async with agent_on(stage, mover, concurrency=6, pod_name="agent-y", pod_uid="new"):
            ends = {name: await stage.ended(name) for name in names}
        refused = {name: ends[name] for name in ("b-away", "b-fixed")}
        assert {ends[name]["phase"] for name in ends.keys() - refused.keys()} == {"Completed"}
        assert {status["phase"] for status in refused.values()} == {"Failed"}
        assert "unavailable" in refused["b-away"]["message"]
        assert "is read-only" in refused["b-fixed"]["message"]
        for name in ("b-left", "r-left"):
            times = {"startTimestamp": BEGAN, "acceptedTimestamp": BEGAN}
            known = stage.kind_of(name).kept("status", times)
            assert {key: ends[name][key] for key in times if key in ends[name]} == known
        moved = {each.name: each for each in mover.assignments}
        assert moved.keys() == ends.keys() - refused.keys()
        assert isinstance(moved["r-fixed"], RestoreAssignment)
        assert moved["r-fixed"].read_only
        references = "spec.objectStorage.caCertRef" in stage.locations.fields
        assert isinstance(moved["b-trusting"].storage.verify, str) is references


async def test_an_upgrade_of_velero_under_a_running_agent_is_followed(
    api_server: ApiServer, tmp_path: Path, mover: FakeMover
) -> None:
    stage = Release(api_server, tmp_path, "v1.16.2")
    mover.go_on.clear()
    path = stage.order("b-old")
    async with agent_on(stage, mover) as running:
        assert "acceptedTimestamp" not in await stage.phase("b-old", "InProgress")
        await until(lambda: mover.running, "the mover")
        api_server.upgrade_velero_crds(NEWEST)
        wish = {"spec": {"cancel": True}}
        await until(lambda: api_server.patch(path, wish)["spec"].get("cancel"), "the new schema")
        status = await stage.ended("b-old")
        assert status["message"] == "canceled: spec.cancel was set"
        mover.go_on.set()
        stage.order("b-new", parentSnapshot="none")
        status = await stage.ended("b-new")
        assert status["acceptedTimestamp"] == status["startTimestamp"]
        assert status["incrementalBytes"] == 0
        await ready(running)
    assert mover.assignments[-1].parent == "none"
