"""The claim machine: what one observation of a PodVolumeBackup asks us to do.

Pure: values in, a decision out; no clock, no I/O. An object has a *standing* (new, running,
final, or in a phase of Velero's own data mover) and a *hold* (whose claim is on it). The two
tables below say what each pair means, first for an object that this process does not work on,
then for one that it does.

A claim is one compare-and-swap on ``metadata.resourceVersion`` and ``uid`` that writes our
owner annotation and phase InProgress together. Where the API serves the status subresource
that takes two requests: the annotation first, then the status with the version that the first
one returned as its precondition. A crash in between leaves a *new* object with an owner: it is
claimed again once that owner is known to be dead, and left alone while the owner lives, so two
agents cannot chase each other. Whether an owner lives is asked of its pod, not guessed.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.cluster.pvb import Owner, Pvb

NEW_PHASES = frozenset({"", "New"})
RUNNING_PHASE = "InProgress"


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
    """What we know besides the object: whether we work on it, and if its owner's pod lives."""

    held: bool = False
    owner_alive: bool | None = None


@dataclass(frozen=True, slots=True)
class Ignore:
    """Nothing is to be done now."""

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
class Cancel:
    """Stop our own work and end it as Failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop our own work and write nothing: it is no longer ours."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskOwner:
    """Look the owner's pod up, then decide again."""


Decision = Ignore | Claim | FailAtOnce | FailOrphan | Cancel | Abandon | AskOwner
_Rule = Callable[[Pvb, Policy], Decision]


def decide(pvb: Pvb, us: Owner, policy: Policy, view: View) -> Decision:
    """Return what is to be done about one observation."""
    if not pvb.node:
        return Ignore("spec.node is missing, so it is no node's work")
    if pvb.node != us.node:
        return Ignore(f"it belongs to node {pvb.node}")
    table = _WORKING if view.held else _IDLE
    return table[standing(pvb), hold(pvb, us, view)](pvb, policy)


def standing(pvb: Pvb) -> Standing:
    """Return how far the object is."""
    if pvb.phase in NEW_PHASES:
        return Standing.NEW
    if pvb.phase == RUNNING_PHASE:
        return Standing.RUNNING
    return Standing.FINAL if pvb.final else Standing.FOREIGN


def hold(pvb: Pvb, us: Owner, view: View) -> Hold:
    """Return whose claim is on the object.

    An attempt other than ours in our own pod is a container that has ended: a pod runs one.
    """
    owner = pvb.owner
    if owner is None:
        return Hold.NOBODY
    if owner.attempt == us.attempt:
        return Hold.OURS
    if not owner.pod or not owner.pod_uid or owner.pod_uid == us.pod_uid:
        return Hold.DEAD
    if view.owner_alive is None:
        return Hold.UNKNOWN
    return Hold.ALIVE if view.owner_alive else Hold.DEAD


def stop_reason(pvb: Pvb) -> str:
    """Return why the object asks for a stop, or ""."""
    if pvb.cancel:
        return "spec.cancel was set"
    if pvb.deleting:
        return "the PodVolumeBackup is being deleted"
    return ""


def _start(pvb: Pvb, policy: Policy) -> Decision:
    kind = pvb.uploader_type or "restic"
    if kind not in policy.uploader_types and policy.other_types == "ignore":
        return Ignore(f"uploader type {kind} is not taken (--uploader-types)")
    if reason := stop_reason(pvb):
        return FailAtOnce(f"canceled: {reason} before the backup began")
    if pvb.defect:
        return FailAtOnce(f"the PodVolumeBackup is malformed: {pvb.defect}; create it again")
    if kind not in policy.uploader_types:
        taken = ",".join(sorted(policy.uploader_types))
        return FailAtOnce(
            f"uploader type {kind} is not taken by podlift on this node (--uploader-types="
            f"{taken}): add it there, or set Velero's own --uploader-type to one of these"
        )
    return Claim()


def _orphan(pvb: Pvb, _policy: Policy) -> Decision:
    # The wall for resume: a later version adopts the claim here instead of ending it.
    if reason := stop_reason(pvb):
        return FailOrphan(f"canceled: {reason} while the agent was being restarted")
    return FailOrphan(
        "the agent on this node was restarted while this backup ran; nothing is lost: the next "
        "backup of this volume goes on from what is in the repository already"
    )


def _stranger(pvb: Pvb, _policy: Policy) -> Decision:
    return FailOrphan(
        "found in progress without podlift's mark: the node agent that had started it is gone; "
        "run the backup again"
    )


def _ask(_pvb: Pvb, _policy: Policy) -> Decision:
    return AskOwner()


def _ignore(reason: str) -> _Rule:
    return lambda _pvb, _policy: Ignore(reason)


def _carry_on(pvb: Pvb, _policy: Policy) -> Decision:
    if reason := stop_reason(pvb):
        return Cancel(reason)
    return Ignore("we are working on it")


def _abandon(reason: str) -> _Rule:
    return lambda _pvb, _policy: Abandon(reason)


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
