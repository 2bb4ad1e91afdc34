"""Every metric: docs/metrics.md names it, a run moves it, and no label names an object."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from agent.cancel import CancelToken
from agent.cluster.assignment import Assignment, Outcome
from agent.cluster.status import StatusDesk
from agent.metrics import Metrics
from agent.monitor import Counters, Monitor
from tests.cluster.agents import agent_on
from tests.cluster.fakemover import FakeMover
from tests.cluster.scene import until
from tests.cluster.stage import RUNNING, RestoreStage
from tests.support.apiservers import StandinServer

pytestmark = pytest.mark.usefixtures("quick")

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|(.*?)\| .+ \|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Return type and labels by name, as the page says."""
    rows = ROW.findall(PAGE.read_text())
    found = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(found) == len(rows)
    return found


def shown(text: str) -> Iterator[Metric]:
    """Yield the families of a page of /metrics, but for when each counter began to count."""
    for family in text_string_to_metric_families(text):
        if not family.name.endswith("_created"):
            yield family


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def values(text: str) -> dict[str, float]:
    """Return the largest value of each metric."""
    return {
        name_of(family): max((sample.value for sample in family.samples), default=0.0)
        for family in shown(text)
    }


class StandinStage(RestoreStage):
    """One whose API server does what it is told."""

    server: StandinServer


def busy(_assignment: Assignment, monitor: Monitor, cancel: CancelToken) -> Outcome:
    """Count one of everything, hold a lock that is 7 s old until the test has seen it, and end."""
    monitor.add(**dict.fromkeys(Counters.__slots__, 1))
    monitor.add(throttled_milliseconds=1999)
    with monitor.holding(lambda: 7.0):
        while not (_assignment.volume_path / "seen").exists():
            cancel.pause(0.01)
    return Outcome(snapshot_id="5a" * 32, size_bytes=1)


