"""check: does everything that the snapshots promise exist, and is it what it says?

A doctor's order: the files that open the repository, the index and the packs, on request every
byte of the packs; and when all that is damaged is known, one walk over the trees of all snapshots,
which names what is touched. Nothing is changed, and nothing that is damaged ends the examination.
Findings come in two weights: damage, and hints that cost nothing but space.
"""

import random
from collections.abc import Iterator

from agent.cancel import NEVER, CancelToken
from agent.monitor import Monitor
from agent.repository.finding import Finding
from agent.repository.health import Health
from agent.repository.identity import PackId
from agent.repository.namedfiles import check_config, check_keys, check_locks, check_snapshots
from agent.repository.packlist import PackList
from agent.repository.packreading import PackReader
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.repository.subset import Subset
from agent.repository.touched import TouchedPlaces

__all__ = ["Finding", "check"]


def check(
    repository: Repository,
    *,
    read_data: bool = False,
    subset: Subset | None = None,
    monitor: Monitor | None = None,
    cancel: CancelToken = NEVER,
) -> Iterator[Finding]:
    """Yield what is wrong, as it is found; nothing means that all is well.

    With ``read_data`` every byte of every pack is read, with ``subset`` those of some packs.
    """
    monitor = monitor or Monitor()
    yield from check_config(repository, cancel)
    yield from check_keys(repository, cancel)
    yield from check_locks(repository, cancel)
    snapshots: list[Snapshot] = []  # listed before the index: all that they need is indexed then
    yield from check_snapshots(repository, snapshots, cancel)
    packs = PackList(repository, cancel)
    yield from packs.check_index()
    yield from packs.check_stored()
    view = packs.view()
    health = Health(view)
    for id, blobs in packs.blobs(packs.missing):
        health.lose(id, blobs)
    wanted = _wanted(packs, read_data, subset)
    trees = repository.blobs(view, cancel)
    reader = PackReader(repository.objects, trees, monitor, cancel)
    yield from reader.read(packs, wanted, health)
    yield from TouchedPlaces(trees, health, monitor, cancel).findings(snapshots)


def _wanted(packs: PackList, read_data: bool, subset: Subset | None) -> frozenset[PackId]:
    """Return the packs that are to be read; one that no index names is no part of anything."""
    there = {id: packs.stored[id] for id in packs.described if id in packs.stored}
    if read_data:
        return frozenset(there)
    return subset.choose(there, random.SystemRandom()) if subset is not None else frozenset()
