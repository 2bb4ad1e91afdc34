"""Reading files: every byte, no hole, and nothing else that an owner puts in their place."""

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import SourceError
from agent.volume.file import FileReader, Hole
from agent.volume.reader import Volume
from tests.support.requirements import missing
from tests.volume.listing import listing

TIB = 1 << 40


def opened(volume: Volume, name: bytes = b"file") -> FileReader:
    return volume.root.open_file(listing(volume.root)[name])


def content(file: FileReader, room: int = 4096) -> bytes:
    buffer = memoryview(bytearray(room))
    return b"".join(
        bytes(part.length) if isinstance(part, Hole) else bytes(part)
        for part in file.segments(lambda: buffer)
    )


def shape(file: FileReader, room: int = 1 << 20) -> list[tuple[str, int]]:
    return [
        ("hole", part.length) if isinstance(part, Hole) else ("data", len(part))
        for part in file.segments(lambda: memoryview(bytearray(room)))
    ]


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250, 300])
def test_content_is_delivered_whole_in_full_buffers(
    source: Path, volume: Volume, size: int
) -> None:
    data = os.urandom(size)
    (source / "file").write_bytes(data)
    with opened(volume) as file:
        parts = [bytes(part) for part in file.segments(lambda: memoryview(bytearray(100)))]  # type: ignore[arg-type]
        assert b"".join(parts) == data
        assert all(len(part) == 100 for part in parts[:-1])
        assert file.entry_after().size == size
        assert not file.changed


def test_an_unchanged_file_has_the_entry_of_the_listing(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x")
    entry = listing(volume.root)[b"file"]
    with volume.root.open_file(entry) as file:
        assert content(file) == b"x"
        assert file.entry_after() == entry


def test_metadata_changed_since_the_listing_is_taken_from_the_open_file(
    source: Path, volume: Volume
) -> None:
    (source / "file").write_bytes(b"short")
    entry = listing(volume.root)[b"file"]
    time_before = entry.ctime_ns
    while os.stat(source / "file").st_ctime_ns == time_before:  # the clock's tick, 4 ms at most
        os.chmod(source / "file", 0o600)
        (source / "file").write_bytes(b"rather longer")
    with volume.root.open_file(entry) as file:
        assert content(file) == b"rather longer"
        assert (file.entry.size, file.entry.permissions) == (13, 0o600)
        assert file.entry.ctime_ns == os.stat(source / "file").st_ctime_ns


def test_a_terabyte_of_holes_is_told_and_not_read(source: Path, volume: Volume) -> None:
    with (source / "file").open("wb") as out:
        out.write(b"a" * 4096)
        out.seek(TIB // 2)
        out.write(b"b" * 4096)
        try:
            out.truncate(TIB)
        except OSError as error:
            missing(f"a file system with files of 1 TiB ({error})", "set TMPDIR to one")
    with opened(volume) as file:
        started = time.monotonic()
        found = shape(file)
        assert time.monotonic() - started < 5
        assert found[0][0] == "data"
        assert [kind for kind, _ in found] == ["data", "hole", "data", "hole"]
        assert sum(length for kind, length in found if kind == "data") <= 2 << 20
        assert sum(length for _, length in found) == TIB
        assert file.entry_after().size == TIB


def test_a_file_that_is_one_hole_is_one_hole(source: Path, volume: Volume) -> None:
    with (source / "file").open("wb") as out:
        out.truncate(10_000_000)
    with opened(volume) as file:
        assert shape(file) == [("hole", 10_000_000)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=9000))),
    size=st.integers(0, 300_000),
    room=st.sampled_from([1000, 4096, 70_000]),
)
def test_any_sparse_file_reads_as_the_kernel_reads_it(
    source: Path, writes: list[tuple[int, bytes]], size: int, room: int
) -> None:
    with (source / "file").open("wb") as out:
        for block, data in writes:
            out.seek(block * 4096)
            out.write(data)
        out.truncate(size)
    with Volume.open(source) as volume, opened(volume) as file:
        assert content(file, room) == (source / "file").read_bytes()


