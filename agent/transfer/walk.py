"""The walk of a backup: one thread, which visits every directory, depth first, in order of names.

A directory whose listing is that of the parent is finished with the parent's tree. In the others each file
is looked up in the parent, and what did not change is finished on the spot; the rest is queued for
the readers, in batches. A directory of too many entries is worked on in stretches.
"""

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence

from msgspec.structs import replace

from agent.budget import Budgets
from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.repository.contract import BackupTarget
from agent.transfer.folder import Folder
from agent.transfer.folders import Assembly, accounted
from agent.transfer.hardlinks import HardLinks
from agent.transfer.holding import AT_ONCE_BYTES, names_weight, stretches_weight
from agent.transfer.pieces import Batch, File, batched
from agent.transfer.stretches import Earlier, divided
from agent.volume.directory import TOO_MANY, Directory
from agent.volume.exclude import Exclude
from agent.volume.looking import Listing, ListingDigest
from agent.volume.reader import Volume


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """What is backed up: an open volume, less what is excluded, beside its parent's root tree.

    ``readers`` files are read at a time, 0 for as many as suit.
    """

    volume: Volume
    exclude: Exclude
    parent_tree: bytes | None = None
    budgets: Budgets = dataclasses.field(default_factory=Budgets)
    readers: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
    """What the walk and the readers of one run share."""

    run: Run
    target: BackupTarget
    monitor: Monitor
    cancel: CancelToken
    assembly: Assembly
    links: HardLinks


Queue = Callable[[Folder, Directory, Batch], None]
"""Has files of a directory read."""

Below = Generator[tuple[Folder, Directory], None, None]
"""Subdirectories, opened, each to be visited before the next is asked for."""


