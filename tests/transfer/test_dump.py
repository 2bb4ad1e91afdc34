"""Dumps: whole or visibly not whole, in order, and never more in memory than a few chunks."""

import io
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.cancel import CancelToken
from agent.entry import Entry, Kind
from agent.errors import Canceled, DamagedBlob, PodliftError, RepositoryError, UsageError
from agent.repository.paths import Place, find
from agent.transfer.ahead import CHUNKS_AHEAD, fetched
from agent.transfer.dump import dump_file, dump_tar
from agent.transfer.tar import END
from tests.transfer.running import Bench, noise


class Source:
    """Wraps a reader: counts what is fetched, and spoils what a test says."""

    def __init__(self, bench: Bench) -> None:
        self.reader = bench.repository().reading()
        self.tree = bench.repository().snapshots()[-1].tree
        self.fetched: list[bytes] = []
        self.spoilt: set[bytes] = set()

    def load_tree(self, id: bytes) -> list[Entry]:
        if id in self.spoilt:
            raise DamagedBlob("tree is damaged")
        return self.reader.load_tree(id)

    def load_chunk(self, id: bytes) -> bytes:
        self.fetched.append(id)
        if id in self.spoilt:
            raise DamagedBlob("data blob is damaged")
        return self.reader.load_chunk(id)

    def at(self, path: bytes) -> Place:
        return find(self.load_tree, self.tree, path)

    def file(self, path: bytes) -> bytes:
        out = io.BytesIO()
        dump_file(self, self.at(path), out.write, CancelToken())
        return out.getvalue()

    def archive(self, path: bytes = b"/") -> bytes:
        out = io.BytesIO()
        self.dumped = dump_tar(self, self.at(path), out.write, CancelToken())
        return out.getvalue()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench.new(tmp_path / "volume")
    root = bench.volume
    (root / "dir" / "deep").mkdir(parents=True)
    (root / "dir" / "deep" / "large").write_bytes(noise(1, 9 << 20))
    (root / "dir" / "small").write_bytes(b"small")
    (root / "dir" / "empty").touch()
    with (root / "hole").open("wb") as file:
        file.truncate(64 << 20)
    (root / "link").symlink_to("hole")
    (root / "one").write_bytes(b"linked")
    os.link(root / "one", root / "dir" / "two")
    os.mkfifo(root / "fifo")
    bench.run()
    return bench


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def source(bench: Bench) -> Source:
    return Source(bench)


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        return {member.name: member for member in file.getmembers()}


def test_a_file_comes_out_byte_for_byte(source: Source, bench: Bench) -> None:
    for name in ("dir/deep/large", "dir/small", "dir/empty", "hole"):
        assert source.file(name.encode()) == (bench.volume / name).read_bytes()


