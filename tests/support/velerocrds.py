"""What Velero's own definitions say, release by release: the table that tests of versions are checked with.

Nothing here is written down by hand but the names of the releases; the rest is read from their files.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.apihandle import Json
from tests.support.apiservers import velero_definitions

VERSIONS = ["v1.13.2", "v1.16.2", "v1.17.2", "v1.18.1", "main"]
"""The releases whose definitions are at hand, oldest first."""
NEWEST = VERSIONS[-1]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of one release. Fields are dotted paths, as ``status.progress.bytesDone``."""

    definition: Json

    @property
    def schema(self) -> Json:
        """The schema of a whole object."""
        found: Json = self._served["schema"]["openAPIV3Schema"]
        return found

    @property
    def _served(self) -> Json:
        (served,) = self.definition["spec"]["versions"]
        found: Json = served
        return found

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        """Every field of ``spec`` and ``status``; what is in a map is none of its own."""
        return frozenset(_paths(self.schema, "")) - {"apiVersion", "kind", "metadata"}

    @property
    def phases(self) -> tuple[str, ...]:
        """The values of ``status.phase`` that are not refused."""
        return self.choices("status", "phase")

    def choices(self, part: str, field: str) -> tuple[str, ...]:
        """Return the values that are not refused of a field of spec or status."""
        return tuple(self.schema["properties"][part]["properties"][field]["enum"])

    @property
    def required(self) -> frozenset[str]:
        """The fields of ``spec`` without which an object is refused."""
        return frozenset(self.schema["properties"]["spec"]["required"])

    @property
    def columns(self) -> dict[str, str]:
        """What kubectl shows: titles, and the fields below them."""
        columns = self._served["additionalPrinterColumns"]
        return {column["name"]: column["jsonPath"].removeprefix(".") for column in columns}

    @property
    def has_status(self) -> bool:
        """Whether the status has a door of its own."""
        return "status" in (self._served.get("subresources") or {})

    def kept(self, part: str, values: Mapping[str, Any]) -> Json:
        """Return what is not dropped of values for ``spec`` or ``status``."""
        return {name: value for name, value in values.items() if f"{part}.{name}" in self.fields}


def _paths(schema: Json, above: str) -> Iterator[str]:
    for name, below in schema.get("properties", {}).items():
        path = f"{above}.{name}" if above else name
        yield path
        yield from _paths(below, path)


@functools.cache
def kind(version: str, plural: str) -> Kind:
    """Return a kind as a release defines it."""
    found = [d for d in velero_definitions(version) if d["spec"]["names"]["plural"] == plural]
    return Kind(found[0])
