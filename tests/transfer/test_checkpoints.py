"""Checkpoints: valid at the moment they are made, a parent for the next run, and then gone."""

import threading
import time
from pathlib import Path

import pytest

from agent.entry import Entry
from agent.errors import AccessDenied, Canceled, DamagedBlob, Unreachable
from agent.repository.check import check
from agent.repository.inflight import InFlight
from agent.repository.opening import open_repository
from agent.repository.writer import Writer
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from agent.transfer import checkpoint, folders
from agent.transfer.walk import Walk
from tests.repository.making import PASSWORD, keys
from tests.support.deep import nest
from tests.transfer.running import Bench, all_content, noise
from tests.transfer.test_stops import at_call, check_sound

DIRECTORIES, FILES = 8, 20


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("agent.repository.pack.TARGET_BYTES", 256 << 10)
    monkeypatch.setattr("agent.repository.writer.TARGET_BYTES", 256 << 10)
    monkeypatch.setattr(checkpoint, "_LOOK_SECONDS", 0.001)
    bench = Bench.new(tmp_path / "volume")
    for number in range(DIRECTORIES):
        folder = bench.volume / f"d{number}" / "below"
        folder.mkdir(parents=True)
        for file in range(FILES):
            (folder / f"f{file}").write_bytes(noise(number * 100 + file, 9000))
    (bench.volume / "large").write_bytes(noise(1, 3 << 20))
    (bench.volume / "d1" / "link").symlink_to("below")
    return bench


def copied(storage: MemoryStorage) -> MemoryStorage:
    copy = MemoryStorage()
    for listed in storage.list(""):
        copy.put(listed.key, storage.get(listed.key))
    return copy


def checkpoints(bench: Bench) -> list[str]:
    return [each.id for each in bench.repository().snapshots() if each.is_checkpoint]


def interrupt(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    nth: int,
    files: int = 0,
) -> None:
    """Run a backup that is asked to wind down at a call, and hold it there until it has.

    It is asked when so many files are finished.
    """

    def wind_down() -> None:
        while bench.counters.files < files:
            time.sleep(0.01)
        time.sleep(0.1)  # a file is counted a moment before its directory has it
        bench.cancel.wind_down("by a test")
        assert bench.cancel._event.wait(20)

    with monkeypatch.context() as patch:
        at_call(patch, owner, name, nth, wind_down)
        with pytest.raises(Canceled, match="by a test"):
            bench.go(bench.storage)


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [(Walk, "_sort_out", 1), (Walk, "_sort_out", 6), (Walk, "_sort_out", 15)],
)
def test_a_run_that_winds_down_leaves_what_it_has_done_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, nth: int
) -> None:
    interrupt(bench, monkeypatch, owner, name, nth)
    (left,) = checkpoints(bench)
    assert bench.counters.checkpoints == 1
    assert list(check(bench.repository(), read_data=True)) == []
    done = bench.content(left)
    everything = all_content(bench.volume)
    assert done.items() <= everything.items()
    before = len(done)
    result = bench.run()
    assert result.parent_id == left
    assert bench.content(result.snapshot_id) == everything
    assert bench.counters.files_unmodified >= before
    read = sum(len(body) for path, body in everything.items() if path not in done)
    assert bench.counters.bytes_read == read
    assert checkpoints(bench) == []
    assert list(check(bench.repository(), read_data=True)) == []


