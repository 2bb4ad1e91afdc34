"""Repositories as years of use leave them: waste, duplicates, packs of every odd kind."""

import hashlib
import random
from collections.abc import Iterable, Mapping

import msgspec
import zstandard

from agent.cancel import NEVER
from agent.entry import Entry, Kind
from agent.monitor import Monitor
from agent.repository.forget import remove_named
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.indexfile import encode_index
from agent.repository.objects import Folder, fresh_iv, pack_key
from agent.repository.pack import PackBuilder
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.times import NANOSECONDS, utc
from agent.repository.tree import encode_tree
from agent.repository.writer import Writer
from tests.repository.making import store_chunk

CHUNK_BYTES = 4000
DAY_NS = 86_400 * NANOSECONDS
FIRST_DAY_NS = 20_000 * DAY_NS

Files = Mapping[str, bytes]


def noise(seed: int, size: int = 9000) -> bytes:
    return random.Random(seed).randbytes(size)


def _entry(name: str, kind: Kind, **rest: object) -> Entry:
    fixed = {"permissions": 0o755, "uid": 0, "gid": 0, "inode": 0, "device": 0}
    times = {"mtime_ns": FIRST_DAY_NS, "ctime_ns": FIRST_DAY_NS}
    return Entry(name=name.encode(), kind=kind, **fixed, **times, **rest)  # type: ignore[arg-type]


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


def file_entry(name: str, data: bytes, ids: Iterable[bytes]) -> Entry:
    return _entry(name, Kind.FILE, size=len(data), content=tuple(ids))


def directory_entry(name: str, subtree: bytes) -> Entry:
    return _entry(name, Kind.DIRECTORY, subtree=subtree)


def _store(writer: Writer, files: Files) -> bytes:
    """Store files, those with a slash in a directory of that name; return the tree."""
    entries = []
    below: dict[str, dict[str, bytes]] = {}
    for path, data in files.items():
        first, slash, rest = path.partition("/")
        if slash:
            below.setdefault(first, {})[rest] = data
        else:
            entries.append(file_entry(first, data, [store_chunk(writer, p) for p in pieces(data)]))
    entries += [directory_entry(name, _store(writer, inner)) for name, inner in below.items()]
    return writer.store_tree(entries)


def save(repository: Repository, files: Files, day: int, host: str = "host") -> str:
    """Store files as a snapshot of a day; return its id."""
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writer,
    ):
        tree = _store(writer, files)
        return writer.finish(_snapshot(tree, day, host))


def _snapshot(tree: bytes, day: int, host: str = "host") -> Snapshot:
    return Snapshot(time_ns=FIRST_DAY_NS + day * DAY_NS, tree=tree, paths=("/v",), hostname=host)


def save_at_once(repository: Repository, one: Files, other: Files, day: int) -> tuple[str, str]:
    """Store two snapshots by writers that know nothing of each other: equal blobs come twice."""
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as first,
        repository.writing(lock, Monitor(), NEVER) as second,
    ):
        trees = _store(first, one), _store(second, other)
        return first.finish(_snapshot(trees[0], day)), second.finish(_snapshot(trees[1], day))


def plant(
    repository: Repository,
    blobs: Iterable[tuple[BlobType, bytes, bool]],
    *,
    indexed: bool = True,
) -> PackId:
    """Store a pack of (type, content, compressed?) as no writer of today makes it."""
    objects = repository.objects
    builder = PackBuilder(BlobType.DATA)
    for type, plain, compressed in blobs:
        payload = zstandard.compress(plain) if compressed else plain
        sealed = objects.key.seal(fresh_iv(), payload)
        id = BlobId(hashlib.sha256(plain).digest())
        length = len(plain) if compressed else 0
        builder.append(id, sealed, length)
        builder.blobs[-1] = msgspec.structs.replace(builder.blobs[-1], type=type)
    body = bytes(builder.finish(objects.key, fresh_iv()))
    pack = PackId(hashlib.sha256(body).digest())
    objects.storage.put(pack_key(pack), body)
    if indexed:
        objects.save(Folder.INDEX, encode_index([(pack, builder.blobs)]))
    return pack


def plant_snapshot(
    repository: Repository, data: bytes, day: int, *, mixed: bool = False, compressed: bool = True
) -> str:
    """Store a snapshot of one file whose blobs lie in packs of an odd kind."""
    ids = [hashlib.sha256(piece).digest() for piece in pieces(data)]
    tree = encode_tree([file_entry("odd", data, ids)], utc)
    blobs = [(BlobType.DATA, piece, compressed) for piece in pieces(data)]
    if mixed:
        plant(repository, [*blobs, (BlobType.TREE, tree, compressed)])
    else:
        plant(repository, blobs)
        plant(repository, [(BlobType.TREE, tree, compressed)])
    snapshot = _snapshot(hashlib.sha256(tree).digest(), day, "odd")
    return repository.objects.save(Folder.SNAPSHOTS, encode_snapshot(snapshot, utc))


def make_mess(repository: Repository) -> tuple[list[str], list[str]]:
    """Fill a repository with all of it; return the snapshots to keep, and those to forget."""
    shared = {"shared": noise(1), "deep/er/shared": noise(2)}
    kept = [save(repository, {**shared, "a": noise(10)}, 1)]
    old = [save(repository, {**shared, "b": noise(11), "deep/b": noise(12)}, 2)]
    old += [save(repository, {**shared, "c": noise(13, 60_000)}, 3)]
    kept += [save(repository, {**shared, "c": noise(13, 60_000)[:8000], "d": noise(14)}, 4)]
    both = {"twice": noise(15), "deep/twice": noise(16)}
    one, other = save_at_once(repository, {**both, "e": noise(17)}, {**both, "f": noise(18)}, 5)
    kept.append(one)
    old.append(other)
    kept.append(plant_snapshot(repository, noise(19), 6, mixed=True))
    kept.append(plant_snapshot(repository, noise(20), 7, compressed=False))
    old.append(plant_snapshot(repository, noise(21), 8))
    plant(repository, [(BlobType.DATA, noise(22), True)], indexed=False)
    return kept, old


def forget(repository: Repository, ids: Iterable[str]) -> None:
    with repository.locked(exclusive=True) as lock:
        remove_named(repository, lock, ids, NEVER)
