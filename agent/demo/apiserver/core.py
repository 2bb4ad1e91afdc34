"""The core resources that an agent, its tests and the demo touch, with the rules that bite.

They are stored as they come: defaults that nobody reads are not added, and only those checks
are made that an agent's own requests could fail.
"""

import base64
import re
from typing import Any

from agent.demo.apiserver.refusal import Cause, bad_request
from agent.demo.apiserver.resource import AGE, Column, Json, Resource, value_at
from agent.demo.apiserver.store import View

NAMESPACES = Resource(
    "", "v1", "namespaces", "Namespace", False, has_status=True, short_names=("ns",)
)
EVENT_NOTE_BYTES = 1024
"""events.k8s.io/v1 refuses longer notes (kubernetes.md section 3)."""

RESOURCES = [
    NAMESPACES,
    Resource(
        "", "v1", "pods", "Pod", has_status=True, short_names=("po",),
        selectable=("spec.nodeName", "status.phase"), required=("spec.containers",), columns=(Column("Status", "status.phase"), Column("Node", "spec.nodeName"), AGE),
    ),
    Resource("", "v1", "secrets", "Secret", selectable=("type",)),
    Resource("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Resource(
        "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim",
        has_status=True, short_names=("pvc",), required=("spec.accessModes", "spec.resources.requests.storage"),
    ),
    Resource(
        "", "v1", "persistentvolumes", "PersistentVolume", False,
        has_status=True, short_names=("pv",), required=("spec.accessModes", "spec.capacity"),
    ),
    Resource("", "v1", "nodes", "Node", False, has_status=True, short_names=("no",)),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    Resource(
        "", "v1", "events", "Event", short_names=("ev",),
        selectable=(
            "involvedObject.kind", "involvedObject.name", "involvedObject.namespace", "involvedObject.uid",
            "reason", "type",
        ),
    ),
    Resource("events.k8s.io", "v1", "events", "Event", short_names=("ev",)),
    Resource("storage.k8s.io", "v1", "csidrivers", "CSIDriver", False),
    Resource("coordination.k8s.io", "v1", "leases", "Lease"),
]  # fmt: skip

EVENTS = ("events.k8s.io", "events")
_CORE_NAMES = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
"""What core/v1 calls those fields of an Event that events.k8s.io/v1 has named anew."""
_NEW_NAMES = {old: new for new, old in _CORE_NAMES.items()}


def _as_core(event: Json) -> Json:
    renamed = {_CORE_NAMES.get(name, name): value for name, value in event.items()}
    return renamed | {"apiVersion": "v1"}


def _as_new(event: Json) -> Json:
    renamed = {_NEW_NAMES.get(name, name): value for name, value in event.items()}
    return renamed | {"apiVersion": "events.k8s.io/v1"}


EVENT_VIEW = View(("", "events"), _as_core, _as_new)
"""An Event is one object, in core/v1 and in events.k8s.io/v1."""

_MICRO_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(?:Z|[+-]\d\d:\d\d)"
_QUALIFIED_NAME = r"(?:[a-z0-9][a-z0-9.-]{0,252}/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_NAME_RULE = (
    "alphanumeric characters, '-', '_' or '.', with an optional DNS subdomain prefix and '/'"
)
_NO_SOURCES = {
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeMode",
}
"""What a PersistentVolume's spec may hold besides its one volume source."""
_FIRST_STATUS: dict[str, Json] = {
    "pods": {"phase": "Pending"},
    "persistentvolumeclaims": {"phase": "Pending"},
    "persistentvolumes": {"phase": "Pending"},
    "namespaces": {"phase": "Active"},
}


def admit(resource: Resource, obj: Json, *, creating: bool) -> Json:
    """Return the object as a server would store it; raises the 400 of what does not decode."""
    if creating and resource.plural in _FIRST_STATUS and not resource.group:
        obj = {**obj, "status": dict(_FIRST_STATUS[resource.plural])}
    if resource.id == ("", "secrets"):
        obj = _with_string_data(obj)
        _check_base64(obj)
    if resource.id == EVENTS:
        _check_micro_time(obj.get("eventTime"))
        _check_micro_time(value_at(obj, "series.lastObservedTime"))
    if resource.id == ("", "namespaces"):
        obj = {**obj, "spec": {"finalizers": ["kubernetes"]} | (obj.get("spec") or {})}
    return obj


