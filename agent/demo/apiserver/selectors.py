"""Selectors narrow a list or a watch: by labels, and by a few fields.

A selector is parsed once and asked once an object. What does not parse, or names a field that
the resource does not offer, is a 400.
"""

import re
from collections.abc import Callable

from agent.demo.apiserver.refusal import bad_request
from agent.demo.apiserver.resource import Json, Resource, value_at

Predicate = Callable[[Json], bool]

_LABEL_TERM = re.compile(
    r"\s*(?:(?P<absent>!)\s*)?(?P<key>[A-Za-z0-9./_-]+)\s*"
    r"(?:(?P<op>==|=|!=)\s*(?P<value>[A-Za-z0-9._-]*)"
    r"|\s(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)


class Selector:
    """The label selector and the field selector of one request; empty ones take everything."""

    def __init__(self, resource: Resource, labels: str = "", fields: str = "") -> None:
        self._predicates = [*_label_predicates(labels), *_field_predicates(resource, fields)]

    def __bool__(self) -> bool:
        return bool(self._predicates)

    def takes(self, obj: Json) -> bool:
        """Tell whether the object is selected."""
        return all(predicate(obj) for predicate in self._predicates)


def _label_predicates(text: str) -> list[Predicate]:
    found: list[Predicate] = []
    position = 0
    while position < len(text):
        term = _LABEL_TERM.match(text, position)
        if term is None:
            raise bad_request(f"unable to parse requirement: {text[position:]!r}")
        found.append(_label_predicate(term))
        position = term.end()
    return found


def _label_predicate(term: re.Match[str]) -> Predicate:
    key, operator, value = term["key"], term["op"], term["value"]
    if term["set"]:
        values = {item.strip() for item in term["values"].split(",")}
        if term["set"] == "in":
            return lambda obj: _labels(obj).get(key) in values
        return lambda obj: _labels(obj).get(key) not in values
    if term["absent"]:
        return lambda obj: key not in _labels(obj)
    if operator is None:
        return lambda obj: key in _labels(obj)
    if operator == "!=":
        return lambda obj: _labels(obj).get(key) != value
    return lambda obj: _labels(obj).get(key) == value


def _labels(obj: Json) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _field_predicates(resource: Resource, text: str) -> list[Predicate]:
    found: list[Predicate] = []
    for term in filter(None, text.split(",")):
        parsed = re.fullmatch(r"\s*([^=!\s]+)\s*(==|=|!=)(.*)", term)
        if parsed is None:
            raise bad_request(f"invalid selector: {text!r}; can't understand {term!r}")
        path, operator, value = parsed.groups()
        if path not in ("metadata.name", "metadata.namespace", *resource.selectable):
            raise _unknown_field(resource, path)
        found.append(_field_predicate(path, value.strip(), negated=operator == "!="))
    return found


def _field_predicate(path: str, value: str, *, negated: bool) -> Predicate:
    return lambda obj: (str(value_at(obj, path) or "") == value) is not negated


def _unknown_field(resource: Resource, path: str) -> Exception:
    if resource.custom or resource.selectable:
        return bad_request(f"field label not supported: {path}")
    known = '"metadata.name", "metadata.namespace"'
    return bad_request(f'"{path}" is not a known field selector: only {known}')
