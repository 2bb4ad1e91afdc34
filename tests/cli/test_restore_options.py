"""podlift restore: its options, what it says, and how it ends."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.demo.compare import differences
from tests.cli.conftest import Run
from tests.volume.conftest import as_root as as_root
from tests.volume.conftest import mount as mount

Restore = Callable[..., object]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def common(repo: Path, filled: str, target: Path) -> tuple[str | Path, ...]:
    return ("restore", filled, "--repo", repo, "--target", target)


def test_json_tells_what_was_fetched_kept_and_removed(
    podlift: Run, common: tuple[str, ...], filled: str, target: Path
) -> None:
    first = podlift(*common, "--json")
    assert first.code == 0
    assert first.json == {
        "snapshot_id": filled, "files": 2, "files_kept": 0, "bytes": 7005,
        "bytes_fetched": first.json["bytes_fetched"], "removed": 0, "errors": 0,
    }  # fmt: skip
    assert 0 < first.json["bytes_fetched"] < 7005
    (target / "extra").touch()
    again = podlift(*common, "--json", "--delete").json
    kept = (again["files_kept"], again["bytes_fetched"], again["removed"])
    assert kept == (2, 0, 1)


def test_a_person_hears_what_was_right_already_what_was_removed_and_that_it_was_read_back(
    podlift: Run, common: tuple[str, ...], target: Path
) -> None:
    assert podlift(*common).code == 0
    (target / "extra").mkdir()
    done = podlift(*common, "--delete")
    assert "2 of them were right already; 1 other entries were removed" in done.out
    assert "every file was read back and is right" in podlift(*common, "--verify").out


def test_what_is_selected_is_restored(podlift: Run, common: tuple[str, ...], target: Path) -> None:
    assert podlift(*common, "--include", "other", "--include", "/link").code == 0
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*")) == [
        "below", "below/other", "link",
    ]  # fmt: skip
    assert podlift(*common, "--exclude", "below", "--exclude", "link").code == 0
    assert (target / "file").exists()


def test_a_dry_run_lists_and_writes_nothing(
    podlift: Run, common: tuple[str, ...], target: Path
) -> None:
    done = podlift(*common, "--dry-run")
    assert done.code == 0
    assert done.out.splitlines()[:4] == ["+ below", "+ file", "+ link", "+ below/other"]
    assert "would make 4 entries" in done.out
    assert not target.exists()
    podlift(*common)
    (target / "extra").touch()
    (target / "file").unlink()
    before = os.stat(target).st_mtime_ns
    done = podlift(*common, "-n", "--delete")
    assert done.out.splitlines()[:2] == ["- extra", "+ file"]
    assert "keep 2 and remove 1; nothing was written" in done.out
    assert os.stat(target).st_mtime_ns == before


def test_a_dry_run_cannot_be_verified(podlift: Run, common: tuple[str, ...], target: Path) -> None:
    done = podlift(*common, "-n", "--verify")
    assert done.code == 2
    assert "give one of them" in done.err
    assert not target.exists()


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_a_pattern_that_is_none_ends_with_2(
    podlift: Run, common: tuple[str, ...], option: str, target: Path
) -> None:
    done = podlift(*common, option, "[a")
    assert done.code == 2
    assert "'[a'" in done.err
    assert not target.exists()


def test_a_damaged_pack_ends_with_1_after_everything_else_is_restored(
    podlift: Run, common: tuple[str, ...], repo: Path, target: Path
) -> None:
    packs = sorted(
        (path for path in (repo / "data").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    lengths = {path: path.stat().st_size for path in packs}
    for path in packs:
        body = path.read_bytes()
        path.chmod(0o600)
        path.unlink()
        done = podlift(*common)
        path.write_bytes(body)
        assert done.code == 1, (path, lengths)
        assert "Traceback" not in done.err
        assert "podlift check --read-data" in done.err
    assert podlift(*common, "--verify").code == 0
    assert target.is_dir()


def test_without_a_lock_it_reads_from_a_directory_that_cannot_be_written(
    podlift: Run, repo: Path, source: Path, filled: str, target: Path, tmp_path: Path,
    mount: Callable[..., None],
) -> None:  # fmt: skip
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    mount("-o", "bind,ro", repo, fixed)
    common = ("restore", filled, "--repo", fixed, "--target", target)
    locked = podlift(*common)
    assert locked.code == 1
    assert "Traceback" not in locked.err
    assert podlift(*common, "--no-lock").code == 0
    assert list(differences(source, target)) == []
