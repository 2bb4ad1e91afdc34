"""Prune by us and by restic, on one repository, in any order: restic finds nothing wrong."""

import json
import shutil
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.errors import RepositoryLocked
from agent.monitor import Monitor
from agent.repository.check import check
from agent.repository.prune import plan_prune, run_prune
from agent.repository.pruneplan import Figures, PruneOptions, parse_tolerance
from tests.interop.runs import HOST, back_up, open_at
from tests.interop.volumes import differences, make_volume
from tests.repository.mess import forget, make_mess
from tests.support.restic import Restic

TIDY = PruneOptions(max_unused=parse_tolerance("0"))


def prune(place: Path, options: PruneOptions = TIDY) -> Figures:
    repository = open_at(place)
    with repository.locked(exclusive=True) as lock:
        plan = plan_prune(repository, options, Monitor(), NEVER)
        run_prune(repository, lock, plan, Monitor(), NEVER)
    return plan.figures


def in_order(restic: Restic, place: Path) -> None:
    """Fail unless restic, reading every byte, finds neither damage nor a reason for a hint."""
    done = restic.run(str(place), "check", "--read-data", "--no-cache")
    assert "no errors were found" in done.stdout
    for word in ("warning", "hint", "repair", "duplicate", "not referenced", "mixed"):
        assert word not in (done.stdout + done.stderr).lower()
    assert [found.message for found in check(open_at(place), read_data=True)] == []


def restored(restic: Restic, place: Path, target: Path) -> dict[str, Path]:
    """Let restic restore every snapshot."""
    found = {}
    for snapshot in json.loads(restic.run(str(place), "snapshots", "--json").stdout):
        found[snapshot["id"]] = target / snapshot["id"]
        restic.run(str(place), "restore", snapshot["id"], "--target", str(target / snapshot["id"]))
    return found


def same(one: dict[str, Path], other: dict[str, Path]) -> None:
    for id, path in other.items():
        assert differences(one[id], path) == []


def restics_own(restic: Restic, place: Path, volume: Path) -> None:
    """Let restic fill a repository of its own, and forget most of it."""
    restic.run(str(place), "init")
    make_volume(volume)
    for round in range(4):
        (volume / "large").write_bytes(bytes([round]) * 3_000_000 + (b"%d" % round) * 1_000_000)
        (volume / "small" / f"new-{round}").write_text(f"round {round}")
        shutil.rmtree(volume / f"dir-{round - 1}", ignore_errors=True)
        shutil.copytree(volume / "small", volume / f"dir-{round}")
        restic.run(str(place), "backup", ".", "--host", HOST, cwd=volume)
    restic.run(str(place), "forget", "--keep-last", "1")


def test_a_mess_is_in_order_after_a_prune_of_ours(restic: Restic, tmp_path: Path) -> None:
    place = tmp_path / "repo"
    repository = open_at(place)
    kept, old = make_mess(repository)
    forget(repository, old)
    before = restored(restic, place, tmp_path / "before")
    figures = prune(place)
    assert figures.packs_repacked > 2
    in_order(restic, place)
    after = restored(restic, place, tmp_path / "after")
    assert set(after) == set(kept)
    same(before, after)


def test_we_prune_what_restic_wrote(restic: Restic, tmp_path: Path) -> None:
    place = tmp_path / "repo"
    restics_own(restic, place, tmp_path / "volume")
    before = restored(restic, place, tmp_path / "before")
    figures = prune(place)
    assert figures.blobs_unused > 0
    assert figures.bytes_freed > 0
    in_order(restic, place)
    same(before, restored(restic, place, tmp_path / "after"))


def test_restic_finds_nothing_left_to_do_after_us_and_goes_on(
    restic: Restic, tmp_path: Path
) -> None:
    place, volume = tmp_path / "repo", tmp_path / "volume"
    restics_own(restic, place, volume)
    prune(place)
    packs = {path.name for path in place.glob("data/*/*")}
    restic.run(str(place), "prune", "--max-unused", "0")
    assert {path.name for path in place.glob("data/*/*")} == packs
    restic.run(str(place), "backup", ".", "--host", HOST, cwd=volume)
    back_up(place, volume)
    restic.run(str(place), "forget", "--keep-last", "1", "--group-by", "", "--prune")
    before = restored(restic, place, tmp_path / "before")
    prune(place)
    in_order(restic, place)
    same(before, restored(restic, place, tmp_path / "after"))


def test_we_find_nothing_left_to_do_after_restic(restic: Restic, tmp_path: Path) -> None:
    place = tmp_path / "repo"
    restics_own(restic, place, tmp_path / "volume")
    restic.run(str(place), "prune", "--max-unused", "0")
    figures = prune(place)
    assert (figures.packs_deleted, figures.packs_repacked, figures.packs_unindexed) == (0, 0, 0)
    assert figures.blobs_unused == figures.blobs_duplicate == 0


def test_both_agree_on_how_much_is_unused(restic: Restic, tmp_path: Path) -> None:
    place = tmp_path / "repo"
    repository = open_at(place)
    _, old = make_mess(repository)
    forget(repository, old)
    done = restic.run(str(place), "prune", "--dry-run", "--max-unused", "0", "--verbose=2")
    with repository.locked(exclusive=True):
        figures = plan_prune(repository, TIDY, Monitor(), NEVER).figures

    def restics(what: str) -> int:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{what}:")]
        return int(line.split(":")[1].split()[0])

    assert restics("used") == figures.blobs_used
    assert restics("duplicates") == figures.blobs_duplicate
    assert restics("unused") == figures.blobs_unused


def test_neither_works_while_the_other_prunes(restic: Restic, tmp_path: Path) -> None:
    place, volume = tmp_path / "repo", tmp_path / "volume"
    volume.mkdir()
    repository = open_at(place)
    with repository.locked(exclusive=True):
        for command in (["backup", "."], ["prune"], ["forget", "--keep-last", "1"]):
            refused = restic.run(str(place), *command, cwd=volume, check=False)
            assert refused.returncode != 0
            assert "locked" in refused.stderr
    with repository.locked(exclusive=False), pytest.raises(RepositoryLocked):
        prune(place)
