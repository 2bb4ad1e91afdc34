"""Batches of small files: the kernel and its twin in Python make the same of the same."""

import errno
import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.entry import Entry, Kind
from agent.errors import SourceError
from agent.volume import _create
from agent.volume.creation import create_batch, is_small
from agent.volume.descriptors import DIRECTORY
from agent.volume.metadata import apply_metadata
from agent.volume.writer import TargetTree
from tests.volume import creation_twin
from tests.volume.creation_twin import HAS_ATTRIBUTES, NOT_A_NAME, NOT_AS_WANTED
from tests.volume.test_directory import ACL
from tests.volume.test_writer import entry

Create = Callable[[int, tuple[bytes, ...], tuple[bytes, ...], bytes], bytes]
NOBODY = (1 << 32) - 1
"""The id that chown(2) takes for "leave it as it is"."""

_MTIMES = st.integers(1 - (1 << 31), 1 << 33)


def facts(
    mode: int = 0o640,
    *,
    uid: int | None = None,
    gid: int | None = None,
    time: tuple[int, int] = (1_700_000_000, 5),
) -> bytes:
    owner = os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid
    return struct.pack("=IIIIq", *owner, mode, time[1], time[0])


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    descriptor = os.open(path, DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    with opened(tmp_path) as descriptor:
        yield descriptor


@pytest.fixture(params=[_create.create_files, creation_twin.create_files], ids=["kernel", "twin"])
def create(request: pytest.FixtureRequest) -> Create:
    made: Create = request.param
    return made


class TestCreation:
    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3 << 20])
    def test_a_file_has_the_content_it_was_given(
        self, create: Create, here: int, tmp_path: Path, size: int
    ) -> None:
        content = os.urandom(size)
        assert create(here, (b"name",), (content,), facts()) == b"\0"
        assert (tmp_path / "name").read_bytes() == content

    @pytest.mark.parametrize("mode", [0, 0o400, 0o644, 0o777, 0o1755, 0o2755, 0o4755, 0o7777])
    def test_a_file_has_its_mode_with_set_id_bits_whatever_the_umask(
        self, create: Create, here: int, tmp_path: Path, mode: int
    ) -> None:
        before = os.umask(0o077)
        try:
            assert create(here, (b"name",), (b"x",), facts(mode)) == b"\0"
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == mode

    @pytest.mark.parametrize("time", [(0, 0), (-1, 999_999_999), (-2_000_000_000, 1), (1 << 33, 7)])
    def test_a_file_has_its_time_also_before_1970(
        self, create: Create, here: int, tmp_path: Path, time: tuple[int, int]
    ) -> None:
        assert create(here, (b"name",), (b"x",), facts(time=time)) == b"\0"
        assert (tmp_path / "name").stat().st_mtime_ns == time[0] * 10**9 + time[1]

    @pytest.mark.usefixtures("as_root")
    def test_each_file_has_its_own_owner(self, create: Create, here: int, tmp_path: Path) -> None:
        owners = [(0, 0), (1234, 5), (0, 77), (4_294_967_294, 1)]
        wanted = b"".join(facts(0o6755, uid=uid, gid=gid) for uid, gid in owners)
        names = tuple(b"%d" % number for number in range(4))
        assert create(here, names, (b"",) * 4, wanted) == bytes(4)
        found = [(tmp_path / os.fsdecode(name)).stat() for name in names]
        assert [(info.st_uid, info.st_gid) for info in found] == owners
        assert {stat.S_IMODE(info.st_mode) for info in found} == {0o6755}

    @pytest.mark.usefixtures("as_root")
    @pytest.mark.parametrize("owner", [{"uid": NOBODY}, {"gid": NOBODY}])
    def test_an_owner_that_cannot_be_never_leads_to_set_id_bits_of_another(
        self, create: Create, here: int, tmp_path: Path, owner: dict[str, int]
    ) -> None:
        assert create(here, (b"name",), (b"x",), facts(0o6755, **owner))[0] == NOT_AS_WANTED
        assert stat.S_IMODE((tmp_path / "name").stat().st_mode) & 0o6000 == 0

    @pytest.mark.usefixtures("as_root")
    def test_the_group_that_a_directory_gives_is_replaced(
        self, create: Create, here: int, tmp_path: Path
    ) -> None:
        os.chown(tmp_path, 0, 4321)
        tmp_path.chmod(0o2755)
        assert create(here, (b"a", b"b"), (b"", b""), facts(gid=0) + facts(gid=4321)) == b"\0\0"
        assert [(tmp_path / name).stat().st_gid for name in "ab"] == [0, 4321]

    def test_what_is_there_is_not_touched_and_the_others_are_made(
        self, create: Create, here: int, tmp_path: Path
    ) -> None:
        (tmp_path / "outside").write_bytes(b"safe")
        (tmp_path / "file").write_bytes(b"safe")
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to("outside")
        (tmp_path / "dangling").symlink_to("nowhere")
        names = (b"file", b"directory", b"link", b"dangling", b"new")
        statuses = create(here, names, (b"bad",) * 5, facts() * 5)
        assert statuses == bytes([errno.EEXIST] * 4 + [0])
        assert (tmp_path / "outside").read_bytes() == (tmp_path / "file").read_bytes() == b"safe"
        assert not (tmp_path / "nowhere").exists()
        assert (tmp_path / "new").read_bytes() == b"bad"

    @pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"../x", b"a\0b", b"\0"])
    def test_what_is_no_name_of_one_entry_is_refused(
        self, create: Create, here: int, tmp_path: Path, name: bytes
    ) -> None:
        assert create(here, (name,), (b"x",), facts()) == bytes([NOT_A_NAME])
        assert list(tmp_path.iterdir()) == []

    def test_a_name_has_255_bytes_and_no_more(
        self, create: Create, here: int, tmp_path: Path
    ) -> None:
        names = (b"\xff" * 255, b"n" * 256)
        assert create(here, names, (b"", b""), facts() * 2) == bytes([0, errno.ENAMETOOLONG])
        assert os.listdir(os.fsencode(tmp_path)) == [b"\xff" * 255]

    def test_an_inherited_acl_is_told(self, create: Create, here: int, tmp_path: Path) -> None:
        os.setxattr(tmp_path, "system.posix_acl_default", ACL)
        assert create(here, (b"name",), (b"x",), facts()) == bytes([HAS_ATTRIBUTES])

    def test_a_file_that_becomes_too_large_is_told(self, create: Create, here: int) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            statuses = create(here, (b"large", b"small"), (bytes(2000), b"x"), facts() * 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert statuses == bytes([errno.EFBIG, 0])

    def test_a_descriptor_that_is_none_is_told(self, create: Create) -> None:
        assert create(-1, (b"name",), (b"x",), facts()) == bytes([errno.EBADF])

    def test_nothing_is_made_of_nothing(self, create: Create, here: int) -> None:
        assert create(here, (), (), b"") == b""

    @pytest.mark.parametrize(
        ("names", "contents", "records"),
        [
            ((b"a",), (), facts()),
            ((b"a",), (b"",), facts()[:-1]),
            ((b"a",), (b"",), facts() * 2),
            ((), (), b"x"),
        ],
    )
    def test_arguments_of_different_lengths_are_refused(
        self, create: Create, here: int, tmp_path: Path,
        names: tuple[bytes, ...], contents: tuple[bytes, ...], records: bytes,
    ) -> None:  # fmt: skip
        with pytest.raises(ValueError, match="different lengths"):
            create(here, names, contents, records)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments",
        [([b"a"], (b"",), facts()), ((b"a",), [b""], facts()), ((b"a",), (b"",), "x"),
         (("a",), (b"",), facts()), ((b"a", b"b"), (b"", None), facts() * 2)],
    )  # fmt: skip
    def test_arguments_of_other_types_are_refused_before_anything_is_made(
        self, create: Callable[..., bytes], here: int, tmp_path: Path, arguments: tuple[object, ...]
    ) -> None:
        with pytest.raises(TypeError):
            create(here, *arguments)
        assert list(tmp_path.iterdir()) == []


