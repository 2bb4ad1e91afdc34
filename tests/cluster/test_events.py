"""What is told of orders in Kubernetes Events, over the stand-in and the real kube-apiserver."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.cluster import event, events
from agent.cluster.event import Reason, Word
from agent.cluster.events import Events
from agent.cluster.order import Order, OrderKind, parse
from agent.cluster.status import Clock
from agent.errors import StorageError
from tests.cluster.agents import agent_on
from tests.cluster.fakemover import SNAPSHOT, FakeMover, raising
from tests.cluster.scene import connection, create_pvb, owner, until
from tests.cluster.stage import RUNNING, RestoreStage
from tests.support.apihandle import ApiServer, Json
from tests.support.apiservers import StandinServer
from tests.support.kubectl import Kubectl


def seen(server: ApiServer, name: str) -> dict[str, Json]:
    """Return an object's Events by their reasons, of which none may come twice."""
    path = f"/api/v1/namespaces/{server.namespace}/events"
    items = server.list(path, fieldSelector=f"involvedObject.name={name}")["items"]
    found = {item["reason"].removeprefix("Data-Path-"): item for item in items}
    assert len(found) == len(items)
    return found


async def reasons(server: ApiServer, name: str, *expected: str) -> dict[str, Json]:
    """Wait for Events of just these reasons, leaving progress aside."""

    def look() -> dict[str, Json] | None:
        found = seen(server, name)
        return found if set(found) - {"Progress"} == set(expected) else None

    found: dict[str, Json] = await until(look, f"Events {expected} of {name}")
    return found


@pytest.fixture
def stage(api_server: ApiServer, tmp_path: Path) -> RestoreStage:
    return RestoreStage(api_server, tmp_path)


class TestOrders:
    async def test_a_backup_is_told_from_its_beginning_to_its_end(
        self, stage: RestoreStage, mover: FakeMover, tmp_path: Path
    ) -> None:
        made = stage.pvb("b-1")["metadata"]
        async with agent_on(stage, mover, pod_name="agent-x"):
            found = await reasons(stage.server, "b-1", "Started", "Completed")
        assert found["Started"]["message"] == (
            f"backup of volume data of pod {stage.server.namespace}/db-0 begins"
        )
        end = found["Completed"]
        assert end["message"] == f"snapshot {SNAPSHOT}; 4096 bytes"
        about = {key: end["involvedObject"][key] for key in ("apiVersion", "kind", "uid")}
        assert about == {
            "apiVersion": "velero.io/v1", "kind": "PodVolumeBackup", "uid": made["uid"],
        }  # fmt: skip
        assert (end["type"], end["count"]) == ("Normal", 1)
        assert end["source"] == {"component": "podlift", "host": "node-1"}
        assert (end["reportingComponent"], end["reportingInstance"]) == ("podlift", "agent-x")
        kubectl = Kubectl(stage.server, tmp_path)
        shown = await asyncio.to_thread(kubectl.run, "describe", "podvolumebackup", "b-1")
        assert "Data-Path-Started" in shown
        assert f"podlift  snapshot {SNAPSHOT}; 4096 bytes" in shown

    async def test_a_restore_is_told_too(self, stage: RestoreStage, mover: FakeMover) -> None:
        stage.helper_is(RUNNING)
        stage.pvr("r-1")
        async with agent_on(stage, mover):
            found = await reasons(stage.server, "r-1", "Started", "Completed")
        assert found["Started"]["message"].startswith("restore of volume data of pod ")
        assert found["Completed"]["involvedObject"]["kind"] == "PodVolumeRestore"

    async def test_a_failure_is_a_warning(self, stage: RestoreStage, mover: FakeMover) -> None:
        mover.act = raising(StorageError("the bucket is full"))
        stage.pvb("b-1")
        async with agent_on(stage, mover):
            found = await reasons(stage.server, "b-1", "Started", "Failed")
        assert found["Failed"]["type"] == "Warning"
        assert found["Failed"]["message"] == "data path backup failed: the bucket is full"

    async def test_what_is_refused_says_why(self, stage: RestoreStage, mover: FakeMover) -> None:
        stage.pvb("b-1", uploaderType="kopia")
        async with agent_on(stage, mover):
            found = await reasons(stage.server, "b-1", "Failed")
        assert "--uploader-types" in found["Failed"]["message"]

    async def test_a_cancel_is_told_when_it_is_seen_and_when_it_is_done(
        self, stage: RestoreStage, mover: FakeMover
    ) -> None:
        mover.go_on.clear()
        stage.pvb("b-1")
        async with agent_on(stage, mover):
            await until(lambda: mover.running, "the mover")
            path = stage.server.path("podvolumebackups", "b-1")
            stage.server.patch(path, {"spec": {"cancel": True}})
            found = await reasons(stage.server, "b-1", "Started", "Canceling", "Canceled")
        assert found["Canceled"]["message"].startswith("canceled: ")

    async def test_what_is_left_to_the_next_agent_is_told_at_the_end_and_goes_on(
        self, stage: RestoreStage, mover: FakeMover
    ) -> None:
        mover.go_on.clear()
        stage.pvb("b-1")
        async with agent_on(stage, mover, grace_seconds=7.0) as running:
            await until(lambda: mover.running, "the mover")
            running.stop.set()
            await until(lambda: not mover.running, "the mover's end")
        await reasons(stage.server, "b-1", "Started", "Stopped")
        stage.left_by_the_dead("b-1")
        async with agent_on(stage, FakeMover()):
            await stage.ended("b-1")

        def again() -> bool:
            path = f"/api/v1/namespaces/{stage.server.namespace}/events"
            messages = [item["message"] for item in stage.server.list(path)["items"]]
            return any("begins again, where an earlier agent" in message for message in messages)

        await until(again, "the word of the second beginning")


