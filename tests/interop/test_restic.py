"""Real restic judges: it reads what we write, adds nothing to it, and we the same to it.

0.14 is Debian's; it knows neither ``restore --verify`` of today nor ``linktarget_raw``, so what
is asked of it is a little less, and each place says so.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import LockLost, RepositoryLocked
from agent.repository.opening import create_repository, open_repository
from agent.storage.local import LocalStorage
from tests.interop.runs import HOST, PASSWORD, back_up, open_at, restore_latest
from tests.interop.volumes import SPARSE_BYTES, differences
from tests.support.restic import Restic


def old(restic: Restic) -> bool:
    """Tell whether this restic is from before 0.17."""
    return tuple(map(int, restic.version.split(".")[:2])) < (0, 17)


def lines(restic: Restic, repo: Path, *args: str, **more: Any) -> list[dict[str, Any]]:
    out = restic.run(str(repo), *args, "--json", **more).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def listed(restic: Restic, repo: Path) -> list[dict[str, Any]]:
    found = json.loads(restic.run(str(repo), "snapshots", "--json").stdout)
    assert isinstance(found, list)
    return found


def restic_backup(restic: Restic, repo: Path, volume: Path) -> dict[str, Any]:
    """Let restic back a volume up as we do: its content is the root; return the summary."""
    (summary,) = [
        line
        for line in lines(restic, repo, "backup", ".", "--host", HOST, cwd=volume)
        if line["message_type"] == "summary"
    ]
    return summary


def check(restic: Restic, repo: Path) -> None:
    done = restic.run(str(repo), "check", "--read-data")
    assert "no errors were found" in done.stdout
    assert "warning" not in (done.stdout + done.stderr).lower()


def tree_of(restic: Restic, repo: Path, snapshot: str) -> str:
    return str(json.loads(restic.run(str(repo), "cat", "snapshot", snapshot).stdout)["tree"])


def test_restic_finds_nothing_wrong(restic: Restic, made: Path) -> None:
    check(restic, made)


def test_restic_restores_everything(
    restic: Restic, made: Path, sample: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    verify = [] if old(restic) else ["--verify"]
    restic.run(str(made), "restore", "latest", "--target", str(target), *verify)
    found = differences(sample, target)
    if old(restic):
        # It has no linktarget_raw (0.17 brought it), so a target that is not UTF-8 gets lost.
        found = [line for line in found if not line.startswith("b'kinds/dangling': content")]
    assert found == []


def test_restic_restores_holes_as_holes(restic: Restic, made: Path, tmp_path: Path) -> None:
    sparse = [] if old(restic) else ["--sparse"]  # 0.15 brought it
    args = ["latest", "--include", "/kinds/sparse", "--target", str(tmp_path), *sparse]
    restic.run(str(made), "restore", *args)
    found = (tmp_path / "kinds" / "sparse").stat()
    assert found.st_size == SPARSE_BYTES
    if sparse:
        assert found.st_blocks * 512 < SPARSE_BYTES // 2


def test_restic_adds_nothing_on_top_of_ours(restic: Restic, repo: Path, sample: Path) -> None:
    ours = open_at(repo).snapshot("latest")
    summary = restic_backup(restic, repo, sample)
    theirs = tree_of(restic, repo, summary["snapshot_id"])
    assert summary["data_blobs"] == 0
    assert summary["files_new"] == summary["files_changed"] == 0
    if old(restic):
        # Its nodes lack linktarget_raw, so the one directory with such a link, and the root, differ.
        assert summary["tree_blobs"] == 2
    else:
        assert theirs == ours.tree.hex()
        assert summary["data_added"] == 0


def test_we_add_nothing_on_top_of_restics(restic: Restic, sample: Path, tmp_path: Path) -> None:
    repo = tmp_path / "theirs"
    restic.run(str(repo), "init", "--repository-version", "2")
    summary = restic_backup(restic, repo, sample)
    first = back_up(repo, sample)
    assert first.parent_id.startswith(summary["snapshot_id"])
    assert first.counters.files_new == first.counters.files_changed == 0
    assert first.counters.data_blobs == 0
    assert first.counters.bytes_read == 0
    if not old(restic):
        assert first.counters.tree_blobs == 0
    unparented = back_up(repo, sample, parent=False)
    assert unparented.counters.data_blobs == 0
    assert unparented.counters.bytes_read > 0
    check(restic, repo)


def test_restic_lists_what_we_wrote(restic: Restic, made: Path, sample: Path) -> None:
    (snapshot,) = listed(restic, made)
    ours = open_at(made).snapshot("latest")
    assert snapshot["id"] == ours.id
    assert snapshot["paths"] == [str(sample)]
    assert snapshot["hostname"] == HOST
    if not old(restic):
        assert ours.summary is not None
        assert snapshot["summary"]["total_bytes_processed"] == ours.summary.total_bytes_processed
        assert snapshot["program_version"].startswith("podlift ")
    names = {line.get("path") for line in lines(restic, made, "ls", "latest")}
    assert {"/large", "/kinds/fifo", "/small/file-007", "/names/<&>"} <= names


def test_restic_counts_as_we_do(restic: Restic, made: Path) -> None:
    (stats,) = lines(restic, made, "stats", "latest")
    summary = open_at(made).snapshot("latest").summary
    assert summary is not None
    linked_twice_more = 2 * len("content with several names")
    assert stats["total_size"] == summary.total_bytes_processed - linked_twice_more
    (raw,) = lines(restic, made, "stats", "--mode", "raw-data")
    packs = sum(p.stat().st_size for p in (made / "data").rglob("*") if p.is_file())
    assert raw["total_size"] <= packs


def test_restic_sees_what_changed(restic: Restic, repo: Path, sample: Path, tmp_path: Path) -> None:
    changed = tmp_path / "volume"
    shutil.copytree(sample / "small", changed / "small")
    back_up(repo, changed)
    (changed / "small" / "file-000").write_bytes(b"changed")
    (changed / "small" / "file-001").unlink()
    (changed / "added").write_bytes(b"added")
    back_up(repo, changed)
    _, before, after = [s.id for s in open_at(repo).snapshots()]
    out = restic.run(str(repo), "diff", before, after).stdout
    marks = {line[-40:].split("/", 1)[-1]: line[0] for line in out.splitlines() if "/" in line}
    assert marks["small/file-000"] == "M"
    assert marks["small/file-001"] == "-"
    assert marks["added"] == "+"


def test_forget_and_prune_leave_a_sound_repository(
    restic: Restic, repo: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    for generation in range(3):
        (volume / "file").write_bytes(os.urandom(600_000))
        (volume / "kept").write_bytes(b"the same all the time")
        (volume / "changing").write_text(str(generation))
        back_up(repo, volume)
    restic.run(str(repo), "forget", "--keep-last", "1", "--group-by", "", "--prune")
    check(restic, repo)
    assert len(listed(restic, repo)) == 1
    target = tmp_path / "target"
    restore_latest(repo, target)
    assert differences(volume, target) == []
    again = back_up(repo, volume)
    assert again.counters.data_blobs == again.counters.tree_blobs == 0
    (volume / "file").write_bytes(os.urandom(600_000))
    back_up(repo, volume)
    check(restic, repo)


def test_we_restore_what_restic_wrote(restic: Restic, sample: Path, tmp_path: Path) -> None:
    repo = tmp_path / "theirs"
    restic.run(str(repo), "init", "--repository-version", "2")
    restic_backup(restic, repo, sample)
    target = tmp_path / "target"
    restore_latest(repo, target)
    found = differences(sample, target)
    if old(restic):
        found = [line for line in found if not line.startswith("b'kinds/dangling': content")]
    assert found == []


def test_we_restore_what_we_wrote(made: Path, sample: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    restore_latest(made, target)
    assert differences(sample, target) == []


def test_keys_that_restic_adds_and_changes_open_here(
    restic: Restic, repo: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.write_text("second\n")
    restic.run(str(repo), "key", "add", "--new-password-file", str(second))
    storage = LocalStorage(repo)
    assert open_repository(storage, "second").snapshots()
    third = tmp_path / "third"
    third.write_text("third")
    restic.run(str(repo), "key", "passwd", "--new-password-file", str(third), password="second")
    assert open_repository(storage, "third").snapshots()


def test_a_repository_with_a_real_key_of_ours_opens_there(restic: Restic, tmp_path: Path) -> None:
    storage = LocalStorage.create(tmp_path / "repo")
    create_repository(storage, PASSWORD)
    (key,) = json.loads(restic.run(storage.place, "key", "list", "--json").stdout)
    assert key["current"] is True
    wrong = restic.run(storage.place, "snapshots", password="wrong", check=False)
    assert wrong.returncode != 0


@pytest.fixture
def _deaf_to_hangups() -> Iterator[None]:
    # `restic unlock` sends SIGHUP to the process of each lock to see whether it lives.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_deaf_to_hangups")
def test_restic_honours_our_locks_and_we_its(restic: Restic, repo: Path) -> None:
    ours = open_at(repo)
    with ours.locked(exclusive=False) as lock:
        assert restic.run(str(repo), "prune", check=False).returncode != 0
        assert len(listed(restic, repo)) == 1
        restic.run(str(repo), "unlock")
        lock.refresh()  # ours is young and its process lives, so it is still there
        restic.run(str(repo), "unlock", "--remove-all")
        with pytest.raises(LockLost, match="somebody removed it"):
            lock.refresh()
    with ours.locked(exclusive=True):
        refused = restic.run(str(repo), "backup", ".", cwd=repo, check=False)
        assert "locked" in refused.stderr


def test_a_lock_that_restic_left_behind_keeps_us_out(restic: Restic, repo: Path) -> None:
    ours = open_at(repo)
    process = subprocess.Popen(
        [restic.binary, "-r", repo, "backup", "--stdin", "--no-cache"],
        stdin=subprocess.PIPE,
        env={"RESTIC_PASSWORD": PASSWORD, "HOME": str(restic.home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not list((repo / "locks").glob("[0-9a-f]" * 64)):
            assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    with ours.locked(exclusive=False):
        pass
    with (
        pytest.raises(RepositoryLocked, match=rf"shared lock of .*pid {process.pid}"),
        ours.locked(exclusive=True),
    ):
        pass
