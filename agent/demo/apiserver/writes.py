"""Writes: the rules by which an object comes, changes and goes.

Every write is: read the stored object, make the new one, check it, store it. Nothing awaits in
between, so two writers of one object see each other's result, and the one whose
``metadata.resourceVersion`` is stale gets its 409.
"""

import dataclasses
import datetime
import secrets
import string
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from agent.demo.apiserver import core, refusal, schema
from agent.demo.apiserver.refusal import Cause
from agent.demo.apiserver.registry import Registry
from agent.demo.apiserver.resource import Json, Resource
from agent.demo.apiserver.store import Key, Store

POD_GRACE_SECONDS = 30
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_NAME_LETTERS = frozenset(string.ascii_lowercase + string.digits + "-.:")


class Target(NamedTuple):
    """What a request is about: a resource, and where in it."""

    resource: Resource
    namespace: str
    name: str
    subresource: str = ""

    @property
    def key(self) -> Key:
        """Return the object's key in the store."""
        return Key(self.resource.id, self.namespace, self.name)


class Mode(NamedTuple):
    """How a write is asked for: not at all (``dryRun``), or with unknown fields refused."""

    dry_run: bool = False
    strict: bool = False


def now() -> str:
    """Return the time as the API writes it: RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Writes:
    """Creates, changes and deletes the objects of one store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def read(self, target: Target) -> Json:
        """Return the object; raises the 404."""
        found = self._store.get(target.key)
        if found is None:
            raise refusal.not_found(target.resource, target.name)
        return found

    def create(self, target: Target, body: Any, mode: Mode) -> Json:
        """Store a new object; its name is in the body."""
        resource = target.resource
        obj = _enveloped(resource, body)
        metadata = _clean_metadata(obj, target)
        name = metadata["name"]
        key = Key(resource.id, target.namespace, name)
        if resource.namespaced and not self._has_namespace(target.namespace):
            raise refusal.not_found(core.NAMESPACES, target.namespace)
        if self._store.get(key) is not None:
            raise refusal.already_exists(resource, name)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if resource.custom:
            metadata["generation"] = 1
        made = {**obj, "metadata": metadata}
        if resource.custom and resource.has_status:
            made.pop("status", None)
        made = self._checked(resource, core.admit(resource, made, creating=True), mode)
        return made if mode.dry_run else self._store.put(key, made)

    def update(self, target: Target, body: Any, mode: Mode) -> Json:
        """Replace the object by ``body``."""
        obj = _enveloped(target.resource, body)
        current = self.read(target)
        metadata = obj.get("metadata") or {}
        _check_name(target, obj)
        if not metadata.get("resourceVersion") and target.resource.custom:
            message = "Invalid value: 0x0: must be specified for an update"
            cause = Cause("metadata.resourceVersion", "FieldValueInvalid", message)
            raise refusal.invalid(target.resource, target.name, [cause], by_plural=True)
        uid, own = metadata.get("uid"), current["metadata"]["uid"]
        if uid and uid != own:
            place = f"{target.resource.group}/{target.resource.plural}/{target.namespace}"
            why = (
                f"StorageError: invalid object, Code: 4, Key: /registry/{place}/{target.name}, "
                "ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: "
                f"UID in precondition: {uid}, UID in object meta: {own}"
            )
            raise refusal.conflict(target.resource, target.name, why)
        return self._change(target, current, obj, mode)

    def patch(self, target: Target, change: Callable[[Json], Any], mode: Mode) -> Json:
        """Replace the object by what ``change`` makes of it."""
        current = self.read(target)
        wanted = _enveloped(target.resource, change(current))
        _check_name(target, wanted)
        return self._change(target, current, wanted, mode)

    def _change(self, target: Target, current: Json, wanted: Json, mode: Mode) -> Json:
        resource, old = target.resource, current["metadata"]
        version = (wanted.get("metadata") or {}).get("resourceVersion")
        if version and not str(version).isdecimal():
            raise refusal.internal(f'strconv.ParseUint: parsing "{version}": invalid syntax')
        if version and version != old["resourceVersion"]:
            raise refusal.conflict(resource, target.name)
        new = _divided(target, current, wanted)
        new["metadata"] = _kept_metadata(resource, target.name, old, wanted["metadata"])
        if target.subresource:
            new["metadata"] = dict(old)
        new = self._checked(resource, core.admit(resource, new, creating=False), mode)
        if new == current or mode.dry_run:
            return new
        if resource.custom and _moves_generation(resource, current, new):
            new["metadata"]["generation"] = old["generation"] + 1
        held = new["metadata"].get("finalizers") or _waits_for_kubelet(resource, current)
        if "deletionTimestamp" in old and not held:
            self._store.remove(target.key, new)
            return new
        return self._store.put(target.key, new)

    def _checked(self, resource: Resource, obj: Json, mode: Mode) -> Json:
        name = obj["metadata"]["name"]
        if resource.schema is None:
            causes = core.violations(resource, obj)
        else:
            obj, dropped = schema.prune(obj, resource.schema)
            if dropped and mode.strict:
                fields = ", ".join(f'unknown field "{path}"' for path in dropped)
                raise refusal.bad_request(
                    f'{resource.kind} in version "{resource.version}" cannot be handled as a '
                    f"{resource.kind}: strict decoding error: {fields}"
                )
            causes = schema.violations(obj, resource.schema)
        if causes:
            raise refusal.invalid(resource, name, causes)
        return obj

    def _has_namespace(self, name: str) -> bool:
        return self._store.get(Key(core.NAMESPACES.id, "", name)) is not None

    def delete(self, target: Target, options: Any, mode: Mode) -> Json:
        """Delete an object, or mark it while finalizers (or a kubelet) hold it.

        Returns the object while it stays, else the Status of its removal.
        """
        current = self.read(target)
        asked = options if isinstance(options, dict) else {}
        _check_preconditions(target, current, asked.get("preconditions") or {})
        metadata, grace = current["metadata"], asked.get("gracePeriodSeconds")
        held = bool(metadata.get("finalizers"))
        if not held and grace != 0 and _waits_for_kubelet(target.resource, current):
            held, grace = True, POD_GRACE_SECONDS if grace is None else grace
        if mode.dry_run:
            return current
        if held:
            if "deletionTimestamp" in metadata:
                return current
            marks = {"deletionTimestamp": now(), "deletionGracePeriodSeconds": grace or 0}
            if "generation" in metadata:
                marks["generation"] = metadata["generation"] + 1
            return self._store.put(target.key, {**current, "metadata": metadata | marks})
        if target.resource.id == core.NAMESPACES.id:
            for key in self._store.keys(target.name):
                self._store.remove(key)
        self._store.remove(target.key)
        return _removed(target, metadata["uid"])


