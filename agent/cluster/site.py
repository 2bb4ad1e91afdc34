"""The site of an order: whether its volume is here, and may be worked on now. Pure.

A backup names its node. A restore names a pod only: its volume may be written while the pod's
init container ``restore-wait``, which Velero puts there to hold the others back, is running;
before that the volume may not be mounted, and after that it belongs to the pod, so writing into
it would destroy what the pod has written since (velero.md section 7). It ends well only when it has
found the done file in each of the pod's volumes.
"""

import enum
from dataclasses import dataclass

from agent.cluster.objects import ContainerStatus, Pod

HELPERS = ("restore-wait", "restic-wait")
"""The init container that waits for the data; the second name is that of old backups."""


class Where(enum.Enum):
    """What can be said of a site."""

    HERE = "here"  # work may begin
    WAITING = "waiting"  # not yet, but it may become so
    ELSEWHERE = "elsewhere"  # another node's
    LOST = "lost"  # it will never be possible again
    DONE = "done"  # the pod was let go: every volume of it had been restored in full
    ASK = "ask"  # the pod has to be looked up first


@dataclass(frozen=True, slots=True)
class Site:
    """A site, and why it is what it is: half a sentence that follows the order's name."""

    where: Where
    reason: str = ""


HERE = Site(Where.HERE)


def site_of(pod: Pod, uid: str, node: str) -> Site:
    """Return what the pod, as it was observed, means for the restore into pod ``uid``."""
    name = f"pod {pod.metadata.namespace}/{pod.metadata.name}"
    if pod.metadata.uid != uid:
        return Site(Where.LOST, f"{name} has been replaced by another pod of that name")
    if not pod.spec.node_name:
        return Site(Where.WAITING, f"{name} is not scheduled to a node yet")
    if pod.spec.node_name != node:
        return Site(Where.ELSEWHERE, f"{name} runs on node {pod.spec.node_name}")
    helper = _helper(pod, name)
    if helper.where is Where.DONE:
        return helper  # whatever became of the pod afterwards
    if pod.metadata.deletion_timestamp is not None:
        return Site(Where.LOST, f"{name} is being deleted")
    if pod.status.phase in ("Failed", "Succeeded"):
        return Site(Where.LOST, f"{name} has ended ({pod.status.phase})")
    return helper


def _helper(pod: Pod, name: str) -> Site:
    declared = [c.name for c in pod.spec.init_containers or () if c.name in HELPERS]
    if not declared:
        return Site(Where.LOST, f"{name} has no init container {HELPERS[0]} to wait for the data")
    helper = f"init container {declared[0]} of {name}"
    for status in pod.status.init_container_statuses or ():
        if status.name == declared[0]:
            return _state(status, helper, pod.spec.restart_policy == "Never")
    return Site(Where.WAITING, f"{helper} has not been started yet")


def _state(status: ContainerStatus, helper: str, once: bool) -> Site:
    state = status.state
    if state.running is not None:
        return HERE
    if state.terminated is None:
        why = f" ({state.waiting.reason})" if state.waiting and state.waiting.reason else ""
        return Site(Where.WAITING, f"{helper} does not run yet{why}")
    code = state.terminated.exit_code
    if code == 0:
        return Site(Where.DONE, f"{helper} has ended already, and the volume is the pod's now")
    if once:
        return Site(Where.LOST, f"{helper} has ended with code {code} and is not started again")
    return Site(Where.WAITING, f"{helper} has ended with code {code} and is started again")
