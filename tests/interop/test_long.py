"""Directories worked on in stretches: restic makes the same tree of them, and reads ours."""

from pathlib import Path

import pytest

from agent.repository.longblob import LongTree
from agent.transfer.holding import ENTRY_BYTES
from tests.interop.runs import back_up, open_at, restore_latest
from tests.interop.test_restic import check, old, restic_backup, tree_of
from tests.interop.volumes import differences, make_volume
from tests.support.longdirs import lower_limits
from tests.support.restic import Restic

FILES, STRETCH = 1500, 100


def test_a_huge_directory_is_the_same_to_restic(
    restic: Restic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower_limits(monkeypatch.setattr)
    monkeypatch.setattr("agent.transfer.stretches.STRETCH_NAMES", STRETCH)
    monkeypatch.setattr("agent.transfer.stretches.STRETCH_BYTES", STRETCH * ENTRY_BYTES)
    volume, ours, theirs = tmp_path / "volume", tmp_path / "ours", tmp_path / "theirs"
    make_volume(volume)
    for number in range(FILES):
        (volume / f"{number:05}").write_bytes(b"%d" % (number // 3))
    back_up(ours, volume)
    tree = open_at(ours).snapshot("latest").tree
    assert isinstance(open_at(ours).reading().load_tree(tree), LongTree)
    check(restic, ours)
    if not old(restic):  # which has no linktarget_raw
        restic.run(str(ours), "restore", "latest", "--target", str(tmp_path / "by restic"))
        assert differences(volume, tmp_path / "by restic") == []
        summary = restic_backup(restic, ours, volume)
        assert (summary["data_blobs"], summary["tree_blobs"]) == (0, 0)
        assert tree_of(restic, ours, summary["snapshot_id"]) == tree.hex()
    restic.run(str(theirs), "init", "--repository-version", "2")
    restic_backup(restic, theirs, volume)
    counters = back_up(theirs, volume).counters
    assert (counters.files_new, counters.files_changed, counters.bytes_read) == (0, 0, 0)
    restore_latest(theirs, tmp_path / "by us")
    assert differences(volume, tmp_path / "by us") == []
