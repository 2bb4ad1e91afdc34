"""HTTP: a request becomes a verb on a target, and what comes back becomes an answer.

This is the only module that knows paths, headers and query parameters. Every request is logged
with its body and outcome, for tests to look at.
"""

import asyncio
import collections
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import web

from agent.demo.apiserver import discovery, patches, refusal, tables
from agent.demo.apiserver.faults import Fault, Faults, Kind
from agent.demo.apiserver.pages import Pages
from agent.demo.apiserver.pages import Wish as PageWish
from agent.demo.apiserver.refusal import NoSuchPage, Refusal
from agent.demo.apiserver.registry import Registry
from agent.demo.apiserver.resource import Json, Resource
from agent.demo.apiserver.selectors import Selector
from agent.demo.apiserver.store import Store
from agent.demo.apiserver.watches import Limits, Watch, reset
from agent.demo.apiserver.watches import Wish as WatchWish
from agent.demo.apiserver.writes import Mode, Target, Writes

KEPT_REQUESTS = 50_000
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
HEADERS = {"Cache-Control": "no-cache, private", "Content-Type": "application/json"}
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
HEALTH = ("healthz", "livez", "readyz")


class Seen(NamedTuple):
    """One request as it was seen, and the status that it was answered with (0: none)."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    user_agent: str
    body: bytes
    status: int


class Api:
    """The handler of every request."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._writes = Writes(store, registry)
        self._pages = Pages(store)
        self.watches: set[Watch] = set()
        self.limits = Limits()
        self.faults = Faults(store, self.watches, lambda act: act())
        self.seen: collections.deque[Seen] = collections.deque(maxlen=KEPT_REQUESTS)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, unless a fault does."""
        body = await request.read()
        fault = self.faults.take(request.method, request.path)
        if fault is not None and fault.kind is Kind.RESET:
            return self._gone(request, body)
        if fault is not None and fault.kind is Kind.ANSWER:
            answer = web.Response(status=fault.status, headers=fault.headers, body=fault.body)
            return self._noted(request, body, answer)
        try:
            parts = self._authorized(request)
            if parts[0] in ("api", "apis") and (target := self._target(parts)):
                if request.method == "GET" and not target.name and _flag(request, "watch"):
                    return await self._watch(request, target)
                answer = self._act(request, target, body)
            else:
                answer = self._document(parts)
        except NoSuchPage:
            answer = web.Response(status=404, text="404 page not found\n")
        except Refusal as refused:
            answer = _json(refused.status, refused.code, refused.retry_after_seconds)
        if fault is not None:
            return await self._without_reply(request, body, fault, answer)
        return self._noted(request, body, answer)

    def _noted(self, request: web.Request, body: bytes, answer: web.Response) -> web.Response:
        self._note(request, body, answer.status)
        return answer

    def _note(self, request: web.Request, body: bytes, status: int) -> None:
        headers = request.headers
        self.seen.append(
            Seen(
                request.method,
                request.path,
                dict(request.query),
                headers.get("Content-Type", ""),
                headers.get("User-Agent", ""),
                body,
                status,
            )
        )

    def _gone(self, request: web.Request, body: bytes) -> web.Response:
        """Reset the connection; the response goes nowhere."""
        self._note(request, body, 0)
        reset(request.transport)
        return web.Response()

    async def _without_reply(
        self, request: web.Request, body: bytes, fault: Fault, answer: web.Response
    ) -> web.Response:
        if fault.kind is Kind.LOSE_REPLY:
            return self._gone(request, body)
        while not fault.released.is_set():  # noqa: ASYNC110 - released from another thread
            await asyncio.sleep(0.005)
        return self._noted(request, body, answer)

    def _authorized(self, request: web.Request) -> list[str]:
        """Return the parts of the path; raises the 401."""
        parts = request.path.strip("/").split("/")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.faults.tokens and parts[0] not in HEALTH:
            raise refusal.unauthorized()
        return parts

    def _document(self, parts: list[str]) -> web.Response:
        """Return one of the documents that are not about objects; raises a 404."""
        if parts[0] in HEALTH:
            return web.Response(text="ok")
        return _json(self._discovery(parts))

    def _discovery(self, parts: list[str]) -> Json:
        resources = self._registry.all()
        match parts:
            case ["version"]:
                return discovery.version()
            case ["api"]:
                return discovery.core_versions()
            case ["apis"]:
                return discovery.group_list(resources)
            case ["openapi", "v3"]:
                return discovery.openapi_root(resources)
            case ["openapi", "v3", *rest]:
                prefix = f"/{'/'.join(rest)}"
                return discovery.openapi([r for r in resources if r.prefix == prefix])
            case ["apis", name]:
                for resource in resources:
                    if resource.group == name:
                        return discovery.group(name, resource.version)
            case ["api", _] | ["apis", _, _]:
                prefix = f"/{'/'.join(parts)}"
                served = [r for r in resources if r.prefix == prefix]
                if served:
                    return discovery.resource_list(served[0].api_version, served)
        raise NoSuchPage(f"nothing is served at /{'/'.join(parts)}")

    def _target(self, parts: list[str]) -> Target | None:
        """Return what a path below ``/api`` or ``/apis`` is about, or None for discovery."""
        group, rest = ("", parts[1:]) if parts[0] == "api" else (parts[1:2], parts[2:])
        if len(rest) < 2:
            return None
        version, *rest = rest
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            _, namespace, *rest = rest
        resource = self._registry.find("".join(group), version, rest[0])
        name, subresource = [*rest[1:], "", ""][:2]
        if len(rest) > 3 or bool(namespace) > resource.namespaced:
            raise NoSuchPage(f"nothing is served at /{'/'.join(parts)}")
        return Target(resource, namespace, name, subresource)

    def _act(self, request: web.Request, target: Target, body: bytes) -> web.Response:
        """Carry out a request about objects; raises ``Refusal``."""
        self._check_rights(request, target)
        if target.subresource:
            _check_subresource(target)
        if request.method in ("POST", "PUT") and request.content_type == PROTOBUF:
            raise refusal.unsupported_media(["application/json"])
        mode = Mode("All" in request.query.getall("dryRun", []), _is_strict(request))
        everywhere = target.resource.namespaced and not target.namespace
        if everywhere and (target.name or request.method != "GET"):
            raise refusal.method_not_allowed()
        match request.method, bool(target.name):
            case "GET", True:
                return _json(_shown(request, target.resource, self._writes.read(target)))
            case "GET", False:
                return _json(_shown(request, target.resource, self._list(request, target)))
            case "POST", False:
                return _json(self._writes.create(target, _parsed(body), mode), 201)
            case "PUT", True:
                return _json(self._writes.update(target, _parsed(body), mode))
            case "PATCH", True:
                return _json(self._writes.patch(target, _change(request, target, body), mode))
            case "DELETE", True:
                options = _delete_options(request, body)
                return _json(self._writes.delete(target, options, mode))
            case "DELETE", False:
                return _json(self._delete_all(request, target, body, mode))
        raise refusal.method_not_allowed()

    def _check_rights(self, request: web.Request, target: Target) -> None:
        verb = VERBS.get(request.method, "")
        if verb == "get" and not target.name:
            verb = "watch" if _flag(request, "watch") else "list"
        resource, served = target.resource, target.subresource
        if self.faults.denies(verb, f"{resource.plural}/{served}" if served else resource.plural):
            raise refusal.forbidden(resource, verb, target.namespace, target.name)

    def _list(self, request: web.Request, target: Target) -> Json:
        query = request.query
        asked, current = _version(query.get("resourceVersion", "")), self._store.version
        if asked > current:
            raise refusal.version_in_the_future(asked, current)
        limit, resume = _number(query.get("limit", "")), query.get("continue", "")
        selector = _selector(request, target.resource)
        return self._pages.page(
            PageWish(target.resource, target.namespace, selector, limit, resume)
        )

    def _delete_all(self, request: web.Request, target: Target, body: bytes, mode: Mode) -> Json:
        listed = self._list(request, target)
        for item in listed["items"]:
            metadata = item["metadata"]
            one = Target(target.resource, metadata.get("namespace", ""), metadata["name"])
            self._writes.delete(one, _delete_options(request, body), mode)
        return listed

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        self._check_rights(request, target)
        query = request.query
        version = query.get("resourceVersion", "")
        _version(version)
        wish = WatchWish(
            target.resource,
            target.namespace,
            _selector(request, target.resource),
            version,
            _flag(request, "allowWatchBookmarks"),
            float(_number(query["timeoutSeconds"])) if "timeoutSeconds" in query else None,
            functools.partial(_shown, request, target.resource),
        )
        watch = Watch(self._store, wish, self.limits)
        watch.freeze(self.faults.watches_frozen)
        self.watches.add(watch)
        self._note(request, b"", 200)
        response = web.StreamResponse(headers=HEADERS)
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            await watch.stream(request, response)
        except ConnectionError:
            reset(request.transport)
        finally:
            self.watches.discard(watch)
            watch.close()
        return response


def _json(body: Json, status: int = 200, retry_after_seconds: int | None = None) -> web.Response:
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    extra = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
    return web.Response(status=status, headers=HEADERS | extra, body=data)


def _shown(request: web.Request, resource: Resource, answer: Json) -> Json:
    """Return the answer in the form that was asked for: as it is, or as a table."""
    wanted = tables.wanted(request.headers.get("Accept", ""))
    return tables.table(resource, answer) if wanted else answer


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise refusal.bad_request(
            f"couldn't get version/kind; json parse error: {error}"
        ) from error


def _change(request: web.Request, target: Target, body: bytes) -> Callable[[Json], Any]:
    """Return the patch as a function of the object; raises 415 or 400."""
    kind = request.content_type
    accepted = [JSON_PATCH, MERGE, *([] if target.resource.custom else [STRATEGIC])]
    if kind not in accepted:
        raise refusal.unsupported_media([*accepted, APPLY])
    try:
        patch = json.loads(body)
    except ValueError as error:
        raise refusal.internal("Invalid JSON Patch") from error
    if kind == JSON_PATCH and not isinstance(patch, list):
        raise refusal.bad_request("json: cannot unmarshal object into a list of operations")
    if kind != JSON_PATCH:
        return lambda current: patches.merge_patch(current, patch)

    def change(current: Json) -> Any:
        try:
            return patches.json_patch(current, patch)
        except patches.PatchFailed as error:
            raise refusal.patch_failed() from error

    return change


def _delete_options(request: web.Request, body: bytes) -> Json:
    options = _parsed(body) if body else {}
    if not isinstance(options, dict):
        raise refusal.bad_request("DeleteOptions is not an object")
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = _number(request.query["gracePeriodSeconds"])
    return options


def _check_subresource(target: Target) -> None:
    if target.subresource != "status" or not target.resource.has_status:
        if target.resource.custom:
            raise refusal.not_found(target.resource, target.name)
        raise refusal.unknown_path()


def _selector(request: web.Request, resource: Resource) -> Selector:
    query = request.query
    return Selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))


def _is_strict(request: web.Request) -> bool:
    return request.query.get("fieldValidation") == "Strict"


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "") in ("1", "true", "True")


def _number(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise refusal.bad_request(f"strconv.ParseInt: parsing {json.dumps(text)}: invalid syntax")
    return int(text)


def _version(text: str) -> int:
    if text and not text.isdecimal():
        shown = json.dumps(text)
        raise refusal.internal(
            f"resourceVersion: Invalid value: {shown}: strconv.ParseUint: parsing {shown}: "
            "invalid syntax"
        )
    return int(text or 0)
