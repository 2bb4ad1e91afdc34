"""The restore pipeline: a snapshot's tree in, a directory's content out.

One thread walks the trees: it makes directories, symlinks and special files, and collects files
into windows (``window``). The ranges that a window needs are fetched by a pool of threads, each of
which verifies every chunk and writes it wherever it belongs (``target_writing``). A directory gets
its own metadata when everything in it is done (``target_folders``).

What is in the target already: a file whose content is right is kept and not fetched, one that
differs in some chunks is written in those, everything else is replaced; what the snapshot does not
have stays, unless ``delete`` was asked for.

An entry that cannot be restored is counted and named, and the run goes on. So it does where the
repository is damaged: all that can be had is restored, and then the run fails, saying what is lost.
"""

import concurrent.futures
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from agent.budget import Budgets
from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import DamagedBlob, MalformedData, SourceError
from agent.monitor import Monitor
from agent.repository.contract import RestoreSource
from agent.transfer.content import Content
from agent.transfer.selection import Selection
from agent.transfer.target_existing import Differing, compare, placed, reuse
from agent.transfer.target_folders import TargetFolder
from agent.transfer.target_links import TargetLinks
from agent.transfer.target_writing import LargeFile, Writing
from agent.volume.descriptors import MAX_PATH_BYTES, join
from agent.volume.target_file import Place
from agent.volume.writer import TargetTree

STEP_FILES = 1_024
"""After how many files of a directory the window's bounds are looked at."""

PART_ENTRIES = 4_096
"""How many entries of a directory are held at a time, if it has too many to hold them all."""

_DIRECTORY = Kind.DIRECTORY

COMPARED_BYTES = 8 << 20
"""What comparing one file weighs at most: it is read chunk by chunk."""

