"""repair: the index made true again, and what is intact in damaged packs brought to safety.

The rule guarded here: nothing that may still be of use is lost by a repair. An index file that
says what is true is believed; where it does not, the pack's own header decides. A damaged pack
goes only after every blob of it that opens is durable in another one, in the order that
``rewrite`` guards. What is lost is no longer named by the index, so that the next backup stores
it again if it still exists.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

from agent.cancel import NEVER, CancelToken
from agent.errors import DamagedBlob, MalformedData, ObjectMissing, UsageError
from agent.monitor import Monitor
from agent.repository.census import Census, PackContent
from agent.repository.forget import require_exclusive
from agent.repository.headers import read_header
from agent.repository.identity import PackId
from agent.repository.indexview import IndexView
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, names, pack_key, sizes
from agent.repository.pack import PackedBlob, open_pack
from agent.repository.reader import BlobOpener
from agent.repository.repository import Repository, in_parallel
from agent.repository.rewrite import Rewrite
from agent.repository.table import Table


@dataclasses.dataclass(frozen=True)
class IndexRepair:
    """What is wrong with an index, and what a true one says.

    ``found`` are packs whose header was read, since no index names them or names them wrongly;
    ``missing`` are named but not there; ``unreadable`` have a header that does not open, and
    keep the description that an index has of them, if any; ``damaged_files`` are index files.
    """

    census: Census
    index_names: tuple[str, ...]
    trusted: tuple[int, ...]
    found: tuple[PackContent, ...]
    missing: tuple[PackId, ...]
    unreadable: tuple[PackId, ...]
    damaged_files: tuple[str, ...]

    @property
    def needed(self) -> bool:
        """Tell whether there is anything to mend."""
        return bool(self.found or self.missing or self.damaged_files or self.census.repeated)


def plan_index_repair(repository: Repository, cancel: CancelToken = NEVER) -> IndexRepair:
    """Compare the index with the packs; changes nothing. Call it under an exclusive lock."""
    index_names, damaged, view = _readable_index(repository, cancel)
    census = Census(view)
    stored = _stored(repository, cancel)
    census.settle(stored)
    trusted: list[int] = []
    described: dict[PackId, int] = {}
    for facts in census.facts(stored):
        described[facts.id] = facts.number
        if facts.sound:
            trusted.append(facts.number)
    sound = {census.packs[number] for number in trusted}
    found: list[PackContent] = []
    unreadable = []
    for id in [id for id in stored if id not in sound]:
        cancel.check()
        try:
            found.append((id, read_header(repository.objects, id, stored[id], cancel)))
        except MalformedData:
            unreadable.append(id)
            if id in described:
                trusted.append(described[id])
    return IndexRepair(
        census,
        tuple(index_names),
        tuple(trusted),
        tuple(found),
        tuple(id for id in census.packs if id not in stored),
        tuple(unreadable),
        tuple(damaged),
    )


def run_index_repair(
    repository: Repository, lock: HeldLock, plan: IndexRepair, cancel: CancelToken = NEVER
) -> None:
    """Write index files that say what the plan found, and remove the old ones."""
    work = Rewrite(repository, lock, Monitor(), cancel)
    lock.prove()
    if not plan.needed:
        return
    kept = ((plan.census.packs[n], plan.census.blobs(n)) for n in plan.trusted)
    work.write_index(_joined(kept, plan.found))
    work.remove_index(plan.index_names)


def _joined(*parts: Iterable[PackContent]) -> Iterator[PackContent]:
    for part in parts:
        yield from part


def _stored(repository: Repository, cancel: CancelToken) -> dict[PackId, int]:
    listed = sizes(repository.objects.storage, Folder.DATA, cancel)
    return {PackId(bytes.fromhex(name)): size for name, size in listed}


def _readable_index(
    repository: Repository, cancel: CancelToken
) -> tuple[list[str], list[str], IndexView]:
    """Return all index files, the damaged ones among them, and what the others say."""
    damaged: list[str] = []

    def load(name: str) -> list[Table]:
        try:
            return repository.index_tables(name, cancel)
        except MalformedData:
            damaged.append(name)
            return []

    found = sorted(names(repository.objects.storage, Folder.INDEX, cancel))
    tables = in_parallel(load, found)
    return found, damaged, IndexView([table for of_file in tables for table in of_file])


@dataclasses.dataclass(frozen=True)
class Salvage:
    """What is left of one damaged pack."""

    pack: PackId
    intact: tuple[PackedBlob, ...]
    lost: tuple[PackedBlob, ...]


def find_packs(
    repository: Repository, wanted: Iterable[str], cancel: CancelToken = NEVER
) -> list[PackId]:
    """Return the packs, stored or only indexed, whose ids begin so; raise ``UsageError``."""
    known = {id.hex() for id in _stored(repository, cancel)}
    view = _readable_index(repository, cancel)[2]
    known |= {id.hex() for id in Census(view).packs}
    found: dict[str, None] = {}
    for text in wanted:
        matching = [name for name in known if text and name.startswith(text)]
        if len(matching) != 1:
            raise UsageError(
                f"{text!r} names {len(matching) or 'no'} packs of {repository.place};"
                " `podlift check --read-data` names those that are damaged"
            )
        found[matching[0]] = None
    return [PackId(bytes.fromhex(name)) for name in found]


def damaged_packs(
    repository: Repository, monitor: Monitor, cancel: CancelToken = NEVER
) -> Iterator[PackId]:
    """Read every pack, and yield those whose content does not match their name."""
    stored = _stored(repository, cancel)
    monitor.add(bytes_total=sum(stored.values()))
    monitor.walk_finished()
    for id, size in stored.items():
        body = repository.objects.storage.get(pack_key(id), cancel=cancel)
        monitor.add(bytes_done=size, bytes_read=size)
        if hashlib.sha256(body).digest() != id:
            yield id


def plan_pack_repair(
    repository: Repository, packs: Sequence[PackId], cancel: CancelToken = NEVER
) -> list[Salvage]:
    """Find out what is intact in packs; changes nothing. Call it under an exclusive lock."""
    census = Census(_readable_index(repository, cancel)[2])
    census.settle({})
    described = {id: number for number, id in enumerate(census.packs)}
    return [
        _salvage(repository, id, census.blobs(described[id]) if id in described else [], cancel)
        for id in packs
    ]


def _salvage(
    repository: Repository, id: PackId, described: list[PackedBlob], cancel: CancelToken
) -> Salvage:
    """Try every blob that the index or the pack's own header names."""
    objects = repository.objects
    try:
        body = memoryview(objects.storage.get(pack_key(id), cancel=cancel))
    except ObjectMissing:
        return Salvage(id, (), tuple(described))
    named = dict.fromkeys(described)
    with contextlib.suppress(MalformedData):  # then the index alone knows
        named |= dict.fromkeys(open_pack(body, objects.key, f"pack {id.hex()}"))
    intact, opener = [], BlobOpener(objects.key)
    for blob in named:
        cancel.check()
        try:
            opener.open(body[blob.offset : blob.offset + blob.length], blob)
        except DamagedBlob:
            continue
        intact.append(blob)
    saved = {(blob.type, blob.id) for blob in intact}
    lost = [blob for blob in named if (blob.type, blob.id) not in saved]
    return Salvage(id, tuple(intact), tuple(lost))