def test_a_checkpoint_has_everything_that_was_finished(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = (DIRECTORIES - 2) * FILES
    interrupt(bench, monkeypatch, Walk, "_sort_out", 2 * DIRECTORIES, finished)
    (left,) = checkpoints(bench)
    assert len(bench.content(left)) >= finished
    entries = bench.entries(left)
    assert entries[b"d1/link"].link_target == b"below"
    assert entries[b"d1/below"].permissions == 0o755


def test_a_checkpoint_keeps_of_the_parent_what_was_not_reached(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.run()
    for number in range(DIRECTORIES):
        (bench.volume / f"d{number}" / "below" / "f0").write_bytes(noise(1000 + number, 5000))
    interrupt(bench, monkeypatch, Walk, "_sort_out", 9, 3 * FILES + 3)  # 3 of them changed
    (left,) = checkpoints(bench)
    old, new = bench.content(first.snapshot_id), all_content(bench.volume)
    found = bench.content(left)
    assert found.keys() == new.keys()
    changed = {path for path in new if old[path] != new[path]}
    assert all(found[path] == new[path] for path in new.keys() - changed)
    assert 0 < sum(found[path] == new[path] for path in changed) < DIRECTORIES
    result = bench.run()
    assert result.parent_id == left
    assert bench.repository().snapshot(result.snapshot_id).parent == first.snapshot_id
    assert bench.content(result.snapshot_id) == new
    assert bench.counters.bytes_read == 5000 * sum(found[path] != new[path] for path in changed)


def test_every_checkpoint_is_valid_at_the_moment_it_is_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    seen: list[MemoryStorage] = []
    look = Fault("put", lambda: seen.append(copied(bench.storage)), key="snapshots/*", times=10**6,
                 after=True)  # fmt: skip
    result = bench.run(storage=Faulty(bench.storage, look))
    assert len(seen) > 2
    for storage in seen:
        repository = open_repository(storage, PASSWORD)
        assert repository.snapshots()
        assert [found for found in check(repository, read_data=True) if found.damage] == []
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    assert checkpoints(bench) == []
    assert len(keys(bench.storage, "snapshots")) == 1


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.05)
    read, made = threading.Event(), threading.Event()
    seen: list[MemoryStorage] = []

    def keep() -> None:
        if read.is_set() and not seen:
            seen.append(copied(bench.storage))
            made.set()
        elif bench.counters.files > 2 * FILES:
            read.set()  # this checkpoint was made out before; the next one has those files

    def wait() -> None:
        assert made.wait(20)

    look = Fault("put", keep, key="snapshots/*", times=10**6, after=True)
    with monkeypatch.context() as patch:
        at_call(patch, Walk, "_sort_out", 15, wait)
        bench.run(storage=Faulty(bench.storage, look))
    bench.storage = seen[0]  # as the storage was then; what the killed run wrote later is gone
    result = bench.run()
    assert bench.counters.files_unmodified > 0
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    assert checkpoints(bench) == []


def test_a_checkpoint_is_never_the_latest_snapshot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.run()
    (bench.volume / "more").write_bytes(b"more")
    interrupt(bench, monkeypatch, Walk, "_sort_out", 2)
    repository = bench.repository()
    assert repository.snapshot("latest").id == first.snapshot_id
    assert max(repository.snapshots(), key=lambda each: each.time_ns).id == first.snapshot_id


@pytest.mark.parametrize("error", [Unreachable("down"), AccessDenied("forbidden")])
def test_a_checkpoint_that_cannot_be_made_or_removed_does_not_fail_the_run(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    broken = Fault("delete", failing(error), key="snapshots/*", times=10**6)
    result = bench.run(storage=Faulty(bench.storage, broken))
    assert bench.content(result.snapshot_id) == all_content(bench.volume)
    assert "stays" in caplog.text
    check_sound(bench)


def test_a_damaged_parent_costs_a_checkpoint_nothing_but_what_it_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    (bench.volume / "d0" / "below" / "f0").write_bytes(b"changed")

    def lost(_writer: Writer, _id: bytes) -> list[Entry]:
        raise DamagedBlob("a tree is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "load_tree", lost)
        interrupt(bench, patch, Walk, "_sort_out", 11, 3 * FILES)
    (left,) = checkpoints(bench)
    assert 3 * FILES <= len(bench.content(left)) < DIRECTORIES * FILES
    assert [found for found in check(bench.repository(), read_data=True) if found.damage] == []


def test_a_large_directory_is_not_held_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PARTIAL_ENTRIES", 10)
    interrupt(bench, monkeypatch, Walk, "_sort_out", 11, 3 * FILES)
    (left,) = checkpoints(bench)
    found = bench.content(left)
    assert found
    assert len(found) % FILES in (0, 1)  # whole directories, and maybe the large file
    result = bench.run()
    assert bench.content(result.snapshot_id) == all_content(bench.volume)


def test_a_deep_tree_has_checkpoints_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nest(bench.volume, 300)
    interrupt(bench, monkeypatch, Walk, "_sort_out", 280)
    assert len(checkpoints(bench)) == 1


def test_calls_in_flight_are_waited_for() -> None:
    calls = InFlight()
    begun, go_on, order = threading.Event(), threading.Event(), []

    def early() -> None:
        with calls.call():
            begun.set()
            go_on.wait(10)
            order.append("early")

    thread = threading.Thread(target=early)
    thread.start()
    begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    calls.wait_for_earlier(lambda: None)
    order.append("waited")
    thread.join()
    assert order == ["early", "waited"]


def test_waiting_for_calls_in_flight_ends_when_the_run_does() -> None:
    calls = InFlight()

    def stop() -> None:
        raise Canceled("enough")

    with calls.call(), pytest.raises(Canceled):
        calls.wait_for_earlier(stop)
