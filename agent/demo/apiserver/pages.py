"""Pages: lists, cut by ``limit``, that stay consistent until the history is compacted.

The first page remembers the whole list as of its version; ``continue`` names that version and
where to go on. A remembered list that is gone answers 410 with a token (version -1) for the
rest as it is now.
"""

import base64
import binascii
import collections
import json
from typing import NamedTuple

from agent.demo.apiserver import refusal
from agent.demo.apiserver.resource import Json, Resource
from agent.demo.apiserver.selectors import Selector
from agent.demo.apiserver.store import Store

REMEMBERED_LISTS = 64


class Wish(NamedTuple):
    """What a list is asked for; ``text`` is its selectors as they were sent."""

    resource: Resource
    namespace: str
    selector: Selector
    limit: int
    resume: str


class _Remembered(NamedTuple):
    generation: int
    items: list[Json]


class Pages:
    """Lists of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lists: collections.OrderedDict[tuple[str, str, int], _Remembered] = (
            collections.OrderedDict()
        )

    def page(self, wish: Wish) -> Json:
        """Return one list object; raises the 410 of a forgotten list, or 400."""
        version, start = _decoded(wish.resume) if wish.resume else (self._store.version, "")
        if version == -1:
            version = self._store.version
            items = self._store.list(wish.resource.id, wish.namespace)
        elif wish.resume:
            items = self._recall(wish, version, start)
        else:
            items = self._store.list(wish.resource.id, wish.namespace)
            if wish.limit:
                self._remember(wish, version, items)
        rest = [item for item in items if _position(item) > start]
        chosen = [item for item in rest if wish.selector.takes(item)]
        return _list_object(wish, version, chosen)

    def _remember(self, wish: Wish, version: int, items: list[Json]) -> None:
        key = (wish.resource.qualified, wish.namespace, version)
        self._lists[key] = _Remembered(self._store.generation, items)
        while len(self._lists) > REMEMBERED_LISTS:
            self._lists.popitem(last=False)

    def _recall(self, wish: Wish, version: int, start: str) -> list[Json]:
        found = self._lists.get((wish.resource.qualified, wish.namespace, version))
        if found is None or found.generation != self._store.generation:
            raise refusal.continue_expired(_encoded(-1, start))
        return found.items


def _list_object(wish: Wish, version: int, chosen: list[Json]) -> Json:
    metadata: Json = {"resourceVersion": str(version)}
    items = chosen[: wish.limit] if wish.limit else chosen
    if len(items) < len(chosen):
        metadata["continue"] = _encoded(version, _position(items[-1]))
        if not wish.selector:
            metadata["remainingItemCount"] = len(chosen) - len(items)
    return {
        "apiVersion": wish.resource.api_version,
        "kind": f"{wish.resource.kind}List",
        "metadata": metadata,
        "items": items,
    }


def _position(item: Json) -> str:
    """Return what lists are ordered by; NUL sorts a namespace before longer ones."""
    metadata = item["metadata"]
    return f"{metadata.get('namespace', '')}\0{metadata['name']}"


def _encoded(version: int, start: str) -> str:
    token = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": start})
    return base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def _decoded(token: str) -> tuple[int, str]:
    try:
        padded = token + "=" * (-len(token) % 4)
        decoded = json.loads(base64.urlsafe_b64decode(padded))
        return int(decoded["rv"]), str(decoded["start"])
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise refusal.bad_request("continue key is not valid") from error
