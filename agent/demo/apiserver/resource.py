"""A resource is what an API server knows about one plural: names, scope, rules.

Custom resources (``custom``) are pruned and validated by their schema and have a ``/status``
only if their definition declares one; the core ones are taken as they come, save for the few
rules that an agent can run into.
"""

import dataclasses
from typing import Any, NamedTuple

Json = dict[str, Any]
ResourceId = tuple[str, str]


class Column(NamedTuple):
    """What ``kubectl get`` shows of an object: a title and a dotted path; from priority 1 on only if asked."""

    name: str
    path: str
    priority: int = 0


AGE = Column("Age", "metadata.creationTimestamp")


@dataclasses.dataclass(frozen=True)
class Resource:
    """One plural of one group and version.

    ``required`` are dotted paths that a core object must have; ``selectable`` are the dotted
    paths that a field selector may name besides ``metadata.name`` and ``metadata.namespace``;
    ``columns`` are what ``kubectl get`` shows after the name.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    custom: bool = False
    short_names: tuple[str, ...] = ()
    schema: Json | None = None
    has_status: bool = False
    selectable: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    columns: tuple[Column, ...] = (AGE,)

    @property
    def id(self) -> ResourceId:
        """Return what the resource is found by in the store."""
        return (self.group, self.plural)

    @property
    def api_version(self) -> str:
        """Return the ``apiVersion`` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def prefix(self) -> str:
        """Return the path that its group's resources are served below."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"

    @property
    def qualified(self) -> str:
        """Return its name in messages: ``podvolumebackups.velero.io``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        """Return its kind in messages: ``PodVolumeBackup.velero.io``."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


def value_at(obj: Json, path: str) -> Any:
    """Return the value at a dotted path, or None where there is none."""
    found: Any = obj
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
