"""The claim machine: what one observation of a PodVolumeBackup or -Restore asks us to do.

Pure: values in, a decision out; no clock, no I/O. An object has a *site* (whether its volume is
here and may be worked on), a *standing* (new, running, final, or in a phase of Velero's own data
mover) and a *hold* (whose claim is on it). The two tables below say what each pair of the latter
means, first for an object that this process does not work on, then for one that it does.

A claim is one compare-and-swap on ``metadata.resourceVersion`` and ``uid`` that writes our
owner annotation and phase InProgress together. Where the API serves the status subresource
that takes two requests: the annotation first, then the status with the version that the first
one returned as its precondition. A crash in between leaves a *new* object with an owner: it is
claimed again once that owner is known to be dead, and left alone while the owner lives, so two
agents cannot chase each other. Whether an owner lives is asked of its pod, not guessed.

What a dead owner left running is claimed again: a backup goes on from the last checkpoint and from
what is stored, and a restore that begins anew comes to the same end, for which its pod waits. That is
safe while the init container still waits, for then nobody has written to the volume but a restore.
A restore whose pod was let go meanwhile had come to its end, and only that is told.
What was left running too often is ended, since it may be what ends the agent.
"""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.cluster.order import NEW_PHASES, RUNNING_PHASE, Order, OrderKind, Owner
from agent.cluster.site import HERE, Site, Where

MOST_ATTEMPTS = 5
"""How many processes may work on an object, one after the other."""

_ID = re.compile("[0-9a-f]{8,64}")
"""A snapshot's id, or a beginning of it that is long enough not to be met by chance."""

_KOPIA_ID_DIGITS = 32
"""A kopia manifest's id is 16 bytes (velero.md section 5.5); a restic id 32, or its first 4."""


class Standing(enum.Enum):
    """How far an object is."""

    NEW = "new"
    RUNNING = "running"
    FINAL = "final"
    FOREIGN = "foreign"  # Accepted, Prepared, Canceling: Velero's own mover has it


class Hold(enum.Enum):
    """Whose claim is on an object."""

    NOBODY = "nobody"
    OURS = "ours"
    DEAD = "dead"  # a process that is gone: an earlier one of our pod, or a pod that ended
    ALIVE = "alive"
    UNKNOWN = "unknown"  # its pod has not been looked up yet


@dataclass(frozen=True, slots=True)
class Policy:
    """Which uploader types are taken, and what happens to the others."""

    uploader_types: frozenset[str] = frozenset({"restic"})
    other_types: Literal["fail", "ignore"] = "fail"


@dataclass(frozen=True, slots=True)
class View:
    """What we know besides the object.

    Whether we work on it, if its owner's pod lives, and a restore's site (a backup's follows
    from its node).
    """

    held: bool = False
    owner_alive: bool | None = None
    site: Site = HERE


@dataclass(frozen=True, slots=True)
class Ignore:
    """Nothing is to be done now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done before its pod is further; worth a word in the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Try to make it ours, when there is room to work on it."""


@dataclass(frozen=True, slots=True)
class FailAtOnce:
    """End it as Failed without working on it."""

    message: str


@dataclass(frozen=True, slots=True)
class FailOrphan:
    """End as Failed what a process that is gone left running."""

    message: str


@dataclass(frozen=True, slots=True)
class CompleteOrphan:
    """End as Completed what a process that is gone had done, but not told."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop our own work and end it as Failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop our own work and write nothing: it is no longer ours."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Take Velero's finalizer off what has ended, so that its deletion can go on."""


@dataclass(frozen=True, slots=True)
class AskOwner:
    """Look the owner's pod up, then decide again."""


@dataclass(frozen=True, slots=True)
class AskPod:
    """Look up the pod that is to be restored, then decide again."""


Decision = (
    Ignore
    | Wait
    | Claim
    | FailAtOnce
    | FailOrphan
    | CompleteOrphan
    | Cancel
    | Abandon
    | Release
    | AskOwner
    | AskPod
)
_Rule = Callable[[Order, Policy, Site], Decision]


