"""Alerts: what they ask of Prometheus exists, promtool takes them, and each fires when it must."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.test_metrics import documented
from tests.monitoring.alerts import CASES, Case
from tests.support.kustomize import render, written
from tests.support.manifests import DEPLOY
from tests.support.promtool import Json, Promtool

PROJECT = Path(__file__).parents[2]

SERIES = re.compile(r"\b(?:podlift|podVolume|process|kube)_\w+|\b(?:up|ALERTS)\b")

NOT_OURS = {
    "up",
    "ALERTS",
    "kube_cronjob_status_last_successful_time",
    "kube_daemonset_status_desired_number_scheduled",
    "kube_daemonset_status_number_ready",
    "kube_job_failed",
}
"""Of Prometheus itself, and of kube-state-metrics (its documentation of CronJob, DaemonSet, Job)."""


def asked_for(expression: str) -> set[str]:
    """Return the names of the metrics in an expression, but for what is compared with in quotes."""
    return set(SERIES.findall(re.sub(r'"[^"]*"', '""', expression)))


def anchor(heading: str) -> str:
    """Return what a link names a section by."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


def existing() -> set[str]:
    """Return every name that a series may have."""
    names = set(NOT_OURS)
    for name, (kind, _) in documented().items():
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names.update(name + end for end in ends)
    return names


@pytest.fixture(scope="module")
def rules() -> Json:
    """Return what stands below spec: a rule file."""
    text = (PROJECT / "deploy/monitoring/prometheusrule.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    assert (document["apiVersion"], document["kind"]) == (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
    )
    return dict(document["spec"])


@pytest.fixture(scope="module")
def alerts(rules: Json) -> dict[str, Json]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def test_every_expression_asks_for_metrics_that_exist(alerts: dict[str, Json]) -> None:
    for name, rule in alerts.items():
        assert asked_for(rule["expr"]), name
        assert asked_for(rule["expr"]) <= existing(), name


def test_labels_that_are_asked_for_exist(alerts: dict[str, Json]) -> None:
    for name, rule in alerts.items():
        for metric, matchers in re.findall(r"(podlift_\w+)\{(.*?)\}", rule["expr"]):
            asked = set(re.findall(r"(\w+)\s*[=!]", matchers))
            assert asked <= documented()[metric][1], name


def test_every_alert_says_how_bad_it_is_what_is_wrong_and_is_in_the_manual(
    alerts: dict[str, Json],
) -> None:
    manual = (PROJECT / "docs/operations.md").read_text()
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}, name
        page, _, section = rule["annotations"]["runbook"].partition("#")
        headings = re.split(r"^## (.+)\n", (PROJECT / page).read_text(), flags=re.MULTILINE)[1:]
        sections = dict(zip(map(anchor, headings[::2]), headings[1::2], strict=True))
        assert f"| `{name}` | {rule['labels']['severity']} |" in sections[section], name
    assert set(re.findall(r"`(Podlift\w+)`", manual)) == alerts.keys()


def test_every_alert_has_cases_in_which_it_fires_and_in_which_not(alerts: dict[str, Json]) -> None:
    for outcome in (True, False):
        assert {case.alert for case in CASES if case.fires is outcome} == alerts.keys()


def test_promtool_takes_them(promtool: Promtool, rules: Json) -> None:
    assert promtool.check(rules) == ""


@pytest.mark.parametrize("case", CASES, ids=[f"{case.alert}: {case.why}" for case in CASES])
def test_an_alert_fires_when_it_must_and_else_not(
    promtool: Promtool, rules: Json, case: Case
) -> None:
    firing = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)'
    at = f"{case.minutes}m"
    expected = [{"labels": "{}", "value": int(case.fires)}]
    test = {
        "interval": case.interval,
        "input_series": [{"series": name, "values": v} for name, v in case.series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": at, "exp_samples": expected}],
    }
    assert promtool.test(rules, [test], case.interval) == ""


def test_words_name_the_agent_and_the_number(promtool: Promtool, rules: Json) -> None:
    expected = {
        "exp_labels": {"severity": "warning", "instance": "10.0.0.7:8085"},
        "exp_annotations": {
            "summary": "A repository's lock on 10.0.0.7:8085 is not refreshed",
            "description": "It was proven 1200 seconds ago, which should be 300 at most; at 1350 the"
            " run fails, so that nothing is written without a lock. The storage does not answer, or"
            " somebody removed the lock: see the log.",
            "runbook": "docs/operations.md#alerts",
        },
    }
    test = {
        "interval": "1m",
        "input_series": [
            {"series": 'podlift_lock_age_seconds{instance="10.0.0.7:8085"}', "values": "1200x9"}
        ],
        "alert_rule_test": [
            {"eval_time": "5m", "alertname": "PodliftLockOld", "exp_alerts": [expected]}
        ],
    }
    assert promtool.test(rules, [test]) == ""


@pytest.mark.parametrize("components", [(), ("beside-velero",), ("openshift", "backup-only")])
def test_the_podmonitor_is_rendered_and_finds_the_pods_of_every_kind(
    tmp_path: Path, components: tuple[str, ...]
) -> None:
    site = render(written({"namespace": "other"}, tmp_path, *components))
    (daemonset,) = [document for document in site if document["kind"] == "DaemonSet"]
    rendered = {each["kind"]: each for each in render(DEPLOY / "monitoring")}
    assert rendered.keys() == {"PodMonitor", "PrometheusRule"}
    wanted = rendered["PodMonitor"]["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= daemonset["spec"]["template"]["metadata"]["labels"].items()
    (names,) = {
        names
        for group in rendered["PrometheusRule"]["spec"]["groups"]
        for rule in group["rules"]
        for names in re.findall(r'daemonset=~"(.*?)"', rule["expr"])
    }
    assert re.fullmatch(names, daemonset["metadata"]["name"])


def test_the_podmonitor_finds_the_pods_and_their_port() -> None:
    monitor = yaml.safe_load((PROJECT / "deploy/monitoring/podmonitor.yaml").read_text())
    documents = yaml.safe_load_all((PROJECT / "deploy/daemonset.yaml").read_text())
    (daemonset,) = [d for d in documents if d["kind"] == "DaemonSet"]
    template = daemonset["spec"]["template"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= template["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == daemonset["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (port,) = template["spec"]["containers"][0]["ports"]
    assert endpoint["port"] == port["name"]
    assert endpoint["path"] == template["metadata"]["annotations"]["prometheus.io/path"]
