"""Files that change while a backup reads them: they grow, shrink, get holes, become others."""

import os
import subprocess
from pathlib import Path

import pytest

from agent.entry import Kind
from tests.hostile import attacker
from tests.hostile.attacker import Act, attacking
from tests.hostile.scene import ENOUGH, ROUNDS, Scene
from tests.transfer.running import Bench, noise

MIB = 1 << 20


def test_a_file_that_grows_without_end_is_read_to_an_end(scene: Scene) -> None:
    (scene.volume / "log").write_bytes(noise(1, 2 * MIB))
    (scene.volume / "small").write_bytes(b"x")
    acts: list[Act] = [
        (attacker.grow, (scene.volume / name, 48 * MIB)) for name in ("log", "small")
    ]
    grown = 0
    with attacking(*acts):
        for _ in range(ROUNDS):
            before = (scene.volume / "log").stat().st_size
            scene.back_up(parent=False)
            size, after = scene.entries()[b"log"].size, (scene.volume / "log").stat().st_size
            assert before <= size <= after
            grown += before < size
            if grown >= ENOUGH:
                break
    assert grown >= ENOUGH
    assert scene.problems == []
    scene.judge()


def test_a_file_is_truncated_while_it_is_read(scene: Scene) -> None:
    full = 6 * MIB
    (scene.volume / "file").write_bytes(noise(1, full))
    (scene.volume / "neighbour").write_bytes(b"mine")
    sizes = []
    with attacking((attacker.truncate_and_fill, (scene.volume / "file", full))):
        for _ in range(ROUNDS):
            scene.back_up(parent=False)
            entries = scene.entries()
            assert set(entries) == {b"file", b"neighbour"}
            sizes.append(entries[b"file"].size)
            if len([size for size in sizes if size < full]) >= ENOUGH:
                break
    assert len([size for size in sizes if size < full]) >= ENOUGH
    assert scene.problems == []
    scene.judge()


def test_holes_move_while_a_file_is_read(scene: Scene) -> None:
    size, step = 24 * MIB, 64 << 10
    (scene.volume / "image").write_bytes(noise(1, size))
    moved, contents = 0, set()
    with attacking((attacker.move_holes, (scene.volume / "image", size, step))) as attack:
        for _ in range(ENOUGH):
            before = attack.done[0]
            scene.back_up(parent=False)
            moved += attack.done[0] > before
            entry = scene.entries()[b"image"]
            assert entry.size == size
            contents.add(entry.content)
    assert moved == len(contents) == ENOUGH
    scene.judge()


def test_a_file_is_replaced_by_another_one_of_the_same_number(scene: Scene) -> None:
    contents = [b"a" * 50_000, b"b" * 70_000]
    acts: list[Act] = [
        (attacker.replace, (scene.volume, f"file{number}", contents)) for number in range(4)
    ]
    begun: set[bytes] = set()
    with attacking(*acts) as attack:
        for _ in range(2 * ENOUGH):
            before = min(attack.done)
            result = scene.back_up()
            assert min(attack.done) > before + ENOUGH
            for content in content_of(scene, result.snapshot_id).values():
                assert any(whole.startswith(content) for whole in contents), "two files are mixed"
                begun.add(content[:1])
    assert {b"a", b"b"} <= begun
    scene.judge()


def content_of(scene: Scene, snapshot_id: str) -> dict[bytes, bytes]:
    bench = Bench(scene.volume, scene.storage)  # type: ignore[arg-type]
    return bench.content(snapshot_id)


def test_hard_links_lead_to_one_file_and_then_to_another(scene: Scene) -> None:
    one, other = scene.volume / "a-one", scene.volume / "b-other"
    one.mkdir()
    other.mkdir()
    contents = {name: noise(number, 40_000) for number, name in enumerate("abc")}
    for name, content in contents.items():
        (one / name).write_bytes(content)
        os.link(one / name, one / f"{name}-too")
    acts: list[Act] = [
        (attacker.relink, (one, other, f"link{number}", tuple(contents))) for number in range(3)
    ]
    with attacking(*acts):
        for round in range(ROUNDS):
            scene.back_up()
            if scene.hits("replaced") + scene.hits("vanished") >= ENOUGH and round >= ENOUGH:
                break
        target = scene.place / "during"
        scene.restore(target)
    for name, content in contents.items():
        assert (target / "a-one" / name).read_bytes() == content
        assert (target / "a-one" / f"{name}-too").read_bytes() == content
    for path in (target / "b-other").iterdir():
        assert path.read_bytes() in contents.values()
    assert scene.hits("replaced") + scene.hits("vanished") >= ENOUGH
    scene.judge()


def test_files_that_say_they_are_empty_and_do_not_end_are_left_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.volume.file._UNSIZED_BYTES", 4 * MIB)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            scene.bench = Bench(Path(f"/proc/{process.pid}"), scene.bench.storage)
            scene.bench.go(scene.storage, ["/task", "/net", "/map_files"], parent=False)
        finally:
            process.kill()
    problems = {problem.path: problem.reason for problem in scene.bench.monitor.problems}
    assert "does not end" in problems[b"pagemap"]
    entries = scene.entries()
    assert entries[b"status"].size > 0
    assert entries[b"root"].kind is Kind.SYMLINK  # it leads out of everything
    assert b"pagemap" not in entries
    scene.judge()
