"""The inventory: which of the packs that the index names are not there, or not whole.

An index outlives its packs when an object is deleted or cut short behind the repository's back. Who
writes has to know: what such a pack holds must be stored again, not relied on. So each pack that
the index names is looked for in a listing of the storage, and its size compared with what its blobs
add up to. Flipped bits keep the size: ``check --read-data`` finds those.

Listings and comparisons are made in sixteenths, by the first digit of the id, a few at a time: what
is in memory is a sixteenth of the packs for each of them, and eight bytes a pack.
"""

from collections.abc import Iterator

from agent.cancel import CancelToken
from agent.repository.cache import release
from agent.repository.identity import ID_SIZE, BlobType, PackId, is_object_name
from agent.repository.indexview import IndexView
from agent.repository.objects import Folder
from agent.repository.pack import FRAME_BYTES
from agent.repository.table import Table
from agent.storage.contract import Storage
from agent.threads import Threads

_LISTERS = 4
_DIGITS = "0123456789abcdef"

Sums = list[tuple[Table, memoryview]]
"""For each table, the bytes that the blobs of each of its packs add up to."""


def lost_packs(storage: Storage, view: IndexView, cancel: CancelToken) -> frozenset[PackId]:
    """Return the packs that the view names and that are missing, or of another size.

    Call it after the index was read: a pack is stored before an index names it. Raises the
    storage's errors and ``Canceled``.
    """
    sums = [_sums(table, cancel) for type in BlobType for table in view.all(type)]
    if not sums:
        return frozenset()

    def look(digit: str) -> set[PackId]:
        expected = _expected(sums, digit)
        for id, size in _stored(storage, digit, cancel):
            if size in expected.get(id, ()):
                del expected[id]
        return set(expected)

    with Threads(_LISTERS, "inventory") as pool:
        return frozenset().union(*pool.map(look, _DIGITS))


def _sums(table: Table, cancel: CancelToken) -> tuple[Table, memoryview]:
    cancel.check()
    sums = memoryview(table.sums()).cast("Q")
    release([table])  # nobody else looks at places for long
    return table, sums


def _expected(sums: Sums, digit: str) -> dict[PackId, set[int]]:
    """Return the sizes that each pack may have: several if index files name it differently.

    A pack with blobs of both types is as large as both sums.
    """
    half = int(digit, 16)
    found: dict[PackId, dict[BlobType, set[int]]] = {}
    for table, bytes_of in sums:
        for number, size in enumerate(bytes_of):
            if table.packs[number * ID_SIZE] >> 4 == half:
                by_type = found.setdefault(table.pack(number), {})
                by_type.setdefault(table.type, set()).add(size)
    return {pack: _sizes(*map(by_type.get, BlobType)) for pack, by_type in found.items()}


def _sizes(data: set[int] | None, trees: set[int] | None) -> set[int]:
    if data is None or trees is None:
        return {FRAME_BYTES + size for size in data or trees or ()}
    both = {one + other for one in data for other in trees}
    return {FRAME_BYTES + size for size in both | data | trees}


def _stored(storage: Storage, digit: str, cancel: CancelToken) -> Iterator[tuple[PackId, int]]:
    for key, size in storage.list(f"{Folder.DATA}/{digit}", cancel=cancel):
        folder, _, name = key.rpartition("/")
        if is_object_name(name) and folder == f"{Folder.DATA}/{name[:2]}":
            yield PackId(bytes.fromhex(name)), size
