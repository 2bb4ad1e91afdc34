"""Trees with everything in them come back as they were: ours by us, ours by restic, restic's by us.

Over a local directory and over S3. The judge is ``agent.demo.compare``, which shares no code with
backups and restores; the last tests show that it notices each single thing that could be wrong.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from agent.demo.compare import differences
from agent.repository import locking
from agent.storage.opening import open_s3
from tests.interop.runs import HOST, back_up, open_at, restore_latest
from tests.interop.test_restic import old
from tests.interop.test_showing import archived, unpack
from tests.interop.trees import Spec, a_tree_of_everything, build, trees
from tests.interop.volumes import AS_ROOT, walk
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

LOCAL_TREES = 8
S3_TREES = 3

Drawn = Callable[[Callable[..., None]], Callable[..., None]]


def drawn(count: int) -> Drawn:
    """Give a test so many trees, the same each time; a failure names the entry, so no shrinking."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        fixed = settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),  # the fixtures' state is shared on purpose
        )
        return fixed(given(specs=trees())(test))

    return decorate


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trees")


class Scene:
    """A volume that was made up, and a directory to restore it into again and again."""

    def __init__(self, room: Path, specs: list[Spec], restic: Restic | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(dir=room))
        self.volume = self.home / "volume"
        # An old one gives the attributes of a symlink to its target, even outside the tree.
        self.old = restic is not None and old(restic)
        self.entries = build(self.volume, specs, links_plain=self.old)

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.home)

    def target(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.home)) / "target"

    def faults(self, target: Path, *, by_restic: bool = False) -> list[str]:
        """Return what is not the same; ``by_restic`` if it backed up or restored."""
        found = list(differences(self.volume, target))
        if by_restic and self.old:
            lost = tuple(self._lost_by_old_restics())
            found = [line for line in found if not line.startswith(lost)]
        return found

    def _lost_by_old_restics(self) -> Iterator[str]:
        """Yield how the lines begin that name a target that is no text: 0.17 brought those."""
        for path in walk(self.volume):
            if os.path.islink(path):
                try:
                    os.readlink(path).decode()
                except UnicodeDecodeError:
                    shown = path[len(os.fsencode(self.volume)) :]
                    yield f"{shown.decode('utf-8', 'backslashreplace')}: size is "
                    yield f"{shown.decode('utf-8', 'backslashreplace')}: the symlink leads else"


def dense(volume: Path, target: Path) -> list[bytes]:
    """Return the files whose large holes did not come back as holes."""
    lost = []
    for path in walk(volume):
        source = os.lstat(path)
        hole = source.st_size - source.st_blocks * 512
        if os.path.isfile(path) and not os.path.islink(path) and hole >= 4 << 20:
            copy = os.lstat(os.fsencode(target) + path[len(os.fsencode(volume)) :])
            if copy.st_size - copy.st_blocks * 512 < hole // 2:
                lost.append(path)
    return lost


@drawn(LOCAL_TREES)
def test_over_a_local_directory(restic: Restic, room: Path, specs: list[Spec]) -> None:
    with Scene(room, specs, restic) as scene:
        assert scene.entries > 15
        ours, theirs = scene.home / "ours", scene.home / "theirs"
        back_up(ours, scene.volume)
        by_us = scene.target()
        restore_latest(ours, by_us)
        assert scene.faults(by_us) == []
        assert dense(scene.volume, by_us) == []

        by_restic = scene.target()
        restic.run(str(ours), "restore", "latest", "--target", str(by_restic))
        assert scene.faults(by_restic, by_restic=True) == []

        open_at(theirs)  # made with a key that costs nothing
        restic.run(str(theirs), "backup", ".", "--host", HOST, cwd=scene.volume)
        from_restic = scene.target()
        restore_latest(theirs, from_restic)
        assert scene.faults(from_restic, by_restic=True) == []
        assert dense(scene.volume, from_restic) == []


@drawn(S3_TREES)
def test_over_s3(restic: Restic, s3_server: S3Server, room: Path, specs: list[Spec]) -> None:
    bucket = s3_server.make_bucket()
    tls, env = ["--cacert", str(s3_server.ca)], s3_server.environment()
    with Scene(room, specs, restic) as scene:
        ours = open_s3(s3_server.settings("ours", bucket=bucket))
        theirs = open_s3(s3_server.settings("theirs", bucket=bucket))
        try:
            back_up(ours, scene.volume)
            by_us, by_restic, from_restic = scene.target(), scene.target(), scene.target()
            restore_latest(ours, by_us)
            assert scene.faults(by_us) == []
            archived(ours, b"/", scene.home / "all.tar")
            by_tar = scene.target()
            assert unpack(scene.home / "all.tar", by_tar) == ""
            assert scene.faults(by_tar) == []
            repo = s3_server.repository(bucket, "ours")
            restic.run(repo, "restore", "latest", "--target", str(by_restic), *tls, env=env)
            assert scene.faults(by_restic, by_restic=True) == []

            open_at(theirs)
            repo = s3_server.repository(bucket, "theirs")
            restic.run(repo, "backup", ".", "--host", HOST, *tls, cwd=scene.volume, env=env)
            restore_latest(theirs, from_restic)
            assert scene.faults(from_restic, by_restic=True) == []
        finally:
            ours.close()
            theirs.close()


