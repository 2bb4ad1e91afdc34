"""The pods of this node, for the restores that wait for them; the sink of a watch.

A restore does not say which node it is for, so every agent sees all of them and knows its own by
their pods. A pod that was never seen here is some other node's business, as a rule. But one that
was deleted before anybody looked is nobody's, and its restore would wait for ever: so an agent
that has seen a restore go unclaimed for a while looks its pod up, once, and again only after a
long time. Whoever finds it gone ends the restore; the others see that and need not ask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from agent.cluster.client import decode
from agent.cluster.objects import Pod
from agent.cluster.order import Order
from agent.cluster.site import Site, Where, site_of
from agent.cluster.status import Clock

UNSEEN_SECONDS = (60.0, 120.0)
"""How long a restore may be unclaimed before its pod, which is not on this node, is looked up."""

STOPPED_SECONDS = (0.0, 10.0)
"""The same for one that is to be canceled: if it has no node, nobody else would end it."""

ANSWER_SECONDS = (600.0, 1200.0)
"""How long an answer holds; a pod never moves to another node."""


def parse_pod(body: bytes | msgspec.Raw) -> Pod:
    """Read a pod; raises ``ClusterError``."""
    return decode(body, Pod, "a pod")


@dataclass(frozen=True, slots=True)
class _Answer:
    site: Site
    until: float


class PodTable:
    """What is known of the pods; ``moved`` is called whenever that may have changed."""

    def __init__(self, node: str, clock: Clock, moved: Callable[[], None]) -> None:
        self._node = node
        self._clock = clock
        self._moved = moved
        self._pods: dict[str, Pod] = {}
        self._listed = False
        self._followed: dict[str, str] = {}
        self._gone: set[str] = set()
        self._look_up_at: dict[str, tuple[tuple[float, float], float]] = {}
        self._answers: dict[str, _Answer] = {}

    def replace(self, objects: Sequence[Pod]) -> None:
        """Take these as all pods of this node."""
        present = {pod.metadata.uid: pod for pod in objects if pod.spec.node_name == self._node}
        for uid in self._pods.keys() - present:
            self._remove(uid)
        self._pods = present
        self._listed = True
        self._moved()

    def changed(self, pod: Pod) -> None:
        """Take one pod."""
        if pod.spec.node_name == self._node:
            self._pods[pod.metadata.uid] = pod
            self._moved()

    def deleted(self, pod: Pod) -> None:
        """Forget one pod."""
        self._remove(pod.metadata.uid)
        self._moved()

    def _remove(self, uid: str) -> None:
        if self._pods.pop(uid, None) is not None and uid in self._followed.values():
            self._gone.add(uid)

    def site(self, order: Order) -> Site:
        """Return the site of a restore, which is followed until it is forgotten."""
        if not (order.pod_uid and order.pod_name and order.pod_namespace):
            return Site(Where.LOST, "it names no pod")
        self._followed[order.uid] = order.pod_uid
        pod = self._pods.get(order.pod_uid)
        if pod is not None:
            return site_of(pod, order.pod_uid, self._node)
        if order.pod_uid in self._gone:
            return Site(Where.LOST, f"{order.pod} was deleted")
        if not self._listed:
            return Site(Where.ELSEWHERE, "the pods of this node have not been listed yet")
        return self._unseen(order)

    def _unseen(self, order: Order) -> Site:
        now = self._clock.monotonic()
        answer = self._answers.get(order.uid)
        patience = STOPPED_SECONDS if order.cancel or order.deleting else UNSEEN_SECONDS
        drawn_for, due = self._look_up_at.get(order.uid, (None, 0.0))
        if drawn_for != patience:
            due = now + self._clock.chance(*patience)
            self._look_up_at[order.uid] = (patience, due)
        if answer is not None and now < answer.until:
            return answer.site
        if now >= due:
            return Site(Where.ASK)
        return Site(Where.ELSEWHERE, f"{order.pod} is not on this node")

    def learn(self, order: Order, site: Site) -> None:
        """Take the answer to a look-up."""
        until = self._clock.monotonic() + self._clock.chance(*ANSWER_SECONDS)
        self._answers[order.uid] = _Answer(site, until)

    def forget(self, uid: str) -> None:
        """Follow an order no longer."""
        pod_uid = self._followed.pop(uid, "")
        self._look_up_at.pop(uid, None)
        self._answers.pop(uid, None)
        if pod_uid not in self._followed.values():
            self._gone.discard(pod_uid)
