"""A table is a list as kubectl prints it: the server chooses the columns, kubectl the widths.

Nobody but a person at a terminal asks for one; the columns are those of velero.md section 1.4.
"""

import datetime

from agent.demo.apiserver.resource import Column, Json, Resource, value_at

ACCEPTED = "as=Table"
"""What kubectl's Accept header says when it wants a table."""
TIMES = ("Timestamp", "Time")
"""How paths end of which the age is shown."""


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
    columns = [Column("Name", "metadata.name"), *resource.columns]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [_definition(column) for column in columns],
        "rows": [
            {"cells": [_cell(item, column) for column in columns], "object": _metadata(item)}
            for item in items
        ],
    }


def _definition(column: Column) -> Json:
    form = "name" if column.name == "Name" else ""
    about = {"name": column.name, "priority": column.priority}
    return {**about, "type": "string", "format": form, "description": ""}


def _cell(item: Json, column: Column) -> str:
    value = value_at(item, column.path)
    if column.path.endswith(TIMES):
        return _age(value)
    return "" if value is None else str(value)


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