def decide(order: Order, us: Owner, policy: Policy, view: View) -> Decision:
    """Return what is to be done about one observation."""
    site = _site(order, us, view)
    if view.held:
        if _is_from_before(order, us):
            return Ignore("it is seen as it was before our claim")
        return _WORKING[standing(order), hold(order, us, view)](order, policy, site)
    if order.detained:
        return Release()  # anybody may, see the controller
    if site.where is Where.ELSEWHERE:
        return Ignore(site.reason)
    if site.where is Where.ASK and not order.final:
        return AskPod()
    return _IDLE[standing(order), hold(order, us, view)](order, policy, site)


def _is_from_before(order: Order, us: Owner) -> bool:
    """Tell whether an object that we hold is seen as it was when somebody before us held it.

    Events may be late. Who takes a claim over names whom it was taken from, so a mark that does not
    name us is an older one.
    """
    owner = order.owner
    return owner is not None and not us.same(owner) and not owner.succeeds(us) and not order.final


def _site(order: Order, us: Owner, view: View) -> Site:
    if order.kind is OrderKind.RESTORE:
        return view.site
    if order.node == us.node:
        return HERE
    if not order.node:
        return Site(Where.ELSEWHERE, "spec.node is missing, so it is no node's work")
    return Site(Where.ELSEWHERE, f"it belongs to node {order.node}")


def standing(order: Order) -> Standing:
    """Return how far the object is."""
    if order.phase in NEW_PHASES:
        return Standing.NEW
    if order.phase == RUNNING_PHASE:
        return Standing.RUNNING
    return Standing.FINAL if order.final else Standing.FOREIGN


def hold(order: Order, us: Owner, view: View) -> Hold:
    """Return whose claim is on the object.

    An attempt other than ours in our own pod is a container that has ended: a pod runs one.
    """
    owner = order.owner
    if owner is None:
        return Hold.NOBODY
    if owner.attempt == us.attempt:
        return Hold.OURS
    if not owner.pod or not owner.pod_uid or owner.pod_uid == us.pod_uid:
        return Hold.DEAD
    if view.owner_alive is None:
        return Hold.UNKNOWN
    return Hold.ALIVE if view.owner_alive else Hold.DEAD


def stop_reason(order: Order) -> str:
    """Return why the object asks for a stop, or ""."""
    if order.cancel:
        return "spec.cancel was set"
    if order.deleting:
        return f"the {order.kind.value} is being deleted"
    return ""


def _start(order: Order, policy: Policy, site: Site) -> Decision:
    kind = order.uploader_type or "restic"
    if kind not in policy.uploader_types and policy.other_types == "ignore":
        return Ignore(f"uploader type {kind} is not taken (--uploader-types)")
    if reason := stop_reason(order):
        return FailAtOnce(f"canceled: {reason} before the {order.kind.noun} began")
    if order.defect:
        return FailAtOnce(f"the {order.kind.value} is malformed: {order.defect}; create it again")
    if kind not in policy.uploader_types:
        taken = ",".join(sorted(policy.uploader_types))
        where = f" ({elsewhere(order)})" if order.kind is OrderKind.RESTORE else ""
        return FailAtOnce(
            f"uploader type {kind} is not taken by podlift on this node (--uploader-types="
            f"{taken}){where}: add it there, or set Velero's own --uploader-type to one of these"
        )
    if order.kind is OrderKind.RESTORE:
        return _unrestorable(order) or _at_site(site)
    return Claim()


def _unrestorable(order: Order) -> Decision | None:
    wanted = order.wanted_snapshot
    if not wanted:
        return FailAtOnce(
            "spec.snapshotID is empty: the backup stored nothing of this volume, so there is "
            "nothing to restore; look at the PodVolumeBackup of the same volume"
        )
    if _ID.fullmatch(wanted) and len(wanted) != _KOPIA_ID_DIGITS:
        return None
    return FailAtOnce(
        f"spec.snapshotID {wanted[:80]!r} is not the id of a snapshot in restic's format: "
        f"{elsewhere(order)}"
    )


def elsewhere(order: Order) -> str:
    """Return where Velero's own node-agent would have put what this restore looks for."""
    return (
        f"what Velero's own node-agent backed up with kopia lies under kopia/"
        f"{order.source_namespace} in BackupStorageLocation {order.location}, and Velero's own "
        "node-agent restores it from there"
    )


def _at_site(site: Site) -> Decision:
    if site.where is Where.HERE:
        return Claim()
    if site.where is Where.WAITING:
        return Wait(site.reason)
    return FailAtOnce(f"the volume cannot be restored: {site.reason}; restore it again")


