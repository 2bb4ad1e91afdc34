"""Pods and what they mean for a restore: the pure site, and the table of what was observed."""

import json
from typing import Any

import msgspec
import pytest

from agent.cluster import pods
from agent.cluster.objects import Pod
from agent.cluster.order import Order, OrderKind
from agent.cluster.pods import PodTable, parse_pod
from agent.cluster.site import HERE, Site, Where, site_of
from agent.cluster.status import Clock

UID = "pod-uid-1"
RUNNING: Any = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def pod(
    state: Any = None, *, helper: str = "restore-wait", phase: str = "Pending", **changes: Any
) -> Pod:
    """A pod as the API server shows it; ``changes`` go into metadata and spec."""
    metadata = {"name": "db-0", "namespace": "app", "uid": changes.pop("uid", UID)}
    if "deletionTimestamp" in changes:
        metadata["deletionTimestamp"] = changes.pop("deletionTimestamp")
    names = [{"name": "first"}, {"name": helper}] if helper else None
    spec = {"nodeName": "n1", "restartPolicy": "Always", "initContainers": names, **changes}
    status: dict[str, Any] = {"phase": phase}
    if state is not None:
        done = {"name": "first", "state": {"terminated": {"exitCode": 0}}}
        status["initContainerStatuses"] = [done, {"name": helper, "state": state}]
    return parse_pod(json.dumps({"metadata": metadata, "spec": spec, "status": status}).encode())


ENDED_WELL = {"terminated": {"exitCode": 0}}


@pytest.mark.parametrize(
    ("seen", "where", "words"),
    [
        (pod(RUNNING), Where.HERE, ""),
        (pod(RUNNING, helper="restic-wait"), Where.HERE, ""),
        (pod(RUNNING, nodeName="n2"), Where.ELSEWHERE, "runs on node n2"),
        (pod(nodeName=""), Where.WAITING, "not scheduled"),
        (pod(), Where.WAITING, "not been started yet"),
        (pod({}), Where.WAITING, "does not run yet"),
        (pod({"waiting": {"reason": "ImagePullBackOff"}}), Where.WAITING, "(ImagePullBackOff)"),
        (pod({"terminated": {"exitCode": 1}}), Where.WAITING, "code 1 and is started again"),
        (
            pod({"terminated": {"exitCode": 1}}, restartPolicy="Never"),
            Where.LOST,
            "is not started again",
        ),
        (pod(ENDED_WELL), Where.DONE, "the volume is the pod's now"),
        (pod(ENDED_WELL, deletionTimestamp="2026-01-01T00:00:00Z"), Where.DONE, "the pod's now"),
        (pod(ENDED_WELL, phase="Failed"), Where.DONE, "the pod's now"),
        (pod(ENDED_WELL, uid="another"), Where.LOST, "has been replaced"),
        (pod(RUNNING, uid="another"), Where.LOST, "has been replaced"),
        (pod(RUNNING, deletionTimestamp="2026-01-01T00:00:00Z"), Where.LOST, "being deleted"),
        (pod(RUNNING, phase="Failed"), Where.LOST, "has ended (Failed)"),
        (pod(helper=""), Where.LOST, "no init container restore-wait"),
    ],
)
def test_the_state_of_the_init_container_decides(seen: Pod, where: Where, words: str) -> None:
    site = site_of(seen, UID, "n1")
    assert site.where is where
    assert words in site.reason


def restore(uid: str = "r-1", **changes: Any) -> Order:
    order = Order(
        kind=OrderKind.RESTORE,
        name=uid,
        uid=uid,
        pod_name="db-0",
        pod_namespace="app",
        pod_uid=UID,
    )
    return msgspec.structs.replace(order, **changes)


class Table:
    """A table of node n1 with a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.moves = 0
        clock = Clock(monotonic=lambda: self.now, chance=lambda low, high: high)
        self.pods = PodTable("n1", clock, self._moved)

    def _moved(self) -> None:
        self.moves += 1

    def where(self, order: Order | None = None) -> Where:
        return self.pods.site(order or restore()).where


@pytest.fixture
def table() -> Table:
    return Table()


def test_a_pod_is_followed_from_its_first_event_to_its_end(table: Table) -> None:
    table.pods.replace([pod(uid="other")])
    assert table.where() is Where.ELSEWHERE
    table.pods.changed(pod())
    assert table.where() is Where.WAITING
    table.pods.changed(pod(RUNNING))
    assert table.where() is Where.HERE
    table.pods.deleted(pod(RUNNING))
    assert table.where() is Where.LOST
    assert table.moves == 4


def test_a_pod_that_a_new_list_does_not_hold_is_gone(table: Table) -> None:
    table.pods.replace([pod(RUNNING)])
    assert table.where() is Where.HERE
    table.pods.replace([])
    assert "was deleted" in table.pods.site(restore()).reason
    table.pods.forget("r-1")
    assert table.where() is Where.ELSEWHERE


def test_pods_of_other_nodes_are_not_kept(table: Table) -> None:
    table.pods.replace([pod(RUNNING, nodeName="n2")])
    table.pods.changed(pod(RUNNING, nodeName="n2"))
    assert table.where() is Where.ELSEWHERE


def test_nothing_is_asked_before_the_pods_were_listed(table: Table) -> None:
    table.now = 1e6
    assert table.where() is Where.ELSEWHERE
    table.pods.replace([])
    assert table.where() is Where.ELSEWHERE
    table.now += pods.UNSEEN_SECONDS[1]
    assert table.where() is Where.ASK


def test_a_pod_that_was_never_seen_is_looked_up_once_and_then_seldom(table: Table) -> None:
    table.pods.replace([])
    table.where()
    table.now += pods.UNSEEN_SECONDS[1] - 1
    assert table.where() is Where.ELSEWHERE
    table.now += 1
    assert table.where() is Where.ASK
    table.pods.learn(restore(), Site(Where.ELSEWHERE, "it runs on node n2"))
    table.now += pods.ANSWER_SECONDS[1] - 1
    assert table.pods.site(restore()).reason == "it runs on node n2"
    table.now += 1
    assert table.where() is Where.ASK


def test_what_is_watched_wins_over_what_was_asked(table: Table) -> None:
    table.pods.replace([])
    table.pods.learn(restore(), Site(Where.ELSEWHERE, "old"))
    table.pods.changed(pod(RUNNING))
    assert table.pods.site(restore()) == HERE


def test_a_canceled_restore_without_a_node_is_looked_up_soon(table: Table) -> None:
    table.pods.replace([])
    table.where()
    table.now += pods.STOPPED_SECONDS[1]
    assert table.where() is Where.ELSEWHERE
    assert table.where(restore(cancel=True)) is Where.ELSEWHERE
    table.now += pods.STOPPED_SECONDS[1]
    assert table.where(restore(cancel=True)) is Where.ASK


def test_a_restore_that_names_no_pod_is_anybodys_to_end(table: Table) -> None:
    table.pods.replace([])
    assert table.where(restore(pod_uid="")) is Where.LOST
