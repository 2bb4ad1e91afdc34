"""check: does everything that the snapshots promise exist, and is it what it says?

Looks at the structure (every indexed pack is there and has the size that its blobs add up to),
at every tree of every snapshot, and on request at every byte of every pack. Findings come in two
weights: damage, and hints that cost nothing but space.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry, Kind
from agent.errors import DamagedBlob, MalformedData, ObjectMissing
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import decode_index
from agent.repository.indexview import IndexView
from agent.repository.objects import Folder, file_key, names, pack_key, sizes
from agent.repository.pack import PackedBlob, open_pack, packed_size
from agent.repository.reader import BlobReader, open_blob
from agent.repository.repository import Reader, Repository
from agent.repository.snapshot import Snapshot, decode_snapshot
from agent.repository.table import Table


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be; ``damage`` is False for a mere hint."""

    message: str
    damage: bool = True


def check(
    repository: Repository, *, read_data: bool = False, cancel: CancelToken = NEVER
) -> Iterator[Finding]:
    """Yield what is wrong, as it is found; nothing means that all is well."""
    snapshots: list[Snapshot] = []
    for found in _snapshots(repository, cancel):
        if isinstance(found, Finding):
            yield found
        else:
            snapshots.append(found)
    packs: dict[PackId, list[PackedBlob]] = {}
    yield from _indexes(repository, packs, cancel)
    yield from _packs(repository, packs, cancel)
    yield from _trees(_reader(repository, packs, cancel), snapshots, cancel)
    if read_data:
        for id, blobs in packs.items():
            cancel.check()
            yield from _read_pack(repository, id, blobs, cancel)


def _reader(
    repository: Repository, packs: dict[PackId, list[PackedBlob]], cancel: CancelToken
) -> Reader:
    """Read by the indexes that are intact: a damaged one must not hide what else is wrong."""
    view = IndexView([Table.build(type, packs.items()) for type in BlobType])
    objects = repository.objects
    return Reader(BlobReader(objects.storage, objects.key, view, cancel), view)


def _snapshots(repository: Repository, cancel: CancelToken) -> Iterator[Snapshot | Finding]:
    objects = repository.objects
    for name in names(objects.storage, Folder.SNAPSHOTS, cancel):
        try:
            json = objects.load(Folder.SNAPSHOTS, name, cancel=cancel)
            yield decode_snapshot(json, name)
        except MalformedData as error:
            yield Finding(f"snapshot {name[:8]} cannot be used: {error}. Forget it")


def _indexes(
    repository: Repository, packs: dict[PackId, list[PackedBlob]], cancel: CancelToken
) -> Iterator[Finding]:
    objects = repository.objects
    for name in names(objects.storage, Folder.INDEX, cancel):
        try:
            json = objects.load(Folder.INDEX, name, cancel=cancel)
            content = decode_index(json, file_key(Folder.INDEX, name))
        except MalformedData as error:
            yield Finding(f"{error}. `podlift repair index` makes a new one from the packs")
            continue
        for id, blobs in content:
            if id not in packs:
                packs[id] = blobs
            elif sorted(blobs, key=_offset) == sorted(packs[id], key=_offset):
                yield Finding(f"pack {id.hex()} is in two index files", damage=False)
            else:
                yield Finding(
                    f"pack {id.hex()} is described differently by two index files;"
                    " `podlift repair index` reads its header again"
                )


def _offset(blob: PackedBlob) -> int:
    return blob.offset


def _packs(
    repository: Repository, packs: dict[PackId, list[PackedBlob]], cancel: CancelToken
) -> Iterator[Finding]:
    stored = {
        PackId(bytes.fromhex(name)): size
        for name, size in sizes(repository.objects.storage, Folder.DATA, cancel)
    }
    for id in packs.keys() - stored.keys():
        yield Finding(
            f"pack {id.hex()} is missing, and with it what the lines below name; restore it from a"
            " copy, or run `podlift repair index` and back up again what still exists"
        )
    for id in stored.keys() - packs.keys():
        yield Finding(f"pack {id.hex()} is in no index; prune removes it", damage=False)
    for id, blobs in packs.items():
        ordered = sorted(blobs, key=_offset)
        end = 0
        for blob in ordered:
            if blob.offset != end:
                yield Finding(
                    f"the index leaves a gap in pack {id.hex()} at byte {end};"
                    " `podlift repair index` reads its header again"
                )
                break
            end += blob.length
        if id in stored and stored[id] != packed_size(ordered):
            yield Finding(
                f"pack {id.hex()} has {stored[id]} bytes, its index describes"
                f" {packed_size(ordered)}; `podlift repair index` and `repair packs` save what can be"
            )
        if len({blob.type for blob in blobs}) > 1:
            yield Finding(f"pack {id.hex()} mixes trees and data", damage=False)


def _trees(reader: Reader, snapshots: list[Snapshot], cancel: CancelToken) -> Iterator[Finding]:
    """Visit every tree once, naming the first snapshot and path that lead to damage."""
    seen: set[bytes] = set()
    for snapshot in snapshots:
        stack: list[tuple[bytes, bytes]] = [(b"", snapshot.tree)]
        while stack:
            cancel.check()
            path, tree = stack.pop()
            if tree in seen:
                continue
            seen.add(tree)
            where = f"snapshot {snapshot.id[:8]}, /{path.decode('utf-8', 'backslashreplace')}"
            try:
                entries = reader.load_tree(tree)
            except (DamagedBlob, MalformedData) as error:
                yield Finding(f"{where}: this directory cannot be read: {error}")
                continue
            for entry in entries:
                below = path + b"/" + entry.name if path else entry.name
                if entry.kind is Kind.DIRECTORY and entry.subtree is not None:
                    stack.append((below, entry.subtree))
                elif entry.kind is Kind.FILE:
                    yield from _file(reader, entry, f"{where}{'/' if path else ''}")


def _file(reader: Reader, entry: Entry, where: str) -> Iterator[Finding]:
    name = entry.name.decode("utf-8", "backslashreplace")
    size = 0
    for id in entry.content or ():
        try:
            size += reader.view.find(BlobType.DATA, BlobId(id))[0].blob.content_bytes
        except DamagedBlob as error:
            yield Finding(f"{where}{name}: {error}")
            return
    if size != entry.size:
        yield Finding(f"{where}{name}: says {entry.size} bytes, its content has {size}")


def _read_pack(
    repository: Repository, id: PackId, blobs: list[PackedBlob], cancel: CancelToken
) -> Iterator[Finding]:
    objects = repository.objects
    what = f"pack {id.hex()}"
    try:
        pack = objects.storage.get(pack_key(id), cancel=cancel)
    except ObjectMissing:
        return  # reported with the structure
    if hashlib.sha256(pack).digest() != id:
        yield Finding(f"{what} does not match its name")
    try:
        if sorted(open_pack(pack, objects.key, what), key=_offset) != sorted(blobs, key=_offset):
            yield Finding(f"the header of {what} and its index disagree")
    except MalformedData as error:
        yield Finding(str(error))
    for blob in blobs:
        try:
            open_blob(objects.key, pack[blob.offset : blob.offset + blob.length], blob)
        except DamagedBlob as error:
            yield Finding(f"{what}: {error}")
