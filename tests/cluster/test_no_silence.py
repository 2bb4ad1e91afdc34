"""No object of this node is left new without a word, or in progress without an owner.

Each row is a way to be left lying: its object ends with a message that names the reason, or the log
says why nothing is done and it is looked at again. What other modules show is not repeated. Of the
decisions as such ``test_claim`` has every row. For backups ``test_agent`` shows an uploader type that
is not taken, a missing volume, location, pod or password, a replaced pod, two directories, missing
rights, a full queue, a dead owner and spent attempts; ``test_restores`` shows pods that wait, went on or
are gone; ``test_faults`` and ``test_outage`` show missed events, lost answers and a restored store.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.cluster.controller import Controller
from agent.cluster.status import StatusDesk
from tests.cluster.agents import agent_on
from tests.cluster.fakemover import FakeMover
from tests.cluster.scene import NODE, create_pvb, until
from tests.cluster.stage import RUNNING, RestoreStage
from tests.support.apihandle import Json
from tests.support.apiservers import StandinServer

pytestmark = pytest.mark.usefixtures("quick")

OWNER = "podlift.io/owner"
DEAD: Json = {"node": NODE, "pod": "agent-x", "podUid": "gone", "attempt": "old"}


@pytest.fixture
def stage(standin: StandinServer, tmp_path: Path) -> RestoreStage:
    stage = RestoreStage(standin, tmp_path)
    stage.helper_is(RUNNING)
    return stage


def as_left(stage: RestoreStage, name: str, mark: Any, phase: str = "InProgress") -> None:
    """Make an object what others left: their mark on it, and their phase."""
    plural = "podvolumerestores" if name.startswith("r-") else "podvolumebackups"
    path = stage.server.path(plural, name)
    if mark is not None:
        text = mark if isinstance(mark, str) else json.dumps(mark)
        stage.server.patch(path, {"metadata": {"annotations": {OWNER: text}}})
    stage.server.patch_status(path, {"phase": phase})


def reference(pod: Json) -> Json:
    return {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}


ENDED: dict[str, tuple[Json, str]] = {
    "b-secret": ({"backupStorageLocation": "no-secret"}, "/gone, the credentials of Back"),
    "b-key": ({"backupStorageLocation": "no-key"}, "no value under 'other'"),
    "b-readonly": ({"backupStorageLocation": "readonly"}, "is read-only"),
    "b-provider": ({"backupStorageLocation": "provider"}, "stores in S3 only"),
    "b-far": ({}, "runs on node 'node-2'"),
    "b-unmarked": ({}, "without podlift's mark"),
    "b-stopped": ({"cancel": True}, "canceled: spec.cancel was set while the agent was being"),
    "r-location": ({"backupStorageLocation": "none"}, "/none does not exist"),
    "r-secret": ({"backupStorageLocation": "no-secret"}, "/gone, the credentials of Back"),
    "r-type": ({"uploaderType": "kopia"}, "uploader type kopia is not taken"),
    "r-volume": ({"volume": "nothing"}, "has no volume 'nothing'"),
    "r-nothing": ({"snapshotID": ""}, "spec.snapshotID is empty"),
    "r-unmarked": ({}, "without podlift's mark"),
    "r-worn": ({}, "given up after 5 attempts"),
    "r-orphan": (
        {"pod": {"name": "gone", "namespace": "x", "uid": "u"}},
        "it cannot be begun again",
    ),
}
"""What is asked for, and words of the message that it ends with."""

LEFT: dict[str, Any] = {
    "b-unmarked": None,
    "b-stopped": DEAD,
    "r-unmarked": None,
    "r-worn": {**DEAD, "earlier": ["1", "2", "3", "4"]},
    "r-orphan": DEAD,
}


async def test_what_cannot_be_done_ends_with_its_reason(
    stage: RestoreStage, mover: FakeMover
) -> None:
    stage.location("no-secret", credential={"name": "gone", "key": "file"})
    stage.location("no-key", credential={"name": "cloud", "key": "other"})
    stage.location("readonly", accessMode="ReadOnly")
    stage.location("provider", provider="azure")
    far, _ = stage.pod_on("node-2")
    for name, (changes, _) in ENDED.items():
        if name == "b-far":
            create_pvb(stage.server, name, pod=reference(far))
        else:
            (stage.pvr if name.startswith("r-") else stage.pvb)(name, **changes)
        if name in LEFT:
            as_left(stage, name, LEFT[name])
    async with agent_on(stage, mover):
        for name, (_, words) in ENDED.items():
            status = await stage.ended(name)
            assert status["phase"] == "Failed", name
            assert words in status["message"], name
    assert not mover.assignments


async def test_a_mark_that_cannot_be_read_is_a_dead_owners(
    stage: RestoreStage, mover: FakeMover
) -> None:
    stage.pvb("b-1")
    stage.pvr("r-1")
    as_left(stage, "b-1", "{")
    as_left(stage, "r-1", "[]")
    async with agent_on(stage, mover):
        assert (await stage.ended("b-1"))["phase"] == "Completed"
        assert (await stage.ended("r-1"))["phase"] == "Completed"


def ignored(stage: RestoreStage) -> Callable[[], None]:
    stage.pvb("b-1", uploaderType="kopia")
    path = stage.server.path("podvolumebackups", "b-1")
    return lambda: void(stage.server.patch(path, {"spec": {"uploaderType": "restic"}}))


def velero_has_it(stage: RestoreStage) -> Callable[[], None]:
    stage.pvb("b-1")
    path = stage.server.path("podvolumebackups", "b-1")
    stage.server.patch_status(path, {"phase": "Prepared"})
    return lambda: void(stage.server.patch_status(path, {"phase": "New"}))


def another_lives(stage: RestoreStage) -> Callable[[], None]:
    """Its pod goes without any event that we watch: only a later look can tell."""
    body = {"metadata": {"name": "agent-y"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    made = stage.server.create(stage.server.path("pods"), body)
    stage.pvb("b-1")
    as_left(stage, "b-1", {**DEAD, "pod": "agent-y", "podUid": made["metadata"]["uid"]})
    return lambda: void(stage.server.delete(stage.server.path("pods", "agent-y")))


def void(_: object) -> None:
    """Do without an answer."""


@pytest.mark.parametrize(
    ("prepared", "words"),
    [
        (ignored, "uploader type kopia is not taken (--uploader-types)"),
        (velero_has_it, "Velero's own data mover has it"),
        (another_lives, "another living agent has it"),
    ],
)
async def test_what_is_left_as_it_is_has_a_word_in_the_log_once_and_is_looked_at_again(
    stage: RestoreStage,
    mover: FakeMover,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable[[RestoreStage], Callable[[], None]],
    words: str,
) -> None:
    caplog.set_level(logging.INFO, "agent")
    looks = 0
    dispatch = Controller.dispatch

    def counted(self: Controller, tasks: asyncio.TaskGroup) -> None:
        nonlocal looks
        looks += 1
        dispatch(self, tasks)

    monkeypatch.setattr(Controller, "dispatch", counted)
    change = prepared(stage)
    line = f"b-1: is left as it is: {words}"
    async with agent_on(stage, mover, other_uploader_types="ignore"):
        await until(lambda: line in caplog.messages, "the word")
        await until(lambda: looks > 20, "twenty looks, at which nothing new is to be said")
        assert caplog.messages.count(line) == 1
        change()
        assert (await stage.ended("b-1"))["phase"] == "Completed"


async def test_restores_whose_pods_cannot_be_listed_have_a_word_and_go_on_when_they_can(
    stage: RestoreStage, mover: FakeMover, standin: StandinServer, caplog: pytest.LogCaptureFixture
) -> None:
    standin.faults.deny("list", "pods")
    stage.pvr("r-1")
    async with agent_on(stage, mover) as running:
        await until(lambda: "forbid" in caplog.text.lower(), "the word")
        assert "list of pods has not been read" in running.agent._not_ready()
        standin.faults.clear()
        assert (await stage.ended("r-1"))["phase"] == "Completed"


class Panic(BaseException):
    """What a library in Rust raises when it breaks."""


async def test_a_data_path_that_breaks_in_any_way_ends_its_order(
    stage: RestoreStage, mover: FakeMover
) -> None:
    def panic(*_: Any) -> Any:
        raise Panic("it broke")

    mover.act = panic
    stage.pvb("b-1")
    stage.pvr("r-1")
    async with agent_on(stage, mover):
        for name in ("b-1", "r-1"):
            status = await stage.ended(name)
            assert status["phase"] == "Failed"
            assert "internal error Panic: it broke; report this" in status["message"]


@pytest.mark.parametrize("method", ["claim", "finish", "read", "settle"])
async def test_a_bug_in_the_controllers_own_task_is_logged_and_the_order_looked_at_again(
    stage: RestoreStage,
    mover: FakeMover,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    broken = getattr(StatusDesk, method)
    seen: list[str] = []

    async def once_wrong(desk: StatusDesk, order: Any, *rest: Any) -> Any:
        if order.name not in seen:
            seen.append(order.name)
            raise TypeError("a bug")
        return await broken(desk, order, *rest)

    monkeypatch.setattr(StatusDesk, method, once_wrong)
    names = {"b-1": "Completed", "r-1": "Completed", "b-2": "Failed"}
    stage.pvb("b-1")
    stage.pvr("r-1")
    stage.pvb("b-2", uploaderType="kopia")
    async with agent_on(stage, mover) as running:
        for name, phase in names.items():
            assert (await stage.ended(name))["phase"] == phase
        _, metrics = await asyncio.to_thread(running.ask, "metrics")
    assert seen
    assert caplog.text.count("internal error; report this") == len(seen)
    assert f"podlift_internal_errors_total {len(seen)}.0" in metrics
