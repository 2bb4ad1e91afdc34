"""A table is a list as kubectl prints it: the server chooses the columns, kubectl the widths.

Nobody but a person at a terminal asks for one; the columns are those of velero.md section 1.4.
"""

import datetime
from typing import Any

from agent.demo.apiserver.resource import Json, Resource, value_at

ACCEPTED = "as=Table"
"""What kubectl's Accept header says when it wants a table."""


def wanted(accept: str) -> bool:
    """Tell whether a request's Accept header asks for a table first."""
    return ACCEPTED in accept.split(",")[0]


def table(resource: Resource, shown: Json) -> Json:
    """Return a list, or one object, as a table."""
    if shown["kind"] == f"{resource.kind}List":
        items, metadata = shown["items"], shown["metadata"]
    else:
        version = shown["metadata"].get("resourceVersion", "")
        items, metadata = [shown], {"resourceVersion": version}
    names = ["Name", *(name for name, _ in resource.columns), "Age"]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [_definition(name) for name in names],
        "rows": [{"cells": _cells(resource, item), "object": _metadata(item)} for item in items],
    }


def _definition(name: str) -> Json:
    kind = {"format": "name"} if name == "Name" else {"format": ""}
    return {"name": name, "type": "string", "description": "", "priority": 0} | kind


def _cells(resource: Resource, item: Json) -> list[Any]:
    metadata = item["metadata"]
    values = (value_at(item, path) for _, path in resource.columns)
    return [
        metadata.get("name", ""),
        *("" if value is None else str(value) for value in values),
        _age(metadata.get("creationTimestamp")),
    ]


def _metadata(item: Json) -> Json:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": item["metadata"],
    }


def _age(created: str | None) -> str:
    """Return a time as kubectl shows how long ago it is: ``90s``, ``5m``, ``3h``, ``2d``."""
    if created is None:
        return "<unknown>"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(created)
    seconds = max(0, int(age.total_seconds()))
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 3), ("m", 60, 2)):
        if seconds >= size * least:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