def _with_string_data(secret: Json) -> Json:
    plain = secret.get("stringData") or {}
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in plain.items()}
    kept = {key: value for key, value in secret.items() if key != "stringData"}
    if data := {**(secret.get("data") or {}), **encoded}:
        kept["data"] = data
    return {"type": "Opaque", **kept}


def violations(resource: Resource, obj: Json) -> list[Cause]:
    """Return what is wrong with a core object."""
    causes = [
        Cause(path, "FieldValueRequired", "Required value")
        for path in resource.required
        if value_at(obj, path) is None
    ]
    if resource.id == EVENTS:
        known = "resourceVersion" in obj["metadata"] and not obj.get("eventTime")
        causes += _old_event_violations(_as_core(obj)) if known else _event_violations(obj)
    if resource.id == EVENT_VIEW.stored:
        causes += _old_event_violations(obj)
    if resource.id == ("", "persistentvolumes") and not obj.get("spec", {}).keys() - _NO_SOURCES:
        causes.append(
            Cause("spec", "FieldValueRequired", "Required value: must specify a volume type")
        )
    return causes


def _old_event_violations(event: Json) -> list[Cause]:
    """Return what is refused of an Event as core/v1 makes it: to be elsewhere than what it is about."""
    about = (event.get("involvedObject") or {}).get("namespace", "")
    if event["metadata"].get("namespace") == about:
        return []
    message = f'Invalid value: "{about}": does not match event.namespace'
    return [Cause("involvedObject.namespace", "FieldValueInvalid", message)]


def _event_violations(event: Json) -> list[Cause]:
    """Return what events.k8s.io/v1 refuses; it names the fields of core/v1 in doing so."""
    if not event.get("eventTime"):
        causes = [Cause("eventTime", "FieldValueRequired", "Required value")]
    else:
        causes = _new_event_violations(event)
    if event.get("type") not in ("Normal", "Warning"):
        message = f'Invalid value: "": has invalid value: {event.get("type", "")}'
        causes.append(Cause("type", "FieldValueInvalid", message))
    return causes


def _new_event_violations(event: Json) -> list[Cause]:
    causes = []
    about = (event.get("regarding") or {}).get("namespace")
    if not about and event["metadata"].get("namespace") != "kube-system":
        message = 'Invalid value: "": does not match event.namespace'
        causes.append(Cause("involvedObject.namespace", "FieldValueInvalid", message))
    causes += [
        Cause(field, "FieldValueRequired", "Required value")
        for field in ("reportingController", "reportingInstance", "action", "reason")
        if not event.get(field)
    ]
    controller = event.get("reportingController")
    if controller and not re.fullmatch(_QUALIFIED_NAME, str(controller)):
        message = f'Invalid value: "{controller}": a qualified name must consist of ' + _NAME_RULE
        causes.append(Cause("reportingController", "FieldValueInvalid", message))
    if len(str(event.get("note") or "").encode()) > EVENT_NOTE_BYTES:
        message = f'Invalid value: "": can have at most {EVENT_NOTE_BYTES} characters'
        causes.append(Cause("message", "FieldValueInvalid", message))
    return causes


def _check_micro_time(value: Any) -> None:
    """Raise the 400 of a time that is not written with exactly six decimals."""
    if value and not re.fullmatch(_MICRO_TIME, str(value)):
        raise bad_request(
            'Event in version "v1" cannot be handled as a Event: parsing time '
            f'"{value}" as "2006-01-02T15:04:05.000000Z07:00"'
        )


def _check_base64(secret: Json) -> None:
    """Raise the 400 of a secret whose data are not base64."""
    for value in (secret.get("data") or {}).values():
        try:
            base64.b64decode(value, validate=True)
        except (TypeError, ValueError) as error:
            raise bad_request(
                'Secret in version "v1" cannot be handled as a Secret: decode base64: '
                "illegal base64 data"
            ) from error
