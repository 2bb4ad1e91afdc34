"""A directory under examination: what is wrong with its tree and with the files in it.

restic's own check is silent about names out of order, sizes that are not those of the content, and
entries that it cannot decode make it crash (restic-format.md section 21). The rule guarded here:
what is found wrong is told once for each name, and one thing that is wrong hides no other.
"""

import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

from agent.entry import Entry, Kind
from agent.errors import DamagedBlob, MalformedData, StorageError
from agent.repository.finding import Advice
from agent.repository.health import Health, State
from agent.repository.identity import BlobType
from agent.repository.objects import of_one_object
from agent.repository.reader import BlobReader
from agent.repository.tree import disorder

_LOST = (Advice.PACKS, Advice.BACKUP, Advice.RESTORE)
_UNNAMED = (Advice.INDEX, Advice.BACKUP, Advice.RESTORE)
_WRONG = (Advice.REWRITE,)


class Fault(NamedTuple):
    """One thing that is wrong: with an entry of a directory, or with itself if it has no name."""

    name: bytes | None
    message: str
    advice: tuple[Advice, ...]


class Child(NamedTuple):
    """A directory in a directory."""

    name: bytes
    tree: bytes


class DirectoryCheck:
    """Examines directories by the ids of their trees."""

    def __init__(self, blobs: BlobReader, health: Health) -> None:
        self._blobs = blobs
        self._health = health

    def faults(
        self,
        tree: bytes,
        children: list[Child],
        on_file: Callable[[Entry], None] | None = None,
    ) -> Iterator[Fault]:
        """Yield what is wrong with a directory, and collect the directories in it on the way.

        ``on_file`` is called with every file that could be decoded.
        """
        refused: list[MalformedData] = []
        try:
            entries = self._blobs.load_tree(tree, refused)
            faults = disorder(entries)
            unordered = next(faults, "")
            # to the end: what is malformed is met, and all that is refused known
            collections.deque(faults, maxlen=0)
        except (DamagedBlob, MalformedData, StorageError) as error:
            if isinstance(error, StorageError) and not of_one_object(error):
                raise
            advice = _WRONG if isinstance(error, MalformedData) else _LOST
            yield Fault(None, f"this directory cannot be read: {error}", advice)
            return
        for bad in refused:
            yield Fault(None, f"{bad}; restic's check crashes on it", _WRONG)
        if unordered:
            told = f"the names of this directory are not in order: {unordered}"
            yield Fault(None, told, _WRONG)
        for entry in entries:
            if entry.subtree is not None:
                yield from self._directory(entry, children)
            elif entry.kind is Kind.FILE:
                if on_file is not None:
                    on_file(entry)
                yield from self._file(entry)

    def _directory(self, entry: Entry, children: list[Child]) -> Iterator[Fault]:
        tree = entry.subtree or b""
        if self._health.position(BlobType.TREE, tree) is None:
            told = f"this directory cannot be read: tree blob {tree.hex()} is in no index"
            yield Fault(entry.name, told, _UNNAMED)
        else:
            children.append(Child(entry.name, tree))

    def _file(self, entry: Entry) -> Iterator[Fault]:
        """Yield what is wrong with a file: a hole of it is one chunk many times over."""
        size, last, last_size = 0, b"", 0
        for id in entry.content or ():
            if id != last:
                state = self._health.state(BlobType.DATA, id)
                if state is State.UNKNOWN:
                    yield Fault(entry.name, f"data blob {id.hex()} is in no index", _UNNAMED)
                    return
                if state is State.LOST:
                    yield Fault(entry.name, f"data blob {id.hex()} is lost", _LOST)
                    return
                last, last_size = id, self._health.content_bytes(id)
            size += last_size
        if size != entry.size:
            told = f"says {entry.size} bytes, its content has {size}"
            yield Fault(entry.name, told, _WRONG)