def test_a_hole_is_fetched_once(source: Source) -> None:
    assert source.file(b"hole") == bytes(64 << 20)
    assert len(source.fetched) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (b"dir", "/dir is a directory; --archive tar"),
        (b"/", "/ is a directory"),
        (b"link", "/link is a symlink to hole; dump that path"),
        (b"fifo", "/fifo is a fifo, which has no content"),
    ],
)
def test_what_is_no_file_has_no_bytes(source: Source, path: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        source.file(path)


def test_a_directory_becomes_an_archive_with_paths_from_the_root(source: Source) -> None:
    assert set(members(source.archive(b"dir/deep"))) == {"dir/deep", "dir/deep/large"}
    assert set(members(source.archive(b"link"))) == {"link"}
    assert set(members(source.archive(b"one"))) == {"one"}
    whole = source.archive()
    found = members(whole)
    assert set(found) == {
        *("dir", "dir/deep", "dir/deep/large", "dir/empty", "dir/small", "dir/two"),
        *("fifo", "hole", "link", "one"),
    }
    assert found["dir/two"].isfile()
    assert (found["one"].linkname, found["one"].islnk()) == ("dir/two", True)
    assert source.dumped.entries == len(found)
    assert source.dumped.bytes == len(whole)
    assert whole.endswith(END)


def test_a_socket_is_left_out_and_counted(source: Source) -> None:
    load = source.load_tree

    def with_socket(id: bytes) -> list[Entry]:
        entries = load(id)
        if id == source.tree:
            fifo = next(e for e in entries if e.kind is Kind.FIFO)
            entries.append(msgspec.structs.replace(fifo, name=b"socket", kind=Kind.SOCKET))
        return entries

    source.load_tree = with_socket  # type: ignore[method-assign]
    assert "socket" not in members(source.archive())
    assert source.dumped.sockets == 1


def chunks(source: Source, path: bytes) -> tuple[bytes, ...]:
    entry = source.at(path).entry
    assert entry is not None
    return entry.content or ()


def test_a_damaged_chunk_ends_an_archive_without_its_end(source: Source) -> None:
    whole = source.archive()
    source.spoilt = {chunks(source, b"dir/deep/large")[-1]}
    out = io.BytesIO()
    with pytest.raises(RepositoryError, match=r"/dir/deep/large: .*damaged.*is not complete"):
        dump_tar(source, source.at(b"/"), out.write, CancelToken())
    assert whole.startswith(out.getvalue())
    assert 0 < len(out.getvalue()) < 9 << 20
    with pytest.raises(tarfile.ReadError):
        members(out.getvalue())


def test_a_damaged_directory_ends_an_archive_without_its_end(source: Source) -> None:
    whole = source.archive()
    tree = source.at(b"dir/deep").tree
    assert tree is not None
    source.spoilt = {tree}
    out = io.BytesIO()
    with pytest.raises(RepositoryError, match="tree is damaged"):
        dump_tar(source, source.at(b"/"), out.write, CancelToken())
    assert whole.startswith(out.getvalue())
    assert not out.getvalue().endswith(END)


@pytest.mark.parametrize("size", [0, 1, (9 << 20) - 1, (9 << 20) + 1, 1 << 60])
def test_content_that_is_not_as_long_as_announced_ends_the_stream(
    source: Source, size: int
) -> None:
    place = source.at(b"dir/deep/large")
    assert place.entry is not None
    wrong = place._replace(entry=msgspec.structs.replace(place.entry, size=size))
    for dump in (dump_file, dump_tar):
        out = io.BytesIO()
        with pytest.raises(RepositoryError, match=f"/dir/deep/large: its snapshot says {size} b"):
            dump(source, wrong, out.write, CancelToken())
        assert not out.getvalue().endswith(END)


def test_a_stopped_dump_ends_at_once(source: Source) -> None:
    cancel = CancelToken()
    out: list[bytes] = []

    def write(data: bytes) -> None:
        out.append(data)
        cancel.cancel("enough")

    with pytest.raises(Canceled):
        dump_tar(source, source.at(b"/"), write, cancel)
    assert len(out) == 1


def test_an_output_that_breaks_ends_it_and_leaves_no_thread(source: Source) -> None:
    def write(_: bytes) -> None:
        raise BrokenPipeError

    for dump in (dump_file, dump_tar):
        with pytest.raises(BrokenPipeError):
            dump(source, source.at(b"dir/deep/large"), write, CancelToken())


def test_hard_links_of_other_content_stay_files_of_their_own(source: Source) -> None:
    load = source.load_tree
    other = chunks(source, b"dir/small")

    def crossed(id: bytes) -> list[Entry]:
        return [
            msgspec.structs.replace(e, content=other, size=5) if e.name == b"two" else e
            for e in load(id)
        ]

    source.load_tree = crossed  # type: ignore[method-assign]
    found = members(source.archive())
    assert found["one"].isfile()
    assert found["dir/two"].isfile()
    assert (found["one"].size, found["dir/two"].size) == (6, 5)


class TestFetchingAhead:
    @pytest.mark.parametrize(
        "ids",
        [
            [bytes([n]) for n in range(100)],
            [b"0", None, b"0", b"0", None, None, b"1", b"0"] * 40,
            [None] * 2000,
            [b"0"] * 2000,
            [],
        ],
        ids=["distinct", "mixed", "headers", "a hole", "none"],
    )
    def test_the_order_stays_and_few_chunks_are_held(self, ids: list[bytes | None]) -> None:
        lock, held, most = threading.Lock(), 0, 0

        def load(id: bytes) -> bytes:
            nonlocal held, most
            with lock:
                held += 1
                most = max(most, held)
            return b"chunk " + id

        taken = []
        for (place, id), chunk in fetched(
            (((place, id), id) for place, id in enumerate(ids)), load, CancelToken()
        ):
            taken.append((place, id))
            assert chunk == (b"" if id is None else b"chunk " + id)
            if id is not None and ids[place + 1 : place + 2] != [id]:
                with lock:
                    held -= 1
        assert taken == list(enumerate(ids))
        assert held == 0
        assert most <= CHUNKS_AHEAD

    def test_chunks_are_fetched_side_by_side(self) -> None:
        together = threading.Barrier(CHUNKS_AHEAD, timeout=30)

        def load(id: bytes) -> bytes:
            together.wait()
            return id

        items = ((None, bytes([n])) for n in range(CHUNKS_AHEAD))
        assert len(list(fetched(items, load, CancelToken()))) == CHUNKS_AHEAD

    def test_a_failure_comes_at_its_turn(self) -> None:
        def load(id: bytes) -> bytes:
            if id == b"\x05":
                raise DamagedBlob("five")
            return id

        chunks = fetched(((None, bytes([n])) for n in range(9)), load, CancelToken())
        out = [next(chunks)[1] for _ in range(5)]
        with pytest.raises(PodliftError, match="five"):
            next(chunks)
        assert out == [bytes([n]) for n in range(5)]


def test_modes_of_special_files_survive(source: Source, bench: Bench) -> None:
    found = members(source.archive(b"fifo"))["fifo"]
    assert found.isfifo()
    assert found.mode == stat.S_IMODE((bench.volume / "fifo").stat().st_mode)
