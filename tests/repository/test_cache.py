"""The index cache: saves fetching, never changes what a repository is known to hold."""

import os
import time
from pathlib import Path

import pytest

from agent.config import CacheDir
from agent.repository.cache import Cache
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.opening import open_repository
from agent.repository.pack import PackedBlob
from agent.repository.table import Table
from agent.storage.faults import Faulty
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, new_repository, store_chunks

INDEX_ID = "1" * 64
REPOSITORY_ID = "2" * 64


def tables() -> list[Table]:
    packs = [
        (PackId(b"p" * 32), [PackedBlob(BlobType.DATA, BlobId(bytes([n]) * 32), n, 40, 0) for n in (3, 1, 2)]),
        (PackId(b"q" * 32), [PackedBlob(BlobType.TREE, BlobId(b"t" * 32), 0, 50, 90)]),
    ]  # fmt: skip
    return [Table.build(type, packs) for type in BlobType]


def cached_file(root: Path) -> Path:
    return root / REPOSITORY_ID / "index" / INDEX_ID


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    Cache(CacheDir(tmp_path), REPOSITORY_ID).save(INDEX_ID, tables())
    loaded = Cache(CacheDir(tmp_path), REPOSITORY_ID).load(INDEX_ID)
    assert loaded is not None
    assert [list(table) for table in loaded] == [list(table) for table in tables()]


def test_what_was_not_saved_is_none(tmp_path: Path) -> None:
    assert Cache(CacheDir(tmp_path), REPOSITORY_ID).load(INDEX_ID) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "longer", "other file"])
def test_a_torn_file_is_dropped(tmp_path: Path, damage: str) -> None:
    cache = Cache(CacheDir(tmp_path), REPOSITORY_ID)
    cache.save(INDEX_ID, tables())
    path = cached_file(tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:-1],
            "empty": b"",
            "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "longer": whole + b"\0",
            "other file": b"something else",
        }[damage]
    )
    assert cache.load(INDEX_ID) is None
    cache.save(INDEX_ID, tables())
    assert cache.load(INDEX_ID) is not None


def test_every_single_flipped_byte_is_noticed(tmp_path: Path) -> None:
    cache = Cache(CacheDir(tmp_path), REPOSITORY_ID)
    cache.save(INDEX_ID, tables())
    path = cached_file(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert cache.load(INDEX_ID) is None, place


def test_a_cache_says_what_it_is(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Cache(CacheDir(root), REPOSITORY_ID)
    tag = (root / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert root.stat().st_mode & 0o777 == 0o700


def test_only_what_is_current_is_kept(tmp_path: Path) -> None:
    cache = Cache(CacheDir(tmp_path), REPOSITORY_ID)
    old, current = "3" * 64, INDEX_ID
    for name in (old, current):
        cache.save(name, tables())
    folder = cached_file(tmp_path).parent
    for name, age in ((".new", 0), (".crashed", 7200)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    cache.keep_only({current})
    assert sorted(os.listdir(folder)) == [".new", current]


def sized(index_id: str, blobs: int) -> list[Table]:
    """Return tables of about 48 bytes a blob."""
    content = [PackedBlob(BlobType.DATA, BlobId(bytes.fromhex(index_id[:8]) + os.urandom(28)), n, 40, 0) for n in range(blobs)]  # fmt: skip
    return [Table.build(type, [(PackId(b"p" * 32), content)]) for type in BlobType]


def test_all_repositories_together_stay_below_the_limit(tmp_path: Path) -> None:
    place = CacheDir(tmp_path, limit_mib=1)
    names = [f"{number:064x}" for number in range(8)]
    for number, name in enumerate(names):
        cache = Cache(place, f"{number % 2:064x}")
        cache.save(name, sized(name, 5_000))
        taken = sum(path.stat().st_size for path in tmp_path.glob("*/index/*"))
        assert taken <= 1 << 20
    left = {path.name for path in tmp_path.glob("*/index/*")}
    assert 3 <= len(left) <= 4
    Cache(place, REPOSITORY_ID).save("9" * 64, sized("9" * 64, 30_000))
    assert {path.name for path in tmp_path.glob("*/index/*")} == left, (
        "what never fits moves nothing"
    )


def test_what_was_not_used_for_longest_goes_first_and_harms_nobody(tmp_path: Path) -> None:
    place = CacheDir(tmp_path, limit_mib=1)
    names = [f"{number:064x}" for number in range(4)]
    cache = Cache(place, REPOSITORY_ID)
    for number, name in enumerate(names):
        cache.save(name, sized(name, 5_000))
        os.utime(tmp_path / REPOSITORY_ID / "index" / name, (1000 + number,) * 2)
    opened = [cache.load(name) for name in (names[1], names[0])]
    os.utime(tmp_path / REPOSITORY_ID / "index" / names[1], (500, 500))
    other = Cache(place, "3" * 64)
    other.save("9" * 64, sized("9" * 64, 5_000))
    left = {path.name for path in tmp_path.glob("*/index/*")}
    assert names[0] in left
    assert names[1] not in left
    assert "9" * 64 in left
    assert opened[0] is not None
    assert sum(1 for _ in opened[0][0]) == 5_000


def test_a_smaller_limit_holds_from_the_next_run_on(tmp_path: Path) -> None:
    cache = Cache(CacheDir(tmp_path), REPOSITORY_ID)
    names = [f"{number:064x}" for number in range(8)]
    for name in names:
        cache.save(name, sized(name, 5_000))
    Cache(CacheDir(tmp_path, limit_mib=1), REPOSITORY_ID).keep_only(set(names))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/index/*")) <= 1 << 20


def test_a_place_that_cannot_be_written_costs_only_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    repository = new_repository(cache=CacheDir(tmp_path / "file" / "cache"))
    ids, _ = store_chunks(repository, [b"content"])
    assert repository.reading().load_chunk(ids[0]) == b"content"
    assert "no index is cached" in caplog.text


def test_an_index_is_fetched_once_by_all_processes_of_a_node(tmp_path: Path) -> None:
    storage = MemoryStorage()
    ids, _ = store_chunks(new_repository(storage), [b"one", b"two"])
    fetched = []
    for _ in range(2):
        counted = Faulty(storage)
        repository = open_repository(counted, PASSWORD, cache=CacheDir(tmp_path))
        assert repository.load_index().has(BlobType.DATA, BlobId(ids[1]))
        fetched.append(sum(key.startswith("index/") for op, key in counted.calls if op == "get"))
    assert fetched == [1, 0]


def test_a_torn_file_is_fetched_again(tmp_path: Path) -> None:
    storage = MemoryStorage()
    ids, _ = store_chunks(new_repository(storage), [b"one"])
    repository = open_repository(storage, PASSWORD, cache=CacheDir(tmp_path))
    repository.load_index()
    (cached,) = tmp_path.glob("*/index/*")
    cached.write_bytes(cached.read_bytes()[:-5])
    assert repository.load_index().has(BlobType.DATA, BlobId(ids[0]))
    assert cached.stat().st_size > 0
    assert repository.load_index().count(BlobType.DATA) == 1
