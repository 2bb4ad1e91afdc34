"""prune: what no snapshot needs is removed, and nothing else.

Two steps, both under one exclusive lock. ``plan_prune`` reads: all snapshots, all indexes, all
trees, the sizes of all packs; whatever of it cannot be read stops the prune before anything was
changed. ``run_prune`` writes, in the order that ``rewrite`` guards, so that it may be killed at
any moment: every snapshot stays whole, and the next prune removes what was left lying.
"""

import dataclasses
import itertools

from agent.cancel import CancelToken
from agent.errors import DamagedBlob, MalformedData, ObjectMissing, RepositoryError
from agent.monitor import Monitor
from agent.repository.census import Census
from agent.repository.forget import require_exclusive
from agent.repository.identity import PackId
from agent.repository.indexview import IndexView
from agent.repository.living import Living
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, names, sizes
from agent.repository.pack import PackedBlob
from agent.repository.pruneplan import Decision, Figures, PruneOptions, decide, figures
from agent.repository.reader import BlobReader
from agent.repository.repository import Repository, in_parallel
from agent.repository.rewrite import Rewrite
from agent.repository.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class PrunePlan:
    """What a prune will do; true only while the exclusive lock stands that it was made under."""

    figures: Figures
    decision: Decision
    census: Census
    reader: BlobReader
    index_names: tuple[str, ...]
    unindexed: tuple[PackId, ...]

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.new_index or self.unindexed)

    @property
    def new_index(self) -> bool:
        """Tell whether index files are written anew: packs go, or stand in several of them."""
        return bool(self.decision.deleted or self.decision.copied or self.census.repeated)


def plan_prune(
    repository: Repository, options: PruneOptions, monitor: Monitor, cancel: CancelToken
) -> PrunePlan:
    """Find what is in use, and decide what goes; call it while the exclusive lock is held.

    Changes nothing. Raises ``RepositoryError`` if anything that snapshots need, or may need,
    is missing or cannot be read; ``StorageError``, ``Canceled``.
    """
    snapshots = _every_snapshot(repository, options.ignored, cancel)
    index_names, view = _whole_index(repository, cancel)
    reader = repository.blobs(view, cancel)
    census = Census(view)
    Living(repository, census, reader, monitor, cancel).mark(snapshots)
    stored = {
        PackId(bytes.fromhex(name)): size
        for name, size in sizes(repository.objects.storage, Folder.DATA, cancel)
    }
    census.settle(stored)
    decision = decide(census.facts(stored), options)
    indexed = set(census.packs)
    unindexed = {id: size for id, size in stored.items() if id not in indexed}
    duplicates = (census.duplicate_blobs, census.duplicate_bytes)
    return PrunePlan(
        figures(decision, duplicates, unindexed),
        decision,
        census,
        reader,
        tuple(index_names),
        tuple(unindexed),
    )


def _every_snapshot(
    repository: Repository, ignored: frozenset[str], cancel: CancelToken
) -> list[Snapshot]:
    """Return all snapshots: one that is left out would lose what only it needs."""

    def load(name: str) -> Snapshot:
        try:
            return repository.load_snapshot(name, cancel)
        except MalformedData as error:
            raise RepositoryError(
                f"what snapshot {name[:8]} needs is unknown; nothing was changed. Remove it with"
                f" `podlift forget {name[:8]}`, or restore the file from a copy: {error}"
            ) from error
        except ObjectMissing as error:
            raise _restless(repository, f"snapshot {name[:8]}") from error

    found = names(repository.objects.storage, Folder.SNAPSHOTS, cancel)
    return in_parallel(load, [name for name in found if name not in ignored])


def _whole_index(repository: Repository, cancel: CancelToken) -> tuple[list[str], IndexView]:
    """Return every index file's name and what they say together."""
    found = sorted(names(repository.objects.storage, Folder.INDEX, cancel))
    try:
        tables = in_parallel(lambda name: repository.index_tables(name, cancel), found)
    except MalformedData as error:
        raise RepositoryError(
            f"an index file cannot be read; nothing was changed. `podlift repair index` makes a new"
            f" one from the packs: {error}"
        ) from error
    except ObjectMissing as error:
        raise _restless(repository, error.key) from error
    return found, IndexView([table for of_file in tables for table in of_file])


def _restless(repository: Repository, what: str) -> RepositoryError:
    return RepositoryError(
        f"{what} was listed in {repository.place} and then was not there: somebody changes the"
        " repository without respecting our exclusive lock. Nothing was changed; find out who"
    )


def run_prune(
    repository: Repository,
    lock: HeldLock,
    plan: PrunePlan,
    monitor: Monitor,
    cancel: CancelToken,
) -> None:
    """Do what the plan says, under the exclusive lock that it was made under.

    Raises ``DamagedBlob`` if a blob that has to be copied is damaged in every pack: nothing was
    removed then. Raises ``LockLost``, ``StorageError``, ``Canceled``; after each of them, all
    snapshots are as whole as before.
    """
    require_exclusive(lock, "pruning")
    decision, census = plan.decision, plan.census
    work = Rewrite(repository, lock, monitor, cancel)
    monitor.add(bytes_total=plan.figures.bytes_repacked)
    monitor.walk_finished()
    gone = (*decision.deleted, *decision.copied)
    # of several copies one stays: it must be an intact one, or one more is made of another
    doubtful = work.damaged(census.relied_on({pack.number for pack in gone}))
    if decision.copied or doubtful:
        parts = ((p.id, census.blobs(p.number, kept_only=True)) for p in decision.copied)
        copied = work.copy(
            itertools.chain(parts, doubtful),
            lambda blob, error: _other_copy(plan.reader, blob, error),
        )
        more = sum(len(blobs) for _, blobs in doubtful)
        _expect(copied, plan.figures.blobs_repacked + more, "copied")
    if plan.new_index:
        named = work.write_index((pack.id, census.blobs(pack.number)) for pack in decision.kept)
        _expect(named, sum(pack.blobs for pack in decision.kept), "named by a new index")
        work.remove_index(plan.index_names)
    work.remove_packs([*(pack.id for pack in gone), *plan.unindexed])


def _other_copy(reader: BlobReader, blob: PackedBlob, error: DamagedBlob) -> bytes:
    try:
        return reader.load(blob.type, blob.id)
    except DamagedBlob:
        raise DamagedBlob(
            f"{error}. Snapshots need it, so nothing was removed; `podlift check --read-data` says"
            " what else is damaged, `podlift repair packs` saves the rest of its pack"
        ) from error


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise RepositoryError(
            f"{found} blobs were {what} where {wanted} had to be; nothing was removed (a bug:"
            " report it)"
        )
