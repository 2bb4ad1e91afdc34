"""Looking at names and reading small files in batches: the kernel and its twin, and attacks on both."""

import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cancel import NEVER
from agent.entry import Entry
from agent.monitor import Monitor
from agent.volume import _look
from agent.volume.descriptors import DIRECTORY
from agent.volume.looking import SMALL_BYTES, ReadFile
from agent.volume.reader import Volume
from tests.support.requirements import missing
from tests.volume import look_twin
from tests.volume.listing import listing
from tests.volume.look_twin import NO_ROOM, REPLACED, UNUSUAL

SECRET = b"what is outside of the volume"
_FILE = struct.Struct("=6I2q5Q4Q")


@pytest.fixture(params=["kernel", "twin"])
def one(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Have the volume use one of the two."""
    chosen = _look if request.param == "kernel" else look_twin
    monkeypatch.setattr("agent.volume.looking._look", chosen)
    return chosen


@pytest.fixture
def here(source: Path) -> Iterator[int]:
    descriptor = os.open(source, DIRECTORY)
    yield descriptor
    os.close(descriptor)


def pin(path: Path) -> bytes:
    stat = path.lstat()
    return struct.pack("=QQ", stat.st_ino, stat.st_dev)


def read(volume: Volume, *names: bytes, room: int = 1 << 20) -> dict[bytes, bytes | None]:
    """List and read in one go; return contents by name."""
    found = listing(volume.root)
    return contents(volume, [found[name] for name in names], room)


def contents(
    volume: Volume, entries: list[Entry], room: int = 1 << 20
) -> dict[bytes, bytes | None]:
    buffer = memoryview(bytearray(b"\xee" * room))
    result = volume.root.read_files(entries, buffer, Monitor())
    return {
        entry.name: None if file is None else bytes(buffer[file.start : file.start + file.length])
        for entry, file in zip(entries, result, strict=True)
    }


class TestBoth:
    def test_files_are_read_one_behind_the_other(
        self, one: ModuleType, source: Path, volume: Volume
    ) -> None:
        for name, content in ((b"a", b"first"), (b"b", b""), (b"c", b"third" * 5000)):
            (source / name.decode()).write_bytes(content)
        assert read(volume, b"a", b"b", b"c") == {b"a": b"first", b"b": b"", b"c": b"third" * 5000}

    def test_an_entry_is_that_of_the_listing_with_its_attributes(
        self, one: ModuleType, source: Path, volume: Volume
    ) -> None:
        (source / "f").write_bytes(b"x")
        try:
            os.setxattr(source / "f", "user.a", b"1")
            os.setxattr(source / "f", "user.empty", b"")
        except OSError as error:
            missing(f"a file system with attributes ({error})", "set TMPDIR to one")
        entry = listing(volume.root)[b"f"]
        (file,) = volume.root.read_files([entry], memoryview(bytearray(9)), Monitor())
        assert file is not None
        assert file.entry.xattrs == ((b"user.a", b"1"), (b"user.empty", b""))
        with volume.root.open_file(entry) as alone:
            assert file.entry == alone.entry

    def test_metadata_changed_since_the_listing_is_fresh(
        self, one: ModuleType, source: Path, volume: Volume
    ) -> None:
        (source / "f").write_bytes(b"x")
        entry = listing(volume.root)[b"f"]
        (source / "f").write_bytes(b"longer")
        (source / "f").chmod(0o600)
        (file,) = volume.root.read_files([entry], memoryview(bytearray(99)), Monitor())
        assert isinstance(file, ReadFile)
        assert (file.length, file.entry.size, file.entry.permissions) == (6, 6, 0o600)
        assert file.entry == listing(volume.root)[b"f"]

    @pytest.mark.parametrize("room", [0, 5, 6, 11])
    def test_what_does_not_fit_is_left(
        self, one: ModuleType, source: Path, volume: Volume, room: int
    ) -> None:
        (source / "a").write_bytes(b"first")
        (source / "b").write_bytes(b"other")
        assert read(volume, b"a", b"b", room=room) == {
            b"a": b"first" if room > 5 else None,
            b"b": b"other" if room > 10 else None,
        }

    def test_what_lies_behind_the_room_is_not_touched(
        self, one: ModuleType, source: Path, here: int
    ) -> None:
        (source / "a").write_bytes(b"first")
        (source / "b").write_bytes(b"other")
        buffer = bytearray(b"\xee" * 20)
        with memoryview(buffer) as view:
            files, _ = one.read_files(
                here, (b"a", b"b"), pin(source / "a") + pin(source / "b"), view[:8]
            )
        assert [record[0] for record in _FILE.iter_unpack(files)] == [0, NO_ROOM]
        assert bytes(buffer) == b"first" + b"\xee" * 15

    @pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "other file", "nothing"])
    def test_what_was_put_in_the_place_of_a_file_is_not_opened(
        self, one: ModuleType, source: Path, volume: Volume, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "outside").write_bytes(SECRET)
        (source / "f").write_bytes(b"x")
        (source / "keep").write_bytes(b"kept")
        found = listing(volume.root)
        (source / "f").rename(tmp_path / "moved away")
        put: dict[str, Callable[[], object]] = {
            "symlink": lambda: (source / "f").symlink_to(tmp_path / "outside"),
            "fifo": lambda: os.mkfifo(source / "f"),
            "directory": lambda: (source / "f").mkdir(),
            "other file": lambda: shutil.copy(tmp_path / "outside", source / "f"),
            "nothing": lambda: None,
        }
        put[kind]()
        assert contents(volume, [found[b"f"], found[b"keep"]]) == {b"f": None, b"keep": b"kept"}

    def test_a_device_in_the_place_of_a_file_is_not_opened(
        self, one: ModuleType, as_root: None, source: Path, here: int
    ) -> None:
        try:
            os.mknod(source / "device", 0o600 | 0o020000, os.makedev(1, 5))
        except OSError as error:
            missing(f"the right to make devices ({error})", "run as root with CAP_MKNOD")
        files, _ = one.read_files(here, (b"device",), pin(source / "device"), bytearray(100))
        assert _FILE.unpack(files)[0] == REPLACED

    def test_a_file_that_is_swapped_all_the_time_is_never_read_from_outside(
        self, one: ModuleType, source: Path, volume: Volume, tmp_path: Path
    ) -> None:
        (tmp_path / "outside").write_bytes(SECRET)
        (source / "f").write_bytes(b"inside")
        (source / "link").symlink_to(tmp_path / "outside")
        entry = listing(volume.root)[b"f"]
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                os.rename(source / "f", source / "aside")
                os.symlink(tmp_path / "outside", source / "f")
                os.unlink(source / "f")
                os.rename(source / "aside", source / "f")

        attacker = threading.Thread(target=swap)
        attacker.start()
        try:
            seen = {contents(volume, [entry], 100)[b"f"] for _ in range(2000)}
        finally:
            stop.set()
            attacker.join()
        assert seen <= {b"inside", None}
        assert contents(volume, [entry], 100) == {b"f": b"inside"}

    def test_pseudo_files_and_too_many_attributes_are_unusual(
        self, one: ModuleType, source: Path, here: int
    ) -> None:
        proc = os.open(f"/proc/{os.getpid()}", DIRECTORY)
        try:
            files, _ = one.read_files(
                proc, (b"status",), pin(Path(f"/proc/{os.getpid()}/status")), bytearray(99_999)
            )
        finally:
            os.close(proc)
        assert _FILE.unpack(files)[0] == UNUSUAL
        (source / "f").write_bytes(b"x")
        try:
            for number in range(24):
                os.setxattr(source / "f", f"user.{'long' * 10}{number}", b"")
        except OSError as error:
            missing(f"a file system with many attributes ({error})", "set TMPDIR to one")
        files, _ = one.read_files(here, (b"f",), pin(source / "f"), bytearray(99))
        assert _FILE.unpack(files)[0] == UNUSUAL

    def test_bad_arguments_are_refused(self, one: ModuleType, here: int) -> None:
        for names in ([b"a"], ("a",), b"a"):
            with pytest.raises(TypeError):
                one.look(here, names)
        with pytest.raises(ValueError, match="null byte"):
            one.look(here, (b"a\0b",))
        with pytest.raises(ValueError, match="different lengths"):
            one.read_files(here, (b"a",), bytes(15), bytearray(9))
        assert one.look(here, ()) == b""

    def test_no_descriptor_stays_open(self, one: ModuleType, source: Path, volume: Volume) -> None:
        for number in range(50):
            (source / f"f{number:02}").write_bytes(b"x" * number)
        (source / "large").write_bytes(bytes(SMALL_BYTES))
        before = len(os.listdir("/proc/self/fd"))
        contents(volume, list(listing(volume.root).values()), 1000)
        assert len(os.listdir("/proc/self/fd")) == before


NAMES = st.lists(
    st.sampled_from([b"file", b"dir", b"link", b"fifo", b"gone", b"none/x"]), max_size=8
)


@settings(deadline=None)
@given(names=NAMES, room=st.integers(0, 50))
def test_the_kernel_and_its_twin_say_the_same(
    names: list[bytes], room: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("same")
    (root / "file").write_bytes(b"sixteen bytes...")
    (root / "dir").mkdir()
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    descriptor = os.open(root, DIRECTORY)
    try:
        wanted = tuple(names)
        assert _look.look(descriptor, wanted) == look_twin.look(descriptor, wanted)
        pins = b"".join(
            pin(root / name.decode()) if (root / name.decode()).exists() else bytes(16)
            for name in names
        )
        answers = []
        for kernel in (_look, look_twin):
            buffer = bytearray(room)
            files, attributes = kernel.read_files(descriptor, wanted, pins, buffer)
            records = [record[:14] if record[0] else record for record in _FILE.iter_unpack(files)]
            answers.append(SimpleNamespace(r=records, a=attributes, b=bytes(buffer)))
        assert answers[0] == answers[1]
    finally:
        os.close(descriptor)


def test_a_listing_that_is_the_same_has_the_same_digest_and_any_other_another(
    source: Path, volume: Volume
) -> None:
    for name in "ab":
        (source / name).write_bytes(b"x")
    first = volume.root.listing(NEVER).digest()
    assert volume.root.listing(NEVER).digest() == first
    changes: list[Callable[[], object]] = [
        lambda: (source / "a").write_bytes(b"longer"),
        lambda: (source / "a").chmod(0o600),
        lambda: (source / "c").touch(),
        lambda: (source / "c").rename(source / "d"),
        lambda: (source / "d").unlink(),
        lambda: os.link(source / "a", source.parent / "link"),
    ]
    seen = {first}
    for change in changes:
        change()
        seen.add(volume.root.listing(NEVER).digest())
    assert len(seen) == len(changes)  # what was made and removed again changed nothing


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_what_is_mounted_over_a_name_while_the_volume_is_open_is_left_out(
    tmp_path: Path, mount: Callable[..., None], kind: str
) -> None:
    mount("-t", "tmpfs", "none", tmp_path)  # so that nothing lies on its mount when it is opened
    (tmp_path / "file").write_text("of somebody else")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "source").mkdir()
    for name in ("mine", "mounted", "skipped"):
        (tmp_path / "source" / name).touch()
    monitor = Monitor()
    with Volume.open(tmp_path / "source") as volume:
        before = volume.root.listing(NEVER).digest()
        for name in ("mounted", "skipped"):
            mount("--bind", tmp_path / kind, tmp_path / "source" / name)
        assert list(listing(volume.root, monitor, "skipped")) == [b"mine"]
        assert volume.root.listing(NEVER).digest() != before
    assert (monitor.counters.mounts_skipped, monitor.counters.excluded) == (1, 1)
