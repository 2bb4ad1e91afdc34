"""Writing: each blob once, each pack before its index, the snapshot last, or no snapshot."""

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from agent.budget import NEAR_CONNECTIONS, Budgets
from agent.cancel import NEVER, CancelToken
from agent.errors import Canceled, DamagedBlob, Unreachable
from agent.monitor import Monitor
from agent.repository import uploads, writer
from agent.repository.buffers import Buffers
from agent.repository.crypto import Key
from agent.repository.identity import BlobId, BlobType
from agent.repository.indexfile import decode_index
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, file_key, names, pack_key
from agent.repository.opening import open_repository
from agent.repository.pack import PackBuilder, open_pack
from agent.repository.plainkernel import PlainKernel
from agent.repository.repository import Repository
from agent.repository.sealing import Sealed, Sealer
from agent.repository.snapshot import Snapshot
from agent.repository.uploads import BODY_BYTES
from agent.repository.writer import OPEN_PACKS, WriteOptions
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.making import (
    PASSWORD,
    content,
    fill,
    keys,
    new_repository,
    store_chunk,
    store_chunks,
)


def faulty_repository(storage: MemoryStorage, *faults: Fault) -> tuple[Faulty, Repository]:
    fill(storage)
    faulty = Faulty(storage, *faults)
    return faulty, open_repository(faulty, PASSWORD)


def small_packs(monkeypatch: pytest.MonkeyPatch, target_bytes: int = 2000) -> None:
    monkeypatch.setattr("agent.repository.pack.TARGET_BYTES", target_bytes)
    monkeypatch.setattr("agent.repository.writer.TARGET_BYTES", target_bytes)


def chunk(number: int, size: int = 700) -> bytes:
    """Return a chunk that no compressor makes smaller."""
    return random.Random(number).randbytes(size)


def check_sound(storage: MemoryStorage, repository: Repository) -> int:
    """Make sure that indexes name packs that are there, in full; return how many blobs they name."""
    named = 0
    objects = repository.objects
    for name in names(storage, Folder.INDEX):
        for pack, blobs in decode_index(objects.load(Folder.INDEX, name), name):
            assert open_pack(storage.get(pack_key(pack)), objects.key, "pack") == blobs
            named += len(blobs)
    return named


def test_what_was_stored_is_read(storage: MemoryStorage, repository: Repository) -> None:
    chunks = [b"", b"x", b"text " * 1000, chunk(1, 100_000), bytes(524_288)]
    ids, snapshot = store_chunks(repository, chunks)
    reading = open_repository(storage, PASSWORD).reading()
    assert [reading.load_chunk(id) for id in ids] == chunks
    assert reading.load_tree(repository.snapshot(snapshot).tree) == []


def test_a_checkpoint_waits_for_a_blob_that_another_thread_is_still_sealing(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealing, go_on = threading.Event(), threading.Event()
    sealed = Sealer._sealed

    def slow(self: Sealer, *args: Any) -> list[Sealed]:
        if not sealing.is_set():
            sealing.set()
            assert go_on.wait(20)
        return sealed(self, *args)

    monkeypatch.setattr(Sealer, "_sealed", slow)
    shared = chunk(1)
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor()) as writer,
    ):
        first = threading.Thread(target=store_chunk, args=(writer, shared))
        first.start()
        assert sealing.wait(20)
        id = store_chunk(writer, shared)  # known: somebody stores it
        threading.Timer(0.3, go_on.set).start()
        tree = writer.store_tree([])
        writer.checkpoint(Snapshot(time_ns=0, tree=tree))
        first.join()
        found = open_repository(storage, PASSWORD).reading()
        assert found.load_chunk(id) == shared
        writer.finish(Snapshot(time_ns=0, tree=tree))


def test_trees_are_compressed_and_data_where_it_helps(repository: Repository) -> None:
    ids, snapshot = store_chunks(repository, [chunk(1), b"a" * 1000])
    view = repository.load_index()
    lengths = [view.find(BlobType.DATA, BlobId(id))[0].blob.plain_length for id in ids]
    assert lengths == [0, 1000]
    tree = repository.snapshot(snapshot).tree
    assert view.find(BlobType.TREE, BlobId(tree))[0].blob.plain_length == 13


