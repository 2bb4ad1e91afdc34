"""Names that lead to something else from one moment to the next, while a backup reads."""

import os
import socket
from pathlib import Path

import pytest

from agent.entry import Kind
from tests.hostile import attacker
from tests.hostile.attacker import Act, attacking
from tests.hostile.scene import ENOUGH, ROUNDS, Scene
from tests.hostile.watch import never_opened
from tests.support.longdirs import lower_limits
from tests.transfer.running import noise

LEVELS = 4


def nested(volume: Path) -> list[Path]:
    """Make directories inside each other with a few files each; return them all."""
    places = [volume]
    for _ in range(LEVELS - 1):
        places.append(places[-1] / "d")
        places[-1].mkdir()
    for place in places:
        for name in ("file", "f0", "f1"):
            (place / name).write_bytes(b"mine")
    return places


def test_directories_of_every_level_are_swapped_for_symlinks(scene: Scene) -> None:
    places = nested(scene.volume)
    acts: list[Act] = []
    before = scene.victim.facts()
    for place in places[:-1]:
        (place / "x").symlink_to(scene.victim.root)
        acts.append((attacker.exchange, (place, "d", "x")))
    done = scene.back_up_under(*acts, hit="replaced")
    assert min(done) >= ENOUGH
    assert scene.victim.facts() == before
    scene.judge()


@pytest.mark.parametrize("size", [20_000, 3 << 20], ids=["small", "large"])
def test_files_are_swapped_for_symlinks(scene: Scene, size: int) -> None:
    before = scene.victim.facts()
    acts: list[Act] = []
    for number in range(8):
        (scene.volume / f"f{number}").write_bytes(noise(number, size))
        (scene.volume / f"link{number}").symlink_to(scene.victim.root / "file")
        acts.append((attacker.exchange, (scene.volume, f"f{number}", f"link{number}")))
    scene.back_up_under(*acts, hit="replaced")
    assert scene.victim.facts() == before
    scene.judge()


@pytest.mark.parametrize(
    "other", ["fifo", "null", "zero", "tty", "no-driver", "socket", "directory"]
)
def test_files_are_swapped_for_what_must_not_be_opened(scene: Scene, other: str) -> None:
    (scene.volume / "file").write_bytes(b"mine")
    (scene.volume / "large").write_bytes(noise(1, 2 << 20))
    for name in ("file", "large"):
        make(scene.volume / f"other-{name}", other)
    done = scene.back_up_under(
        (attacker.exchange, (scene.volume, "file", "other-file")),
        (attacker.exchange, (scene.volume, "large", "other-large")),
        hit="replaced",
        untouched=[] if other == "directory" else list(scene.volume.glob("other-*")),
    )
    assert min(done) >= ENOUGH
    scene.judge()
    contents = {entry.size for entry in scene.entries().values() if entry.kind is Kind.FILE}
    assert contents <= {4, 2 << 20}


def test_an_open_of_what_must_not_be_opened_is_noticed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with never_opened(tmp_path):
        os.close(os.open(tmp_path / "fifo", os.O_PATH))
        os.lstat(tmp_path / "fifo")
    with pytest.raises(AssertionError, match="fifo"), never_opened(tmp_path):
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))


def make(path: Path, other: str) -> None:
    devices = {"null": (1, 3), "zero": (1, 5), "tty": (5, 0), "no-driver": (120, 1)}
    if other == "fifo":
        os.mkfifo(path)
    elif other == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = os.open(path.parent, os.O_RDONLY)
            bound.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    elif other == "directory":
        path.mkdir()
        (path / "below").write_bytes(b"mine")
    else:
        os.mknod(path, 0o020666, os.makedev(*devices[other]))


def test_a_name_is_one_kind_of_thing_after_the_other(scene: Scene) -> None:
    names = [f"n{number:02}" for number in range(20)]
    for name in names:
        (scene.volume / name).touch()
    acts: list[Act] = [(attacker.take_turns, (scene.volume, name)) for name in names]
    seen: set[Kind] = set()
    with attacking(*acts) as attack:
        for _ in range(ROUNDS):
            scene.back_up(parent=False)
            seen |= {entry.kind for entry in scene.entries().values()}
            if len(seen) >= 4 and scene.hits("replaced") + scene.hits("vanished") >= ENOUGH:
                break
    assert min(attack.done) >= ENOUGH
    assert scene.hits("replaced") + scene.hits("vanished") >= ENOUGH
    assert seen == {Kind.FILE, Kind.FIFO, Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE}
    scene.judge()


def test_a_directory_is_moved_out_of_the_volume_while_the_walk_is_in_it(scene: Scene) -> None:
    outside = scene.victim.root  # where its `..` leads to then
    acts: list[Act] = []
    for number in range(8):
        (scene.volume / f"moving{number}").mkdir()
        nested(scene.volume / f"moving{number}")
        acts.append((attacker.move_out_and_in, (scene.volume, f"moving{number}", outside)))
    secrets = [path for path in outside.rglob("*") if path.is_file()]
    inside = 0
    with never_opened(*secrets), attacking(*acts) as attack:
        for _ in range(ROUNDS):
            moves = min(attack.done)
            scene.back_up(parent=False)
            if min(attack.done) > moves:
                inside += sum(path.endswith(b"/d/d/d/file") for path in scene.entries())
            if inside >= ENOUGH and scene.hits("vanished") >= ENOUGH:
                break
    assert inside >= ENOUGH
    assert scene.hits("vanished") >= ENOUGH
    scene.judge()
    names = {os.path.basename(path) for path in scene.entries()}
    assert {name for name in names if not name.startswith(b"moving")} <= {
        b"d",
        b"file",
        b"f0",
        b"f1",
    }


def test_what_is_mounted_into_the_volume_is_not_read(scene: Scene, mount: object) -> None:
    before = scene.victim.facts()
    assert callable(mount)
    (scene.volume / "d").mkdir()
    (scene.volume / "file").write_bytes(b"mine")
    mount("--bind", scene.victim.root, scene.volume / "d")
    mount("--bind", scene.victim.root / "file", scene.volume / "file")
    with never_opened(scene.victim.root):
        assert scene.back_up().counters.mounts_skipped == 2
    assert scene.victim.facts() == before
    scene.judge()
    assert set(scene.entries()) == {b"d"}


def test_names_change_in_a_directory_that_is_worked_on_in_stretches(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower_limits(monkeypatch.setattr)
    before = scene.victim.facts()
    for number in range(60):
        (scene.volume / f"f{number:02}").write_bytes(noise(number, 2000))
    (scene.volume / "link").symlink_to(scene.victim.root / "file")
    (scene.volume / "folder").symlink_to(scene.victim.root)
    (scene.volume / "g").mkdir()
    acts: list[Act] = [
        (attacker.exchange, (scene.volume, "f07", "link")),
        (attacker.exchange, (scene.volume, "g", "folder")),
        (attacker.take_turns, (scene.volume, "f33")),
        (attacker.add_entries, (scene.volume, 40)),
    ]
    done = scene.back_up_under(*acts, hit="replaced")
    assert min(done) >= ENOUGH
    assert scene.victim.facts() == before
    scene.judge(restored=False)
    scene.back_up()
    assert scene.entries().keys() >= {b"f%02d" % n for n in range(60) if n not in (7, 33)}
