"""The store holds every object and the history of what happened to them.

One resource version counts all writes of all types, as etcd's revision does. A stored object is
never changed in place: a write puts a new one there, so that a list, an event and a snapshot
may hold the old one for as long as they like. The store belongs to one event loop.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from agent.demo.apiserver.resource import Json, ResourceId
from agent.errors import ClusterError

HISTORY_EVENTS = 20_000
"""How many events a watch may go back; older ones count as compacted."""


class Key(NamedTuple):
    """Where an object is; ``namespace`` is "" for cluster-wide ones."""

    resource: ResourceId
    namespace: str
    name: str


class Event(NamedTuple):
    """One write. ``object`` is after it (of a removal: the last state, at the new version)."""

    version: int
    type: str
    key: Key
    object: Json
    previous: Json | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Every object as of one version."""

    version: int
    objects: dict[Key, Json]


class View(NamedTuple):
    """Another form in which the objects of a resource are read and written too."""

    stored: ResourceId
    inward: Callable[[Json], Json]
    outward: Callable[[Json], Json]


class Expired(ClusterError):
    """The history does not go back that far; ``oldest`` is where it begins."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"the history begins at {oldest}")
        self.oldest = oldest


class Store:
    """All objects of one API server; a key of a resource in ``views`` means a stored object's other form."""

    def __init__(self, views: Mapping[ResourceId, View] | None = None) -> None:
        self._views = views or {}
        self.version = 1
        self.generation = 0
        """How often the store was compacted or restored: lists begun before are forgotten."""
        self._objects: dict[Key, Json] = {}
        self._history: collections.deque[Event] = collections.deque()
        self._oldest = 1
        self._listeners: set[Callable[[Event], None]] = set()

    def get(self, key: Key) -> Json | None:
        """Return the object, or None."""
        found = self._objects.get(self._stored(key))
        return found if found is None else self._shown(key.resource, found)

    def _stored(self, key: Key) -> Key:
        view = self._views.get(key.resource)
        return key if view is None else key._replace(resource=view.stored)

    def _shown(self, resource: ResourceId, obj: Json) -> Json:
        view = self._views.get(resource)
        return obj if view is None else view.outward(obj)

    def keys(self, namespace: str) -> list[Key]:
        """Return the key of every object in a namespace."""
        return [key for key in self._objects if key.namespace == namespace]

    def list(self, resource: ResourceId, namespace: str = "") -> list[Json]:
        """Return a resource's objects (of one namespace, or of all) ordered by their names."""
        stored = self._stored(Key(resource, "", "")).resource
        keys = sorted(
            key
            for key in self._objects
            if key.resource == stored and (not namespace or key.namespace == namespace)
        )
        return [self._shown(resource, self._objects[key]) for key in keys]

    def put(self, key: Key, obj: Json) -> Json:
        """Store an object under the next version, tell every listener, and return it."""
        view = self._views.get(key.resource)
        at = self._stored(key)
        previous = self._objects.get(at)
        stored = self._stamped(obj if view is None else view.inward(obj))
        self._objects[at] = stored
        self._record("MODIFIED" if previous is not None else "ADDED", at, stored, previous)
        return self._shown(key.resource, stored)

    def remove(self, key: Key, last: Json | None = None) -> Json:
        """Remove an object; its last state (or ``last``) gets the next version in the event."""
        at = self._stored(key)
        previous = self._objects.pop(at)
        if last is not None and key.resource in self._views:
            last = self._views[key.resource].inward(last)
        stored = self._stamped(previous if last is None else last)
        self._record("DELETED", at, stored, previous)
        return self._shown(key.resource, stored)

    def _stamped(self, obj: Json) -> Json:
        self.version += 1
        metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
        return {**obj, "metadata": metadata}

    def _record(self, kind: str, key: Key, obj: Json, previous: Json | None) -> None:
        self._note(Event(self.version, kind, key, obj, previous))
        for resource, view in self._views.items():
            if view.stored == key.resource:
                before = None if previous is None else view.outward(previous)
                seen = key._replace(resource=resource)
                self._note(Event(self.version, kind, seen, view.outward(obj), before))

    def _note(self, event: Event) -> None:
        self._history.append(event)
        if len(self._history) > HISTORY_EVENTS:
            self._oldest = self._history.popleft().version
        for listener in tuple(self._listeners):
            listener(event)

    def since(self, resource: ResourceId, version: int) -> Iterator[Event]:
        """Return a resource's events after ``version``; raises ``Expired``."""
        if version < self._oldest:
            raise Expired(self._oldest)
        return iter(
            [e for e in self._history if e.version > version and e.key.resource == resource]
        )

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` at each write until ``unlisten``; it must not block."""
        self._listeners.add(listener)

    def unlisten(self, listener: Callable[[Event], None]) -> None:
        """Stop calling ``listener``."""
        self._listeners.discard(listener)

    def compact(self) -> None:
        """Forget the history: watches and pages from before now are expired."""
        self._history.clear()
        self._oldest = self.version
        self.generation += 1

    def snapshot(self) -> Snapshot:
        """Return the present state."""
        return Snapshot(self.version, dict(self._objects))

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to an earlier state, its version included, as an etcd restore does."""
        self.version = snapshot.version
        self._objects = dict(snapshot.objects)
        self.compact()
