"""Directories that are worked on in stretches: the same snapshot, whatever happens to them meanwhile."""

import contextlib
import gc
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.cancel import NEVER, CancelToken
from agent.entry import Entry, Kind
from agent.errors import (
    Canceled,
    DamagedBlob,
    MalformedData,
    RepositoryError,
    TreeTooLarge,
    VolumeError,
)
from agent.monitor import Monitor
from agent.repository import longblob
from agent.repository.check import check
from agent.repository.difference import Difference
from agent.repository.identity import BlobId, BlobType
from agent.repository.longblob import LongTree, LongTreeWriter
from agent.repository.objects import pack_key
from agent.repository.prune import plan_prune, run_prune
from agent.repository.pruneplan import PruneOptions
from agent.repository.stats import measure
from agent.repository.writer import Writer
from agent.transfer import checkpoint
from agent.transfer.folder import Folder
from agent.transfer.holding import ENTRY_BYTES, STRETCH_BYTES, STRETCHES, stretches_weight
from agent.transfer.restore import RestoreRequest, restore
from agent.transfer.stretches import Earlier, Stretch, Stretches, divided
from agent.transfer.survey import preview, verify
from agent.volume.directory import Directory
from tests.repository.making import keys
from tests.repository.test_tree import file_entry
from tests.support.longdirs import lower_limits
from tests.transfer.running import Bench, all_content, noise

FILES = 43


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    lower_limits(monkeypatch.setattr)
    before = temporary_files()
    yield
    gc.collect()  # tracebacks hold some
    assert temporary_files() == before


