"""Kubernetes Events about an order, as pure functions of values: for whoever runs ``kubectl describe``.

The reasons are those of Velero's own data mover (velero.md section 3.2), of which nobody but people
needs any: the status says it all. So there is one Event for each reason and object, and what is said
again counts it up and exchanges its message.

They are core/v1 Events. ``kubectl describe`` lists core/v1 by involvedObject (and so the field
selectors ``involvedObject.name``, ``.namespace``, ``.kind`` and ``.uid``), whatever API they were
written by. But through events.k8s.io/v1 a note cannot be exchanged (Kubernetes' ValidateEventUpdate makes all but
the series immutable there, and nothing in core/v1), which would leave a long backup with hundreds of them.
"""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.cluster.order import Order, Owner

REPORTER = "podlift"

MESSAGE_BYTES = 1024
"""Of a message that are kept: the limit of events.k8s.io/v1 (kubernetes.md section 3)."""

_NAME_LETTERS = 200
"""Of an object's name that go into an Event's name, which may have 253."""


class Reason(enum.StrEnum):
    """What is told (velero.md section 3.2)."""

    STARTED = "Data-Path-Started"
    PROGRESS = "Data-Path-Progress"
    COMPLETED = "Data-Path-Completed"
    FAILED = "Data-Path-Failed"
    CANCELING = "Data-Path-Canceling"
    CANCELED = "Data-Path-Canceled"
    STOPPED = "Data-Path-Stopped"


@dataclass(frozen=True, slots=True)
class Word:
    """One thing to say of an order."""

    order: Order
    reason: Reason
    message: str
    warning: bool = False

    @property
    def key(self) -> tuple[str, Reason]:
        """Return what makes it the same Event as an earlier one."""
        return self.order.uid, self.reason


def progress_message(total_bytes: int, done_bytes: int) -> str:
    """Return the message of a progress Event, as Velero words it (velero.md section 3.2)."""
    return msgspec.json.encode({"totalBytes": total_bytes, "doneBytes": done_bytes}).decode()


def name_of(word: Word, us: Owner) -> str:
    """Return the Event's name, which is the same for whatever this process repeats."""
    text = f"{us.attempt} {word.order.uid} {word.reason}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{word.order.name[:_NAME_LETTERS].rstrip('.-')}.{digest}"


def body(word: Word, us: Owner, now: str) -> Mapping[str, Any]:
    """Return the Event to create."""
    order = word.order
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name_of(word, us), "namespace": order.namespace},
        "involvedObject": {
            "apiVersion": "velero.io/v1",
            "kind": order.kind.value,
            "namespace": order.namespace,
            "name": order.name,
            "uid": order.uid,
            "resourceVersion": order.resource_version,
        },
        "reason": word.reason.value,
        "type": "Warning" if word.warning else "Normal",
        "source": {"component": REPORTER, "host": us.node},
        "reportingComponent": REPORTER,
        "reportingInstance": us.pod or us.node,
        "firstTimestamp": now,
        **repeated(word, 1, now),
    }


def repeated(word: Word, count: int, now: str) -> Mapping[str, Any]:
    """Return the merge patch of an Event that is said for the ``count``-th time."""
    return {"message": _limited(word.message), "lastTimestamp": now, "count": count}


def _limited(message: str) -> str:
    encoded = message.encode(errors="backslashreplace")
    if len(encoded) <= MESSAGE_BYTES:
        return encoded.decode()
    return encoded[: MESSAGE_BYTES - 3].decode(errors="ignore") + "…"