def test_a_chunk_from_many_threads_is_stored_once(repository: Repository) -> None:
    monitor = Monitor()
    start = threading.Barrier(8)
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, monitor, NEVER) as writer,
    ):

        def store() -> None:
            start.wait()
            for number in range(20):
                store_chunk(writer, chunk(number))

        threads = [threading.Thread(target=store) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.finish(Snapshot(time_ns=0, tree=writer.store_tree([])))
    assert monitor.counters.data_blobs == 20
    assert repository.load_index().count(BlobType.DATA) == 20


def test_a_second_run_stores_nothing_again(storage: MemoryStorage, repository: Repository) -> None:
    store_chunks(repository, [chunk(1)])
    before = {key for key in content(storage) if not key.startswith("snapshots/")}
    monitor = Monitor()
    store_chunks(repository, [chunk(1)], monitor)
    assert {key for key in content(storage) if not key.startswith("snapshots/")} == before
    assert monitor.counters.bytes_added == monitor.counters.bytes_uploaded == 0


def test_what_was_added_is_counted_as_stored(
    storage: MemoryStorage, repository: Repository
) -> None:
    monitor = Monitor()
    store_chunks(repository, [chunk(n) for n in range(5)], monitor)
    counters = monitor.counters
    packs = [storage.get(key) for key in keys(storage, "data")]
    assert counters.data_blobs == 5
    assert counters.tree_blobs == 1
    assert counters.bytes_added == 5 * 700 + 13
    assert counters.bytes_uploaded == sum(map(len, packs))
    assert counters.bytes_stored == sum(map(len, packs)) - 36 * len(packs)


def test_packs_come_before_the_index_and_the_index_before_the_snapshot(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    faulty, repository = faulty_repository(storage)
    store_chunks(repository, [chunk(n) for n in range(30)])
    puts = [key.partition("/")[0] for op, key in faulty.calls if op == "put"]
    assert puts[0] == "locks"
    assert puts[1:-2] == ["data"] * (len(puts) - 3)
    assert len(puts) > 8
    assert puts[-2:] == ["index", "snapshots"]


def test_an_index_is_written_whenever_enough_blobs_have_arrived(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    monkeypatch.setattr(uploads, "INDEX_BLOBS", 10)
    repository = new_repository(storage)
    store_chunks(repository, [chunk(n) for n in range(60)])
    assert len(keys(storage, "index")) >= 4
    assert check_sound(storage, repository) == 61
    assert uploads.INDEX_SECONDS == 60


def test_an_index_is_written_whenever_its_time_has_come(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    monkeypatch.setattr(uploads, "INDEX_SECONDS", 0.0)
    repository = new_repository(storage)
    store_chunks(repository, [chunk(n) for n in range(20)])
    assert 1 < len(keys(storage, "index")) <= len(keys(storage, "data"))  # one may name several
    assert check_sound(storage, repository) == 21


def test_an_index_that_was_written_meanwhile_is_believed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    monkeypatch.setattr(uploads, "INDEX_SECONDS", 0.0)
    monitor = Monitor()
    store_chunks(repository, [chunk(n) for n in [*range(20), *range(20)]], monitor)
    assert monitor.counters.data_blobs == 20


def test_two_packs_of_a_type_are_open_and_leftovers_are_merged(
    storage: MemoryStorage, repository: Repository
) -> None:
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writing,
    ):
        for number in range(64):
            store_chunk(writing, chunk(number, 100))
        opened = writing._open[BlobType.DATA]._packs
        assert len(opened) == 2
        assert all(pack.blobs for pack in opened)
        writing.finish(Snapshot(time_ns=0, tree=writing.store_tree([])))
    assert len(keys(storage, "data")) == 2  # one of data, one of trees
    assert check_sound(storage, repository) == 65


def test_leftovers_that_do_not_fit_together_stay_apart(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_ENTRIES", 40)
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writing,
    ):
        for number in range(64):
            store_chunk(writing, chunk(number, 100))
        writing.finish(Snapshot(time_ns=0, tree=writing.store_tree([])))
    assert len(keys(storage, "data")) == 3
    assert check_sound(storage, repository) == 65


def test_a_pack_is_closed_at_its_target_or_when_its_header_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = PackBuilder(BlobType.DATA)
    pack.append(BlobId(bytes(32)), bytes(16 << 20), 0)
    assert pack.full
    monkeypatch.setattr("agent.repository.pack.MAX_ENTRIES", 2)
    pack = PackBuilder(BlobType.DATA)
    for _ in range(2):
        assert not pack.full
        pack.append(BlobId(bytes(32)), b"tiny", 0)
    assert pack.full


def test_a_seal_that_does_not_open_again_ends_the_run_with_nothing_stored(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.repository.sealing.blob_kernel", PlainKernel)
    seal = Key.seal

    def corrupt(self: Key, iv: bytes, plaintext: bytes) -> bytearray:
        sealed = seal(self, iv, plaintext)
        if bytes(plaintext) == chunk(3):
            sealed[20] ^= 4
        return sealed

    monkeypatch.setattr(Key, "seal", corrupt)
    with pytest.raises(DamagedBlob, match="memory or CPU is suspect"):
        store_chunks(repository, [chunk(3)])
    for folder in ("data", "index", "snapshots", "locks"):
        assert keys(storage, folder) == []


def test_a_compressor_that_errs_ends_the_run(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def compress(self, data: bytes) -> bytes:
            return zstandard.compress(bytes([data[0] ^ 1]) + data[1:])

    monkeypatch.setattr("agent.repository.sealing.blob_kernel", PlainKernel)
    monkeypatch.setattr(PlainKernel, "_compressed", lambda self, plain: Wrong().compress(plain))
    with pytest.raises(DamagedBlob):
        store_chunks(repository, [b"a" * 1000])
    assert keys(storage, "data") == []


@pytest.mark.parametrize("nth", [1, 3, 6])
@pytest.mark.parametrize("after", [False, True])
def test_a_failed_upload_ends_the_run_with_an_index_of_what_arrived(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch, nth: int, after: bool
) -> None:
    small_packs(monkeypatch)
    down = Fault("put", failing(Unreachable("down")), key="data/*", nth=nth, after=after)
    _, repository = faulty_repository(storage, down)
    with pytest.raises(Unreachable):
        store_chunks(repository, [chunk(n) for n in range(40)])
    assert keys(storage, "snapshots") == []
    assert keys(storage, "locks") == []
    arrived = check_sound(storage, repository)
    monitor = Monitor()
    store_chunks(open_repository(storage, PASSWORD), [chunk(n) for n in range(40)], monitor)
    assert monitor.counters.data_blobs + monitor.counters.tree_blobs == 41 - arrived
    if nth == 6:
        assert arrived > 0


def test_a_failure_of_the_very_last_pack_is_not_missed(storage: MemoryStorage) -> None:
    for attempt in range(30):
        where = MemoryStorage()
        down = Fault("put", failing(Unreachable("down")), key="data/*", nth=1 + attempt % 2)
        _, repository = faulty_repository(where, down)
        with pytest.raises(Unreachable):
            store_chunks(repository, [chunk(1)])
        assert keys(where, "snapshots") == []


def test_a_failure_is_noted_before_its_pack_stops_counting_as_running(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    fail = uploads.Uploads.fail

    def look(self: uploads.Uploads, error: BaseException) -> None:
        running.append(len(self._running))
        fail(self, error)

    monkeypatch.setattr(uploads.Uploads, "fail", look)
    _, repository = faulty_repository(
        storage, Fault("put", failing(Unreachable("down")), key="data/*", times=9)
    )
    with pytest.raises(Unreachable):
        store_chunks(repository, [chunk(1)])
    assert running
    assert 0 not in running


@pytest.mark.parametrize("folder", ["index", "snapshots"])
def test_an_index_or_snapshot_that_cannot_be_written_ends_the_run(
    storage: MemoryStorage, folder: str
) -> None:
    down = Fault("put", failing(Unreachable("down")), key=f"{folder}/*")
    _, repository = faulty_repository(storage, down)
    with pytest.raises(Unreachable):
        store_chunks(repository, [chunk(1)])
    assert keys(storage, "snapshots") == []
    assert check_sound(storage, repository) == 2  # the index was tried again at the end


def test_cancel_keeps_what_has_arrived(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    token = CancelToken()
    stop = Fault("put", lambda: token.cancel("enough"), key="data/*", nth=5, after=True)
    _, repository = faulty_repository(storage, stop)
    with pytest.raises(Canceled, match="enough"):
        store_chunks(repository, [chunk(n) for n in range(60)], cancel=token)
    assert keys(storage, "snapshots") == []
    assert keys(storage, "locks") == []
    assert check_sound(storage, repository) > 0


def test_packs_that_are_open_or_in_flight_are_all_that_take_memory(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    held, most = 0, 0
    take, give = Buffers.take, Buffers.give

    def counted(buffers: Buffers, size: int) -> memoryview:
        nonlocal held, most
        held += size == BODY_BYTES
        most = max(most, held)
        return take(buffers, size)

    def returned(buffers: Buffers, buffer: memoryview, filled: int) -> None:
        nonlocal held
        held -= len(buffer) == BODY_BYTES
        give(buffers, buffer, filled)

    monkeypatch.setattr(Buffers, "take", counted)
    monkeypatch.setattr(Buffers, "give", returned)
    slow = Fault("put", lambda: time.sleep(0.005), key="data/*", times=10_000)
    _, repository = faulty_repository(storage, slow)
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writing,
    ):
        for number in range(60):
            store_chunk(writing, chunk(number))
        assert most == OPEN_PACKS + NEAR_CONNECTIONS


def test_the_first_packs_that_are_open_together_do_not_end_together(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch, target_bytes=10_000)
    sizes: list[int] = []
    send = uploads.Uploads.send

    def measured(self: uploads.Uploads, pack: PackBuilder) -> None:
        sizes.append(pack.size)
        send(self, pack)

    monkeypatch.setattr(uploads.Uploads, "send", measured)
    fill(storage)
    repository = open_repository(storage, PASSWORD)
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, Monitor(), NEVER) as writing,
    ):
        for number in range(100):
            store_chunk(writing, chunk(number))
        early = [size for size in sizes if size < 10_000]
        assert len(early) == 1 < len(sizes)
        assert 5_000 <= early[0] < 6_000


@pytest.mark.parametrize(
    ("far", "runs", "allowed"),
    [(True, 1, 4), (True, 2, 2), (True, 7, 1), (False, 1, 2), (False, 2, 1)],
)
def test_uploads_in_flight_are_bounded_and_shared_with_other_runs(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch, far: bool, runs: int, allowed: int
) -> None:
    small_packs(monkeypatch)
    monkeypatch.setattr(MemoryStorage, "waits", far)
    count = threading.Condition()
    now, most = 0, 0

    def enter() -> None:
        nonlocal now, most
        with count:
            now += 1
            most = max(most, now)
            count.notify_all()
            count.wait_for(lambda: most == allowed, 0.05)  # let the others come

    def leave() -> None:
        nonlocal now
        with count:
            now -= 1

    many = 10_000
    _, repository = faulty_repository(
        storage,
        Fault("put", enter, key="data/*", times=many),
        Fault("put", leave, key="data/*", times=many, after=True),
    )
    budgets = Budgets(connections=4)
    with contextlib.ExitStack() as at_work:
        for _ in range(runs):
            at_work.enter_context(budgets.at_work())
        store_chunks(
            repository, [chunk(n) for n in range(60)], options=WriteOptions(budgets=budgets)
        )
    assert most == allowed


def test_a_run_under_a_lost_lock_leaves_no_index_either(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = new_repository(storage)
    with pytest.raises(ValueError, match="stop"), repository.locked(exclusive=False) as lock:
        _leave_early(repository, lock, lambda: setattr(lock, "_lost", "a test took it"))
    assert keys(storage, "index") == []
    assert len(keys(storage, "data")) == 1


def _leave_early(repository: Repository, lock: HeldLock, lose: Callable[[], None]) -> None:
    with repository.writing(lock, Monitor(), NEVER) as writing:
        store_chunk(writing, chunk(1))
        writing._open[BlobType.DATA].flush()
        while writing._uploads._running:
            pass
        lose()
        raise ValueError("stop")


def test_keys_of_objects_are_where_restic_looks() -> None:
    assert file_key(Folder.INDEX, "ab") == "index/ab"


def test_no_thread_fills_another_pack_while_all_connections_are_busy(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory must not grow with the threads that wait for a slow storage."""
    small_packs(monkeypatch)
    begun, let_go, made = threading.Event(), threading.Event(), []

    def stall() -> None:
        begun.set()
        let_go.wait()

    class Counted(PackBuilder):
        def __init__(self, type: BlobType, body: bytearray) -> None:
            super().__init__(type, body)
            if type is BlobType.DATA:
                made.append(self)

    monkeypatch.setattr("agent.repository.uploads.PackBuilder", Counted)
    _, repository = faulty_repository(storage, Fault("put", stall, key="data/*", times=100))
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(
            lock, Monitor(), options=WriteOptions(budgets=Budgets(connections=1))
        ) as writing,
    ):

        def store(first: int) -> None:
            for number in range(first, first + 10):
                store_chunk(writing, chunk(number))

        threads = [threading.Thread(target=store, args=(100 * n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        assert begun.wait(30)
        threads[0].join(0.5)  # time to fill packs that nobody may fill
        filled = len(made)
        let_go.set()
        # two open, one on its way, and one in the hands of the thread that waits
        assert filled <= 4
        for thread in threads:
            thread.join()
        snapshot = Snapshot(time_ns=0, tree=writing.store_tree([]), paths=("/v",))
        writing.finish(snapshot)
    assert check_sound(storage, repository) == 121
