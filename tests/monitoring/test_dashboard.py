"""The dashboard: every query asks for metrics and labels that exist, and Prometheus takes it."""

import re
from collections.abc import Iterator

import pytest

from tests.cluster.test_metrics import documented
from tests.monitoring.panels import panels, read, resolved
from tests.monitoring.test_rules import NOT_OURS, asked_for, existing
from tests.support.promtool import Json, Promtool

FROM_THE_TARGET = {"instance", "job"}
"""Labels that Prometheus adds to every series."""

OF_ALERTS = frozenset({"alertname", "alertstate"})
"""Labels of the series that Prometheus makes of alerts."""


@pytest.fixture(scope="module")
def dashboard() -> Json:
    return read()


def queries(dashboard: Json) -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries, as Grafana sends them."""
    for panel in panels(dashboard):
        for expression, _ in panel.queries:
            yield panel.title, resolved(expression, rate_interval=300)


def test_every_query_asks_for_metrics_that_exist(dashboard: Json) -> None:
    for title, query in queries(dashboard):
        assert asked_for(query), title
        assert asked_for(query) <= existing() - NOT_OURS | {"ALERTS"}, title


def test_every_label_that_is_asked_for_exists(dashboard: Json) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            labels = {label for name in asked_for(target["expr"]) for label in labels_of(name)}
            grouped = re.findall(r"(?:by|on|without) \((.*?)\)", target["expr"])
            wanted = {label.strip() for group in grouped for label in group.split(",")}
            wanted |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", target["expr"]))
            wanted |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert wanted <= labels | FROM_THE_TARGET, panel["title"]


def labels_of(series: str) -> frozenset[str]:
    if series == "ALERTS":
        return OF_ALERTS
    name = series if series in documented() else re.sub(r"_(bucket|sum|count)$", "", series)
    return documented()[name][1]


def test_no_ending_of_a_query_was_forgotten(dashboard: Json) -> None:
    assert not [query for _, query in queries(dashboard) if "$" in query]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "instance"}


def test_every_metric_of_podlifts_own_has_its_place_or_is_told_by_another(dashboard: Json) -> None:
    shown = {name for _, query in queries(dashboard) for name in asked_for(query)}
    own = {name for name in documented() if name.startswith("podlift_")}
    assert own - {re.sub("_bucket$", "", name) for name in shown} == {
        "podlift_backups_enqueued_total",
        "podlift_restores_enqueued_total",
        "podlift_backups_dequeued_total",
        "podlift_restores_dequeued_total",
    }


def test_panels_do_not_overlap_and_say_what_they_show(dashboard: Json) -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
        taken |= cells


def test_prometheus_takes_every_query(promtool: Promtool, dashboard: Json) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query}
        for number, (_, query) in enumerate(queries(dashboard))
    ]
    assert promtool.check({"groups": [{"name": "dashboard", "rules": rules}]}) == ""


def test_a_query_gives_what_its_panel_says(promtool: Promtool, dashboard: Json) -> None:
    at = dict(queries(dashboard))
    series = {
        "podlift_processed_bytes_total": "0+1000x1500",
        "podlift_added_bytes_total": "0+100x1500",
        "podlift_stored_bytes_total": "0+50x1500",
        'podlift_backups_running{instance="a"}': "1x1500",
        'podlift_backups_running{instance="b"}': "2x1500",
        'podlift_restores_running{instance="b"}': "1x1500",
    }
    samples = {"Deduplication over 24 h": 10, "Compression over 24 h": 2, "At work": 4}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": name if "{" in name else f'{name}{{instance="a"}}', "values": values}
            for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": at[title],
                "eval_time": "1450m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
            for title, value in samples.items()
        ],
    }
    assert promtool.test({"groups": []}, [test]) == ""
