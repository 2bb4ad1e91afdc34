"""The list of packs: what the index files say of each, beside what is stored.

The rule guarded here (restic-format.md sections 7 and 8): every pack stands whole in one index
file, its blobs follow each other from byte 0, and its object has the size that they add up to. A
pack costs a few words of memory here; its blobs are read from their index file again when wanted.
"""

import hashlib
from collections.abc import Collection, Iterator

import msgspec

from agent.cancel import CancelToken
from agent.errors import MalformedData, ObjectMissing
from agent.repository.finding import Advice, Finding, damage, hint
from agent.repository.identity import BlobType, PackId, is_object_name
from agent.repository.indexfile import Packs, decode_index
from agent.repository.indexview import IndexView
from agent.repository.objects import Folder, file_key, names, pack_key
from agent.repository.pack import PackedBlob, packed_size
from agent.repository.repository import Repository
from agent.repository.table import Table


class Described(msgspec.Struct, gc=False):
    """What the index says of one pack; ``digest`` tells two descriptions apart.

    ``contested`` if a second index file says something else. ``gap`` is the first byte that no
    blob takes or two do, -1 if there is none.
    """

    index: str
    digest: bytes
    bytes: int
    gap: int
    mixed: bool
    contested: bool = False


class PackList:
    """All packs that are indexed, and all that are stored; filled by its checks."""

    def __init__(self, repository: Repository, cancel: CancelToken) -> None:
        self._objects = repository.objects
        self._cancel = cancel
        self._index_names: list[str] = []
        self._tables: list[Table] = []
        self.described: dict[PackId, Described] = {}
        self.stored: dict[PackId, int] = {}

    def view(self) -> IndexView:
        """Return what the intact index files say: a damaged one must not hide what else is wrong."""
        tables, self._tables = self._tables, []
        return IndexView(tables)

    @property
    def missing(self) -> set[PackId]:
        """Return the packs that are indexed and not stored."""
        return self.described.keys() - self.stored.keys()

    @property
    def wrong_size(self) -> set[PackId]:
        """Return the packs whose object is not as large as each index file that names it says."""
        return {
            id
            for id, known in self.described.items()
            if not known.contested and self.stored.get(id, known.bytes) != known.bytes
        }

    def check_index(self) -> Iterator[Finding]:
        """Read all index files, and yield what is wrong with them."""
        for name in names(self._objects.storage, Folder.INDEX, self._cancel):
            self._cancel.check()
            try:
                content = self._load(name)
            except ObjectMissing:
                continue
            except MalformedData as error:
                yield damage(str(error), Advice.INDEX)
                continue
            self._index_names.append(name)
            fresh: Packs = []
            for id, blobs in content:
                found = self._describe(name, id, blobs)
                if found is not None:
                    yield found
                if found is None or found.damage:
                    fresh.append((id, blobs))
            self._tables += [Table.build(type, fresh) for type in BlobType]

    def _load(self, name: str) -> Packs:
        json = self._objects.load(Folder.INDEX, name, cancel=self._cancel)
        return decode_index(json, file_key(Folder.INDEX, name))

    def _describe(self, name: str, id: PackId, blobs: list[PackedBlob]) -> Finding | None:
        new = _described(name, blobs)
        known = self.described.setdefault(id, new)
        if known is new:
            return None
        if known.digest == new.digest:
            return hint(f"pack {id.hex()} is in two index files", Advice.PRUNE)
        known.contested = True
        return damage(f"pack {id.hex()} is described differently by two index files", Advice.INDEX)

    def check_stored(self) -> Iterator[Finding]:
        """List the packs, and yield where they and the index disagree."""
        misplaced: dict[PackId, str] = {}
        for key, size in self._objects.storage.list(f"{Folder.DATA}/", cancel=self._cancel):
            name = key.rpartition("/")[2]
            if not is_object_name(name):
                continue  # as restic does
            id = PackId(bytes.fromhex(name))
            if key == pack_key(id):
                self.stored[id] = size
            else:
                misplaced[id] = key
        for id, key in misplaced.items():
            needed = id in self.missing
            say = damage if needed else hint
            yield say(
                f"pack {id.hex()} lies at {key}, where nobody looks for it",
                *((Advice.MISPLACED,) if needed else ()),
            )
        yield from self._missing()
        for id in sorted(self.stored.keys() - self.described.keys()):
            yield hint(f"pack {id.hex()} is in no index; prune removes it", Advice.PRUNE)
        for id, known in self.described.items():
            yield from self._shape(id, known)

    def _missing(self) -> Iterator[Finding]:
        for id in sorted(self.missing):
            yield damage(f"pack {id.hex()} is missing", Advice.MISSING, Advice.BACKUP)

    def _shape(self, id: PackId, known: Described) -> Iterator[Finding]:
        if known.mixed:
            yield hint(f"pack {id.hex()} mixes trees and data", Advice.PRUNE)
        if known.contested:
            return  # each of the two may be right
        if known.gap >= 0:
            yield damage(
                f"the index leaves a gap in pack {id.hex()} at byte {known.gap}", Advice.INDEX
            )
        size = self.stored.get(id)
        if size is not None and size != known.bytes:
            yield damage(
                f"pack {id.hex()} has {size} bytes, its index describes {known.bytes}",
                Advice.INDEX,
                Advice.PACKS,
            )

    def blobs(self, wanted: Collection[PackId]) -> Iterator[tuple[PackId, list[PackedBlob]]]:
        """Yield what the index says of packs, one index file in memory at a time.

        A pack that two index files describe differently comes twice.
        """
        for name in self._index_names:
            self._cancel.check()
            if not wanted:
                return
            for id, blobs in self._load(name):
                known = self.described[id]
                if id in wanted and (known.index == name or known.contested):
                    yield id, sorted(blobs, key=_offset)


def _described(name: str, blobs: list[PackedBlob]) -> Described:
    ordered = sorted(blobs, key=_offset)
    digest = hashlib.sha256()
    end, gap = 0, -1
    for blob in ordered:
        if blob.offset != end and gap < 0:
            gap = end
        end = blob.offset + blob.length
        digest.update(
            b"%d %s %d %d %d;" % (blob.type, blob.id, blob.offset, blob.length, blob.plain_length)
        )
    types = {blob.type for blob in blobs}
    return Described(name, digest.digest()[:16], packed_size(blobs), gap, len(types) > 1)


def _offset(blob: PackedBlob) -> tuple[int, bytes]:
    return blob.offset, blob.id
