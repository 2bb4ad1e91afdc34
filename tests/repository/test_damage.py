"""Damage by place: what happens next is an error or a warning, never a wrong snapshot.

Each object of a repository is deleted, cut and changed in one bit. Then it is opened, read and
backed up into again. Whatever a backup then reports as done can be read back in full.
"""

import pytest

from agent.cancel import NEVER
from agent.errors import PodliftError
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.repository.snapshot import Snapshot
from agent.storage.memory import MemoryStorage
from agent.transfer.job import Request, run_backup
from agent.transfer.parent import by_paths
from tests.repository.making import PASSWORD, keys, new_repository

PLACES = ["config", "keys", "snapshots", "index", "data", "tree", "locks"]
WHATS = ["delete", "truncate", "empty", "flip"]

EXPECTED = {
    # what the next backup does: "fails" with an error of ours, or "done" with the data readable
    **{("config", how): "fails" for how in WHATS},
    **{("keys", how): "fails" for how in WHATS},
    **{("snapshots", how): "done" for how in WHATS},  # no parent then, and a warning
    ("index", "delete"): "done",  # everything is stored anew
    **{("index", how): "fails" for how in WHATS if how != "delete"},
    **{("tree", how): "done" for how in WHATS},  # the parent's tree is read anew, with a warning
    ("locks", "delete"): "done",
    ("locks", "empty"): "done",
    **{("locks", how): "fails" for how in ("truncate", "flip")},
}


def damage(storage: MemoryStorage, key: str, how: str) -> None:
    body = storage.get(key)
    middle = len(body) // 3
    if how == "delete":
        storage.delete(key)
    elif how == "truncate":
        storage.put(key, body[: len(body) // 4])
    elif how == "empty":
        storage.put(key, b"")
    else:
        storage.put(key, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :])


def back_up(storage: MemoryStorage, path: str) -> tuple[str, Monitor]:
    monitor = Monitor()
    repository = open_repository(storage, PASSWORD)
    request = Request(
        path, (path,), "host", {}, lambda every, now: by_paths(every, "host", [path], now)
    )
    return run_backup(repository, request, monitor, NEVER).snapshot_id, monitor


def read_all(storage: MemoryStorage, snapshot_id: str) -> dict[bytes, bytes]:
    """Return the content of every file of a snapshot."""
    repository = open_repository(storage, PASSWORD)
    reading = repository.reading()
    found: dict[bytes, bytes] = {}
    trees = [(b"", repository.snapshot(snapshot_id).tree)]
    while trees:
        path, tree = trees.pop()
        for entry in reading.load_tree(tree):
            if entry.subtree is not None:
                trees.append((path + entry.name + b"/", entry.subtree))
            elif entry.content is not None:
                parts = [reading.load_chunk(id) for id in entry.content]
                found[path + entry.name] = b"".join(parts)
    return found


@pytest.fixture
def volume(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("volume")
    (root / "sub").mkdir()
    (root / "sub" / "inner").write_bytes(b"inner" * 1000)
    (root / "outer").write_bytes(b"outer" * 1000)
    return str(root)


CONTENT = {b"outer": b"outer" * 1000, b"sub/inner": b"inner" * 1000}


@pytest.fixture
def storage(volume: str, monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    monkeypatch.setattr("agent.repository.opening._KEY_WAIT_SECONDS", (0.0,))
    monkeypatch.setattr("agent.repository.locking._UNREADABLE_PAUSES", (0.0,))
    filled = MemoryStorage()
    repository = new_repository(filled)
    back_up(filled, volume)
    with repository.locked(exclusive=False):
        (lock,) = keys(filled, "locks")
        body = filled.get(lock)
    filled.put(lock, body)  # a lock that was left behind
    return filled


def the_key(storage: MemoryStorage, place: str) -> str:
    if place == "config":
        return place
    repository = open_repository(storage, PASSWORD)
    packs = {
        "tree" if found.blob.type else "data": found.pack.hex()
        for table in (t for type in (0, 1) for t in repository.load_index().all(type))  # type: ignore[arg-type]
        for found in table
    }
    if place in packs:
        return f"data/{packs[place][:2]}/{packs[place]}"
    return keys(storage, place)[0]


@pytest.mark.parametrize("how", WHATS)
@pytest.mark.parametrize("place", [p for p in PLACES if p != "data"])
def test_the_next_backup_fails_clearly_or_is_whole(
    storage: MemoryStorage, volume: str, place: str, how: str
) -> None:
    damage(storage, the_key(storage, place), how)
    before = keys(storage, "snapshots")
    if EXPECTED[place, how] == "fails":
        with pytest.raises(PodliftError) as caught:
            back_up(storage, volume)
        assert len(str(caught.value)) > 20
        assert keys(storage, "snapshots") == before
    else:
        snapshot, _ = back_up(storage, volume)
        assert read_all(storage, snapshot) == CONTENT


@pytest.mark.parametrize("how", WHATS)
def test_a_data_pack_whose_size_tells_is_stored_again_and_another_is_found_when_it_is_read(
    storage: MemoryStorage, volume: str, how: str
) -> None:
    damage(storage, the_key(storage, "data"), how)
    snapshot, _ = back_up(storage, volume)
    if how == "flip":
        with pytest.raises(PodliftError, match="data blob"):
            read_all(storage, snapshot)
    else:
        assert read_all(storage, snapshot) == CONTENT


def test_a_damaged_snapshot_is_named_and_not_taken_for_a_parent(
    storage: MemoryStorage, volume: str, caplog: pytest.LogCaptureFixture
) -> None:
    (bad,) = keys(storage, "snapshots")
    damage(storage, bad, "flip")
    snapshot, monitor = back_up(storage, volume)
    assert f"not taken for a parent: {bad} is damaged" in caplog.text
    assert monitor.counters.files_new == 2
    assert monitor.counters.data_blobs == 0
    refused: list[object] = []
    found = open_repository(storage, PASSWORD).snapshots(NEVER, refused)  # type: ignore[arg-type]
    assert [s.id for s in found] == [snapshot]
    assert len(refused) == 1


def test_a_snapshot_of_a_foreign_shape_never_becomes_a_wrong_parent(
    storage: MemoryStorage, volume: str
) -> None:
    repository = open_repository(storage, PASSWORD)
    old = repository.snapshot("latest")
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writer,
    ):
        writer.finish(
            Snapshot(time_ns=old.time_ns + 1, tree=b"?" * 32, paths=(volume,), hostname="host")
        )
    snapshot, monitor = back_up(storage, volume)
    assert monitor.counters.files_new == 2
    assert read_all(storage, snapshot) == CONTENT
