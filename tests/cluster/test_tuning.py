"""loadConcurrency: what a ConfigMap means for a node, and that a running agent follows it."""

import asyncio
import contextlib
import json
from typing import Any

import msgspec
import pytest

from agent.cluster.concurrency import LoadConcurrency, NodeSelector, read_concurrency
from agent.cluster.objects import ConfigMap
from agent.cluster.tuning import Tuning
from agent.errors import ApiError, ClusterError
from tests.cluster.scene import NODE

LABELS = {"kubernetes.io/hostname": "n1", "pool": "big", "zone": "a"}


def config_map(load: Any, *, key: str = "any") -> ConfigMap:
    return ConfigMap(data={key: json.dumps({"loadConcurrency": load, "podResources": {"x": 1}})})


def volumes(load: Any, labels: dict[str, str] | None = None) -> int:
    rules = read_concurrency(config_map(load), "ConfigMap velero/c")
    return rules.volumes(LABELS if labels is None else labels, 7)


def rule(number: int, **selector: Any) -> dict[str, Any]:
    return {"nodeSelector": selector, "number": number}


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (None, 7),
        ({}, 7),
        ({"globalConfig": 3}, 3),
        ({"globalConfig": 0}, 7),
        ({"globalConfig": -2}, 7),
        ({"globalConfig": 3, "perNodeConfig": [rule(5, matchLabels={"pool": "big"})]}, 5),
        ({"globalConfig": 3, "perNodeConfig": [rule(5, matchLabels={"pool": "small"})]}, 3),
        ({"globalConfig": 3, "perNodeConfig": [rule(9), rule(4), rule(6)]}, 4),
        ({"globalConfig": 3, "perNodeConfig": [rule(0), rule(-1), rule(6)]}, 6),
        ({"perNodeConfig": [rule(2, matchLabels={"pool": "big", "zone": "b"})]}, 7),
    ],
)
def test_the_smallest_rule_that_matches_wins_over_the_number_for_everywhere(
    load: Any, expected: int
) -> None:
    assert volumes(load) == expected


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ({"key": "pool", "operator": "In", "values": ["small", "big"]}, True),
        ({"key": "pool", "operator": "In", "values": ["small"]}, False),
        ({"key": "gpu", "operator": "In", "values": ["yes"]}, False),
        ({"key": "pool", "operator": "NotIn", "values": ["small"]}, True),
        ({"key": "pool", "operator": "NotIn", "values": ["big"]}, False),
        ({"key": "gpu", "operator": "NotIn", "values": ["yes"]}, True),
        ({"key": "pool", "operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists"}, False),
        ({"key": "gpu", "operator": "DoesNotExist"}, True),
        ({"key": "pool", "operator": "DoesNotExist"}, False),
    ],
)
def test_expressions_select_as_the_api_server_reads_them(expression: Any, selected: bool) -> None:
    selector = msgspec.convert({"matchExpressions": [expression]}, NodeSelector)
    assert selector.meaningful
    assert selector.selects(LABELS) is selected


@pytest.mark.parametrize(
    "expression",
    [
        {"key": "pool", "operator": "Like", "values": ["b"]},
        {"key": "pool", "operator": "In"},
        {"key": "pool", "operator": "Exists", "values": ["b"]},
        {"operator": "Exists"},
    ],
)
def test_a_rule_without_meaning_is_skipped_with_a_warning(
    expression: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert volumes({"perNodeConfig": [rule(2, matchExpressions=[expression]), rule(5)]}) == 5
    assert "rule 1 of loadConcurrency.perNodeConfig is ignored" in caplog.text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": "{}", "b": "{}"}, "has 2 keys"),
        ({"config": "not json"}, "under 'config' cannot be read"),
        ({"config": '{"loadConcurrency": {"globalConfig": "3"}}'}, "Expected `int`"),
        ({"config": '{"loadConcurrency": {"perNodeConfig": {}}}'}, "Expected `array"),
    ],
)
def test_a_config_map_that_cannot_be_read_is_named(data: dict[str, str], words: str) -> None:
    with pytest.raises(ClusterError, match=f"ConfigMap velero/c.*{words}"):
        read_concurrency(ConfigMap(data=data), "ConfigMap velero/c")


def test_no_data_says_nothing() -> None:
    assert read_concurrency(ConfigMap(), "ConfigMap velero/c") == LoadConcurrency()


class Api:
    """Serves one node, or refuses to."""

    def __init__(self, labels: dict[str, str] | None) -> None:
        self.labels = labels
        self.asked: list[str] = []

    async def get(self, path: str, query: Any = None) -> bytes:
        self.asked.append(path)
        if self.labels is None:
            raise ApiError("the API server forbids GET", status=403)
        return json.dumps({"metadata": {"name": NODE, "labels": self.labels}}).encode()


class Followed:
    """A tuning at work, and the numbers it gave."""

    def __init__(self, api: Api) -> None:
        self.numbers: asyncio.Queue[int] = asyncio.Queue()
        self.tuning = Tuning(api, NODE, 7, self.numbers.put_nowait)

    async def next(self) -> int:
        return await asyncio.wait_for(self.numbers.get(), 10)


@contextlib.asynccontextmanager
async def followed(api: Api) -> Any:
    found = Followed(api)
    task = asyncio.create_task(found.tuning.run())
    try:
        yield found
    finally:
        task.cancel()


BIG = {"globalConfig": 3, "perNodeConfig": [rule(5, matchLabels={"pool": "big"})]}


async def test_what_cannot_be_read_changes_nothing_and_a_deletion_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = Api(LABELS)
    async with followed(api) as found:
        found.tuning.replace([config_map({"globalConfig": 3})])
        assert await found.next() == 3
        assert api.asked == []  # nothing depends on the node
        found.tuning.changed(ConfigMap(data={"a": "{", "b": "{"}))
        assert "3 at a time as before" in caplog.text
        found.tuning.changed(config_map(BIG))
        assert await found.next() == 5
        assert api.asked == [f"/api/v1/nodes/{NODE}"]
        found.tuning.deleted(config_map(BIG))
        assert await found.next() == 7


async def test_labels_that_changed_count_from_the_next_list_on() -> None:
    api = Api({"pool": "small"})
    async with followed(api) as found:
        found.tuning.replace([config_map(BIG)])
        assert await found.next() == 3
        api.labels = LABELS
        found.tuning.replace([config_map(BIG)])
        assert await found.next() == 5


async def test_without_the_nodes_labels_the_number_for_everywhere_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with followed(Api(None)) as found:
        found.tuning.replace([config_map(BIG)])
        assert await found.next() == 3
    assert "rules for nodes are left out: the API server forbids" in caplog.text
