"""Trees, snapshots and packs that no writer of ours makes, and a storage that keeps other bytes."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence

import msgspec

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry
from agent.repository.check import check
from agent.repository.finding import Finding
from agent.repository.identity import BlobType, PackId
from agent.repository.indexfile import Packs, decode_index, encode_index
from agent.repository.objects import Folder, file_key, names
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.times import utc
from agent.repository.tree import encode_tree
from agent.storage.contract import Buffer, Room
from agent.storage.memory import MemoryStorage
from tests.repository.mess import DAY_NS, FIRST_DAY_NS, directory_entry, file_entry, plant


class Careless(MemoryStorage):
    """Acknowledges every pack, and keeps of the first ones that it is sent what ``keep`` returns.

    ``keep`` gets the bytes of a pack, and returns what is kept of them, None for nothing. Each pack
    counts as often as it is sent; ``reads`` are the ranges of packs that were asked for.
    """

    def __init__(self, keep: Callable[[bytes], bytes | None], first: int = 1) -> None:
        super().__init__("careless")
        self._keep = keep
        self._counting = threading.Lock()
        self.left = first
        self.spoilt: list[str] = []
        self.reads: list[tuple[str, int]] = []

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        kept: bytes | None = bytes(body)
        with self._counting:
            if key.startswith("data/") and self.left:
                self.left -= 1
                self.spoilt.append(key)
                kept = self._keep(bytes(body))
        if kept is not None:
            super().put(key, kept, cancel=cancel)

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        if key.startswith("data/"):
            self.reads.append((key, len(out)))
        super().get_range(key, offset, out, cancel=cancel)


def flipped(body: bytes) -> bytes:
    """Return a pack with one bit of a blob turned: its size and its header are as they were."""
    return bytes([body[0] ^ 1]) + body[1:]


def node(entry: Entry) -> bytes:
    """Return the JSON of one entry."""
    return encode_tree([entry], utc).removeprefix(b'{"nodes":[').removesuffix(b"]}\n")


def raw_tree(nodes: Iterable[bytes]) -> bytes:
    """Return a tree of nodes in the order that is given, whatever they are."""
    return b'{"nodes":[' + b",".join(nodes) + b"]}\n"


def blob_id(plain: bytes) -> bytes:
    return hashlib.sha256(plain).digest()


def a_file(name: str, content: bytes = b"content", **changes: object) -> Entry:
    """Return a file of one chunk; ``changes`` are made to the entry."""
    ids = [blob_id(content)] if content else []
    return msgspec.structs.replace(file_entry(name, content, ids), **changes)


def plant_trees(
    repository: Repository, trees: Sequence[bytes], *, chunks: Iterable[bytes] = (b"content",)
) -> str:
    """Store chunks in a pack, trees in another, and a snapshot of the last tree."""
    plant(repository, [(BlobType.DATA, chunk, True) for chunk in chunks])
    plant(repository, [(BlobType.TREE, tree, True) for tree in trees])
    return plant_root(repository, blob_id(trees[-1]))


def plant_root(repository: Repository, tree: bytes, day: int = 1) -> str:
    snapshot = Snapshot(time_ns=FIRST_DAY_NS + day * DAY_NS, tree=tree, paths=("/v",))
    return repository.objects.save(Folder.SNAPSHOTS, encode_snapshot(snapshot, utc))


def below(name: str, tree: bytes) -> Entry:
    return directory_entry(name, blob_id(tree))


def index_of(repository: Repository) -> Packs:
    """Return what all index files say."""
    objects = repository.objects
    return [
        content
        for name in names(objects.storage, Folder.INDEX)
        for content in decode_index(objects.load(Folder.INDEX, name), file_key(Folder.INDEX, name))
    ]


def reindex(repository: Repository, *files: Packs) -> None:
    """Put other index files in the place of those that are there."""
    objects = repository.objects
    for name in list(names(objects.storage, Folder.INDEX)):
        objects.remove(Folder.INDEX, name)
    for content in files:
        objects.save(Folder.INDEX, encode_index(content))


def pack_of(repository: Repository, type: BlobType) -> PackId:
    """Return the first pack of a type."""
    return next(id for id, blobs in index_of(repository) if blobs[0].type is type)


def damages(repository: Repository, **options: object) -> list[Finding]:
    """Return the damage that a check finds, all of which comes with advice or is a count."""
    found = [f for f in check(repository, **options) if f.damage]  # type: ignore[arg-type]
    assert all(f.advice or f.touched for f in found)
    return found


def places(found: list[Finding]) -> set[str]:
    """Return the touched paths."""
    return {f.touched.path.decode() for f in found if f.touched and f.touched.path is not None}
