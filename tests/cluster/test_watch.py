"""The watcher over scripted answers, with a clock of the test's own."""

import functools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.cluster.client import Page
from agent.cluster.order import OrderKind, parse
from agent.cluster.watch import Collection, Pace, Watcher
from agent.errors import ApiError, ClusterError
from tests.cluster.scene import Ledger


class Enough(Exception):
    """The test has seen what it wants of the endless loop."""


class Time:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        if len(self.pauses) >= 8:
            raise Enough

    def pace(self) -> Pace:
        return Pace(clock=lambda: self.now, sleep=self.sleep, chance=lambda low, high: high)


def item(name: str, version: str) -> bytes:
    body = {"metadata": {"name": name, "uid": name, "resourceVersion": version}, "spec": {}}
    return json.dumps(body).encode()


def event(kind: str, name: str, version: str) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), item(name, version))


class Script:
    """Answers each list and each watch by the next step; a step may be an error or seconds."""

    def __init__(self, time: Time, lists: list[Any], watches: list[Any]) -> None:
        self.time = time
        self.lists = lists
        self.watches = watches
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def list(self, path: str, query: Any = None) -> Page:
        self.asked.append(("list", dict(query or {})))
        step = self.lists.pop(0)
        if isinstance(step, Exception):
            raise step
        return Page(*step)

    async def watch(
        self, path: str, query: Any, *, server_seconds: float, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        self.asked.append(("watch", dict(query)))
        for step in self.watches.pop(0) if self.watches else [Enough()]:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                self.time.now += step
            else:
                yield step


def watcher(lists: list[Any], watches: list[Any]) -> tuple[Watcher, Script, Ledger, Time]:
    time, ledger = Time(), Ledger()
    script = Script(time, lists, watches)
    pvbs = Collection("/pvbs", functools.partial(parse, OrderKind.BACKUP), "spec.node=n1")
    return Watcher(script, pvbs, ledger, time.pace()), script, ledger, time


ONE = ([item("a", "5")], "5")
GONE = ApiError("expired", status=410)


async def test_a_watch_goes_on_from_the_list_then_from_the_last_event() -> None:
    subject, script, ledger, _ = watcher(
        [ONE],
        [
            [event("ADDED", "b", "6"), event("BOOKMARK", "", "9"), event("PECULIAR", "x", "77")],
            [event("DELETED", "a", "10")],
            [],
        ],
    )
    delays = [await subject.iterate() for _ in range(3)]
    versions = [query["resourceVersion"] for verb, query in script.asked if verb == "watch"]
    assert versions == ["5", "9", "10"]
    assert ledger.lists == [["a"]]
    assert ledger.events == [("changed", "b"), ("deleted", "a")]
    assert delays == [0.0, 0.0, 0.8]


async def test_empty_ends_back_off_and_an_event_resets_that() -> None:
    subject, _, _, _ = watcher([ONE], [[], [], [], [event("ADDED", "b", "6")], []])
    assert [await subject.iterate() for _ in range(5)] == [0.8, 1.6, 3.2, 0.0, 0.8]


async def test_the_back_off_has_a_ceiling() -> None:
    subject, _, _, _ = watcher([ONE], [[] for _ in range(20)])
    assert [await subject.iterate() for _ in range(20)][-1] == 30.0


async def test_a_quiet_watch_that_lasted_is_no_failure() -> None:
    subject, _, _, _ = watcher([ONE], [[240.0], [150.0, TimeoutError()]])
    assert [await subject.iterate() for _ in range(2)] == [0.0, 0.0]
    assert subject.counts.ends == {"eof": 1, "idle": 1}


async def test_an_expired_version_is_listed_again_at_once_after_a_healthy_watch() -> None:
    subject, script, _, _ = watcher(
        [ONE, ONE, ONE], [[event("ADDED", "b", "6"), GONE], [GONE], [GONE]]
    )
    assert [await subject.iterate() for _ in range(3)] == [0.0, 0.8, 1.6]
    assert [verb for verb, _ in script.asked].count("list") == 3


async def test_an_error_event_ends_the_watch_with_its_code() -> None:
    line = b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"old"}}\n'
    subject, _, _, _ = watcher([ONE, ONE], [[line], []])
    await subject.iterate()
    await subject.iterate()
    assert subject.counts.ends == {"expired": 1, "eof": 1}
    assert subject.counts.lists == 2


@pytest.mark.parametrize(
    "line", [b"Too many requests\n", b'{"type":"ADDED","object":{"metadata":3}}\n', b"[]\n"]
)
async def test_a_line_that_is_no_event_backs_off_and_keeps_the_version(line: bytes) -> None:
    subject, script, _, _ = watcher([ONE], [[line], []])
    assert await subject.iterate() == 0.8
    await subject.iterate()
    assert subject.counts.ends == {"malformed": 1, "eof": 1}
    assert script.asked[-1][1]["resourceVersion"] == "5"


async def test_the_servers_wish_wins_over_the_back_off_but_not_without_limit() -> None:
    wishes = [
        ApiError("busy", status=429, retry_after_seconds=7.0),
        ApiError("busy", status=429, retry_after_seconds=4000.0),
    ]
    subject, _, _, _ = watcher([*wishes, ONE], [[]])
    assert [await subject.iterate() for _ in range(3)] == [7.0, 60.0, 0.8]


async def test_the_list_is_taken_again_after_its_time() -> None:
    subject, script, _, _ = watcher([ONE, ONE], [[1799.0], [1.0], []])
    for _ in range(3):
        await subject.iterate()
    assert [verb for verb, _ in script.asked] == ["list", "watch", "watch", "list", "watch"]


async def test_the_selector_is_probed_at_each_list() -> None:
    refused = ApiError("field label not supported", status=400)
    subject, script, _, _ = watcher([refused, ONE, ONE], [[GONE], []])
    await subject.iterate()
    assert subject.selectable is False
    await subject.iterate()
    assert subject.selectable is True
    selectors = [(verb, query.get("fieldSelector")) for verb, query in script.asked]
    ours = "spec.node=n1"
    assert selectors == [
        ("list", ours),
        ("list", None),
        ("watch", None),
        ("list", ours),
        ("watch", ours),
    ]


async def test_a_watch_whose_selector_is_refused_starts_over() -> None:
    refused = ApiError("field label not supported", status=400)
    subject, _, _, _ = watcher([ONE, refused, ONE], [[refused], []])
    assert await subject.iterate() == 0.8
    await subject.iterate()
    assert subject.selectable is False


async def test_the_loop_outlives_every_failure_and_pauses_between_them() -> None:
    failures = [ApiError("down", status=0) for _ in range(7)] + [ClusterError("odd")]
    subject, _, ledger, time = watcher(failures, [])
    with pytest.raises(Enough):
        await subject.run()
    assert time.pauses == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert ledger.lists == []
    assert subject.progress_at is None