def temporary_files() -> int:
    """Count the files that are open and have no name."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").endswith(" (deleted)")
    return count


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Return a bench whose volume has long directories in long ones, and everything that there is."""
    for folder in ("", "d03/", "d03/e01/"):
        root = bench.volume / folder
        root.mkdir(exist_ok=True)
        for number in range(FILES):
            (root / f"f{number:02}").write_bytes(b"%d" % (number // 2))
        for number in range(0, 12, 3):
            (root / f"d{number:02}").mkdir()
            (root / f"e{number:02}").symlink_to("f00")
        (root / "d00" / "in").write_bytes(folder.encode())
        os.mkfifo(root / "d00.fifo")
        os.link(root / "f07", root / "d06" / "linked")
        os.link(root / "f08", root / "f08.linked")
    (bench.volume / "d03" / "e01" / "large").write_bytes(noise(1, 3 << 20))
    (bench.volume / "d09" / "few").write_bytes(b"few")
    return bench


def at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the tree that the volume has when nothing is long."""
    with monkeypatch.context() as patch:
        patch.setattr("agent.transfer.walk.AT_ONCE_BYTES", 1 << 30)
        other = Bench.new(bench.volume)
        return tree_of(other, other.run().snapshot_id)


def tree_of(bench: Bench, snapshot: str) -> bytes:
    return bench.repository().snapshot(snapshot).tree


def restored(
    bench: Bench, target: Path, snapshot: str = "latest", *, delete: bool = False
) -> Monitor:
    """Restore, and see that what is there then is the volume, that verify agrees, and nothing is left to do."""
    repository, monitor = bench.repository(), Monitor()
    source = repository.reading()
    request = RestoreRequest(repository.snapshot(snapshot).tree, target, delete=delete)
    restore(source, request, monitor, CancelToken())
    assert monitor.problems == []
    assert all_content(target) == all_content(bench.volume)
    assert {p.relative_to(target) for p in target.rglob("*")} == {
        p.relative_to(bench.volume) for p in bench.volume.rglob("*")
    }
    verify(source, request, monitor, CancelToken())
    assert monitor.problems == []
    assert {action.sign for action in preview(source, request, CancelToken())} == {"="}
    return monitor


def test_the_tree_is_the_one_of_a_directory_at_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = at_once(bench, monkeypatch)
    made = []
    finish = LongTreeWriter.finish
    monkeypatch.setattr(
        LongTreeWriter, "finish", lambda self: made.append(finish(self)) or made[-1]
    )
    first = bench.run()
    assert tree_of(bench, first.snapshot_id) == wanted
    assert len(made) == 3
    assert isinstance(bench.repository().reading().load_tree(wanted), LongTree)
    again = bench.run()
    counters = again.counters
    assert tree_of(bench, again.snapshot_id) == wanted
    assert (counters.files_new, counters.files_changed, counters.tree_blobs) == (0, 0, 0)
    assert counters.files_unmodified == first.counters.files_new
    assert counters.directories_unmodified == first.counters.directories_new
    restored(bench, tmp_path / "target")


def test_changes_are_met_in_the_parent_and_in_the_target(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    restored(bench, tmp_path / "target")
    for root in (bench.volume, bench.volume / "d03"):
        (root / "f00").write_bytes(b"changed")
        (root / "f21").unlink()
        (root / "f42").unlink()
        (root / "d00.fifo").unlink()
        (root / "d00.fifo").mkdir()
        (root / "0first").write_bytes(b"new")
        (root / "zlast").write_bytes(b"new")
        shutil.rmtree(root / "d00")
        (root / "d00").write_bytes(b"no directory any more")
    counters = bench.run().counters
    assert (counters.files_changed, counters.files_new) == (4, 4)
    assert tree_of(bench, "latest") == at_once(bench, monkeypatch)
    found = restored(bench, tmp_path / "target", delete=True)
    assert found.counters.files_unmodified > 100


def test_a_directory_becomes_long_and_short_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (3, 20, 2):
        for path in (bench.volume / "d09").iterdir():
            if path.is_file():
                path.unlink()
        kept = bench.volume / "d09" / "f1"
        for number in range(count):
            (bench.volume / "d09" / f"f{number}").write_bytes(b"%d" % number)
        os.utime(kept, ns=(0, 0))
        bench.run()
        (bench.volume / "d09" / "another").write_bytes(b"x")
        counters = bench.run().counters
        assert (counters.files_new, counters.files_changed) == (1, 0)
        assert tree_of(bench, "latest") == at_once(bench, monkeypatch)
    restored(bench, tmp_path / "target")


def test_what_vanishes_or_becomes_something_else_is_what_it_would_be_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, iterate = Directory.names, Directory.iterate

    def listed(self: Directory, *args: int) -> list[bytes]:
        found = names(self, *args)
        if self.path == b"":
            for number in range(10, 30):  # whole stretches of nothing, and parts of some
                (bench.volume / f"f{number}").unlink()
            (bench.volume / "f01").unlink()
            (bench.volume / "f01").mkdir()
            (bench.volume / "f02").unlink()
            os.mkfifo(bench.volume / "f02")
        return found

    def looked_at(self: Directory, listing: Any, *args: Any) -> Any:
        found = list(iterate(self, listing, *args))
        if self.path == b"" and b"f35" in listing.names:
            (bench.volume / "f35").unlink()
            (bench.volume / "f36").unlink()
            (bench.volume / "f36").symlink_to("/etc/passwd")
        return iter(found)

    monkeypatch.setattr(Directory, "names", listed)
    monkeypatch.setattr(Directory, "iterate", looked_at)
    result = bench.run()
    monkeypatch.undo()
    lower_limits(monkeypatch.setattr)
    assert {problem.path for problem in bench.monitor.problems} == {b"f35", b"f36"}
    entries = bench.entries(result.snapshot_id)
    assert (entries[b"f01"].kind.name, entries[b"f02"].kind.name) == ("DIRECTORY", "FIFO")
    (bench.volume / "f36").unlink()
    bench.run()
    assert tree_of(bench, "latest") == at_once(bench, monkeypatch)


def test_what_no_tree_holds_is_left_out_and_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(FILES):
        (bench.volume / "d03" / "e01" / f"more{number}").touch()
    first = bench.run()
    view = bench.repository().load_index()
    size = view.find(BlobType.TREE, BlobId(tree_of(bench, first.snapshot_id)))[0].content_bytes
    monkeypatch.setattr(longblob, "MAX_BLOB_BYTES", size + 1000)  # d03 has a little more
    for storage in (bench.storage, Bench.new(bench.volume).storage):
        bench.storage = storage  # with a parent, and without
        result = bench.run()
        assert [problem.path for problem in bench.monitor.problems] == [b"d03/e01"]
        assert "no pack holds" in bench.monitor.problems[0].reason
        entries = bench.entries(result.snapshot_id)
        assert b"d03/f00" in entries
        assert b"d03/e01" not in entries
    monkeypatch.setattr(longblob, "MAX_BLOB_BYTES", 500)
    with pytest.raises(VolumeError, match="root cannot be stored.*no pack holds"):  # noqa: RUF043
        bench.run()


def test_no_room_for_a_file_leaves_the_directory_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun = Writer.begin_tree, []

    def full(self: Writer) -> LongTreeWriter:
        begun.append(1)
        if len(begun) == 2:
            raise TreeTooLarge("no room")
        return begin(self)

    monkeypatch.setattr(Writer, "begin_tree", full)
    result = bench.run()
    assert [str(problem) for problem in bench.monitor.problems] == ["d03: no room; left out"]
    assert b"d06/linked" in bench.entries(result.snapshot_id)


def test_a_cancel_or_a_failure_in_the_middle_ends_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Directory.look
    for stop in (3, 12, 20):
        for fails in (True, False):
            calls = []

            def looked(
                self: Directory,
                *args: Any,
                calls: list[int] = calls,
                stop: int = stop,
                fails: bool = fails,
            ) -> Any:
                calls.append(1)
                if len(calls) == stop:
                    if fails:
                        raise ZeroDivisionError
                    bench.cancel.cancel("enough")
                return look(self, *args)

            monkeypatch.setattr(Directory, "look", looked)
            with pytest.raises(ZeroDivisionError if fails else Canceled):
                bench.run()
    monkeypatch.setattr(Directory, "look", look)
    assert bench.repository().snapshots() == []
    bench.run()
    assert tree_of(bench, "latest") == at_once(bench, monkeypatch)


def test_a_parent_that_is_damaged_or_does_not_decode_costs_reading_only(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = tree_of(bench, bench.run().snapshot_id)
    decode = longblob.decode_pieces

    def cut(*args: Any) -> Iterator[Entry]:
        yield from itertools.islice(decode(*args), 20)
        raise MalformedData("tree", "cut")

    with monkeypatch.context() as patch:
        patch.setattr(longblob, "decode_pieces", cut)
        counters = bench.run().counters
        assert counters.files_unmodified > 15
        assert counters.files_new > 30
        tree, monitor = bench.repository().snapshot("latest").tree, Monitor()
        source = bench.repository().reading()
        with pytest.raises(DamagedBlob, match="are lost"):  # what comes before is restored
            restore(source, RestoreRequest(tree, tmp_path / "part"), monitor, CancelToken())
        assert (tmp_path / "part" / "f05").exists()
    for key in [key for key in keys(bench.storage, "data") if bench.storage.size(key) < 20_000]:
        pack = bytearray(bench.storage.get(key))
        pack[20] ^= 1
        bench.storage.put(key, bytes(pack))
    counters = bench.run().counters
    assert counters.files_unmodified == 0
    assert counters.tree_blobs > 5
    assert tree_of(bench, "latest") == wanted
    caplog.clear()  # what is logged there holds on to what it was about


def test_checkpoints_have_what_the_parent_has_of_a_long_directory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    for number in range(FILES):
        (bench.volume / "d03" / f"f{number:02}").write_bytes(b"other")
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_LOOK_SECONDS", 0.001)
    look, seen = Directory.look, []

    def slow(self: Directory, *args: Any) -> Any:
        time.sleep(0.01)
        seen.extend(s for s in bench.repository().snapshots() if s.is_checkpoint)
        return look(self, *args)

    monkeypatch.setattr(Directory, "look", slow)
    result = bench.run()
    assert seen
    for snapshot in bench.repository().snapshots():
        assert b"d03/e01/large" in bench.entries(snapshot.id)
    assert tree_of(bench, result.snapshot_id) == at_once(bench, monkeypatch)


def test_whoever_else_reads_trees_reads_long_ones(bench: Bench) -> None:
    first = bench.run()
    (bench.volume / "f00").write_bytes(b"changed")
    shutil.rmtree(bench.volume / "d03" / "e01")
    second = bench.run()
    repository = bench.repository()
    reading = repository.reading()
    trees = [tree_of(bench, first.snapshot_id), tree_of(bench, second.snapshot_id)]
    assert list(check(repository, read_data=True)) == []
    found = Difference(reading.load_tree, reading.chunk_size)
    changes = {str(change.mark): change.path for change in found.walk(*trees)}
    assert changes["M"] == b"/f00"
    assert (found.changed_files, found.removed.files) == (1, FILES + 4)
    stats = measure(repository, repository.snapshots())
    assert stats.files == sum(
        entry.kind is Kind.FILE
        for snapshot in (first, second)
        for entry in bench.entries(snapshot.snapshot_id).values()
    )
    before = sorted(keys(bench.storage, "data"))
    with repository.locked(exclusive=True) as lock:
        plan = plan_prune(repository, PruneOptions(), Monitor(), NEVER)
        run_prune(repository, lock, plan, Monitor(), NEVER)
    assert sorted(keys(bench.storage, "data")) == before
    (place,) = repository.load_index().find(BlobType.TREE, BlobId(trees[1]))
    pack = bytearray(bench.storage.get(pack_key(place.pack)))
    pack[100] ^= 1
    bench.storage.put(pack_key(place.pack), bytes(pack))
    for read_data in (False, True):
        told = list(map(str, check(repository, read_data=read_data)))
        assert any("this directory cannot be read" in line for line in told)
        assert any("blobs do not open" in line for line in told) is read_data
    with repository.locked(exclusive=True), pytest.raises(RepositoryError, match="cannot be read"):
        plan_prune(repository, PruneOptions(), Monitor(), NEVER)


# -- the parts --------------------------------------------------------------------------------------


def test_names_are_divided_by_their_number_and_their_length() -> None:
    names = [b"%02d" % n for n in range(12)] + [b"\xff" * 255] * 3
    found = list(divided(names))
    assert [name for some in found for name in some] == names
    assert list(map(len, found)) == [5, 5, 2, 1, 1, 1]


def test_only_names_and_some_entries_are_weighed() -> None:
    names = [b"a" * 20] * 1_000_000
    assert stretches_weight(names) < 100 << 20
    assert stretches_weight(names[:100]) > 100 * ENTRY_BYTES
    assert stretches_weight(names) - STRETCHES * STRETCH_BYTES < 80 * len(names)


def test_stretches_are_written_in_order_whichever_finishes_first() -> None:
    added: list[bytes] = []
    tree: Any = SimpleNamespace(add=lambda entries: added.extend(e.name for e in entries))
    written: list[int] = []
    folder = Folder.root(None)
    made = folder.stretches = Stretches(
        folder, tree, lambda _, entries: written.append(len(entries))
    )
    one, two = made.begin(2, never), made.begin(1, never)

    def fill(stretch: Stretch, *names: bytes | None) -> Folder | None:
        stretch.put([(n, file_entry(name=name) if name else None) for n, name in enumerate(names)])
        return stretch.write()

    waiting = threading.Event()
    started: list[Stretch] = []
    thread = threading.Thread(target=lambda: started.append(made.begin(1, waiting.set)))
    thread.start()  # there is room for two
    assert waiting.wait(10)
    assert fill(two, b"c") is None
    assert (added, started) == ([], [])
    assert fill(one, b"a", None) is None
    thread.join()
    assert (added, written) == ([b"a", b"c"], [1, 1])
    assert not made.end()
    assert fill(started[0], b"d") is folder
    assert (made.whole, made.entries) == (False, 3)


def test_entries_of_the_parent_are_met_in_order() -> None:
    entries = [file_entry(name=name) for name in (b"a", b"c", b"d", b"f", b"z")]
    earlier = Earlier(iter(entries))
    assert set(earlier.of([b"b", b"c"])) == {b"c"}
    assert set(earlier.of([b"e", b"f", b"g"])) == {b"f"}
    assert earlier.of([b"h"]) == {}
    assert Earlier(iter(())).of([b"a"]) == {}


def never() -> None:
    pytest.fail("waits")
