"""The registry says which resources are served, and finds the one that a path names."""

import dataclasses
from collections.abc import Iterable

from agent.demo.apiserver import core, velero
from agent.demo.apiserver.refusal import NoSuchPage, unknown_path
from agent.demo.apiserver.resource import Resource, ResourceId


class Registry:
    """The resources of one API server; Velero's can be exchanged while it runs."""

    def __init__(self) -> None:
        self._resources: dict[ResourceId, Resource] = {r.id: r for r in core.RESOURCES}

    def serve(self, resource: Resource) -> None:
        """Add a resource, or put a new definition in the place of an old one."""
        self._resources[resource.id] = resource

    def serve_velero(self, version: str, *, status_subresource: bool) -> None:
        """Serve Velero's resources as of ``version``."""
        for resource in velero.definitions(version, status_subresource=status_subresource):
            self.serve(resource)

    def set_selectable(self, plural: str, paths: Iterable[str]) -> None:
        """Let field selectors of a Velero resource name these dotted paths."""
        resource = self._resources[velero.GROUP, plural]
        self.serve(dataclasses.replace(resource, selectable=tuple(paths)))

    def all(self) -> list[Resource]:
        """Return every resource in the order of its registration."""
        return list(self._resources.values())

    def find(self, group: str, version: str, plural: str) -> Resource:
        """Return the resource of a path; raises one of the two 404 of a path that names none."""
        resource = self._resources.get((group, plural))
        if resource is None or resource.version != version:
            if group:
                raise NoSuchPage(f"nothing is served at {group}/{version}/{plural}")
            raise unknown_path()
        return resource
