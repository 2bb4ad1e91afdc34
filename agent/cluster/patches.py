"""The merge patches that move an order along, as pure functions of values.

Every patch names the object's uid, so that it cannot hit another object of the same name, and
the resourceVersion that it was decided on, so that nothing is overwritten that we have not
seen; a progress report that is late can then never undo a final state. Only phases that every
Velero version knows are written (velero.md section 1.3; section 10, MUST 1 and 3); fields that only newer
ones know (``acceptedTimestamp``, ``incrementalBytes``) are dropped by the API servers of older ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.cluster.order import FINALIZER, OWNER, RUNNING_PHASE, Order, Owner, owner_text

Patch = Mapping[str, Any]

_INT64_MAX = (1 << 63) - 1

MESSAGE_LIMIT = 4096
"""Characters of status.message that are kept."""

NAMED_PROBLEMS = 10
"""How many of what was left out are named; all are counted."""

RESTORED_BEFORE = "restored by an agent that ended before it could say so: its pod was told that the data are there"


@dataclass(frozen=True, slots=True)
class Final:
    """How an order ended. ``snapshot_id``, ``path`` and ``incremental_bytes`` only if a snapshot was made."""

    phase: str
    message: str = ""
    snapshot_id: str = ""
    path: str = ""
    size_bytes: int | None = None
    incremental_bytes: int | None = None

    @property
    def words(self) -> str:
        """Return how it ended in words, for people."""
        made = f"snapshot {self.snapshot_id}" if self.snapshot_id else ""
        size = "" if self.size_bytes is None else f"{self.size_bytes} bytes"
        return "; ".join(filter(None, (made, size, self.message)))


def completed(
    snapshot_id: str, path: str, size_bytes: int, incremental_bytes: int, message: str = ""
) -> Final:
    """Describe a snapshot that can be restored; ``message`` tells of partial problems."""
    return Final("Completed", message, snapshot_id, path, size_bytes, incremental_bytes)


def restored(size_bytes: int, message: str = "") -> Final:
    """Describe a volume that was given back; ``message`` tells of partial problems."""
    return Final("Completed", message, size_bytes=size_bytes)


def restored_before(order: Order) -> Final:
    """Describe a volume that was given back by a process which ended before it could say so."""
    return restored(order.total_bytes, RESTORED_BEFORE)


def failed(message: str) -> Final:
    """Describe an order of which nothing came that could be used."""
    return Final("Failed", message)


def problems_message(
    count: int, names: tuple[str, ...], message: str, *, what: str = "left out"
) -> str:
    """Word a partial success: the count, ``what`` befell them, and up to ten of the names."""
    if not count:
        return message
    shown = names[:NAMED_PROBLEMS]
    rest = count - len(shown)
    listed = "; ".join((*shown, *([f"and {rest} more"] if rest else [])))
    entries = "entry was" if count == 1 else "entries were"
    text = f"{count} {entries} {what}: {listed}"
    return f"{message}; {text}" if message else text


def owner(order: Order, us: Owner, now: str) -> Patch:
    """Write our mark (first half of a claim where status is a subresource).

    It tells who worked on the object before us, unless that never came to write a phase.
    """
    before = order.owner if order.phase == RUNNING_PHASE else None
    text = owner_text(us.succeeding(before, now))
    return {"metadata": {**_seen(order), "annotations": {OWNER: text}}}


def start(order: Order, now: str) -> Patch:
    """Write phase InProgress (second half of a claim)."""
    return {"metadata": _seen(order), "status": _started(order, now)}


def claim(order: Order, us: Owner, now: str) -> Patch:
    """Write mark and phase together (the whole claim on the main resource)."""
    return {**owner(order, us, now), "status": _started(order, now)}


def release(order: Order) -> Patch:
    """Take Velero's finalizer off, and leave those of others."""
    others = [each for each in order.finalizers if each != FINALIZER]
    return {"metadata": {**_seen(order), "finalizers": others}}


def progress(order: Order, total_bytes: int, done_bytes: int) -> Patch:
    """Write progress and nothing else."""
    return {
        "metadata": _seen(order),
        "status": {"progress": _progress(total_bytes, done_bytes)},
    }


def final(order: Order, end: Final, now: str) -> Patch:
    """Write a final state with all its fields.

    Without a message of our own, one that Velero's server has left with a cancel is taken away: it
    would say of what is complete that it was canceled.
    """
    status: dict[str, Any] = {
        "phase": end.phase,
        "completionTimestamp": now,
    }
    if end.message or order.message:
        status["message"] = _limited(end.message) or None
    if not order.started:
        status["startTimestamp"] = now
    if end.snapshot_id:
        status["snapshotID"] = end.snapshot_id
        status["path"] = end.path
    if end.incremental_bytes is not None:
        status["incrementalBytes"] = min(end.incremental_bytes, _INT64_MAX)
    if end.size_bytes is not None:
        status["progress"] = _progress(end.size_bytes, end.size_bytes)
    return {"metadata": _seen(order), "status": status}


def _progress(total_bytes: int, done_bytes: int) -> dict[str, int]:
    """Fit two sums into the fields, which are int64: two sparse files can be larger than that."""
    return {
        "totalBytes": min(total_bytes, _INT64_MAX),
        "bytesDone": min(done_bytes, _INT64_MAX),
    }


def _started(order: Order, now: str) -> dict[str, Any]:
    """Return what a claim says of the status; one that is claimed again began when it did."""
    began = order.started or now
    return {"phase": RUNNING_PHASE, "acceptedTimestamp": began, "startTimestamp": began}


def _seen(order: Order) -> dict[str, str]:
    return {"uid": order.uid, "resourceVersion": order.resource_version}


def _limited(message: str) -> str:
    if len(message) <= MESSAGE_LIMIT:
        return message
    return message[: MESSAGE_LIMIT - 1] + "…"
