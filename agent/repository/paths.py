"""Paths into a snapshot: from a person's words to an entry, and to every entry below it.

A path begins at the snapshot's root, in raw bytes, with or without a leading ``/``. The rule
guarded here: nothing is followed, neither ``..`` nor a symlink, so a path names what the snapshot
holds there and nothing else. A walk holds the entries of the directories between its start and
where it is, never the whole tree.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry, Kind
from agent.errors import UsageError

LoadTree = Callable[[bytes], Iterable[Entry]]
"""Returns the entries of a directory by the id of its tree."""


class Place(NamedTuple):
    """What a path leads to: ``path`` is absolute, b"" for the root, which has no entry."""

    path: bytes
    entry: Entry | None
    tree: bytes | None

    @property
    def shown(self) -> str:
        """Return the path for a message."""
        return shown(self.path)


def shown(path: bytes) -> str:
    """Return a path for a message."""
    return path.decode("utf-8", "backslashreplace") or "/"


def find(load_tree: LoadTree, root: bytes, path: bytes) -> Place:
    """Return what ``path`` names below the tree ``root``.

    Raises ``UsageError`` that names the nearest parent that is there.
    """
    place = Place(b"", None, root)
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    for name in names:
        wanted = shown(b"/" + b"/".join(names))
        if name == b"..":
            raise UsageError(f"{wanted}: .. is not followed; write the path without it")
        if place.tree is None:
            raise UsageError(
                f"{wanted} is not in the snapshot: {place.shown} is {_words(place.entry)}"
            )
        entry = next((e for e in load_tree(place.tree) if e.name == name), None)
        if entry is None:
            raise UsageError(
                f"{wanted} is not in the snapshot; the nearest that is there is the directory"
                f" {place.shown} (`podlift ls SNAPSHOT {place.shown}` lists it)"
            )
        place = Place(place.path + b"/" + name, entry, entry.subtree)
    return place


def walk(
    load_tree: LoadTree,
    place: Place,
    *,
    recursive: bool = True,
    cancel: CancelToken = NEVER,
) -> Iterator[tuple[bytes, Entry]]:
    """Yield (path, entry) of all below a directory, each directory before what it holds.

    What is no directory is yielded itself. Directories are read as the walk comes to them;
    raises what reading raises, and ``Canceled``.
    """
    if place.tree is None:
        if place.entry is not None:
            yield place.path, place.entry
        return
    stack = [(place.path, iter(load_tree(place.tree)))]
    while stack:
        cancel.check()
        path, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        below = path + b"/" + entry.name
        yield below, entry
        if recursive and entry.subtree is not None:
            stack.append((below, iter(load_tree(entry.subtree))))


def _words(entry: Entry | None) -> str:
    if entry is None or entry.kind is Kind.DIRECTORY:
        return "a directory"
    if entry.kind is Kind.SYMLINK:
        return f"a symlink to {shown(entry.link_target)}, which is not followed"
    return f"a {entry.kind.name.lower().replace('_', ' ')}"
