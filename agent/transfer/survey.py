"""The survey: a snapshot beside what is in the target, and nothing is written.

Before a restore it says what the restore would do (``preview``); after one it reads everything back
(``verify``). Both go by the same walk and the same selection as the restore itself.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator

from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import DamagedBlob, MalformedData, SourceError
from agent.monitor import Monitor
from agent.repository.contract import RestoreSource
from agent.transfer.content import RANGES_BYTES, writers
from agent.transfer.pool import Pool
from agent.transfer.restore import COMPARED_BYTES, RestoreRequest
from agent.transfer.selection import Selection
from agent.transfer.target_existing import compare, differences
from agent.volume.descriptors import join
from agent.volume.writer import TargetDirectory, TargetTree


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """What a restore would do: ``+`` make, ``M`` write in part, ``=`` keep, ``-`` remove.

    ``path`` is relative to the target; ``size`` counts the bytes that would be fetched.
    """

    sign: str
    path: bytes
    size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """One entry of the snapshot, or (without ``entry``) a name that only the target has."""

    directory: TargetDirectory | None
    path: bytes
    entry: Entry | None


def preview(
    source: RestoreSource, request: RestoreRequest, cancel: CancelToken
) -> Iterator[Action]:
    """Yield what a restore would do; raises as ``restore`` does."""
    if not os.path.lexists(request.target):
        yield from _actions(source, _walk(source, request, None, cancel))
        return
    with TargetTree.open(request.target, _ignore) as opened:
        yield from _actions(source, _walk(source, request, opened.root, cancel))


def verify(
    source: RestoreSource, request: RestoreRequest, monitor: Monitor, cancel: CancelToken
) -> None:
    """Read every restored file back; what differs from the snapshot is a problem of the monitor.

    Counts files as unmodified. Content that the repository has lost is not looked at.
    """
    run = Run(cancel)
    pool = Pool(run, "verify", writers(source), request.budgets.share_of(RANGES_BYTES))
    try:
        with TargetTree.open(request.target, monitor.problem) as opened:
            for seen in _walk(source, request, opened.root, cancel):
                if seen.entry is None or seen.entry.kind is Kind.SOCKET:
                    continue
                monitor.add(bytes_total=seen.entry.size)
                weight = min(seen.entry.size, COMPARED_BYTES)
                # A directory is closed when the walk leaves it, and opened again by whoever reads.
                pool.submit(weight, _verify, source, seen, monitor)
            monitor.walk_finished()
            pool.wait_idle()
    finally:
        pool.close()


def _verify(source: RestoreSource, seen: _Seen, monitor: Monitor) -> None:
    entry = seen.entry
    assert entry is not None
    try:
        if not _is_right(source, seen.directory, entry):
            monitor.problem(SourceError(seen.path, "differs from the snapshot; restore it again"))
    except SourceError as error:
        monitor.problem(error)
    except DamagedBlob:
        return
    if entry.kind is Kind.FILE:
        monitor.add(files_unmodified=1, bytes_done=entry.size)
    else:
        monitor.add(others=1)


def _is_right(source: RestoreSource, directory: TargetDirectory | None, entry: Entry) -> bool:
    if directory is None:
        return False
    if entry.kind is Kind.DIRECTORY:
        return True
    if entry.kind is not Kind.FILE:
        return directory.holds(entry)
    file = directory.open_existing(entry)
    if file is None:
        return False
    with file:
        return differences(source, file, entry).whole


def _actions(source: RestoreSource, walk: Iterator[_Seen]) -> Iterator[Action]:
    for seen in walk:
        entry = seen.entry
        if entry is None:
            yield Action("-", seen.path)
        elif entry.kind is Kind.FILE:
            found = compare(source, seen.directory, entry) if seen.directory else None
            if found is None:
                yield Action("+", seen.path, entry.size)
            elif found.whole:
                yield Action("=", seen.path)
            else:
                yield Action("M", seen.path, sum(source.chunk_size(id) for _, id in found.chunks))
        elif entry.kind is Kind.DIRECTORY:
            if seen.directory is None:
                yield Action("+", seen.path)
        elif entry.kind is not Kind.SOCKET:
            there = seen.directory is not None and seen.directory.holds(entry)
            yield Action("=" if there else "+", seen.path)


def _walk(
    source: RestoreSource,
    request: RestoreRequest,
    root: TargetDirectory | None,
    cancel: CancelToken,
) -> Iterator[_Seen]:
    """Yield the wanted entries of a snapshot with the directory that should hold each, or None.

    For a directory it is the directory itself. With ``delete``, names that only the target has too.
    """
    stack: list[tuple[TargetDirectory | None, bytes, bytes]] = [(root, b"", request.tree)]
    while stack:
        cancel.check()
        directory, path, tree = stack.pop()
        loaded = _loaded(source, tree)
        if request.delete and directory is not None:
            yield from _extras(directory, path, _readable(loaded), request.selection)
        below = []
        for entry in _readable(loaded):
            here = join(path, entry.name)
            is_directory = entry.kind is Kind.DIRECTORY
            inner = _opened(directory, entry) if is_directory else directory
            if request.selection.wants(here, is_directory):
                yield _Seen(inner, here, entry)
            if entry.subtree is not None and request.selection.leads_on(here):
                below.append((inner, here, entry.subtree))
        stack += reversed(below)


def _opened(directory: TargetDirectory | None, entry: Entry) -> TargetDirectory | None:
    try:
        return directory.open_directory(entry) if directory is not None else None
    except SourceError:
        return None


def _loaded(source: RestoreSource, tree: bytes) -> Iterable[Entry]:
    try:
        return source.load_tree(tree)
    except (DamagedBlob, MalformedData):
        return ()  # the restore itself says so


def _readable(entries: Iterable[Entry]) -> Iterator[Entry]:
    try:
        yield from entries
    except (DamagedBlob, MalformedData):
        return  # as above


def _extras(
    directory: TargetDirectory, path: bytes, entries: Iterable[Entry], selection: Selection
) -> Iterator[_Seen]:
    for name in sorted(directory.names().difference(entry.name for entry in entries)):
        here = join(path, name)
        if selection.wants(here, True) and selection.wants(here, False):
            yield _Seen(directory, here, None)


def _ignore(_: SourceError) -> None:
    """Hear of no metadata: nothing is set, so nothing can fail to be."""