class Seconds:
    """A clock that stands still but when it is pushed, and sleeps at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def clock(self) -> Clock:
        return Clock(
            now=lambda: 1_790_000_000.0 + self.now, monotonic=lambda: self.now, sleep=self.sleep,
            chance=lambda low, high: high,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def telling(server: ApiServer, seconds: Seconds) -> AsyncIterator[Events]:
    """Have Events sent for the length of a scope."""
    async with connection(server) as kube, asyncio.TaskGroup() as tasks:
        told = Events(kube, owner(), seconds.clock())
        sending = tasks.create_task(told.run())
        yield told
        await told.close(10.0)
        sending.cancel()


def order_on(server: ApiServer, name: str = "b-1") -> Order:
    server.apply_velero_crds()
    return parse(OrderKind.BACKUP, json.dumps(create_pvb(server, name)).encode())


class TestRepeats:
    async def test_progress_is_one_event_that_is_counted_up_every_ten_seconds(
        self, api_server: ApiServer
    ) -> None:
        seconds, order = Seconds(), order_on(api_server)
        async with telling(api_server, seconds) as told:
            for step in range(40):
                told.progress(order, 1000, step)
                await asyncio.sleep(0)
                await told._idle.wait()
                seconds.now += 1.0
        (progress,) = seen(api_server, "b-1").values()
        assert (progress["count"], progress["reason"]) == (4, "Data-Path-Progress")
        assert json.loads(progress["message"]) == {"totalBytes": 1000, "doneBytes": 30}
        assert progress["firstTimestamp"] < progress["lastTimestamp"]
        new = api_server.get(api_server.path("events", progress["metadata"]["name"]))
        assert (new["deprecatedCount"], new["reportingController"]) == (4, "podlift")

    async def test_what_the_server_has_removed_meanwhile_is_made_again(
        self, api_server: ApiServer
    ) -> None:
        order = order_on(api_server)
        async with telling(api_server, Seconds()) as told:
            for message in ("one", "two"):
                told.tell(order, Reason.CANCELING, message)
                await told._idle.wait()
                (found,) = seen(api_server, "b-1").values()
                assert (found["message"], found["count"]) == (message, 1)
                api_server.delete(api_server.path("events", found["metadata"]["name"]))

    async def test_a_message_is_cut_and_a_long_name_still_makes_a_name(
        self, api_server: ApiServer
    ) -> None:
        order = order_on(api_server, "b." * 120 + "b")
        async with telling(api_server, Seconds()) as told:
            told.tell(order, Reason.FAILED, "é" * 5000)
        (found,) = seen(api_server, order.name).values()
        assert found["message"].endswith("é…")
        assert len(found["message"].encode()) <= event.MESSAGE_BYTES


def posts(server: StandinServer) -> list[int]:
    """Return how the server answered each request about Events."""
    return [s.status for s in server.requests if s.path.endswith("/events") and s.method == "POST"]


class TestFaults:
    async def test_a_missing_right_is_said_once_and_costs_nothing(
        self, standin: StandinServer, mover: FakeMover, tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        stage = RestoreStage(standin, tmp_path)
        standin.faults.deny("create", "events")
        for number in range(3):
            stage.pvb(f"b-{number}")
        with caplog.at_level(logging.INFO, "agent"):
            async with agent_on(stage, mover):
                for number in range(3):
                    assert (await stage.ended(f"b-{number}"))["phase"] == "Completed"
        words = [r.getMessage() for r in caplog.records if "Event" in r.getMessage()]
        assert len(words) == 1
        assert 'apiGroups [""], resources [events], verbs [create, patch]' in words[0]
        assert posts(standin) == [403]

    async def test_a_right_that_is_given_is_noticed_after_an_hour(
        self, standin: StandinServer
    ) -> None:
        seconds, order = Seconds(), order_on(standin)
        standin.faults.deny("create", "events")
        async with telling(standin, seconds) as told:
            told.tell(order, Reason.STARTED, "a")
            await told._idle.wait()
            standin.faults.clear()
            told.tell(order, Reason.CANCELING, "b")
            assert told._idle.is_set()
            seconds.now += events.FORBIDDEN_SECONDS
            told.tell(order, Reason.CANCELED, "c")
        assert set(seen(standin, "b-1")) == {"Canceled"}

    async def test_throttling_is_waited_out_and_only_so_often(
        self, standin: StandinServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        seconds, order = Seconds(), order_on(standin)
        standin.faults.throttle(2, retry_after_seconds=7, path="/events")
        with caplog.at_level(logging.INFO, "agent"):
            async with telling(standin, seconds) as told:
                told.tell(order, Reason.STARTED, "a")
                await told._idle.wait()
                assert seconds.slept == [7.0, 7.0]
                standin.faults.throttle(4, retry_after_seconds=3600, path="/events")
                told.tell(order, Reason.CANCELING, "b")
                await told._idle.wait()
                assert seconds.slept[2:] == [60.0, 60.0]
        assert set(seen(standin, "b-1")) == {"Started"}
        assert sum("no harm" in record.getMessage() for record in caplog.records) == 2

    async def test_a_lost_reply_makes_no_second_event(self, standin: StandinServer) -> None:
        order = order_on(standin)
        standin.faults.lose_reply(method="POST", path="/events")
        async with telling(standin, Seconds()) as told:
            told.tell(order, Reason.STARTED, "a")
            await told._idle.wait()
        assert set(seen(standin, "b-1")) == {"Started"}
        assert posts(standin) == [0, 409]

    async def test_a_server_that_does_not_answer_holds_nothing_up(
        self, standin: StandinServer, mover: FakeMover, tmp_path: Path
    ) -> None:
        stage = RestoreStage(standin, tmp_path)
        held = standin.faults.hold(method="POST", path="/events")
        stage.pvb("b-1")
        async with agent_on(stage, mover):
            assert (await stage.ended("b-1"))["phase"] == "Completed"
            await until(held.taken.is_set, "the request that is held")
        # the agent has ended beside it, after a moment
        held.released.set()

    async def test_an_outage_is_said_once_and_the_end_is_told_after_it(
        self, api_server: ApiServer, mover: FakeMover, tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        stage = RestoreStage(api_server, tmp_path)
        mover.go_on.clear()
        stage.pvb("b-1")
        with caplog.at_level(logging.INFO, "agent"):
            async with agent_on(stage, mover) as running:
                await stage.phase("b-1", "InProgress")
                await reasons(api_server, "b-1", "Started")
                await asyncio.to_thread(api_server.stop)
                order = Order(name="gone", namespace=api_server.namespace, uid="gone")
                for number in range(4):
                    running.agent._events.tell(order, Reason.CANCELING, str(number))
                await until(lambda: running.agent._events._failing, "a failure")
                mover.go_on.set()
                await asyncio.to_thread(api_server.restart)
                assert (await stage.ended("b-1"))["phase"] == "Completed"
                await reasons(api_server, "b-1", "Started", "Completed")
        assert sum("no harm" in record.getMessage() for record in caplog.records) == 1


def order_named(name: str) -> Order:
    return Order(name=name, namespace="velero", uid=name)


class Recording:
    """An API that keeps what it is sent, or breaks."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []

    async def create(self, _path: str, body: Any, *, attempts: int = 0) -> bytes:
        assert attempts == 1
        if body["message"] == "break":
            raise RuntimeError("a bug")
        self.bodies.append(body)
        return b"{}"

    async def patch(self, path: str, body: Any, *, attempts: int = 0) -> bytes:
        return await self.create(path, body, attempts=attempts)


