"""Volumes that cost their owner little and whoever reads them much: memory is measured in a process of its own."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.volume.writer import TargetTree
from tests.hostile import attacker
from tests.hostile.attacker import attacking
from tests.hostile.scene import ENOUGH, Ran, Scene, podlift
from tests.support.deep import nest

ENTRIES = int(os.environ.get("PODLIFT_HOSTILE_ENTRIES", "100000"))
"""How many entries are put into one directory; a million make the same path, and take some minutes."""

LIMIT_MIB = 352 if ENTRIES <= 100_000 else 512
"""A container's limit; the smaller one leaves room for 52,000 entries at a time, so some have to do."""

PEAK_MIB = 256 if ENTRIES <= 100_000 else 320
LEVELS = 4000
MIB = 1 << 20

Mount = Callable[..., None]


def back_up_and_restore(scene: Scene, code: int = 0) -> tuple[Ran, Ran]:
    """Back up twice and restore, each in a process of its own that keeps within its memory."""
    first = podlift(scene, "backup", scene.volume)
    again = podlift(scene, "backup", scene.volume)
    restored = podlift(scene, "restore", "latest", "--target", scene.place / "target")
    assert (first.code, again.code, restored.code) == (code, code, 0), first.output
    peaks = [ran.peak_mib for ran in (first, again, restored)]
    assert max(peaks) <= PEAK_MIB, peaks
    return first, restored


@contextmanager
def removed(*roots: Path) -> Iterator[None]:
    """Remove what is below directories in the end: it is too deep for others to do it."""
    try:
        yield
    finally:
        for root in roots:
            if root.exists():
                with TargetTree.open(root, lambda _: None) as tree:
                    for name in tree.root.names():
                        tree.root.remove(name, lambda _: None)


def test_4000_levels(scene: Scene) -> None:
    with removed(scene.volume, scene.place / "target"):
        nest(scene.volume, LEVELS)
        assert podlift(scene, "backup", scene.volume).code == 0
        restored = podlift(scene, "restore", "latest", "--target", scene.place / "target")
        assert restored.code == 0
        assert restored.peak_mib <= PEAK_MIB
        assert depth(scene.place / "target") == LEVELS
        scene.judge(restored=False)


def depth(root: Path) -> int:
    here, levels = os.open(root, os.O_RDONLY), 0
    while os.listdir(here) == ["d"]:
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, levels = below, levels + 1
    assert os.listdir(here) == ["leaf"]
    os.close(here)
    return levels


def test_names_of_255_bytes_of_anything(scene: Scene) -> None:
    root = os.fsencode(scene.volume)
    names = [bytes([byte]) * 255 for byte in range(1, 256) if byte != ord("/")]
    names += [bytes(b for b in range(first, 256) if b != ord("/"))[:255] for first in (1, 2, 200)]
    names += [b"\xff\xfe" * 127]
    names += [b'"' + b"\\" * 254, b"\\u0000" * 42, b"\n\r\t\x1b[2J" * 36, b"\xed\xa0\x80" * 85]
    for number, name in enumerate(names):
        (root_of(root, name)).write_bytes(b"%d" % number)
    os.mkdir(root + b"/\xff" + b"d" * 253)
    os.symlink(b"\xfe" * 4000, root + b"/" + b"s" * 254)
    back_up_and_restore(scene)
    scene.judge()
    assert listing(scene.place / "target") == listing(scene.volume)


def root_of(root: bytes, name: bytes) -> Path:
    return Path(os.fsdecode(root + b"/" + name))


def listing(root: Path) -> dict[bytes, bytes]:
    found = {}
    for name in os.listdir(os.fsencode(root)):
        path = os.fsencode(root) + b"/" + name
        if os.path.islink(path):
            found[name] = os.readlink(path)
        elif os.path.isfile(path):
            with open(path, "rb") as file:
                found[name] = file.read()
        else:
            found[name] = b"a directory"
    return found


