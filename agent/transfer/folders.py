"""Directories in the making: a tree is stored when the last of its entries is finished.

Entries finish in any order and on any thread. Each directory counts what it still waits for; the
thread that brings the last piece stores the tree, and hands the directory itself to the parent
as a finished entry, and so on upwards. Only directories between the root and where the walk is
(and those with files still being read) exist at a time.
"""

import logging
import operator
import threading
from collections.abc import Callable, Iterator, Sequence

import msgspec

from agent.budget import Budgets
from agent.entry import Entry, Kind
from agent.errors import (
    DamagedBlob,
    MalformedData,
    RepositoryError,
    SourceError,
    TreeTooLarge,
    VolumeError,
)
from agent.monitor import Monitor
from agent.repository.contract import BackupTarget, Remembered
from agent.transfer.folder import Folder
from agent.transfer.holding import (
    ENTRY_BYTES,
    Holding,
    attributes_weight,
    budget_bytes,
    names_weight,
)
from agent.transfer.stretches import Stretch, Stretches
from agent.volume.descriptors import join

LIST_STEP = 1 << 16
"""Lists of chunks are accounted for in steps of this many; shorter ones need no account."""

LISTED_CHUNKS = 80 * LIST_STEP
"""What all long lists of unfinished directories may hold together: 2.5 TiB of holes.

A hole costs its owner nothing, and 76 bytes of our memory for each 512 KiB of it (measured, with
a tree of 280 MB); this many take 400 MB.
"""


PARTIAL_ENTRIES = 50_000
"""A larger directory is not part of a checkpoint until it is finished: it would be held twice."""


log = logging.getLogger(__name__)

_FILE = Kind.FILE
_name = operator.attrgetter("name")
_TOO_HEAVY = (
    "kept without its extended attributes: with those of its neighbours they do not fit into memory;"
    " raise podlift's memory limit"
)