class TestBounds:
    async def test_so_many_words_wait_and_no_more(self) -> None:
        api = Recording()
        told = Events(api, owner(), Seconds().clock())
        for number in range(events.MOST_WAITING + 50):
            told.tell(order_named(f"o-{number}"), Reason.STARTED, "a")
        told.tell(order_named("o-0"), Reason.STARTED, "newer")
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(told.run())
            await told.close(10.0)
            sending.cancel()
        assert len(api.bodies) == events.MOST_WAITING
        assert api.bodies[0]["message"] == "newer"
        assert len({body["metadata"]["name"] for body in api.bodies}) == events.MOST_WAITING

    async def test_a_bug_in_one_event_costs_that_event(self) -> None:
        api = Recording()
        told = Events(api, owner(), Seconds().clock())
        told.tell(order_named("a"), Reason.STARTED, "break")
        told.tell(order_named("Not A Name"), Reason.STARTED, "x")
        told.tell(Order(name="n", namespace="../x"), Reason.STARTED, "x")
        told.tell(order_named("b"), Reason.STARTED, "good")
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(told.run())
            await told.close(10.0)
            sending.cancel()
        assert api.bodies[-1]["message"] == "good"

    async def test_what_is_remembered_has_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "MOST_REMEMBERED", 3)
        told = Events(Recording(), owner(), Seconds().clock())
        for number in range(9):
            told.progress(order_named(f"o-{number}"), 1, 1)
        assert list(told._progress_at) == ["o-6", "o-7", "o-8"]

    def test_names_differ_by_object_reason_and_process(self) -> None:
        words = [Word(order_named(uid), reason, "") for uid in "ab" for reason in Reason]
        names = {event.name_of(word, owner(number)) for word in words for number in (1, 2)}
        assert len(names) == 2 * 2 * len(Reason)