def _orphan(order: Order, _policy: Policy, site: Site) -> Decision:
    if site.where is Where.DONE:
        return CompleteOrphan()  # nobody can cancel that any more
    if reason := stop_reason(order):
        return FailOrphan(f"canceled: {reason} while the agent was being restarted")
    if order.owner is not None and len(order.owner.earlier) + 1 >= MOST_ATTEMPTS:
        return FailOrphan(_given_up(order, order.owner))
    if site.where is Where.HERE:
        return Claim()
    if site.where is Where.WAITING:
        return Wait(site.reason)
    return FailOrphan(
        "the agent was restarted while this volume was restored, and it cannot be begun again: "
        f"{site.reason}. If the pod has been started, the restore was complete and only the word "
        "of it was lost: look at the volume. Otherwise restore it again"
    )


def _given_up(order: Order, owner: Owner) -> str:
    every = "; ".join((*owner.earlier, owner.words))
    return (
        f"given up after {MOST_ATTEMPTS} attempts, since the agent ended in each of them: {every}. Look "
        "why it ended (kubectl describe pod, kubectl logs --previous; often the memory limit), then "
        f"run the {order.kind.noun} again: what was stored is not stored again"
    )


def _stranger(order: Order, _policy: Policy, _site: Site) -> Decision:
    return FailOrphan(
        "found in progress without podlift's mark: the node agent that had started it is gone; "
        f"run the {order.kind.noun} again"
    )


def _ask(_order: Order, _policy: Policy, _site: Site) -> Decision:
    return AskOwner()


def _ignore(reason: str) -> _Rule:
    return lambda _order, _policy, _site: Ignore(reason)


def _carry_on(order: Order, _policy: Policy, site: Site) -> Decision:
    if reason := stop_reason(order):
        return Cancel(reason)
    if site.where in (Where.LOST, Where.DONE):
        return Cancel(site.reason)
    return Ignore("we are working on it")


def _abandon(reason: str) -> _Rule:
    return lambda _order, _policy, _site: Abandon(reason)


_DONE = _ignore("it has ended")
_VELERO = _ignore("Velero's own data mover has it")
_BUSY = _ignore("another living agent has it")
_TAKEN = _abandon("another agent has taken the claim")
_ENDED = _abandon("somebody else has ended it")

_IDLE: dict[tuple[Standing, Hold], _Rule] = {
    (Standing.NEW, Hold.NOBODY): _start,
    (Standing.NEW, Hold.OURS): _start,
    (Standing.NEW, Hold.DEAD): _start,
    (Standing.NEW, Hold.ALIVE): _BUSY,
    (Standing.NEW, Hold.UNKNOWN): _ask,
    (Standing.RUNNING, Hold.NOBODY): _stranger,
    (Standing.RUNNING, Hold.OURS): _orphan,
    (Standing.RUNNING, Hold.DEAD): _orphan,
    (Standing.RUNNING, Hold.ALIVE): _BUSY,
    (Standing.RUNNING, Hold.UNKNOWN): _ask,
    **{(Standing.FINAL, whose): _DONE for whose in Hold},
    **{(Standing.FOREIGN, whose): _VELERO for whose in Hold},
}

_WORKING: dict[tuple[Standing, Hold], _Rule] = {
    (Standing.NEW, Hold.NOBODY): _carry_on,  # an event from before our claim
    (Standing.NEW, Hold.OURS): _carry_on,
    (Standing.NEW, Hold.DEAD): _carry_on,
    (Standing.NEW, Hold.ALIVE): _TAKEN,
    (Standing.NEW, Hold.UNKNOWN): _TAKEN,
    (Standing.RUNNING, Hold.NOBODY): _carry_on,  # a rewrite lost the annotation
    (Standing.RUNNING, Hold.OURS): _carry_on,
    (Standing.RUNNING, Hold.DEAD): _TAKEN,
    (Standing.RUNNING, Hold.ALIVE): _TAKEN,
    (Standing.RUNNING, Hold.UNKNOWN): _TAKEN,
    **{(Standing.FINAL, whose): _ENDED for whose in Hold},
    **{(Standing.FOREIGN, whose): _abandon("Velero's own data mover has it") for whose in Hold},
}
