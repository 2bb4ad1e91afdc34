"""Small repositories for tests: made once with a cheap key, copied as often as needed."""

import base64
import functools
import json
import random
from pathlib import Path
from unittest import mock

from agent.cancel import NEVER, CancelToken
from agent.config import CacheDir
from agent.entry import Entry
from agent.monitor import Monitor
from agent.repository import opening
from agent.repository.opening import create_repository, open_repository
from agent.repository.repository import Repository
from agent.repository.scrypt import ScryptCost
from agent.repository.snapshot import Snapshot
from agent.repository.writer import WriteOptions, Writer
from agent.storage.contract import Storage
from agent.storage.memory import MemoryStorage
from chunker import generate_polynomial

PASSWORD = "secret"
CHEAP = ScryptCost(2, 1, 1)
"""restic accepts it (restic-format.md section 5), and it costs nothing."""

FROZEN = Path(__file__).parent / "frozen" / "restic-repository.json"
FROZEN_PASSWORD = "golden"


def content(storage: Storage) -> dict[str, bytes]:
    """Return every object of a storage."""
    return {key: storage.get(key) for key, _ in storage.list("")}


def keys(storage: Storage, folder: str) -> list[str]:
    """Return the keys below a folder."""
    return sorted(listed.key for listed in storage.list(f"{folder}/"))


@functools.cache
def _template() -> dict[str, bytes]:
    """Return a repository whose chunks end at the same places in every run."""
    storage = MemoryStorage()
    same = generate_polynomial(random.Random(1).randbytes)
    with mock.patch.object(opening, "generate_polynomial", return_value=same):
        create_repository(storage, PASSWORD, cost=CHEAP)
    return content(storage)


def fill(storage: Storage) -> None:
    """Put a new repository there."""
    for key, body in _template().items():
        storage.put(key, body)


def new_repository(storage: Storage | None = None, cache: CacheDir | None = None) -> Repository:
    """Return an open, empty repository; in memory unless ``storage`` says where."""
    where = storage if storage is not None else MemoryStorage()
    fill(where)
    return open_repository(where, PASSWORD, cache=cache)


def frozen_repository() -> MemoryStorage:
    """Return the repository that restic 0.19.1 made once, with a lock left behind."""
    storage = MemoryStorage("the frozen repository")
    for key, body in json.loads(FROZEN.read_text())["objects"].items():
        storage.put(key, base64.b64decode(body))
    return storage


def all_entries(repository: Repository, snapshot_id: str) -> dict[bytes, Entry]:
    """Return every entry of a snapshot by path."""
    reading = repository.reading()
    found: dict[bytes, Entry] = {}
    pending = [(b"", repository.snapshot(snapshot_id).tree)]
    while pending:
        path, tree = pending.pop()
        for entry in reading.load_tree(tree):
            found[path + entry.name] = entry
            if entry.subtree is not None:
                pending.append((path + entry.name + b"/", entry.subtree))
    return found


def store_chunk(writer: Writer, data: bytes) -> bytes:
    """Store one chunk; return its id."""
    return writer.store_chunks(data, [(0, len(data))])[0]


def store_chunks(
    repository: Repository,
    chunks: list[bytes],
    monitor: Monitor | None = None,
    cancel: CancelToken = NEVER,
    options: WriteOptions = WriteOptions(),  # noqa: B008  (frozen)
) -> tuple[list[bytes], str]:
    """Store chunks and a snapshot of an empty tree; return the chunks' ids and the snapshot's."""
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, monitor or Monitor(), cancel, options) as writer,
    ):
        ids = [store_chunk(writer, chunk) for chunk in chunks]
        tree = writer.store_tree([])
        return ids, writer.finish(Snapshot(time_ns=0, tree=tree, paths=("/v",)))