class Assembly:
    """Stores trees from the leaves up, as their entries finish."""

    def __init__(self, target: BackupTarget, monitor: Monitor, budgets: Budgets) -> None:
        self._target = target
        self._monitor = monitor
        budget = budget_bytes()
        self.holding = Holding(budget, budgets.share_of(budget))
        self._earlier = Holding(budget // 2)
        self._begun: set[Stretches] = set()
        self._complete = threading.Event()
        self._root = b""
        self._lists = threading.Lock()
        self._listed = 0

    def close(self) -> None:
        """Give up what is not stored; for when no thread works on it any more."""
        for stretches in self._begun:
            stretches.close()

    def take(self, chunks: int) -> bool:
        """Account for a part of a long list, unless there is no room; ``store`` gives it back."""
        with self._lists:
            if self._listed + chunks > LISTED_CHUNKS:
                return False
            self._listed += chunks
            return True

    def give_back(self, chunks: int) -> None:
        """Give back what was taken for a list that is kept no longer."""
        with self._lists:
            self._listed -= chunks

    def finish_many(self, folder: Folder, finished: Sequence[tuple[int, Entry | None]]) -> None:
        """Deliver entries by their places; stores every tree that becomes complete by them.

        Attributes of files are accounted for here, where they first meet; see ``with_attributes``.
        """
        if any(entry and entry.xattrs and entry.kind is _FILE for _, entry in finished):
            finished = [
                (place, self.with_attributes(folder, entry) if entry else None)
                for place, entry in finished
            ]
        if folder.put(finished):
            self.store(folder)

    def earlier(self, folder: Folder, names: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries of a directory in the parent; ``names`` are those that it has now.

        Where there is no room for them, or the parent is damaged, that only costs reading. They have
        no node, and an account of their own: a directory that was backed up once is not left out the
        next time because it has a parent.
        """
        tree = folder.earlier_tree
        if tree is None or not self._earlier.try_hold(folder, names_weight(names) // 2):
            return {}
        try:
            entries = self._target.load_tree(tree)
            if not isinstance(entries, list):  # most of them are no more
                wanted = frozenset(names)
                entries = [entry for entry in entries if entry.name in wanted]
        except (DamagedBlob, MalformedData) as error:
            _read_anew(folder, error)
            return {}
        return {entry.name: entry for entry in entries}

    def stored_before(self, folder: Folder) -> Iterator[Entry]:
        """Yield what a directory has in the parent in order of names, as far as it can be had."""
        tree = folder.earlier_tree
        try:
            entries = self._target.load_tree(tree) if tree is not None else ()
            if isinstance(entries, list):
                if not self._earlier.try_hold(folder, len(entries) * ENTRY_BYTES // 2):
                    return
                entries.sort(key=_name)
            yield from entries
        except (DamagedBlob, MalformedData) as error:
            _read_anew(folder, error)

    def with_attributes(self, folder: Folder, entry: Entry) -> Entry:
        """Return an entry of a directory, without its attributes if there is no room for them."""
        weight = attributes_weight(entry.xattrs) if entry.xattrs else 0
        if not weight or self.holding.try_hold(folder, weight):
            return entry
        self._monitor.problem(SourceError(join(folder.path, entry.name), _TOO_HEAVY))
        return msgspec.structs.replace(entry, xattrs=())

    def store(self, folder: Folder) -> None:
        """Store a complete directory, and upwards as far as it completes others."""
        current: Folder | None = folder
        while current is not None:
            if isinstance(current, Stretch):
                current = current.write()
            else:
                current = self._completed(current, self._stored(current))

    def known(self, folder: Folder, tree: bytes) -> None:
        """Give a directory a tree that is stored already, and store those that it completes."""
        above = self._completed(folder, tree)
        if above is not None:
            self.store(above)

    def leave_out(self, folder: Folder, error: SourceError) -> None:
        """Name a directory that is left out; ``VolumeError`` if it is the root."""
        if folder.parent is None:
            raise VolumeError(f"the volume's root cannot be listed: {error.reason}") from error
        self._monitor.problem(error)
        above = self._completed(folder, None)
        if above is not None:
            self.store(above)

    def begin(self, folder: Folder) -> Stretches:
        """Begin to store a directory in stretches; raises ``SourceError``."""
        try:
            stretches = Stretches(folder, self._target.begin_tree(), self._written)
        except TreeTooLarge as error:
            raise SourceError(folder.path, f"{error}; left out") from error
        folder.stretches = stretches
        self._begun.add(stretches)
        return stretches

    def end(self, folder: Folder, stretches: Stretches) -> None:
        """Store a directory when all of its stretches are finished, which may be now."""
        if stretches.end():
            self.store(folder)

    def _written(self, stretch: Folder, entries: Sequence[Entry]) -> None:
        """Account for entries that are held no longer."""
        self.holding.release(stretch)
        self.give_back(sum(accounted(entry.content) for entry in entries))

    def _stored(self, folder: Folder) -> bytes | None:
        """Store a directory; None if it has to be left out, and is named."""
        if folder.stretches is not None:
            return self._stored_in_stretches(folder, folder.stretches)
        entries = [entry for entry in folder.slots if entry is not None]
        tree = self._target.store_tree(entries)
        self.give_back(sum(accounted(entry.content) for entry in entries))
        if folder.digest and len(entries) == len(folder.slots):
            size = sum(entry.size for entry in entries)
            self._target.remember(tree, Remembered(folder.digest, len(entries), size))
        return tree

    def _stored_in_stretches(self, folder: Folder, stretches: Stretches) -> bytes | None:
        folder.stretches = None
        self._begun.discard(stretches)
        try:
            tree = stretches.finish()
        except TreeTooLarge as error:
            if folder.parent is None:
                raise VolumeError(f"the volume's root cannot be stored: {error}") from error
            self._monitor.problem(SourceError(folder.path, f"{error}; left out"))
            return None
        if folder.digest and stretches.whole:
            remembered = Remembered(folder.digest, stretches.entries, stretches.content_bytes)
            self._target.remember(tree, remembered)
        return tree

    def _completed(self, folder: Folder, tree: bytes | None) -> Folder | None:
        """Hand a directory that is stored, or left out, to the one above; return that if it is complete."""
        self.holding.release(folder)
        self._earlier.release(folder)
        if folder.parent is None or folder.entry is None:
            self._root = tree or b""
            self._complete.set()
            return None
        finished = None
        if tree is not None:
            finished = msgspec.structs.replace(folder.entry, subtree=tree)
            self._count(finished, folder.earlier)
        complete = folder.parent.put([(folder.place, finished)])
        folder.slots = []  # only now: ``partial`` finds its entries here or there
        return folder.parent if complete else None

    def root(self, check: Callable[[], None]) -> bytes:
        """Wait for the root tree and return its id; ``check`` raises what went wrong."""
        while not self._complete.wait(0.5):
            check()
        return self._root

    def partial(self, root: Folder) -> bytes:
        """Store a tree of what is finished, with the parent's entries where nothing is; return its id.

        Its root directory is that of an unfinished backup: files that are gone may still be in it.
        Raises what the target raises; a directory whose parent is damaged has only what is finished.
        """
        folders = [root]
        for folder in folders:
            folders += folder.so_far()[1]
        trees: dict[Folder, bytes] = {}
        for folder in reversed(folders):  # what is finished meanwhile is met in the directory above
            finished, children = folder.so_far()
            if not finished and not any(child in trees for child in children):
                continue  # the parent's, if there is one, is as good
            if len(folder.slots) > PARTIAL_ENTRIES:
                continue
            entries = self._in_parent(folder)
            if entries is None:
                continue
            for child in children:
                if child in trees and child.entry is not None:
                    whole = msgspec.structs.replace(child.entry, subtree=trees[child])
                    entries[whole.name] = whole
            entries |= {entry.name: entry for entry in finished}
            trees[folder] = self._target.store_tree([entries[name] for name in sorted(entries)])
        return trees.get(root) or root.earlier_tree or self._target.store_tree([])

    def _in_parent(self, folder: Folder) -> dict[bytes, Entry] | None:
        """Return what a directory has in the parent; None if that is too much to be held."""
        tree = folder.earlier_tree
        try:
            entries = self._target.load_tree(tree) if tree is not None else []
        except (DamagedBlob, MalformedData) as error:
            _read_anew(folder, error)
            return {}
        return {entry.name: entry for entry in entries} if isinstance(entries, list) else None

    def _count(self, now: Entry, earlier: Entry | None) -> None:
        if earlier is None or earlier.kind is not Kind.DIRECTORY:
            self._monitor.add(directories_new=1)
        elif _same_directory(now, earlier):
            self._monitor.add(directories_unmodified=1)
        else:
            self._monitor.add(directories_changed=1)


def _read_anew(folder: Folder, error: RepositoryError) -> None:
    log.warning(
        "directory %r of the parent snapshot cannot be read, so its files are read anew: %s",
        folder.path,
        error,
    )


def accounted(content: Sequence[bytes] | None) -> int:
    """Return how many chunks of a list are accounted for."""
    return len(content or ()) // LIST_STEP * LIST_STEP


def _same_directory(now: Entry, earlier: Entry) -> bool:
    def facts(entry: Entry) -> tuple[object, ...]:
        return (
            entry.subtree,
            entry.permissions,
            (entry.uid, entry.gid, entry.user, entry.group),
            (entry.mtime_ns, entry.ctime_ns, entry.inode),
            entry.xattrs,
        )

    return facts(now) == facts(earlier)
