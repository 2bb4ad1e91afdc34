"""Runs that end early: canceled or failed at any stage, they end soon, whole, and without a lie."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import Canceled, Unreachable
from agent.repository import uploads
from agent.repository.contract import BackupTarget
from agent.repository.indexfile import decode_index
from agent.repository.objects import Folder, names, pack_key
from agent.repository.pack import open_pack
from agent.repository.writer import Writer
from agent.storage.contract import Buffer
from agent.storage.faults import Fault, Faulty, Operation, failing
from agent.storage.memory import MemoryStorage
from agent.transfer.folders import Assembly
from agent.volume.directory import Directory
from agent.volume.file import FileReader
from tests.repository.making import keys
from tests.transfer.running import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("agent.repository.pack.TARGET_BYTES", 256 << 10)
    monkeypatch.setattr("agent.repository.writer.TARGET_BYTES", 256 << 10)
    bench = Bench.new(tmp_path / "volume")
    draw = random.Random(1)
    for number in range(6):
        folder = bench.volume / f"d{number}"
        folder.mkdir()
        for file in range(20):
            (folder / f"f{file}").write_bytes(draw.randbytes(9000))
    (bench.volume / "large").write_bytes(draw.randbytes(12 << 20))
    return bench


def check_sound(bench: Bench) -> None:
    """Nothing is locked; indexes name what is there; the next run works and is whole."""
    assert keys(bench.storage, "locks") == []
    objects = bench.repository().objects
    for name in names(bench.storage, Folder.INDEX):
        for pack, blobs in decode_index(objects.load(Folder.INDEX, name), name):
            assert open_pack(bench.storage.get(pack_key(pack)), objects.key, "pack") == blobs
    result = bench.run()
    files = {
        os.fsencode(p.relative_to(bench.volume)): p.read_bytes()
        for p in bench.volume.rglob("*")
        if p.is_file()
    }
    assert bench.content(result.snapshot_id) == files


def at_call(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, nth: int, action: Callable[[], None]
) -> None:
    """Do something when a method is called for the n-th time."""
    real, count = getattr(owner, name), iter(range(1, 10**9))

    def wrapped(*args: object, **kwargs: object) -> object:
        if next(count) == nth:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


STAGES = [
    (Directory, "iterate", 1), (Directory, "iterate", 4), (Directory, "open_file", 1),
    (Directory, "read_files", 1), (FileReader, "_fill", 2), (Writer, "store_chunks", 1),
    (Writer, "store_chunks", 3),
    (Assembly, "store", 3), (Writer, "store_tree", 1), (Writer, "finish", 1),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "nth"), STAGES, ids=str)
def test_cancel_in_the_pipeline_leaves_a_sound_repository(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, nth: int
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, nth, lambda: bench.cancel.cancel("by a test"))
        with pytest.raises(Canceled, match="by a test"):
            bench.go(bench.storage)
    assert keys(bench.storage, "snapshots") == []
    assert len(os.listdir("/proc/self/fd")) == before
    check_sound(bench)


PLACES: list[tuple[Operation, str, int]] = [
    ("list", "locks/", 1), ("put", "locks/*", 1), ("list", "locks/", 2), ("list", "snapshots/", 1),
    ("list", "index/", 1), ("put", "data/*", 1), ("put", "data/*", 3), ("put", "data/*", 7),
    ("put", "index/*", 1), ("put", "snapshots/*", 1),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "key", "nth"), PLACES)
def test_cancel_in_the_storage_leaves_a_sound_repository(
    bench: Bench, operation: Operation, key: str, nth: int
) -> None:
    stop = Fault(operation, lambda: bench.cancel.cancel("by a test"), key=key, nth=nth)
    if key == "snapshots/*":  # too late to be stopped: the snapshot is the last thing
        bench.go(Faulty(bench.storage, stop))
        assert len(keys(bench.storage, "snapshots")) == 1
    else:
        with pytest.raises(Canceled, match="by a test"):
            bench.go(Faulty(bench.storage, stop))
        assert keys(bench.storage, "snapshots") == []
    check_sound(bench)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("operation", "key", "nth"), PLACES)
def test_a_storage_that_fails_anywhere_ends_the_run_and_nothing_hangs(
    bench: Bench, operation: Operation, key: str, nth: int, after: bool
) -> None:
    broken = Fault(operation, failing(Unreachable("broken")), key=key, nth=nth, after=after)
    with pytest.raises(Unreachable, match="broken"):
        bench.run(storage=Faulty(bench.storage, broken))
    if key != "snapshots/*" or not after:
        assert keys(bench.storage, "snapshots") == []
    check_sound(bench)


def test_a_storage_that_stays_broken_ends_the_run(bench: Bench) -> None:
    broken = Fault("put", failing(Unreachable("broken")), key="data/*", times=10**6)
    with pytest.raises(Unreachable, match="broken"):
        bench.run(storage=Faulty(bench.storage, broken))
    assert keys(bench.storage, "index") == keys(bench.storage, "snapshots") == []
    check_sound(bench)


def test_a_lock_that_cannot_be_removed_does_not_fail_a_finished_backup(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Fault("delete", failing(Unreachable("broken")), key="locks/*")
    bench.run(storage=Faulty(bench.storage, broken))
    assert len(keys(bench.storage, "snapshots")) == 1
    assert "a lock stays behind" in caplog.text


class WithoutIndex(MemoryStorage):
    """Falls silent when an index file is stored."""

    def put(
        self, key: str, body: Buffer, *, sha256: bytes | None = None, cancel: CancelToken = NEVER
    ) -> None:
        if key.startswith("index/"):
            cancel.pause(600)
        super().put(key, body, sha256=sha256, cancel=cancel)


def test_a_storage_that_falls_silent_does_not_hold_up_a_cancel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "CLOSING_SECONDS", 0.05)
    silent = WithoutIndex()
    for key in ("config", *keys(bench.storage, "keys")):
        silent.put(key, bench.storage.get(key))
    stop = Fault("put", lambda: bench.cancel.cancel("by a test"), key="data/*", nth=3, after=True)
    with pytest.raises(Canceled, match="by a test"):
        bench.go(Faulty(silent, stop))
    assert keys(silent, "index") == keys(silent, "locks") == []


def test_what_a_stopped_run_stored_is_not_stored_again(bench: Bench) -> None:
    stop = Fault("put", lambda: bench.cancel.cancel("by a test"), key="data/*", nth=6, after=True)
    with pytest.raises(Canceled):
        bench.go(Faulty(bench.storage, stop))
    stored = bench.repository().load_index().count(0)  # type: ignore[arg-type]
    assert stored > 5
    result = bench.run()
    assert result.counters.data_blobs <= 120 + 12 - stored


def test_an_unforeseen_error_ends_the_run_as_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug() -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        at_call(patch, Writer, "store_tree", 2, bug)
        with pytest.raises(ZeroDivisionError):
            bench.run()
    assert keys(bench.storage, "snapshots") == []
    check_sound(bench)


def test_the_writer_is_what_the_pipeline_asks_for(bench: Bench) -> None:
    repository = bench.repository()
    with (
        repository.locked(exclusive=False) as lock,
        repository.writing(lock, bench.monitor) as writer,
    ):
        target: BackupTarget = writer
        assert target.has_content([])
        assert not target.has_content([bytes(32)])