def _enveloped(resource: Resource, body: Any) -> Json:
    """Return the body as an object of this resource, or raise the 400."""
    if not isinstance(body, dict):
        raise refusal.bad_request("the request's body is not an object")
    kind, version = body.get("kind"), body.get("apiVersion")
    if resource.custom and (not kind or not version):
        lacking = "Kind" if not kind else "apiVersion"
        raise refusal.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a '
            f"{resource.kind}: unmarshalerDecoder: Object '{lacking}' is missing"
        )
    if resource.custom and version == resource.api_version and kind != resource.kind:
        message = f'Invalid value: "{kind}": must be {resource.kind}'
        named = dataclasses.replace(resource, kind=str(kind))
        name = (body.get("metadata") or {}).get("name", "")
        raise refusal.invalid(named, name, [Cause("kind", "FieldValueInvalid", message)])
    if (kind or resource.kind) != resource.kind or (
        version or resource.api_version
    ) != resource.api_version:
        raise refusal.bad_request(
            f"{kind} in version {version!r} cannot be handled as a {resource.kind} "
            f"in version {resource.api_version!r}"
        )
    metadata = body.get("metadata")
    if not isinstance(metadata, dict | None):
        raise refusal.bad_request("metadata is not an object")
    head = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata or {}}
    return head | {key: value for key, value in body.items() if key not in head}


def _check_name(target: Target, wanted: Json) -> None:
    name = wanted["metadata"].get("name", "")
    if name != target.name:
        raise refusal.bad_request(
            f"the name of the object ({name}) does not match the name on the URL ({target.name})"
        )


