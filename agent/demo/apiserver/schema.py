"""A structural schema: what a custom resource may hold, as CustomResourceDefinitions say it.

The subset of OpenAPI v3 that Velero's definitions use: type, format, enum, required, nullable,
properties, additionalProperties, items, and x-kubernetes-preserve-unknown-fields. Unknown
fields are pruned, not refused; everything else that is wrong is a cause for a 422.
"""

import datetime
import json
from typing import Any

from agent.demo.apiserver.refusal import Cause
from agent.demo.apiserver.resource import Json

PRESERVE = "x-kubernetes-preserve-unknown-fields"
ENVELOPE = ("apiVersion", "kind", "metadata")


def prune(obj: Json, schema: Json) -> tuple[Json, list[str]]:
    """Return the object without unknown fields, and the paths of those that it had."""
    dropped: list[str] = []
    known = {key: value for key, value in obj.items() if key in ENVELOPE}
    rest = {key: value for key, value in obj.items() if key not in ENVELOPE}
    return known | _pruned(rest, schema, "", dropped), dropped


def _pruned(value: Any, schema: Json, path: str, dropped: list[str]) -> Any:
    if isinstance(value, list) and "items" in schema:
        return [
            _pruned(item, schema["items"], f"{path}[{index}]", dropped)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    kept = {}
    for name, member in value.items():
        below = f"{path}.{name}" if path else name
        if name in properties:
            kept[name] = _pruned(member, properties[name], below, dropped)
        elif isinstance(others, dict):
            kept[name] = _pruned(member, others, below, dropped)
        elif schema.get(PRESERVE):
            kept[name] = member
        else:
            dropped.append(below)
    return kept


def violations(obj: Json, schema: Json) -> list[Cause]:
    """Return everything about the object that breaks its schema, in the schema's order."""
    causes: list[Cause] = []
    _check(obj, schema, "", causes)
    return causes


def _check(value: Any, schema: Json, path: str, causes: list[Cause]) -> None:
    if value is None and schema.get("nullable"):
        return
    wanted = schema.get("type")
    found = _type_name(value)
    if wanted and found != wanted and not (wanted == "number" and found == "integer"):
        causes.append(_invalid(path, json.dumps(found), wanted, json.dumps(found)))
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(json.dumps(choice) for choice in schema["enum"])
        message = f"Unsupported value: {json.dumps(value)}: supported values: {supported}"
        causes.append(Cause(path, "FieldValueNotSupported", message))
    if schema.get("format") == "date-time" and not _is_date_time(value):
        causes.append(_invalid(path, json.dumps(value), "date-time", json.dumps(value)))
    if isinstance(value, dict):
        _check_members(value, schema, path, causes)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            _check(item, schema["items"], f"{path}[{index}]", causes)


def _check_members(value: Json, schema: Json, path: str, causes: list[Cause]) -> None:
    def below(name: str) -> str:
        return f"{path}.{name}" if path else name

    causes += [
        Cause(below(name), "FieldValueRequired", "Required value")
        for name in schema.get("required", ())
        if name not in value
    ]
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, member in value.items():
        if name in properties:
            _check(member, properties[name], below(name), causes)
        elif isinstance(others, dict):
            _check(member, others, below(name), causes)


def _invalid(path: str, value: str, wanted: str, shown: str) -> Cause:
    message = f"Invalid value: {value}: {path} in body must be of type {wanted}: {shown}"
    return Cause(path, "FieldValueInvalid", message)


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
    return "object"


def _is_date_time(value: Any) -> bool:
    try:
        datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return "T" in value