def with_attributes(path: Path, count: int) -> None:
    path.touch()
    for number in range(count):
        os.setxattr(path, f"user.a{number:03}", os.urandom(64 << 10))


def test_attributes_of_64_kib_come_back(scene: Scene, mount: Mount) -> None:
    for place in (scene.volume, scene.place / "target", scene.place / "restored"):
        place.mkdir(exist_ok=True)
        mount("-t", "tmpfs", "-o", "size=1g", "hostile", place)
    for number in range(32):
        with_attributes(scene.volume / f"f{number:03}", 1)
    with_attributes(scene.volume / "many", 32)
    back_up_and_restore(scene)
    scene.judge()
    for name in ("f007", "many"):
        found, wanted = scene.place / "target" / name, scene.volume / name
        assert sorted(os.listxattr(found)) == sorted(os.listxattr(wanted))
        for attribute in os.listxattr(wanted):
            assert os.getxattr(found, attribute) == os.getxattr(wanted, attribute)


def test_attributes_that_do_not_fit_into_memory_are_left_off_and_named(
    scene: Scene, mount: Mount
) -> None:
    mount("-t", "tmpfs", "-o", "size=1g", "hostile", scene.volume)
    (scene.volume / "folder").mkdir()
    for number in range(150):
        with_attributes(scene.volume / "folder" / f"f{number:03}", 8)
    with_attributes(scene.volume / "one", 100)
    (scene.volume / "zebra").write_text("x")
    ran = podlift(scene, "backup", scene.volume, limit_mib=LIMIT_MIB)
    assert ran.code == 3
    assert "one: kept without its extended attributes" in ran.output
    assert "do not fit into memory" in ran.output
    assert ran.peak_mib <= PEAK_MIB, ran.peak_mib
    entries = scene.entries()
    assert len(entries) == 153
    assert 5 < sum(bool(entry.xattrs) for entry in entries.values()) < 100
    scene.judge(restored=False)  # this disk does not take such attributes


def test_a_huge_directory_is_backed_up_and_restored_within_bounded_memory(
    scene: Scene, mount: Mount
) -> None:
    mount("-t", "tmpfs", "-o", "size=2g,nr_inodes=0", "hostile", scene.volume)
    (scene.place / "target").mkdir()
    mount("-t", "tmpfs", "-o", "size=2g,nr_inodes=0", "hostile", scene.place / "target")
    for name, count in (("few", 2000), ("huge", ENTRIES), ("many", 8000)):
        (scene.volume / name).mkdir()
        here = os.open(scene.volume / name, os.O_RDONLY)
        for number in range(count):
            os.mknod(f"{number:07}", 0o100600, 0, dir_fd=here)
        os.close(here)
    count = ENTRIES + 10_003
    for _ in range(3):  # the second time with a parent, the third time with one that is another
        ran = podlift(scene, "backup", scene.volume, limit_mib=LIMIT_MIB)
        assert ran.code == 0, ran.output
        assert ran.peak_mib <= PEAK_MIB, ran.peak_mib
        assert len(scene.entries()) == count
        if count == ENTRIES + 10_003:
            (scene.volume / "huge" / "one more").touch()
            count += 1
    ran = podlift(scene, "restore", "latest", "--target", scene.place / "target")
    assert (ran.code, ran.peak_mib <= PEAK_MIB) == (0, True), ran
    assert len(os.listdir(scene.place / "target" / "huge")) == ENTRIES + 1
    scene.judge(restored=False)


def test_a_directory_gets_entries_without_end(scene: Scene, mount: Mount) -> None:
    mount("-t", "tmpfs", "-o", "size=1g,nr_inodes=0", "hostile", scene.volume)
    (scene.volume / "d").mkdir()
    with attacking((attacker.add_entries, (scene.volume / "d", 10_000))) as attack:
        for _ in range(ENOUGH):
            before = attack.done[0]
            scene.back_up(parent=False)
            assert attack.done[0] > before
            assert b"d" in scene.entries()  # whatever of it was still there when it was looked at
    scene.judge()
