"""Patches: JSON merge patch (RFC 7386) and JSON patch (RFC 6902), as pure functions.

Neither changes its arguments.
"""

import copy
from typing import Any

from agent.errors import ClusterError


class PatchFailed(ClusterError):
    """A JSON patch does not apply: a test that fails, or a path that is not there."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Return ``target`` with ``patch`` merged in; null removes a member (RFC 7386 section 2)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """Return ``target`` after every operation of RFC 6902; raises ``PatchFailed``."""
    if not isinstance(operations, list):
        raise PatchFailed("a JSON patch is a list of operations")
    document = copy.deepcopy(target)
    for operation in operations:
        try:
            document = _apply(document, operation)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise PatchFailed(f"cannot apply {operation}: {error!r}") from error
    return document


def _apply(document: Any, operation: Any) -> Any:
    kind, path = operation["op"], _pointer(operation["path"])
    match kind:
        case "add":
            return _set(document, path, copy.deepcopy(operation["value"]), insert=True)
        case "replace":
            _get(document, path)
            return _set(document, path, copy.deepcopy(operation["value"]), insert=False)
        case "remove":
            _remove(document, path)
            return document
        case "test":
            if _get(document, path) != operation["value"]:
                raise PatchFailed(f"testing value {operation['path']} failed")
            return document
        case "copy":
            value = copy.deepcopy(_get(document, _pointer(operation["from"])))
            return _set(document, path, value, insert=True)
        case "move":
            origin = _pointer(operation["from"])
            value = _get(document, origin)
            _remove(document, origin)
            return _set(document, path, value, insert=True)
    raise PatchFailed(f"unknown operation {kind!r}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError("a pointer starts with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part)] if isinstance(document, list) else document[part]
    return document


def _set(document: Any, path: list[str], value: Any, *, insert: bool) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif path[-1] == "-":
        parent.append(value)
    elif insert:
        index = _index(path[-1])
        if index > len(parent):
            raise IndexError(index)
        parent.insert(index, value)
    else:
        parent[_index(path[-1])] = value
    return document


def _remove(document: Any, path: list[str]) -> None:
    parent = _get(document, path[:-1])
    del parent[_index(path[-1]) if isinstance(parent, list) else path[-1]]


def _index(part: str) -> int:
    if not part.isdecimal():
        raise ValueError(f"{part!r} is no index")
    return int(part)