def run_pack_repair(
    repository: Repository,
    lock: HeldLock,
    salvages: Sequence[Salvage],
    monitor: Monitor,
    cancel: CancelToken = NEVER,
) -> None:
    """Copy what is intact, name it, and remove the damaged packs from the index and for good.

    The index is mended on the way, as ``run_index_repair`` does. Raises ``DamagedBlob`` if a blob that was intact no longer is; nothing was removed then.
    """
    require_exclusive(lock, "repairing packs")

    def no_longer(blob: PackedBlob, error: DamagedBlob) -> bytes | None:
        raise DamagedBlob(
            f"{error}. It could be read a moment ago: the storage or this machine is not reliable;"
            " nothing was removed"
        ) from error

    plan = plan_index_repair(repository, cancel)  # before the copies get an index of their own
    work = Rewrite(repository, lock, monitor, cancel)
    work.copy(((s.pack, list(s.intact)) for s in salvages if s.intact), no_longer)
    gone = {salvage.pack for salvage in salvages}
    packs = plan.census.packs
    kept = ((packs[n], plan.census.blobs(n)) for n in plan.trusted if packs[n] not in gone)
    found = ((id, blobs) for id, blobs in plan.found if id not in gone)
    work.write_index(_joined(kept, found))
    work.remove_index(plan.index_names)
    work.remove_packs(gone)