async def run_of_everything(
    stage: StandinStage, mover: FakeMover, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Have one of everything happen on a stage whose API server is the stand-in.

    Return /metrics while one works and others wait, later ones, and last after all has ended.
    """
    finish, wrong = StatusDesk.finish, ["b-2"]

    async def once_wrong(desk: StatusDesk, order: Any, *rest: Any) -> Any:
        if order.name in wrong:
            wrong.remove(order.name)
            raise TypeError("a bug")
        return await finish(desk, order, *rest)

    monkeypatch.setattr(StatusDesk, "finish", once_wrong)
    mover.act = busy
    for name in ("b-1", "b-2"):
        stage.pvb(name)
    stage.left_by_the_dead("b-1")
    stage.helper_is(RUNNING)
    stage.pvr("r-1")
    server = stage.server
    dead = '{"node":"node-1","pod":"agent-x","podUid":"gone","attempt":"old","since":"x"}'
    path = server.path("podvolumerestores", "r-1")
    server.patch(path, {"metadata": {"annotations": {"podlift.io/owner": dead}}})
    server.patch_status(path, {"phase": "InProgress"})
    stage.pvr("r-2")
    texts: list[str] = []
    async with agent_on(stage, mover) as running:

        def positive(*names: str) -> bool:
            text = running.ask("metrics")[1] if running.agent.port else ""
            seen = values(text)
            found = all(seen.get(f"podlift_{name}") for name in names)
            texts.extend([text] if found else [])
            return found

        await until(
            lambda: positive("lock_age_seconds", "backups_waiting", "restores_waiting"),
            "one of each kind to wait",
        )
        stage.server.faults.cut_watches()
        kinds = [("backups_running", stage.volume), ("restores_running", stage.target)]
        if not await asyncio.to_thread(positive, "backups_running"):
            kinds.reverse()
        for running_metric, volume in kinds:
            await until(lambda name=running_metric: positive(name), running_metric)  # type: ignore[misc]
            (volume / "seen").touch()
        for name in ("b-1", "b-2", "r-1", "r-2"):
            assert (await stage.ended(name))["phase"] == "Completed"
        await until(lambda: running.agent._controller.idle, "the end of all work")
        await until(lambda: positive("watch_ends_total"), "the end of a watch")
    return texts


async def test_a_run_moves_every_metric_and_the_page_names_each_with_its_labels(
    standin: StandinServer,
    tmp_path: Path,
    mover: FakeMover,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = StandinStage(standin, tmp_path)
    texts = await run_of_everything(stage, mover, monkeypatch)
    told = documented()
    seen = {name_of(family): family for text in texts for family in shown(text)}
    assert seen.keys() == told.keys()
    for name, family in seen.items():
        kind = "untyped" if family.type == "unknown" else family.type
        labels = {label for sample in family.samples for label in sample.labels}
        assert (kind, labels) == told[name], name
    at_all = {name: max(values(text)[name] for text in texts) for name in told}
    not_moved = [name for name, value in at_all.items() if not value]
    assert not_moved == []


async def test_counters_move_with_the_work_and_gauges_fall_when_it_has_ended(
    standin: StandinServer,
    tmp_path: Path,
    mover: FakeMover,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = StandinStage(standin, tmp_path)
    during, *_, after = await run_of_everything(stage, mover, monkeypatch)
    before, then = values(during), values(after)
    assert before["podlift_lock_age_seconds"] == 7.0
    assert before["podlift_uploaded_bytes_total"] + before["podlift_fetched_bytes_total"] == 1.0
    assert then["podlift_storage_throttled_seconds_total"] == 10.0  # five runs of 2 s
    for gauge in ("lock_age_seconds", "backups_waiting", "restores_waiting", "backups_running"):
        assert then[f"podlift_{gauge}"] == 0.0
    assert 'podlift_backups_total{result="completed"} 0.0' in during
    assert 'podlift_backups_total{result="partial"} 2.0' not in during
    assert "podVolume_pod_volume_backup_enqueue_count" in after
    assert "podlift_ready 1.0" in after


async def test_no_label_has_a_name_of_an_object(
    stage_names: tuple[StandinStage, set[str]], mover: FakeMover, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, names = stage_names
    *_, after = await run_of_everything(stage, mover, monkeypatch)
    given = {
        value for family in shown(after) for s in family.samples for value in s.labels.values()
    }
    assert not [value for value in given for name in names if name in value]


@pytest.fixture
def stage_names(standin: StandinServer, tmp_path: Path) -> tuple[StandinStage, set[str]]:
    stage = StandinStage(standin, tmp_path)
    pods = [stage.pod["metadata"], stage.waiting["metadata"]]
    return stage, {"b-1", "b-2", "r-1", *(p["name"] for p in pods), *(p["uid"] for p in pods)}


def test_what_a_run_has_counted_stays_when_it_has_ended() -> None:
    metrics = Metrics(CollectorRegistry(), "node-1")
    value = metrics.registry.get_sample_value
    first, second = Monitor(), Monitor()
    with metrics.at_work("backup", first):
        first.add(bytes_uploaded=5, throttled_milliseconds=1500)
        with metrics.at_work("restore", second):
            second.add(bytes_read=7, throttled_milliseconds=500)
            assert value("podlift_uploaded_bytes_total") == 5
            assert value("podlift_storage_throttled_seconds_total") == 2
        assert value("podlift_fetched_bytes_total") == 7
        assert value("podlift_restores_running") == 0
    assert value("podlift_uploaded_bytes_total") == 5
    assert value("podlift_storage_throttled_seconds_total") == 2


def test_the_lock_that_was_proven_longest_ago_counts() -> None:
    metrics = Metrics(CollectorRegistry(), "node-1")
    young, old = Monitor(), Monitor()
    with (
        metrics.at_work("backup", young),
        metrics.at_work("backup", old),
        young.holding(lambda: 3.0),
    ):
        assert metrics.registry.get_sample_value("podlift_lock_age_seconds") == 3
        with old.holding(lambda: 60.0):
            assert metrics.registry.get_sample_value("podlift_lock_age_seconds") == 60
        assert metrics.registry.get_sample_value("podlift_lock_age_seconds") == 3