def test_a_file_truncated_while_it_is_read_ends_early(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x" * 1000)
    with opened(volume) as file:
        parts = file.segments(lambda: memoryview(bytearray(100)))
        next(parts)
        os.truncate(source / "file", 250)
        assert sum(len(part) for part in parts) == 150  # type: ignore[arg-type, misc]
        assert file.entry_after().size == 250
        assert file.changed


def test_a_sparse_file_truncated_while_it_is_read_ends_early(source: Path, volume: Volume) -> None:
    with (source / "file").open("wb") as out:
        out.write(b"x" * 4096)
        out.truncate(TIB)
    with opened(volume) as file:
        parts = file.segments(lambda: memoryview(bytearray(1 << 20)))
        assert len(next(parts)) >= 4096  # type: ignore[arg-type]
        os.truncate(source / "file", 1 << 30)
        assert [type(part) for part in parts] == [Hole]
        assert file.entry_after().size == 1 << 30


def test_what_was_appended_before_the_end_was_reached_is_read_too(
    source: Path, volume: Volume
) -> None:
    (source / "file").write_bytes(b"x" * 100)
    with opened(volume) as file:
        (source / "file").write_bytes(b"y" * 130)
        assert content(file) == b"y" * 130
        assert file.entry_after().size == 130


@pytest.mark.parametrize(
    ("size", "error", "dropped"),
    [
        (16 << 20, BlockingIOError(errno.EAGAIN, "not in memory"), 16 << 20),
        (16 << 20, OSError(errno.EOPNOTSUPP, "not told"), 0),
        (16 << 20, None, 0),
        ((16 << 20) - 1, BlockingIOError(errno.EAGAIN, "not in memory"), 0),
    ],
    ids=["cold", "untold", "warm", "small"],
)
def test_only_a_large_file_that_nobody_had_read_leaves_the_page_cache_again(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch,
    size: int, error: OSError | None, dropped: int,
) -> None:  # fmt: skip
    let_go: list[tuple[int, int]] = []
    preadv = os.preadv

    def probe(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags and error is not None:
            raise error
        return preadv(descriptor, buffers, offset)

    def advise(_: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        let_go.append((offset, length))

    (source / "file").write_bytes(b"x" * size)
    monkeypatch.setattr("agent.volume.file.os.preadv", probe)
    monkeypatch.setattr("agent.volume.file.os.posix_fadvise", advise)
    with opened(volume) as file:
        assert shape(file, 8 << 20) == [
            ("data", min(8 << 20, size - (8 << 20) * n)) for n in (0, 1)
        ]
    assert sum(length for _, length in let_go) == dropped
    assert [offset for offset, _ in let_go] == [(8 << 20) * n for n in range(len(let_go))]


def test_a_file_that_grows_for_ever_ends(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x" * 100)
    with opened(volume) as file, (source / "file").open("ab", buffering=0) as grow:
        delivered = 0
        for part in file.segments(lambda: memoryview(bytearray(10))):
            assert isinstance(part, memoryview)
            delivered += len(part)
            grow.write(b"y" * 20)
            assert delivered <= 300
        assert delivered == 300
        assert file.entry_after().size == 300
        assert file.changed


def test_a_file_that_says_it_is_empty_is_read_to_its_end() -> None:
    with Volume.open("/proc/sys/kernel") as volume, opened(volume, b"ostype") as file:
        assert file.entry.size == 0
        assert content(file, 2) == b"Linux\n"
        assert file.entry_after().size == 6


def test_a_file_that_says_it_is_empty_and_goes_on_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.volume.file._UNSIZED_BYTES", 4)
    endless = pytest.raises(SourceError, match="ostype: says that it is empty but does not end")
    with Volume.open("/proc/sys/kernel") as volume, opened(volume, b"ostype") as file, endless:
        content(file)


def test_a_file_that_says_more_than_it_has_ends_where_it_ends() -> None:
    with Volume.open("/sys/kernel") as volume, opened(volume, b"fscaps") as file:
        assert file.entry.size > 2  # a page
        assert content(file) == Path("/sys/kernel/fscaps").read_bytes()
        assert file.entry_after().size == 2
        assert file.changed


def test_a_file_system_that_tells_no_holes_is_read_as_data(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (source / "file").open("wb") as out:
        out.truncate(10_000)

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("agent.volume.file.os.lseek", refuse)
    with opened(volume) as file:
        assert shape(file) == [("data", 10_000)]


def test_a_fault_while_holes_are_looked_for_names_the_file(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (source / "file").open("wb") as out:
        out.truncate(10_000)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "I/O")

    monkeypatch.setattr("agent.volume.file.os.lseek", fail)
    with (
        opened(volume) as file,
        pytest.raises(SourceError, match="file: input/output error; check"),
    ):
        shape(file)


def test_a_change_in_place_is_noticed_and_the_old_time_is_kept(
    source: Path, volume: Volume
) -> None:
    (source / "file").write_bytes(b"x" * 200)
    os.utime(source / "file", ns=(0, 5))
    with opened(volume) as file:
        parts = file.segments(lambda: memoryview(bytearray(100)))
        next(parts)
        os.utime(source / "file", ns=(0, 6))
        list(parts)
        assert file.changed
        assert file.entry_after().mtime_ns == 5


def swaps() -> Iterator[object]:
    def symlink(path: Path) -> None:
        (path.parent.parent / "secret").write_text("secret")
        os.symlink("../secret", path)

    def device(path: Path) -> None:
        if os.geteuid() != 0:
            missing("the right to make devices", "run the tests as root")
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))

    yield pytest.param(symlink, id="symlink")
    yield pytest.param(lambda path: os.mkfifo(path), id="fifo")
    yield pytest.param(device, id="device")
    yield pytest.param(lambda path: path.mkdir(), id="directory")
    yield pytest.param(lambda path: os.rename(path.with_name("other"), path), id="other file")


@pytest.mark.parametrize("swap", [*swaps()])
def test_what_takes_a_files_place_is_never_opened(
    source: Path, volume: Volume, swap: object
) -> None:
    (source / "file").write_bytes(b"x")
    (source / "other").write_bytes(b"y")
    entry = listing(volume.root)[b"file"]
    (source / "file").rename(source / "away")
    swap(source / "file")  # type: ignore[operator]
    with pytest.raises(SourceError, match="file: was replaced by something else"):
        volume.root.open_file(entry)


def test_a_file_that_vanished_says_so(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x")
    entry = listing(volume.root)[b"file"]
    (source / "file").unlink()
    with pytest.raises(SourceError, match="file: vanished"):
        volume.root.open_file(entry)


def test_a_lease_on_a_file_does_not_hold_the_run_up(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x")
    entry = listing(volume.root)[b"file"]
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # what the lease's holder is told by
    holder = os.open(source / "file", os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(SourceError, match="file: is leased by another process"):
            volume.root.open_file(entry)
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)


def test_no_descriptor_is_left_behind(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x")
    os.symlink("nowhere", source / "link")
    before = len(os.listdir("/proc/self/fd"))
    found = listing(volume.root)
    with volume.root.open_file(found[b"file"]) as file:
        content(file)
    file.close()
    (source / "file").unlink()
    os.mkfifo(source / "file")
    with pytest.raises(SourceError):
        volume.root.open_file(found[b"file"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_that_fails_names_the_file(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x" * 300)
    with opened(volume) as file:
        parts = file.segments(lambda: memoryview(bytearray(100)))
        next(parts)
        file.close()  # the next read meets EBADF, as a real fault would meet EIO
        with pytest.raises(SourceError, match=r"^file: bad file descriptor"):
            next(parts)


def test_reading_leaves_the_access_time_alone(source: Path, volume: Volume) -> None:
    (source / "file").write_bytes(b"x")
    os.utime(source / "file", ns=(7, 8))
    with opened(volume) as file:
        content(file)
    assert os.stat(source / "file").st_atime_ns == 7
