"""Restores from real repositories: again, in part, beside what is there, and out of damaged ones."""

import contextlib
import os
import shutil
import subprocess
import threading
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.budget import Budgets
from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import DamagedBlob, Unreachable, VolumeError
from agent.monitor import Monitor
from agent.repository.identity import BlobId, BlobType
from agent.repository.objects import pack_key
from agent.repository.opening import open_repository
from agent.repository.repository import Reader
from agent.storage.contract import Room, Storage
from agent.storage.faults import Fault, Faulty, failing
from agent.transfer.content import Content
from agent.transfer.restore import RestoreRequest, restore
from agent.transfer.selection import Selection
from agent.transfer.survey import preview, verify
from agent.transfer.target_links import TargetLinks
from agent.transfer.target_writing import Writing
from agent.transfer.window import WINDOW_FILES, Window
from tests.repository.making import PASSWORD
from tests.transfer.running import Bench, all_content, noise
from tests.transfer.test_restore import descriptors, problems
from tests.volume.conftest import as_root as as_root
from tests.volume.conftest import mount as mount
from tests.volume.test_races import exchange, swapping

ZEROS = bytes(512 << 10)


class Restores:
    """A snapshot of a volume with a bit of everything, and restores of it."""

    def __init__(self, bench: Bench, target: Path) -> None:
        self.bench = bench
        self.target = target
        self.tree = bench.repository().snapshot("latest").tree

    def request(
        self, include: Sequence[str] = (), exclude: Sequence[str] = (), *, delete: bool = False
    ) -> RestoreRequest:
        return RestoreRequest(self.tree, self.target, Selection(include, exclude), delete)

    def source(self, storage: Storage | None = None) -> Reader:
        return open_repository(storage or self.bench.storage, PASSWORD).reading()

    def run(self, request: RestoreRequest | None = None, storage: Storage | None = None) -> Monitor:
        monitor = Monitor()
        before = descriptors()
        try:
            restore(self.source(storage), request or self.request(), monitor, CancelToken())
        finally:
            assert descriptors() == before
        return monitor

    def preview(self, request: RestoreRequest | None = None) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for action in preview(self.source(), request or self.request(), CancelToken()):
            found.setdefault(action.sign, []).append(action.path)
        return found

    def differing(self, request: RestoreRequest | None = None) -> list[str]:
        monitor = Monitor()
        verify(self.source(), request or self.request(), monitor, CancelToken())
        return sorted(problem.split(":")[0] for problem in problems(monitor))

    def entry_content(self, name: bytes) -> tuple[bytes, ...]:
        return self.bench.entries("latest")[name].content or ()

    def pack_of(self, name: bytes, chunk: int = 0) -> str:
        id = BlobId(self.entry_content(name)[chunk])
        return pack_key(self.source().view.find(BlobType.DATA, id)[0].pack)


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """Return what can be seen of everything below a directory, times included."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        info = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(root))] = (
            info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns,
            info.st_ctime_ns, info.st_ino, info.st_nlink, content,
        )  # fmt: skip
    return found


@pytest.fixture
def restores(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restores:
    monkeypatch.setattr("agent.repository.pack.TARGET_BYTES", 1 << 20)
    monkeypatch.setattr("agent.repository.writer.TARGET_BYTES", 1 << 20)
    volume = bench.volume
    for number in range(3):
        folder = volume / f"d{number}" / "below"
        folder.mkdir(parents=True)
        for file in range(10):
            (folder / f"f{file}").write_bytes(noise(number * 100 + file, 3000 + file))
    (volume / "large").write_bytes(noise(1, 5 << 20))
    (volume / "sparse").write_bytes(noise(2, 600_000) + ZEROS * 4 + noise(3, 600_000))
    (volume / "empty").touch()
    (volume / "exact").write_bytes(noise(4, 64 << 10))
    (volume / ("n" * 255)).write_bytes(b"a long name")
    (volume / "old").write_bytes(b"before 1970")
    os.utime(volume / "old", ns=(-5_000_000_001, -5_000_000_001))
    (volume / "link").symlink_to("large")
    os.mkfifo(volume / "fifo")
    (volume / "one").write_bytes(noise(5, 200_000))
    os.link(volume / "one", volume / "two")
    (volume / "d1" / "mode").mkdir(mode=0o500)
    bench.run()
    return Restores(bench, tmp_path / "target")


FILES = 30 + 6 + 2


def test_all_comes_back_and_every_byte_is_counted_once(restores: Restores) -> None:
    done = restores.run().counters
    assert all_content(restores.target) == all_content(restores.bench.volume)
    assert (done.files_new, done.files, done.problems) == (FILES, FILES, 0)
    assert done.bytes_done == done.bytes_total
    assert (restores.target / "old").stat().st_mtime_ns == -5_000_000_001
    assert (restores.target / "one").samefile(restores.target / "two")
    assert (restores.target / "sparse").stat().st_blocks * 512 < 1_400_000
    assert restores.differing() == []


def test_a_second_restore_fetches_nothing_and_keeps_every_file(restores: Restores) -> None:
    restores.run()
    storage = Faulty(restores.bench.storage)
    inodes = {path: path.stat().st_ino for path in restores.target.rglob("*") if path.is_file()}
    done = restores.run(storage=storage).counters
    assert (done.bytes_read, done.files_unmodified, done.files) == (0, FILES - 1, FILES)
    assert "get_range" not in {operation for operation, _ in storage.calls}
    assert done.bytes_done == done.bytes_total
    assert inodes == {path: path.stat().st_ino for path in inodes}


def test_only_what_is_missing_or_different_is_fetched(restores: Restores) -> None:
    whole = restores.run().counters.bytes_read
    (restores.target / "d0" / "below" / "f3").unlink()
    with open(restores.target / "large", "r+b") as file:
        file.seek(5)
        file.write(b"different")
    with open(restores.target / "sparse", "r+b") as file:
        file.truncate(2_000_000)
    done = restores.run().counters
    assert 0 < done.bytes_read < whole * 0.7
    assert (done.files_new - 1, done.files_changed) == (1, 2)  # the other new one is a link
    assert all_content(restores.target) == all_content(restores.bench.volume)


def test_zeros_are_written_over_old_content(restores: Restores) -> None:
    restores.run()
    with open(restores.target / "sparse", "r+b") as file:
        file.seek(600_000)
        file.write(b"x" * len(ZEROS) * 4)
    restores.run()
    assert restores.differing() == []
    assert all_content(restores.target) == all_content(restores.bench.volume)


def test_right_content_gets_its_metadata_back(restores: Restores) -> None:
    restores.run()
    (restores.target / "exact").chmod(0o7)
    os.utime(restores.target / "exact", ns=(1, 1))
    assert restores.run().counters.bytes_read == 0
    found, wanted = (p.stat() for p in (restores.target / "exact", restores.bench.volume / "exact"))
    assert (found.st_mode, found.st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns)


def test_a_link_that_the_snapshot_does_not_have_is_parted_from(restores: Restores) -> None:
    restores.run()
    os.link(restores.target / "exact", restores.target / "extra")
    (restores.target / "extra").chmod(0o604)
    before = (restores.target / "extra").stat()
    restores.run()
    after = (restores.target / "extra").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (after.st_nlink, (restores.target / "exact").stat().st_nlink) == (1, 1)


def test_two_files_of_one_content_are_not_kept_as_one(bench: Bench, tmp_path: Path) -> None:
    for name in ("a1", "b1"):
        (bench.volume / name).write_bytes(b"the same")
        os.link(bench.volume / name, bench.volume / name.replace("1", "2"))
    (bench.volume / "b1").chmod(0o600)
    bench.run()
    restores = Restores(bench, tmp_path / "target")
    restores.target.mkdir()
    for ours, theirs in (("a1", "b1"), ("a2", "b2")):
        (restores.target / ours).write_bytes(b"the same")
        os.link(restores.target / ours, restores.target / theirs)
    restores.run()
    a1, a2, b1, b2 = ((restores.target / name).stat() for name in ("a1", "a2", "b1", "b2"))
    assert a1.st_ino == a2.st_ino != b1.st_ino == b2.st_ino
    assert [info.st_mode & 0o777 for info in (a1, b1)] == [0o644, 0o600]


def test_files_and_directories_take_each_others_place(restores: Restores) -> None:
    restores.target.mkdir()
    (restores.target / "d0").write_bytes(b"a file")
    (restores.target / "large").mkdir()
    (restores.target / "fifo").mkdir()
    (restores.target / "d1").symlink_to("/nowhere")
    assert restores.run().counters.problems == 0
    assert all_content(restores.target) == all_content(restores.bench.volume)


def test_delete_removes_what_the_snapshot_does_not_have_and_spares_what_is_excluded(
    restores: Restores,
) -> None:
    restores.run()
    for name in ("gone/x", "gone/deep/keep.log", "d0/gone", "keep.log", "d0/below/keep.log"):
        (restores.target / name).parent.mkdir(parents=True, exist_ok=True)
        (restores.target / name).write_bytes(b"x")
    request = restores.request(exclude=["*.log", "/d2"], delete=True)
    (restores.target / "d2" / "gone").touch()
    assert restores.run(request).counters.removed == 2
    assert (restores.target / "gone" / "deep" / "keep.log").exists()
    assert (restores.target / "d2" / "gone").exists()
    assert not (restores.target / "d0" / "gone").exists()
    restores.run(restores.request(delete=True))
    assert all_content(restores.target) == all_content(restores.bench.volume)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["/d1"], [], 10),
        (["f1"], [], 3),
        (["/d0", "f2"], ["f1"], 9 + 2),
        (["/d0/below/f1"], ["/d0"], 0),
        ([], ["below"], 8),
    ],
)
def test_what_is_selected_is_restored_and_nothing_else(
    restores: Restores, include: list[str], exclude: list[str], expected: int
) -> None:
    request = restores.request(include, exclude)
    selection = request.selection
    done = restores.run(request).counters
    wanted = {
        path: content
        for path, content in all_content(restores.bench.volume).items()
        if selection.wants(path, False)
    }
    assert all_content(restores.target) == wanted
    assert (len(wanted), done.files) == (expected, expected)
    assert restores.differing(request) == []


def test_a_dry_run_says_what_then_happens_and_writes_nothing(restores: Restores) -> None:
    restores.run()
    (restores.target / "d0" / "below" / "f3").unlink()
    shutil.rmtree(restores.target / "d1")
    (restores.target / "gone").mkdir()
    (restores.target / "gone" / "x").touch()
    with open(restores.target / "large", "r+b") as file:
        file.write(b"different")
    before = state(restores.target)
    request = restores.request(delete=True)
    said = restores.preview(request)
    assert state(restores.target) == before
    assert said["-"] == [b"gone"]
    assert said["M"] == [b"large"]
    assert {b"d0/below/f3", b"d1", b"d1/below", b"d1/below/f0"} < set(said["+"])
    done = restores.run(request).counters
    assert done.files_changed == len(said["M"])
    assert set(restores.preview(request)) == {"="}


def test_a_dry_run_makes_no_target(restores: Restores) -> None:
    said = restores.preview()
    assert set(said) == {"+"}
    assert not restores.target.exists()
    assert set(all_content(restores.bench.volume)) < set(said["+"])


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def _other(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("large", _flip),
        ("large", Path.unlink),
        ("large", lambda path: path.write_bytes(path.read_bytes() + b"x")),
        ("large", lambda path: os.truncate(path, 100)),
        ("empty", lambda path: path.write_bytes(b"x")),
        ("large", _other(lambda path: path.symlink_to("exact"))),
        ("large", _other(Path.mkdir)),
        ("large", _other(os.mkfifo)),
        ("link", _other(lambda path: path.symlink_to("elsewhere"))),
        ("link", _other(Path.touch)),
        ("fifo", Path.unlink),
        ("d1/mode", Path.rmdir),
    ],
)
def test_verify_notices_every_difference(
    restores: Restores, name: str, change: Callable[[Path], None]
) -> None:
    restores.run()
    change(restores.target / name)
    assert restores.differing() == [name]


def test_verify_names_all_that_a_missing_directory_held(restores: Restores) -> None:
    restores.run()
    shutil.rmtree(restores.target / "d0" / "below")
    assert restores.differing() == ["d0/below", *(f"d0/below/f{n}" for n in range(10))]


@pytest.mark.parametrize("files", [1, 3, 7])
def test_small_windows_give_the_same_result(
    restores: Restores, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr("agent.transfer.window.WINDOW_FILES", files)
    monkeypatch.setattr("agent.transfer.window.WINDOW_CHUNKS", files)
    done = restores.run().counters
    assert (done.files, done.problems, done.bytes_done) == (FILES, 0, done.bytes_total)
    assert all_content(restores.target) == all_content(restores.bench.volume)
    assert restores.differing() == []


def fill(window: Window, until: Callable[[], bool]) -> int:
    """Add small files to a window until it is as it should be; return how many it took."""
    entry = Entry(b"name", Kind.FILE, 0o600, 0, 0, 0, 0, 1, 1, content=(bytes(32),))
    files = 0
    while not until():
        assert window.add_small(None, [entry]) == []  # type: ignore[arg-type]
        files += 1
    return files


def test_windows_are_worth_fetching_at_a_size_that_grows_to_the_bound() -> None:
    window, worth = Window.first(), []
    for _ in range(6):
        worth.append(fill(window, lambda: window.worth_fetching))  # noqa: B023 (called at once)
        window = window.next()
    assert worth == [2048, 4096, 8192, 16384, WINDOW_FILES, WINDOW_FILES]
    window = Window.first()
    assert fill(window, lambda: window.full) == WINDOW_FILES


def test_a_window_grows_while_the_one_before_is_planned(restores: Restores) -> None:
    monitor, source, settled = Monitor(), restores.source(), threading.Event()
    writing = Writing(monitor, TargetLinks(lambda *_: None))
    content = Content(source, monitor, Run(CancelToken()), writing, Budgets())

    def plan(_source: Reader, _wanted: object) -> tuple[list[object], dict[object, object]]:
        assert settled.wait(60)
        return [], {}

    with contextlib.closing(content), unittest.mock.patch.object(Reader, "plan", plan):
        first = content.window
        fill(first, lambda: first.worth_fetching)
        content.fetch_when_due()
        second = content.window
        assert second is not first
        fill(second, lambda: second.worth_fetching)
        content.fetch_when_due()
        assert content.window is second
        settled.set()
        while content.window is second:
            content.fetch_when_due()
        content.finish()


def test_each_range_is_fetched_once_and_little_in_vain(restores: Restores) -> None:
    view = restores.source().view
    names = [name for name, entry in restores.bench.entries("latest").items() if entry.content]
    ids = {id for name in names for id in restores.entry_content(name)}
    places = [view.find(BlobType.DATA, BlobId(id))[0] for id in ids if id not in _holes(restores)]
    needed = sum(place.blob.length for place in places)
    ranges: list[tuple[str, int, int]] = []

    class Noting(Faulty):
        def get_range(self, key: str, offset: int, out: Room, **rest: object) -> None:
            ranges.append((key, offset, len(out)))
            super().get_range(key, offset, out)

    done = restores.run(storage=Noting(restores.bench.storage)).counters
    assert len(set(ranges)) == len(ranges)
    ends: dict[str, int] = {}
    for key, offset, length in sorted(ranges):
        assert offset >= ends.get(key, 0)
        ends[key] = offset + length
    assert sum(length for _, _, length in ranges) == done.bytes_read
    assert needed <= done.bytes_read <= 1.05 * needed


def _holes(restores: Restores) -> set[bytes]:
    source = restores.source()
    return {id for id in restores.entry_content(b"sparse") if source.is_zeros(id)}


@pytest.mark.parametrize("damage", ["flip", "missing", "cut"])
def test_where_a_pack_is_damaged_everything_else_is_restored(
    restores: Restores, damage: str
) -> None:
    storage = restores.bench.storage
    key = restores.pack_of(b"large", 1)
    body = storage.get(key)
    storage.delete(key)
    if damage == "flip":
        place = restores.source().view.find(
            BlobType.DATA, BlobId(restores.entry_content(b"large")[1])
        )[0]
        middle = place.blob.offset + place.blob.length // 2
        storage.put(key, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :])
    elif damage == "cut":
        storage.put(key, body[: len(body) // 4])
    monitor = Monitor()
    with pytest.raises(DamagedBlob, match="everything else is restored"):
        restore(restores.source(), restores.request(), monitor, CancelToken())
    lost = {problem.split(":")[0].encode() for problem in problems(monitor)}
    assert b"large" in lost
    whole = all_content(restores.bench.volume)
    assert all_content(restores.target) == {p: c for p, c in whole.items() if p not in lost}


def test_lost_content_is_lost_under_every_name_and_fetched_for_one(
    bench: Bench, tmp_path: Path
) -> None:
    (bench.volume / "a").write_bytes(noise(1, 300_000))
    for number in range(5):
        os.link(bench.volume / "a", bench.volume / f"b{number}")
    bench.run()
    restores = Restores(bench, tmp_path / "target")
    bench.storage.delete(restores.pack_of(b"a"))
    storage = Faulty(bench.storage)
    with pytest.raises(DamagedBlob, match="6 entries"):
        restores.run(storage=storage)
    assert sum(operation == "get_range" for operation, _ in storage.calls) <= 2
    assert list(restores.target.iterdir()) == []


def test_where_a_tree_is_lost_everything_else_is_restored_and_nothing_deleted(
    restores: Restores,
) -> None:
    restores.run()
    (restores.target / "d0" / "extra").touch()
    below = restores.bench.entries("latest")[b"d0"].subtree
    assert below is not None
    source = restores.source()
    load = source.load_tree

    def lose(id: bytes) -> object:
        if id == below:
            raise DamagedBlob("tree blob is lost")
        return load(id)

    source.load_tree = lose  # type: ignore[method-assign, assignment]
    with pytest.raises(DamagedBlob, match="d0"):
        restore(source, restores.request(delete=True), Monitor(), CancelToken())
    assert (restores.target / "d0" / "extra").exists()
    assert (restores.target / "d0" / "below" / "f1").exists()


def test_an_error_of_the_storage_ends_the_run_and_the_next_one_goes_on(restores: Restores) -> None:
    fault = Fault("get_range", failing(Unreachable("the storage is away")), nth=2, times=1000)
    with pytest.raises(Unreachable):
        restores.run(storage=Faulty(restores.bench.storage, fault))
    restores.run()
    assert all_content(restores.target) == all_content(restores.bench.volume)
    assert restores.differing() == []


def test_a_full_file_system_ends_the_run_and_the_next_one_goes_on(
    restores: Restores, mount: Callable[..., None]
) -> None:
    restores.target.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", restores.target)
    with pytest.raises(VolumeError, match="no space left"):
        restores.run()
    subprocess.run(["mount", "-o", "remount,size=64m", restores.target], check=True)
    restores.run()
    assert all_content(restores.target) == all_content(restores.bench.volume)


def test_a_target_that_is_a_symlink_to_a_directory_is_followed(restores: Restores) -> None:
    real = restores.target.parent / "real"
    real.mkdir()
    restores.target.symlink_to(real)
    restores.run()
    assert all_content(real) == all_content(restores.bench.volume)


@pytest.mark.parametrize("delete", [False, True])
def test_nothing_outside_is_written_or_removed_through_symlinks_that_were_planted(
    restores: Restores, delete: bool
) -> None:
    outside = restores.target.parent / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "large").write_bytes(b"safe")
    (outside / "below" / "f1").write_bytes(b"safe")
    before = state(outside)
    restores.target.mkdir()
    (restores.target / "d0").symlink_to(outside)
    (restores.target / "d1").mkdir()
    (restores.target / "d1" / "below").symlink_to(outside / "below")
    (restores.target / "d1" / "extra").symlink_to(outside)
    (restores.target / "large").symlink_to(outside / "large")
    assert restores.run(restores.request(delete=delete)).counters.problems == 0
    assert state(outside) == before
    for path, content in all_content(restores.bench.volume).items():
        assert (restores.target / os.fsdecode(path)).read_bytes() == content


@pytest.mark.parametrize("delete", [False, True])
def test_nothing_outside_is_written_or_removed_while_directories_are_swapped_for_symlinks(
    restores: Restores, delete: bool
) -> None:
    outside = restores.target.parent / "outside"
    (outside / "below").mkdir(parents=True)
    for name in ("f1", "below/f1", "below/f2", "extra"):
        (outside / name).write_bytes(b"safe")
    before = state(outside)
    links = [restores.target.parent / f"link{number}" for number in range(2)]
    for link in links:
        link.symlink_to(outside)
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        for link, name in zip(links, ("d0", "d1/below"), strict=True):
            try:
                exchange(link, restores.target / name)
            except (OSError, AssertionError):
                continue  # it is not made yet
            swaps += 1

    with swapping(swap):
        for _ in range(12):
            monitor = Monitor()
            restore(restores.source(), restores.request(delete=delete), monitor, CancelToken())
            shutil.rmtree(restores.target / "d2")
    assert swaps > 0
    assert state(outside) == before