_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: name not in (b".", b"..") and not {0, 47} & set(name)
)


@given(
    st.dictionaries(
        _NAMES,
        st.tuples(st.binary(max_size=200), st.integers(0, 0o7777), _MTIMES,
                  st.integers(0, 999_999_999)),
        max_size=8,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_kernel_and_twin_make_the_same(files: dict[bytes, tuple[bytes, int, int, int]]) -> None:
    names = tuple(files)
    contents = tuple(content for content, *_ in files.values())
    records = b"".join(facts(m, time=(s, n)) for _, m, s, n in files.values())
    found = []
    for create in (_create.create_files, creation_twin.create_files):
        with TemporaryDirectory() as path, opened(path) as here:
            statuses = create(here, names, contents, records)
            infos = [os.stat(name, dir_fd=here) for name in names]
            found.append((statuses, [(i.st_mode, i.st_mtime_ns, i.st_size) for i in infos]))
    assert found[0] == found[1]
    assert found[0][0] == bytes(len(files))


def test_a_batch_returns_the_places_that_are_left(tmp_path: Path, here: int) -> None:
    (tmp_path / "b").mkdir()
    entries = [entry(name, mtime_ns=-5) for name in (b"a", b"b", b"c")]
    assert create_batch(here, entries, [b"x"] * 3) == [1]
    assert (tmp_path / "c").stat().st_mtime_ns == -5


def test_only_what_a_batch_can_do_is_small() -> None:
    assert is_small(entry(size=65_535))
    assert not is_small(entry(size=65_536))
    assert not is_small(entry(size=1, links=2))
    assert not is_small(entry(size=1, xattrs=((b"user.x", b"y"),)))
    assert not is_small(entry(size=1, uid=1 << 32))


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("owner", [{"uid": NOBODY}, {"gid": NOBODY}])
def test_no_file_gets_set_id_bits_if_its_owner_is_all_ones(
    tmp_path: Path, owner: dict[str, int]
) -> None:
    wanted = entry(permissions=0o6755, **owner)
    problems: list[SourceError] = []
    with (
        TargetTree.open(tmp_path, problems.append) as tree,
        tree.root.make_file(wanted) as made,
        made.using() as descriptor,
    ):
        failures = apply_metadata(descriptor, wanted)
    assert [failure.split()[0] for failure in failures] == ["owner", "set-user-id"]
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o755


def test_a_batch_keeps_what_an_entry_says(tmp_path: Path, here: int) -> None:
    wanted: Entry = entry(kind=Kind.FILE, permissions=0o751)
    assert create_batch(here, [wanted], [b"content"]) == []
    info = (tmp_path / "name").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o751, wanted.mtime_ns)