@drawn(LOCAL_TREES)
def test_as_an_archive_that_gnu_tar_unpacks(room: Path, specs: list[Spec]) -> None:
    with Scene(room, specs) as scene:
        back_up(scene.home / "ours", scene.volume)
        archived(scene.home / "ours", b"/", scene.home / "all.tar")
        target = scene.target()
        assert unpack(scene.home / "all.tar", target) == ""
        assert scene.faults(target) == []


def rewritten(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        file.write(data)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    """Put another entry where one is, with the same owner, mode and time."""
    found = path.lstat()
    path.unlink()
    make(path)
    os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(found.st_mode & 0o7777)
    os.utime(path, ns=(0, found.st_mtime_ns), follow_symlinks=False)


def attribute(path: Path, name: str, value: bytes | None) -> None:
    if value is None:
        os.removexattr(path, name, follow_symlinks=False)
    else:
        os.setxattr(path, name, value, follow_symlinks=False)


def later(path: Path) -> None:
    os.utime(path, ns=(0, path.lstat().st_mtime_ns + 1), follow_symlinks=False)


ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"

Alter = Callable[[Path], object]
WRONG: list[tuple[str, Alter]] = [
    ("file: content", lambda p: rewritten(p, 0, b"X")),
    ("file: content", lambda p: rewritten(p, 700_000, b"X")),
    ("file: content", lambda p: rewritten(p, -1, b"X")),
    ("file: size", lambda p: os.truncate(p, p.stat().st_size - 1)),
    ("file: size", lambda p: os.truncate(p, p.stat().st_size + 1)),
    ("empty: size", lambda p: p.write_bytes(b"x")),
    ("sparse: content", lambda p: rewritten(p, 2 << 20, b"X")),
    ("file: st_mode", lambda p: p.chmod(0o0751)),  # the set-id bits are gone
    ("file: st_mode", lambda p: p.chmod(0o6750)),
    ("sticky: st_mode", lambda p: p.chmod(0o0777)),
    ("fifo: st_mode", lambda p: p.chmod(0o600)),
    ("file: st_mtime_ns", later),
    ("old: st_mtime_ns", later),
    ("sticky: st_mtime_ns", later),
    ("symlink: st_mtime_ns", later),
    ("fifo: st_mtime_ns", later),
    ("file: extended", lambda p: attribute(p, "user.empty", None)),
    ("file: extended", lambda p: attribute(p, "user.empty", b"x")),
    ("file: extended", lambda p: attribute(p, "user.binary", b"\0\xfe")),
    ("file: extended", lambda p: attribute(p, "user.more", b"")),
    ("sticky: extended", lambda p: attribute(p, "user.empty", None)),
    ("acl: extended", lambda p: attribute(p, ACL, None)),
    ("sticky: extended", lambda p: attribute(p, DEFAULT_ACL, None)),
    ("symlink: the symlink leads", lambda p: replaced(p, lambda q: q.symlink_to(b"tx/\xfe"))),
    ("symlink is another kind", lambda p: replaced(p, lambda q: q.write_bytes(b"to/\xff"))),
    ("fifo is another kind", lambda p: replaced(p, Path.touch)),
    ("one: is no longer", lambda p: replaced(p, lambda q: shutil.copy(q.parent / "linked", q))),
    ("same: has become", lambda p: replaced(p, lambda q: q.hardlink_to(q.parent / "alike"))),
    ("empty is in the source only", lambda p: p.unlink()),
    ("bare is in the source only", lambda p: p.rmdir()),
    ("new is in the copy only", lambda p: p.mkdir()),
]
WRONG_FOR_ROOT: list[tuple[str, Alter]] = [
    ("file: st_uid", lambda p: os.chown(p, 1001, -1)),
    ("file: st_gid", lambda p: os.chown(p, -1, 1001)),
    ("sticky: st_uid", lambda p: os.chown(p, 1001, -1)),
    ("symlink: st_uid", lambda p: os.lchown(p, 1001, -1)),
    ("symlink: extended", lambda p: attribute(p, "trusted.empty", None)),
    ("capable: extended", lambda p: attribute(p, "security.capability", None)),
    ("device: st_rdev", lambda p: replaced(p, lambda q: os.mknod(q, 0o20600, os.makedev(1, 5)))),
    ("device is another kind", lambda p: replaced(p, lambda q: os.mknod(q, 0o60600, 0x103))),
]


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Return two trees of everything that are the same."""
    for side in ("one", "two"):
        a_tree_of_everything(tmp_path / side)
    return tmp_path / "one", tmp_path / "two"


@pytest.mark.parametrize(
    ("words", "alter"),
    WRONG + (WRONG_FOR_ROOT if AS_ROOT else []),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_judge_notices(sides: tuple[Path, Path], words: str, alter: Alter) -> None:
    one, two = sides
    assert list(differences(one, two)) == []
    folder = two.stat()
    alter(two / words.split()[0].rstrip(":"))
    os.utime(two, ns=(0, folder.st_mtime_ns))
    found = list(differences(one, two))
    assert any(line.startswith(f"/{words}") for line in found), found


def test_lost_holes_are_noticed(sides: tuple[Path, Path]) -> None:
    one, two = sides
    assert dense(one, two) == []
    (two / "sparse").write_bytes((one / "sparse").read_bytes())
    assert dense(one, two) == [os.fsencode(one / "sparse")]
