"""Discovery: the documents by which a client learns what an API server serves.

Kept to the older, unaggregated form, which every client understands. The OpenAPI document says
of each resource only that it takes ``fieldValidation``, which is what ``kubectl apply`` asks.
"""

from collections.abc import Iterable

from agent.demo.apiserver.resource import Json, Resource

GIT_VERSION = "v1.20.2"
"""The release whose behaviour is stood in for (kubernetes.md section 3)."""

ITEM_VERBS = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
STATUS_VERBS = ["get", "patch", "update"]


def version() -> Json:
    """Return the body of ``/version``."""
    major, minor = GIT_VERSION.removeprefix("v").split(".")[:2]
    return {
        "major": major,
        "minor": minor,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "python",
        "platform": "linux/amd64",
    }


def core_versions() -> Json:
    """Return the body of ``/api``."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(resources: Iterable[Resource]) -> Json:
    """Return the body of ``/apis``."""
    named = {r.group: r for r in resources if r.group}
    groups = [group(name, of.version) for name, of in named.items()]
    for entry in groups:
        entry.pop("kind")
        entry.pop("apiVersion")
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(name: str, served: str) -> Json:
    """Return the body of ``/apis/<group>``."""
    entry = {"groupVersion": f"{name}/{served}", "version": served}
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": name,
        "versions": [entry],
        "preferredVersion": entry,
    }


def resource_list(api_version: str, resources: Iterable[Resource]) -> Json:
    """Return the body of ``/api/v1`` or ``/apis/<group>/<version>``."""
    entries: list[Json] = []
    for resource in resources:
        common = {
            "singularName": resource.kind.lower() if resource.custom else "",
            "namespaced": resource.namespaced,
            "kind": resource.kind,
        }
        names = {"shortNames": list(resource.short_names)} if resource.short_names else {}
        entries.append({"name": resource.plural, **common, "verbs": ITEM_VERBS, **names})
        if resource.has_status:
            served = {**common, "singularName": "", "verbs": STATUS_VERBS}
            entries.append({"name": f"{resource.plural}/status", **served})
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version,
        "resources": entries,
    }


def openapi_root(resources: Iterable[Resource]) -> Json:
    """Return the body of ``/openapi/v3``: where each group's document is."""
    prefixes = sorted({resource.prefix.removeprefix("/") for resource in resources})
    return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in prefixes}}


def openapi(resources: Iterable[Resource]) -> Json:
    """Return one group's OpenAPI document."""
    paths = {}
    for resource in resources:
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        path = f"{resource.prefix}{scope}/{resource.plural}/{{name}}"
        names = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        fields = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        patch = {
            "x-kubernetes-group-version-kind": names,
            "x-kubernetes-action": "patch",
            "parameters": [fields],
            "responses": {"200": {"description": "OK"}},
        }
        paths[path] = {"patch": patch}
    info = {"title": "podlift's stand-in", "version": GIT_VERSION}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
