"""The dashboard's queries, asked of a real Prometheus that has watched agents at real work."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_metrics import documented
from tests.e2e.scene import Scene
from tests.monitoring.panels import Line, Panel, panels, read
from tests.monitoring.shift import NODES, Shift, with_scene
from tests.support.apiservers import standing
from tests.support.faultproxy import FaultProxy
from tests.support.s3servers import S3Server

QUIET = {
    ("Agents not ready", "not ready"): "none is",
    ("Without progress", "stuck"): "nothing is for ten minutes",
    ("Backups ended", "canceled"): "nobody cancels",
    ("Backups ended", "lost"): "nobody deletes one",
    ("Backups ended", "left"): "an agent is killed, and not asked to stop",
    ("Restores ended", "canceled"): "as above",
    ("Restores ended", "lost"): "as above",
    ("Restores ended", "left"): "as above",
    ("Restores ended", "partial"): "each is complete",
    ("Restores ended", "refused"): "the one that cannot be is tried, and fails",
    ("Queue", "restores waiting"): "for less than a scrape takes, maybe",
    ("Queue", "restores at work"): "as above",
    ("Taken over, checkpoints", "restores taken over"): "a backup is",
    ("Taken over, checkpoints", "checkpoints"): "there is one a minute of work",
    ("Left out, not complete", "not restored in full"): "each is complete",
    ("Calls made again", "integrity"): "no body is damaged",
    ("Calls made again", "credentials"): "they stay as they are",
    ("Bugs", "internal errors"): "none is met",
    ("API server", "listed"): "one is taken at the start, before the first scrape",
    ("API server", "idle"): "the watches are cut, and end in no other way",
    ("API server", "expired"): "as above",
    ("API server", "malformed"): "as above",
    ("API server", "broken"): "as above",
    ("Claims", "lost"): "each node has one agent",
}
"""Lines that are 0 throughout, and why."""

NEVER_MOVED = {
    "podlift_checkpoints_total": "there is one a minute of work",
    "podlift_incomplete_entries_total": "each restore is complete",
    "podlift_internal_errors_total": "none is met",
    "podlift_restores_resumed_total": "a backup is taken over",
}

BRIEF = {"podlift_restores_running", "podlift_restores_waiting"}
"""What may have been 0 at each scrape, since the volumes are small."""

ABSENT_AT_FIRST = {
    "podVolume_pod_volume_operation_latency_seconds",
    "podVolume_pod_volume_operation_latency_seconds_gauge",
}
"""What is not there until a volume has completed; docs/metrics.md says so."""


@pytest.fixture(scope="module")
def shift(
    s3_server: S3Server, prometheus_binary: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shift]:
    folder: Path = tmp_path_factory.mktemp("shift")
    with standing(folder) as server, FaultProxy(s3_server) as proxy:
        server.apply_velero_crds()
        scene = Scene(server, s3_server, folder / "scene", proxy)
        with with_scene(scene, proxy, 2, 1.0) as shift, shift.watched(prometheus_binary, 0.5):
            shift.work(2)
            yield shift


@pytest.fixture(scope="module")
def answers(shift: Shift) -> dict[str, list[Line]]:
    """Return what each panel shows."""
    span = shift.span()
    shown = [panel for panel in panels(read()) if panel.kind != "row"]
    return {panel.title: panel.answers(shift.prometheus, span) for panel in shown}


def last(lines: list[Line]) -> Counter[str]:
    """Return what each line of a panel ends at, in whole numbers."""
    return Counter({line.name: round(line.last) for line in lines})


def test_every_query_has_an_answer_and_every_line_moves_or_says_why_not(
    answers: dict[str, list[Line]],
) -> None:
    assert [title for title, lines in answers.items() if not lines] == []
    lines = {(title, line.name): line for title, found in answers.items() for line in found}
    flat = {name for name, line in lines.items() if not any(value for _, value in line.values)}
    assert flat <= QUIET.keys() <= lines.keys()


def test_every_query_of_a_panel_gives_a_line(shift: Shift) -> None:
    span = shift.span()
    for panel in panels(read()):
        for target in panel.json.get("targets", ()):
            alone = Panel({**panel.json, "targets": [target]})
            assert alone.answers(shift.prometheus, span), target["expr"]


def test_what_ended_and_how_is_what_the_objects_say(
    shift: Shift, answers: dict[str, list[Line]]
) -> None:
    facts = shift.facts
    for title, phases in (("Backups ended", facts.backups), ("Restores ended", facts.restores)):
        results = last(answers[title])
        assert results["completed"] + results["partial"] == phases["Completed"] > 0
        assert results["failed"] + results["refused"] == phases["Failed"] > 0
    failed = facts.backups["Failed"] + facts.restores["Failed"]
    assert last(answers["Failed in 24 h"])["failed"] == failed
    assert last(answers["Left out in 24 h"])["entries"] == facts.unreadable > 0
    assert last(answers["Backups ended"])["partial"] == 2  # both of the volume that has such files


def test_bytes_and_files_are_those_of_the_volumes(shift: Shift) -> None:
    facts = shift.facts

    def value(name: str, node: str = NODES[0], more: str = "") -> float:
        series = f'podlift_{name}_total{{instance="{node}"{more}}}'
        return shift.prometheus.value(f"last_over_time({series}[1m])")

    assert value("read_bytes") == facts.bytes["read"]
    assert value("processed_bytes") == facts.bytes["processed"]
    for state, count in facts.files.items():
        assert value("files", more=f',state="{state}"') == count
    for node, size in facts.restored.items():
        assert value("restored_bytes", node) == size


def test_what_is_drawn_adds_up_to_what_was_moved(shift: Shift) -> None:
    span = shift.span()
    shown = {panel.title: panel for panel in panels(read())}
    moved = {
        ("Backup throughput", "read"): shift.facts.bytes["read"],
        ("Restore throughput", "restored"): shift.facts.restored[NODES[0]],
    }
    for (title, name), amount in moved.items():
        lines = shown[title].answers(shift.prometheus, span, NODES[0])
        (line,) = [line for line in lines if line.name == name]
        drawn = sum(value for _, value in line.values) * span.step
        assert 0.5 * amount < drawn < 1.5 * amount, (title, name)  # scrapes may come late


def test_factors_are_those_of_the_counters(shift: Shift, answers: dict[str, list[Line]]) -> None:
    for title, over, under in (
        ("Deduplication over 24 h", "processed", "added"),
        ("Compression over 24 h", "added", "stored"),
    ):
        (line,) = answers[title]
        whole = "sum(increase(podlift_{}_bytes_total[1h]))"
        expected = shift.prometheus.value(f"{whole.format(over)} / {whole.format(under)}")
        assert line.last == pytest.approx(expected, rel=0.02)
        assert line.last > 1.2  # unchanged files are not added again, and half of a volume is text


def test_agents_are_named_and_chosen_by_their_nodes(
    shift: Shift, answers: dict[str, list[Line]]
) -> None:
    (variable,) = [v for v in read()["templating"]["list"] if v["name"] == "instance"]
    assert variable["query"]["query"] == "label_values(podlift_build_info, instance)"
    query = "group by (instance) (last_over_time(podlift_build_info[1h]))"
    found = shift.prometheus.query(query)
    assert sorted(sample.labels["instance"] for sample in found) == list(NODES)
    for title in ("Memory", "CPU", "Age of the lock"):
        assert sorted(line.name for line in answers[title]) == list(NODES)
    assert max(value for _, value in answers["Versions"][0].values) == len(NODES)


def test_the_rules_told_of_what_went_wrong_and_of_nothing_else(
    answers: dict[str, list[Line]],
) -> None:
    assert {line.name for line in answers["Alerts that fire"]} == {
        "PodliftBackupFailed",
        "PodliftRestoreFailed",
        "PodliftEntriesUnreadable",
    }


def series_of_documented() -> dict[str, str]:
    """Return by metric the name of a series that it has."""
    kinds = {name: kind for name, (kind, _) in documented().items()}
    return {name: f"{name}_count" if kind == "histogram" else name for name, kind in kinds.items()}


def test_every_documented_metric_is_scraped_and_moved_or_is_named(shift: Shift) -> None:
    told = series_of_documented()
    assert set(told.values()) <= shift.prometheus.names()
    most = {
        name: shift.prometheus.value(f"max(max_over_time({series}[1h]))")
        for name, series in told.items()
    }
    still = {name for name, value in most.items() if value == 0}
    assert NEVER_MOVED.keys() <= still <= NEVER_MOVED.keys() | BRIEF


def test_what_has_not_happened_yet_is_0_and_not_absent(shift: Shift) -> None:
    began = shift.facts.began
    first = 'count by (__name__) (last_over_time({job="podlift"}[1m]))'
    seen = {sample.labels["__name__"] for sample in shift.prometheus.query(first, began)}
    told = series_of_documented()
    assert {name for name, series in told.items() if series not in seen} == ABSENT_AT_FIRST