def _clean_metadata(obj: Json, target: Target) -> Json:
    """Return the metadata that a new object starts with; raises 400 or 422."""
    resource, given = target.resource, obj["metadata"]
    if given.get("resourceVersion"):
        raise refusal.internal("resourceVersion should not be set on objects to be created")
    if target.namespace and given.get("namespace", target.namespace) != target.namespace:
        raise refusal.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    name = given.get("name", "")
    if not name and given.get("generateName"):
        name = given["generateName"] + "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
    if not name:
        message = "Required value: name or generateName is required"
        cause = Cause("metadata.name", "FieldValueRequired", message)
        raise refusal.invalid(resource, "", [cause])
    if not _NAME_LETTERS.issuperset(name) or name[0] in "-." or len(name) > 253:
        message = (
            f'Invalid value: "{name}": a DNS-1123 subdomain must consist of lower case '
            "alphanumeric characters, '-' or '.', and must start and end with an alphanumeric "
            "character"
        )
        raise refusal.invalid(
            resource, name, [Cause("metadata.name", "FieldValueInvalid", message)]
        )
    set_by_server = ("deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink")
    kept = {key: value for key, value in given.items() if key not in set_by_server}
    placed = {"namespace": target.namespace} if resource.namespaced else {}
    return kept | {"name": name} | placed


def _kept_metadata(resource: Resource, name: str, old: Json, wanted: Json) -> Json:
    """Return the new metadata: what a writer may not change stays; raises the 422."""
    if wanted.get("uid") not in (None, "", old["uid"]):
        message = f'Invalid value: "{wanted["uid"]}": field is immutable'
        raise refusal.invalid(resource, name, [Cause("metadata.uid", "FieldValueInvalid", message)])
    added = [f for f in wanted.get("finalizers") or [] if f not in (old.get("finalizers") or [])]
    if "deletionTimestamp" in old and added:
        shown = "{" + ", ".join(f'"{finalizer}"' for finalizer in added) + "}"
        message = (
            "Forbidden: no new finalizers can be added if the object is being deleted, "
            f"found new finalizers []string{shown}"
        )
        cause = Cause("metadata.finalizers", "FieldValueForbidden", message)
        raise refusal.invalid(resource, name, [cause])
    own = {
        key: value
        for key, value in wanted.items()
        if key in ("labels", "annotations", "finalizers", "ownerReferences", "generateName")
        and value not in (None, {}, [])
    }
    fixed = (
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    )
    return {key: old[key] for key in fixed if key in old} | own


def _divided(target: Target, current: Json, wanted: Json) -> Json:
    """Return the part of ``wanted`` that this path may write, the rest as it is."""
    if not target.resource.has_status:
        return dict(wanted)
    through_status = target.subresource == "status"
    taken, base = (wanted, current) if through_status else (current, wanted)
    new = {key: value for key, value in base.items() if key != "status"}
    return new | ({"status": taken["status"]} if "status" in taken else {})


def _moves_generation(resource: Resource, old: Json, new: Json) -> bool:
    """Tell whether anything but metadata (and a separate status) changed."""
    apart = {"metadata", "status"} if resource.has_status else {"metadata"}
    names = (old.keys() | new.keys()) - apart
    return any(old.get(name) != new.get(name) for name in names)


def _waits_for_kubelet(resource: Resource, obj: Json) -> bool:
    """Tell whether the object is a running pod, which stays until its kubelet lets it go."""
    if resource.id != ("", "pods"):
        return False
    phase = (obj.get("status") or {}).get("phase")
    return bool((obj.get("spec") or {}).get("nodeName")) and phase not in ("Succeeded", "Failed")


def _check_preconditions(target: Target, current: Json, asked: Json) -> None:
    fates = (
        ("uid", "UID", "deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "modified"),
    )
    for field, label, fate in fates:
        own = current["metadata"][field]
        if asked.get(field) not in (None, own):
            why = (
                f"the {label} in the precondition ({asked[field]}) does not match the {label} "
                f"in record ({own}). The object might have been {fate}"
            )
            raise refusal.conflict(target.resource, target.name, why, by_kind=True)


def _removed(target: Target, uid: str) -> Json:
    resource = target.resource
    named = {"name": target.name, "group": resource.group, "kind": resource.plural, "uid": uid}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {key: value for key, value in named.items() if value},
    }