_WAIT_SLICE_SECONDS = 0.5
_TOO_DEEP = f"its path is longer than {MAX_PATH_BYTES} bytes; what lies below is left out"

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore: a snapshot's root tree, or what is selected of it, and where to.

    ``target`` is a directory, which a restore makes if it is missing. ``delete`` removes from it
    what the snapshot does not have, as far as it is selected. ``budgets`` are shared with other runs.
    """

    tree: bytes
    target: str | os.PathLike[str]
    selection: Selection = dataclasses.field(default_factory=Selection)
    delete: bool = False
    budgets: Budgets = dataclasses.field(default_factory=Budgets)


def restore(
    source: RestoreSource, request: RestoreRequest, monitor: Monitor, cancel: CancelToken
) -> None:
    """Restore what is asked for.

    Raises ``VolumeError`` for the target as a whole, ``Canceled``, ``StorageError``, and
    ``DamagedBlob`` when the repository has lost a part of the snapshot and all the rest is
    restored. Entries that could not be restored in full are problems of the monitor.
    """
    with (
        request.budgets.at_work(),
        TargetTree.open(request.target, monitor.problem, create=True) as opened,
    ):
        run = Run(cancel)
        work = _Restore(source, request, monitor, run)
        try:
            work.all(TargetFolder.root(opened.root, monitor.problem))
        except BaseException as error:
            run.fail(error)
            raise
        finally:
            work.close()
    work.say_what_is_lost()


class _Restore:
    """One run: its pool, its windows, and the hard links that were met."""

    def __init__(
        self, source: RestoreSource, request: RestoreRequest, monitor: Monitor, run: Run
    ) -> None:
        self._source = source
        self._tree = request.tree
        self._selection = request.selection
        self._delete = request.delete
        self._monitor = monitor
        self._run = run
        self._links = TargetLinks(self._link)
        self._writing = Writing(monitor, self._links)
        self._content = Content(source, monitor, run, self._writing, request.budgets)

    def close(self) -> None:
        """End the threads."""
        self._content.close()

    def all(self, root: TargetFolder) -> None:
        """Restore everything."""
        self._walk(self._tree, root)
        self._monitor.walk_finished()
        self._content.finish()
        while self._writing.retry:
            again, self._writing.retry = self._writing.retry, []
            for folder, entry in again:
                self._make(folder, entry, None)
            self._content.finish()

    def say_what_is_lost(self) -> None:
        """Raise ``DamagedBlob`` if anything could not be had from the repository."""
        count = self._writing.damaged_count
        if count:
            named = "; ".join(map(str, self._writing.damaged[:3]))
            raise DamagedBlob(
                f"{count} entries of the snapshot are lost, everything else is restored: {named}."
                " `podlift check --read-data` says what else the damage touches"
            )

    # -- the walk -------------------------------------------------------------------------------

    def _walk(self, tree: bytes, root: TargetFolder) -> None:
        """Visit every tree, depth first; however it ends, no directory waits for the walk."""
        stack = [(root, self._visit(root, tree))]
        try:
            while stack:
                self._run.check()
                folder, visit = stack[-1]
                below = next(visit, None)
                if below is None:
                    stack.pop()
                    folder.done()
                else:
                    child, subtree = below
                    stack.append((child, self._visit(child, subtree)))
        finally:
            for folder, _ in reversed(stack):
                folder.done()

    def _visit(self, folder: TargetFolder, tree: bytes) -> Iterator[tuple[TargetFolder, bytes]]:
        """Make one directory's entries, then yield its subdirectories with their trees."""
        try:
            entries = self._source.load_tree(tree)
        except (DamagedBlob, MalformedData) as error:
            self._writing.lost(folder.path, error)
            return
        if not isinstance(entries, list):
            yield from self._visit_long(folder, entries)
            return
        here = self._wanted_here(folder, entries)
        try:
            present = self._present(folder, entries) if here or folder.wanted else frozenset()
        except SourceError as error:
            self._monitor.problem(error)
            return
        self._make_here(folder, here, present)
        below = [entry for entry in entries if entry.kind is _DIRECTORY]
        del entries, here, present
        yield from self._enter_all(folder, below)

    def _visit_long(
        self, folder: TargetFolder, entries: Iterable[Entry]
    ) -> Iterator[tuple[TargetFolder, bytes]]:
        """Do the same with a directory of very many entries, some at a time."""
        present: frozenset[bytes] | None = None
        rest = iter(entries)
        try:
            while some := list(itertools.islice(rest, PART_ENTRIES)):
                here = self._wanted_here(folder, some)
                if present is None and (here or folder.wanted):
                    present = self._present(folder, entries)
                self._make_here(folder, here, present or frozenset())
                yield from self._enter_all(folder, [e for e in some if e.kind is _DIRECTORY])
        except MalformedData as error:
            self._writing.lost(folder.path, error)
        except SourceError as error:
            self._monitor.problem(error)

    def _make_here(
        self, folder: TargetFolder, here: list[Entry], present: frozenset[bytes]
    ) -> None:
        """Make entries of a directory that are no directories."""
        if self._delete and folder.wanted:
            for entry in here:
                if entry.name in present:
                    self._clear_directory(folder, entry)
        self._monitor.add(bytes_total=sum(entry.size for entry in here))
        differing = self._compared(folder, here, present) if present else {}
        folder.expect(len(here))
        for place in range(0, len(here), STEP_FILES):
            self._run.check()
            self._make_all(folder, here[place : place + STEP_FILES], differing)

    def _enter_all(
        self, folder: TargetFolder, below: list[Entry]
    ) -> Iterator[tuple[TargetFolder, bytes]]:
        for entry in below:
            child = self._enter(folder, entry)
            if child is not None:
                yield child, entry.subtree or b""

    def _wanted_here(self, folder: TargetFolder, entries: list[Entry]) -> list[Entry]:
        """Return the entries that are no directories and are to be restored."""
        here = [entry for entry in entries if entry.kind is not _DIRECTORY]
        if self._selection.everything:
            return here
        wants = self._selection.wants
        return [entry for entry in here if wants(join(folder.path, entry.name), False)]

    def _present(self, folder: TargetFolder, entries: Iterable[Entry]) -> frozenset[bytes]:
        """Return which names are there already, after removing those that are not to stay."""
        if folder.directory.fresh:
            return frozenset()
        present = folder.directory.names()
        if self._delete and folder.wanted:
            wants = self._selection.wants
            for name in present.difference(entry.name for entry in entries):
                path = join(folder.path, name)
                if wants(path, True) and wants(path, False):
                    self._remove(folder, name)
        return present

    def _clear_directory(self, folder: TargetFolder, entry: Entry) -> None:
        """Remove a directory that is in the place of something else."""
        try:
            there = folder.directory.open_directory(entry)
        except SourceError:
            return
        if there is not None:
            there.close()
            self._remove(folder, entry.name)

    def _remove(self, folder: TargetFolder, name: bytes) -> None:
        try:
            folder.directory.remove(
                name,
                lambda count: self._monitor.add(removed=count),
                self._selection.spares if self._selection.excludes else None,
            )
        except SourceError as error:
            self._monitor.problem(error)

    def _compared(
        self, folder: TargetFolder, entries: list[Entry], present: frozenset[bytes]
    ) -> dict[bytes, Differing]:
        """Compare the files that are there with what they should be, several at a time."""
        pending = {
            entry.name: self._content.pool.submit(
                min(entry.size, COMPARED_BYTES), compare, self._source, folder.directory, entry
            )
            for entry in entries
            if entry.kind is Kind.FILE and entry.name in present
        }
        found: dict[bytes, Differing] = {}
        for name, future in pending.items():
            differing = self._result(future)
            if differing is not None:
                found[name] = differing
        return found

    def _result(self, future: "concurrent.futures.Future[T]") -> T:
        """Wait for a task, and look at the run meanwhile: a task that is dropped never ends."""
        while True:
            try:
                return future.result(timeout=_WAIT_SLICE_SECONDS)
            except TimeoutError:
                self._run.check()

    def _enter(self, folder: TargetFolder, entry: Entry) -> TargetFolder | None:
        path = join(folder.path, entry.name)
        if len(path) > MAX_PATH_BYTES:
            self._monitor.problem(SourceError(path[:200] + b"...", _TOO_DEEP))
            return None
        wanted = self._selection.wants(path, True)
        if not wanted and not self._selection.leads_on(path):
            return None
        if entry.subtree is None:
            self._monitor.problem(SourceError(path, "is a directory without a tree of its own"))
            return None
        child = TargetFolder(folder, entry, self._monitor.problem, wanted=wanted)
        try:
            if wanted:
                child.make()
        except BaseException as error:
            child.done()
            if not isinstance(error, SourceError):
                raise
            self._monitor.problem(error)
            return None
        return child

    def _make_all(
        self, folder: TargetFolder, entries: list[Entry], differing: dict[bytes, Differing]
    ) -> None:
        """Make entries that are no directories: small new files together, the others one by one."""
        kept = [entry for entry in entries if entry.name in differing] if differing else []
        new = [entry for entry in entries if entry.name not in differing] if kept else entries
        for entry in kept + self._content.window.add_small(folder, new):
            self._run.check()
            self._make(folder, entry, differing.get(entry.name))
            self._content.fetch_when_due()
        self._content.fetch_when_due()

    def _make(self, folder: TargetFolder, entry: Entry, differing: Differing | None) -> None:
        """Make one entry that is no directory, or see to it that it will be; it is expected."""
        if entry.kind is Kind.FILE:
            if entry.links < 2 or self._links.first(folder, entry):
                self._file(folder, entry, differing)
            return
        try:
            if entry.kind is Kind.SOCKET:
                self._monitor.add(sockets_skipped=1)
            elif entry.kind is Kind.SYMLINK:
                folder.made.make_symlink(entry)
                self._monitor.add(others=1)
            else:
                folder.made.make_special(entry)
                self._monitor.add(others=1)
        except SourceError as error:
            self._monitor.problem(error)
        finally:
            folder.done()

    # -- files ----------------------------------------------------------------------------------

    def _file(self, folder: TargetFolder, entry: Entry, differing: Differing | None) -> None:
        """Decide how a file comes to its content; what is expected of it is done in the end."""
        content = entry.content or ()
        if differing is not None and self._kept(folder, entry, differing):
            return
        if not self._content.window.add_small(folder, [entry]):
            return
        try:
            wants = placed(self._source, content)
        except DamagedBlob as error:
            self._writing.lost_file(join(folder.path, entry.name), entry, error)
            folder.done()
            return
        self._monitor.add(bytes_done=sum(length for _, length in wants.zeros))
        self._content.want(LargeFile(folder, entry, wants.size, len(wants.chunks)), wants.chunks)

    def _kept(self, folder: TargetFolder, entry: Entry, differing: Differing) -> bool:
        """Keep what is right of a file that is there; tell whether that could be done."""
        try:
            file = reuse(folder.directory, entry, differing)
        except SourceError as error:
            log.info("%s; it is replaced", error)
            return False
        if file is None:
            return False
        if entry.links > 1 and not self._links.keep(file.place):
            file.close()
            return False
        right = entry.size - sum(self._source.chunk_size(id) for _, id in differing.chunks)
        self._monitor.add(bytes_done=right)
        large = LargeFile(folder, entry, differing.size, len(differing.chunks), file)
        large.counted = "files_unmodified" if differing.whole else "files_changed"
        self._content.want(large, differing.chunks)
        return True

    def _link(self, folder: TargetFolder, entry: Entry, place: Place | DamagedBlob) -> None:
        """Give a file that is finished one more name, unless it is lost."""
        try:
            if isinstance(place, DamagedBlob):
                self._writing.lost(join(folder.path, entry.name), place)
                return
            folder.made.link(entry, place)
            self._monitor.add(files_new=1, bytes_done=entry.size)
        except SourceError as error:
            self._monitor.problem(error)
        finally:
            folder.done()
