"""Targets whose owner swaps what is in them for what leads out of them, while a restore writes."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from agent.errors import SourceError
from agent.monitor import Monitor
from agent.volume.writer import TargetTree
from tests.hostile import attacker
from tests.hostile.attacker import Act, Attacker, attacking
from tests.hostile.scene import ENOUGH, ROUNDS, Scene
from tests.hostile.watch import never_opened
from tests.transfer.running import noise

LEVELS = 4
CONTENT = noise(7, 3000)


class Target:
    """A snapshot, restored once, and masters of what is planted in the restored directory."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.path, self.pool = scene.place / "target", scene.place / "pool"
        self.masters = scene.place / "masters"
        self.pool.mkdir()
        self.masters.mkdir()
        scene.back_up()
        assert scene.restore(self.path).counters.problems == 0

    def master(self, kind: str) -> Path:
        """Make what is planted: a way out of the target, with metadata of its own."""
        path = self.masters / kind
        if kind == "symlink to a directory":
            path.symlink_to(self.scene.victim.root)
        elif kind == "symlink to a file":
            path.symlink_to(self.scene.victim.root / "file")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, 0o020600, os.makedev(1, 3))
        else:
            path.write_bytes(CONTENT if kind == "file of the same content" else b"its own")
        os.chown(path, 1234, 5678, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o604)
        os.utime(path, ns=(2_000_000_000_000_000_000, 1_000_000_007), follow_symlinks=False)
        return path

    def restore_under(
        self, acts: list[Act], *, delete: bool, between: Callable[[], object] = lambda: None
    ) -> Attacker:
        """Restore again and again until it has often met something else than it had left there."""
        met = 0
        with attacking(*acts) as attack:
            for _ in range(ROUNDS):
                before = sum(attack.done)
                monitor = self.scene.restore(self.path, delete=delete)
                if sum(attack.done) > before:
                    met += has_met(monitor)
                if met >= 2 * ENOUGH:
                    break
                between()
        assert met >= 2 * ENOUGH, f"the attack never hit: {attack.done} {self.scene.problems}"
        return attack


def has_met(monitor: Monitor) -> bool:
    done = monitor.counters
    return bool(done.problems or done.files_new or done.files_changed)


def facts(path: Path) -> tuple[object, ...]:
    """Return what nobody but its owner may change of a file, and a hard link does not."""
    info = os.lstat(path)
    return (
        info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, info.st_atime_ns,
        os.listxattr(path, follow_symlinks=False),
    )  # fmt: skip


@pytest.fixture
def target(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr("agent.volume.writer.HELD_DESCRIPTORS", 2)  # and so opened again and again
    place = scene.volume
    for level in range(LEVELS):
        (place / "file").write_bytes(CONTENT)
        (place / "large").write_bytes(noise(level, 1_500_000))
        os.link(place / "file", place / "file-too")
        (place / "link").symlink_to("nowhere")
        os.mkfifo(place / "fifo")
        if level < LEVELS - 1:
            place = place / "d"
            place.mkdir()
    return Target(scene)


@pytest.mark.parametrize("delete", [False, True], ids=["keep", "delete"])
@pytest.mark.parametrize("kind", ["symlink to a directory", "fifo", "file"])
def test_directories_of_every_level_are_swapped(target: Target, kind: str, delete: bool) -> None:
    victim, master = target.scene.victim, target.master(kind)
    before = victim.facts(), facts(master)
    acts: list[Act] = [
        (attacker.plant, (target.path, ["d"] * level, "d", target.pool, master))
        for level in range(LEVELS - 1)
    ]
    with never_opened(victim.root, *([] if kind == "file" else [master])):
        attack = target.restore_under(acts, delete=delete)
    assert min(attack.done) > 0
    assert (victim.facts(), facts(master)) == before
    assert calm(target) == []


@pytest.mark.parametrize("delete", [False, True], ids=["keep", "delete"])
@pytest.mark.parametrize("kind", ["symlink to a file", "symlink to a directory", "fifo", "device"])
def test_files_are_swapped_for_what_is_none(target: Target, kind: str, delete: bool) -> None:
    victim, master = target.scene.victim, target.master(kind)
    before = victim.facts(), facts(master)
    acts: list[Act] = [
        (attacker.plant, (target.path, ["d"] * level, name, target.pool, master))
        for level in range(2)
        for name in ("file", "large")
    ]
    with never_opened(victim.root, master):
        target.restore_under(acts, delete=delete)
    assert (victim.facts(), facts(master)) == before
    assert calm(target) == []


@pytest.mark.parametrize("delete", [False, True], ids=["keep", "delete"])
@pytest.mark.parametrize("kind", ["file of the same content", "file of another content"])
def test_files_are_swapped_for_hard_links_to_others(
    target: Target, kind: str, delete: bool
) -> None:
    master = target.master(kind)
    before = facts(master), master.read_bytes()
    acts: list[Act] = [
        (attacker.plant, (target.path, ["d"] * level, name, target.pool, master))
        for level in range(2)
        for name in ("file", "file-too", "large")
    ]
    target.restore_under(acts, delete=delete)
    assert (facts(master), master.read_bytes()) == before
    assert calm(target) == []


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_what_is_no_file_is_swapped_for_hard_links_to_its_like(target: Target, kind: str) -> None:
    name = "link" if kind == "symlink" else "fifo"
    master = target.masters / "like"
    if kind == "fifo":
        os.mkfifo(master, 0o604)
    else:
        master.symlink_to("nowhere")
    os.chown(master, 1234, 5678, follow_symlinks=False)
    os.utime(master, ns=(5, 7), follow_symlinks=False)
    before = facts(master)
    acts: list[Act] = [
        (attacker.plant, (target.path, ["d"] * level, name, target.pool, master))
        for level in range(LEVELS)
    ]
    met = 0
    with attacking(*acts):
        for _ in range(ROUNDS):
            met += target.scene.restore(target.path).counters.problems
            if met >= ENOUGH:
                break
    assert met >= ENOUGH
    assert facts(master) == before
    assert calm(target) == []


def test_a_new_target_is_attacked_while_it_is_filled(target: Target) -> None:
    victim, master = target.scene.victim, target.master("symlink to a directory")
    before = victim.facts(), facts(master)
    acts: list[Act] = [
        (attacker.plant, (target.path, ["d"] * level, "d", target.pool, master))
        for level in range(LEVELS - 1)
    ]
    with never_opened(victim.root):
        target.restore_under(acts, delete=True, between=lambda: remove(target.path, b"d"))
    assert (victim.facts(), facts(master)) == before
    assert calm(target) == []


def remove(root: Path, name: bytes) -> None:
    with TargetTree.open(root, lambda _: None) as tree, suppress(SourceError):
        tree.root.remove(name, lambda _: None)


def calm(target: Target) -> list[str]:
    """Restore once more, undisturbed; return what is still not as it should be."""
    target.scene.problems.clear()
    target.scene.restore(target.path, delete=True)
    target.scene.restore(target.scene.place / "fresh")
    differing = [
        f"{path} differs"
        for path in (target.scene.place / "fresh").rglob("*")
        if path.is_file() and not path.is_symlink()
        and path.read_bytes()
        != (target.path / path.relative_to(target.scene.place / "fresh")).read_bytes()
    ]  # fmt: skip
    return target.scene.problems + differing
