"""The core resources that an agent, its tests and the demo touch, with the rules that bite.

They are stored as they come: defaults that nobody reads are not added, and only those checks
are made that an agent's own requests could fail.
"""

import base64
from typing import Any

from agent.demo.apiserver.refusal import Cause
from agent.demo.apiserver.resource import Json, Resource, value_at

NAMESPACES = Resource(
    "", "v1", "namespaces", "Namespace", False, has_status=True, short_names=("ns",)
)
EVENT_NOTE_BYTES = 1024
"""events.k8s.io/v1 refuses longer notes (kubernetes.md section 3)."""

RESOURCES = [
    NAMESPACES,
    Resource(
        "", "v1", "pods", "Pod", has_status=True, short_names=("po",),
        selectable=("spec.nodeName", "status.phase"), required=("spec.containers",),
    ),
    Resource("", "v1", "secrets", "Secret", selectable=("type",)),
    Resource("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Resource(
        "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim",
        has_status=True, short_names=("pvc",), required=("spec.accessModes",),
    ),
    Resource(
        "", "v1", "persistentvolumes", "PersistentVolume", False,
        has_status=True, short_names=("pv",), required=("spec.accessModes", "spec.capacity"),
    ),
    Resource("", "v1", "nodes", "Node", False, has_status=True, short_names=("no",)),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    Resource("", "v1", "events", "Event", short_names=("ev",)),
    Resource("events.k8s.io", "v1", "events", "Event", short_names=("ev",)),
    Resource("storage.k8s.io", "v1", "csidrivers", "CSIDriver", False),
    Resource("coordination.k8s.io", "v1", "leases", "Lease"),
]  # fmt: skip

_FIRST_STATUS: dict[str, Json] = {
    "pods": {"phase": "Pending"},
    "persistentvolumeclaims": {"phase": "Pending"},
    "persistentvolumes": {"phase": "Pending"},
    "namespaces": {"phase": "Active"},
}


def admit(resource: Resource, obj: Json, *, creating: bool) -> Json:
    """Return the object as a server would store it: defaults set, conveniences resolved."""
    if creating and resource.plural in _FIRST_STATUS and not resource.group:
        obj = {**obj, "status": dict(_FIRST_STATUS[resource.plural])}
    if resource.id == ("", "secrets"):
        obj = _with_string_data(obj)
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
    if resource.id == ("events.k8s.io", "events"):
        causes += _event_violations(obj)
    if resource.id == ("", "secrets"):
        causes += _secret_violations(obj)
    return causes


def _event_violations(event: Json) -> list[Cause]:
    required = ("eventTime", "reportingController", "reportingInstance", "action", "reason")
    causes = [
        Cause(field, "FieldValueRequired", "Required value")
        for field in required
        if not event.get(field)
    ]
    if len(str(event.get("note") or "").encode()) > EVENT_NOTE_BYTES:
        message = f'Invalid value: "": can have at most {EVENT_NOTE_BYTES} characters'
        causes.append(Cause("note", "FieldValueInvalid", message))
    return causes


def _secret_violations(secret: Json) -> list[Cause]:
    def broken(value: Any) -> bool:
        try:
            base64.b64decode(value, validate=True)
        except (TypeError, ValueError):
            return True
        return False

    return [
        Cause(f"data[{key}]", "FieldValueInvalid", "Invalid value: illegal base64 data")
        for key, value in (secret.get("data") or {}).items()
        if broken(value)
    ]