class Walk:
    """One walk over a volume."""

    def __init__(self, source: Source, shared: Shared, queue: Queue) -> None:
        self._source = source
        self._shared = shared
        self._assembly = shared.assembly
        self._monitor = shared.monitor
        self._queue = queue

    def all(self, root: Folder) -> None:
        """Visit every directory."""
        directory = self._source.volume.root
        stack = [(directory, self._visit(root, directory))]
        try:
            while stack:
                self._shared.run.check()
                opened = next(stack[-1][1], None)
                if opened is None:
                    stack.pop()[0].close()
                else:
                    folder, directory = opened
                    stack.append((directory, self._visit(folder, directory)))
        finally:
            for directory, below in reversed(stack):
                below.close()
                directory.close()
        self._monitor.walk_finished()

    def _visit(self, folder: Folder, directory: Directory) -> Below:
        """Deal with one directory's entries, and yield its subdirectories."""
        try:
            names, at_once = self._names(folder, directory)
        except SourceError as error:
            self._assembly.leave_out(folder, error)
            return
        visit = self._at_once if at_once else self._in_stretches
        yield from visit(folder, directory, names)

    def _names(self, folder: Folder, directory: Directory) -> tuple[Sequence[bytes], bool]:
        """Return what is there, and whether its entries can be held; raises ``SourceError``."""
        holding, check = self._assembly.holding, self._shared.run.check
        names = directory.names(holding.room(folder))
        weight = names_weight(names)
        if weight <= AT_ONCE_BYTES and holding.hold(folder, weight, check):
            return names, True
        if holding.hold(folder, stretches_weight(names), check):
            return names, False
        raise SourceError(directory.path, f"has {len(names)} entries, {TOO_MANY}")

    def _at_once(self, folder: Folder, directory: Directory, names: Sequence[bytes]) -> Below:
        """Deal with a directory, all of whose entries are held until it is stored."""
        listing = directory.look(names, self._shared.cancel)
        if not self._source.exclude:
            folder.digest = listing.digest()
            if self._is_as_remembered(folder, lambda: folder.digest):
                return
        entries = self._entries(folder, directory, listing)
        if not _all_plain(entries, listing):
            folder.digest = b""
        earlier = self._assembly.earlier(folder, names)
        if not entries:
            self._assembly.store(folder)
            return
        folder.expect(len(entries))
        yield from self._work(folder, directory, entries, earlier)

    def _in_stretches(self, folder: Folder, directory: Directory, names: Sequence[bytes]) -> Below:
        """Deal with a directory that has too many entries, some of them at a time."""
        if not self._source.exclude and self._is_as_remembered(
            folder, lambda: self._digest(directory, names)
        ):
            return
        try:
            stretches = self._assembly.begin(folder)
        except SourceError as error:
            self._assembly.leave_out(folder, error)
            return
        digest = None if self._source.exclude else ListingDigest()
        earlier = Earlier(self._assembly.stored_before(folder))
        for some in divided(names):
            if stretches.refused:
                break
            listing = directory.look(some, self._shared.cancel)
            entries = self._entries(folder, directory, listing)
            if digest is not None and _all_plain(entries, listing):
                digest.add(listing)
            else:
                digest = None
            if entries:
                stretch = stretches.begin(len(entries), self._shared.run.check)
                yield from self._work(stretch, directory, entries, earlier.of(some))
        if digest is not None:
            folder.digest = digest.finish(names)
        self._assembly.end(folder, stretches)

    def _work(
        self,
        folder: Folder,
        directory: Directory,
        entries: Sequence[Entry],
        earlier: dict[bytes, Entry],
    ) -> Below:
        """Finish or queue what the folder expects, and yield the directories among it."""
        self._sort_out(folder, directory, entries, earlier)
        for place, entry in enumerate(entries):
            if entry.kind is not Kind.DIRECTORY:
                continue
            child = Folder(folder, place, entry, earlier.get(entry.name))
            if not directory.crossable(entry):
                self._assembly.store(child)
            elif (opened := self._open(directory, entry)) is not None:
                yield child, opened
            else:
                self._assembly.finish_many(folder, [(place, None)])

    def _open(self, directory: Directory, entry: Entry) -> Directory | None:
        try:
            return directory.open_directory(entry)
        except SourceError as error:
            self._monitor.problem(error)
            return None

    def _entries(self, folder: Folder, directory: Directory, listing: Listing) -> list[Entry]:
        """Return the entries of a listing, with those attributes that there is room for."""
        found = directory.iterate(listing, self._source.exclude, self._monitor, self._shared.cancel)
        return [self._assembly.with_attributes(folder, one) if one.xattrs else one for one in found]

    def _digest(self, directory: Directory, names: Sequence[bytes]) -> bytes:
        """Return the digest of a listing, of which only a part is held at a time."""
        digest = ListingDigest()
        for some in divided(names):
            digest.add(directory.look(some, self._shared.cancel))
        return digest.finish(names)

    def _is_as_remembered(self, folder: Folder, digest: Callable[[], bytes]) -> bool:
        """Finish a directory whose listing is that of the parent, in the parent's tree.

        Only directories without others are remembered, and without anything whose node says more
        than the listing does.
        """
        tree = folder.earlier_tree
        remembered = None if tree is None else self._shared.target.recall(tree)
        if tree is None or remembered is None or remembered.digest != digest():
            return False
        self._shared.target.remember(tree, remembered)
        size = remembered.content_bytes
        self._monitor.add(files_unmodified=remembered.files, bytes_total=size, bytes_done=size)
        self._assembly.known(folder, tree)
        return True

    def _sort_out(
        self,
        folder: Folder,
        directory: Directory,
        entries: Sequence[Entry],
        earlier: dict[bytes, Entry],
    ) -> None:
        """Finish what needs no reading, and queue the files that do."""
        self._monitor.add(bytes_total=sum(entry.size for entry in entries))
        finished: list[tuple[int, Entry | None]] = []
        unchanged: list[tuple[int, Entry]] = []
        changed: list[File] = []
        for place, entry in enumerate(entries):
            if entry.kind is Kind.FILE:
                before = earlier.get(entry.name)
                if before is not None and entry.unchanged_since(before):
                    unchanged.append((place, before))
                else:
                    changed.append(File(place, entry, before is not None))
            elif entry.kind is not Kind.DIRECTORY:
                finished.append((place, entry))
        self._monitor.add(others=len(finished))
        for batch in batched(itertools.chain(changed, self._reuse(entries, unchanged, finished))):
            self._queue(folder, directory, batch)
        self._assembly.finish_many(folder, finished)

    def _reuse(
        self,
        entries: Sequence[Entry],
        unchanged: Sequence[tuple[int, Entry]],
        finished: list[tuple[int, Entry | None]],
    ) -> Iterator[File]:
        """Finish files with the content of their parents; yield those that have to be read."""
        contents = [before.content or () for _, before in unchanged]
        all_there = self._shared.target.has_content([id for content in contents for id in content])
        count = size = 0
        for (place, before), content in zip(unchanged, contents, strict=True):
            there = all_there or self._shared.target.has_content(content)
            if not (there and self._assembly.take(accounted(content))):
                yield File(place, entries[place], known=True)
                continue
            entry = replace(entries[place], content=content, xattrs=before.xattrs)
            finished.append((place, self._shared.links.settle(entry)))
            count += 1
            size += entry.size
        self._monitor.add(files_unmodified=count, bytes_done=size)


def _all_plain(entries: Sequence[Entry], listing: Listing) -> bool:
    """Tell whether entries are all that was listed, and files with one name."""
    return len(entries) == len(listing.names) and all(map(_is_plain, entries))


def _is_plain(entry: Entry) -> bool:
    return entry.kind is Kind.FILE and entry.links < 2
