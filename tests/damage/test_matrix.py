"""Damage by place: what is found, what is touched, what still restores, what the next backup heals.

Each object of a repository is deleted, cut, changed in one bit, or exchanged with another of its
kind. Then check has to find it and name the touched files and no others, the untouched ones have to
restore, and a new backup heals what it can. restic judges beside us: where its own check fails,
ours must not be content.
"""

import contextlib
import dataclasses
import logging
import re
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.cli import main
from agent.errors import DamagedBlob, PodliftError
from agent.monitor import Monitor
from agent.repository import locking
from agent.repository.check import check
from agent.repository.finding import Finding
from agent.repository.identity import BlobType
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.storage.local import LocalStorage
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import by_paths
from agent.transfer.restore import RestoreRequest, restore
from tests.repository.making import PASSWORD, fill, keys
from tests.support.restic import Restic, restic
from tests.transfer.running import all_content, noise

__all__ = ["restic"]

HOWS = ["delete", "truncate", "flip", "swap"]
STILL = re.compile(r"(\d+) of the blobs that .* has lost are not in this volume")


@dataclasses.dataclass
class Stage:
    """A repository in a directory with two snapshots of one volume, in packs of their own."""

    folder: Path
    storage: LocalStorage
    first: str = ""
    second: str = ""

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def repository(self) -> str:
        return str(self.folder / "repository")

    def open(self) -> Repository:
        return open_repository(self.storage, PASSWORD)

    def back_up(self) -> Result:
        path = str(self.volume)
        request = Request(
            path, (path,), "host", {}, lambda every, now: by_paths(every, "host", [path], now)
        )
        return run_backup(self.open(), request, Monitor(), NEVER)

    def restored(self, snapshot: str, name: str) -> dict[bytes, bytes]:
        """Restore as far as it goes, and return what is there."""
        target = self.folder / name
        repository = self.open()
        request = RestoreRequest(repository.snapshot(snapshot).tree, target)
        with contextlib.suppress(DamagedBlob):
            restore(repository.reading(), request, Monitor(), NEVER)
        return all_content(target)

    def findings(self) -> list[Finding]:
        return list(check(self.open(), read_data=True))

    def podlift(self, *arguments: str) -> int:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        places = ["--repo", self.repository, "--cache-dir", str(self.folder / "cache")]
        return main([*arguments, *places, "--password-file", str(secret)])

    def packs(self, type: BlobType) -> list[str]:
        """Return the keys of all packs of one type, those of the first snapshot first."""
        view = self.open().load_index()
        ids = {found.pack.hex() for table in view.all(type) for found in table}
        stored = [f"data/{id[:2]}/{id}" for id in ids]
        return sorted(stored, key=lambda key: (Path(self.repository) / key).stat().st_mtime_ns)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return a stage; what the first snapshot has is ``old/``, what the second adds is ``new``."""
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("agent.repository.opening._KEY_WAIT_SECONDS", (0.0,))
    monkeypatch.setattr("agent.repository.locking._UNREADABLE_PAUSES", (0.0,))
    storage = LocalStorage.create(tmp_path / "repository")
    fill(storage)
    made = Stage(tmp_path, storage)
    (made.volume / "old").mkdir(parents=True)
    for number in range(3):
        (made.volume / "old" / f"file-{number}").write_bytes(noise(number, 100_000))
    made.first = made.back_up().snapshot_id
    (made.volume / "new").write_bytes(noise(77, 300_000))
    made.second = made.back_up().snapshot_id
    return made


def damage(stage: Stage, key: str, other: str, how: str) -> None:
    storage = stage.storage
    body = storage.get(key)
    storage.delete(key)
    if how == "truncate":
        storage.put(key, body[: len(body) // 2])
    elif how == "flip":
        middle = len(body) // 3
        storage.put(key, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :])
    elif how == "swap":
        storage.put(key, storage.get(other))
        storage.delete(other)
        storage.put(other, body)


def touched(findings: list[Finding]) -> set[tuple[str, bytes]]:
    """Return (snapshot, path) of every place that check names."""
    return {
        (finding.touched.snapshot, finding.touched.path)
        for finding in findings
        if finding.touched is not None and finding.touched.path is not None
    }


def assert_restic_minds(stage: Stage, restic: Restic, *, gone: bool = False) -> None:
    """Make sure that restic's own check of every byte fails as well.

    ``gone``: a pack is missing, cut short, or ends before a blob does. Restics of before 0.17 ask for it again and again for
    a minute, so of those the newest alone is asked then.
    """
    if gone and tuple(map(int, restic.version.split(".")[:2])) < (0, 17):
        return
    checked = restic.run(stage.repository, "check", "--read-data", "--no-lock", check=False)
    assert checked.returncode != 0


def repair(stage: Stage) -> None:
    """Save what is intact of damaged packs, and name no more what is gone."""
    assert stage.podlift("repair", "packs", "--all") == 0
    assert stage.podlift("repair", "index") == 0


def assert_sound(stage: Stage, restic: Restic, newest: str) -> None:
    """Let restic agree that everything is in order again, and restore the newest snapshot."""
    assert [finding.message for finding in stage.findings() if finding.damage] == []
    restic.run(stage.repository, "check", "--read-data")
    restic.run(stage.repository, "restore", newest, "--target", str(stage.folder / "theirs"))
    assert all_content(stage.folder / "theirs") == all_content(stage.volume)


OLD = {f"old/file-{number}".encode() for number in range(3)}


@pytest.mark.parametrize("how", HOWS)
def test_a_data_pack(
    stage: Stage, how: str, restic: Restic, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = stage.packs(BlobType.DATA)
    damage(stage, old, new, how)
    findings = stage.findings()
    assert any(finding.damage for finding in findings)
    assert_restic_minds(stage, restic, gone=how in {"delete", "truncate"})
    hurt = {path.lstrip(b"/") for _, path in touched(findings)}
    both = how == "swap"
    lost = OLD | ({b"new"} if both else set())
    if how == "flip":  # one blob of the pack, or its header
        assert len(hurt) <= 1
        lost = hurt
    elif how == "truncate":  # what lies before the cut is intact, and is not named
        assert hurt
        lost = hurt & OLD
    assert hurt == lost
    assert {snapshot for snapshot, path in touched(findings) if path != b"/new"} <= {
        stage.first,
        stage.second,
    }
    whole = all_content(stage.volume)
    untouched = {path: body for path, body in whole.items() if path not in lost}
    assert stage.restored(stage.second, "now") == untouched

    with caplog.at_level(logging.WARNING, "agent"):
        newest = stage.back_up().snapshot_id
    sizes_tell = how in {"delete", "truncate"} or both
    assert ("has lost" in caplog.text) is sizes_tell
    if not sizes_tell:  # only reading it tells; check has said which pack to repair
        assert stage.podlift("repair", "packs", old.rpartition("/")[2]) == 0
        newest = stage.back_up().snapshot_id
    assert [match[1] for match in STILL.finditer(caplog.text)] == (["0"] if sizes_tell else [])
    assert stage.restored(newest, "then") == whole
    repair(stage)
    assert_sound(stage, restic, newest)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_a_data_pack_of_what_the_volume_has_no_more(
    stage: Stage, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = stage.packs(BlobType.DATA)
    (stage.volume / "new").unlink()
    damage(stage, new, old, how)
    if how == "flip":
        assert stage.podlift("repair", "packs", new.rpartition("/")[2]) == 0
    with caplog.at_level(logging.WARNING, "agent"):
        newest = stage.back_up().snapshot_id
    if how != "flip":
        assert [match[1] for match in STILL.finditer(caplog.text)] == ["1"]
    repair(stage)
    assert touched(stage.findings()) == {(stage.second, b"/new")}
    assert stage.restored(newest, "newest") == all_content(stage.volume)
    assert stage.restored(stage.second, "second") == all_content(stage.volume)  # without new


@pytest.mark.parametrize("how", HOWS)
def test_a_tree_pack(stage: Stage, how: str, restic: Restic) -> None:
    first, second = stage.packs(BlobType.TREE)
    damage(stage, first, second, how)
    findings = stage.findings()
    assert any(finding.damage for finding in findings)
    assert_restic_minds(stage, restic, gone=how != "flip")
    whole = all_content(stage.volume)
    if how == "flip":
        assert {path for _, path in touched(findings)} <= {b"", b"/old"}
    else:
        # The first pack has the first root and the directory old, which both snapshots have.
        assert {path for _, path in touched(findings)} <= {b"", b"/old"}
        assert touched(findings)
    left = stage.restored(stage.second, "now")
    assert left.items() <= whole.items()
    if how in {"delete", "truncate"}:
        assert left == {b"new": whole[b"new"]}

    newest = stage.back_up().snapshot_id
    assert stage.restored(newest, "then") == whole
    repair(stage)
    # The root of the first snapshot is not the volume's any more, so no backup brings it back.
    assert touched(stage.findings()) <= {(stage.first, b"")}
    assert stage.podlift("forget", stage.first) == 0
    assert_sound(stage, restic, newest)


@pytest.mark.parametrize("how", HOWS)
def test_an_index_file(stage: Stage, how: str, restic: Restic) -> None:
    one, other = keys(stage.storage, "index")
    damage(stage, one, other, how)
    findings = stage.findings()
    assert any(finding.damage for finding in findings)
    assert_restic_minds(stage, restic)
    whole = all_content(stage.volume)
    if how == "delete":  # what it named counts as unknown, so it is stored again
        newest = stage.back_up().snapshot_id
        assert stage.restored(newest, "then") == whole
    else:
        with pytest.raises(PodliftError, match=r"podlift repair index|does not match its name"):
            stage.back_up()
    assert stage.podlift("repair", "index") == 0
    assert [finding.message for finding in stage.findings() if finding.damage] == []
    newest = stage.back_up().snapshot_id
    for snapshot in (stage.second, newest):
        assert stage.restored(snapshot, snapshot) == whole
    restic.run(stage.repository, "check", "--read-data")


@pytest.mark.parametrize("how", HOWS)
def test_a_snapshot(stage: Stage, how: str, restic: Restic) -> None:
    damage(stage, f"snapshots/{stage.second}", f"snapshots/{stage.first}", how)
    whole = all_content(stage.volume)
    findings = [finding for finding in stage.findings() if finding.damage]
    if how == "delete":  # that is how snapshots are forgotten
        assert findings == []
    else:
        assert findings
        assert_restic_minds(stage, restic)
        assert stage.second[:8] in " ".join(finding.message for finding in findings)
    if how != "swap":
        without = {path: body for path, body in whole.items() if path != b"new"}
        assert stage.restored(stage.first, "first") == without
    newest = stage.back_up().snapshot_id
    assert stage.restored(newest, "newest") == whole
    for damaged in (stage.first, stage.second) if how == "swap" else (stage.second,):
        if how != "delete":
            assert stage.podlift("forget", damaged) == 0
    assert [finding.message for finding in stage.findings() if finding.damage] == []
    restic.run(stage.repository, "check", "--read-data")


@pytest.mark.parametrize("how", HOWS)
def test_a_key(stage: Stage, how: str, restic: Restic) -> None:
    (key,) = keys(stage.storage, "keys")
    (stage.folder / "second").write_text("second")
    restic.run(stage.repository, "key", "add", "--new-password-file", str(stage.folder / "second"))
    (second,) = [name for name in keys(stage.storage, "keys") if name != key]
    damage(stage, key, second, how)
    if how == "swap":
        with pytest.raises(PodliftError):  # neither file is what its name says
            stage.open()
        return
    with pytest.raises(PodliftError) as refused:
        stage.open()
    assert len(str(refused.value)) > 20
    opened = open_repository(stage.storage, "second")
    findings = [finding for finding in check(opened) if finding.damage]
    if how == "delete":
        assert findings == []  # that is how keys are removed
        return
    assert key.rpartition("/")[2][:8] in " ".join(finding.message for finding in findings)
    # restic is not asked: it opens or refuses by which of the two keys it happens to meet first.
    request = RestoreRequest(opened.snapshot("latest").tree, stage.folder / "now")
    restore(opened.reading(), request, Monitor(), NEVER)
    assert all_content(stage.folder / "now") == all_content(stage.volume)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_the_config(stage: Stage, how: str, restic: Restic) -> None:
    kept = stage.storage.get("config")
    damage(stage, "config", "config", how)
    assert_restic_minds(stage, restic, gone=True)
    with pytest.raises(PodliftError, match=r"config|no repository"):
        stage.open()
    with pytest.raises(PodliftError):
        stage.back_up()
    stage.storage.delete("config")
    stage.storage.put("config", kept)  # the advice: restore it from a copy
    assert [finding.message for finding in stage.findings() if finding.damage] == []


@pytest.mark.parametrize("how", HOWS)
def test_a_lock(stage: Stage, how: str) -> None:
    with stage.open().locked(exclusive=False):
        (key,) = keys(stage.storage, "locks")
        body = stage.storage.get(key)
    with stage.open().locked(exclusive=False):
        (other,) = keys(stage.storage, "locks")
        second = stage.storage.get(other)
    stage.storage.put(key, body)
    stage.storage.put(other, second)
    damage(stage, key, other, how)
    findings = stage.findings()
    if how == "delete":
        stage.back_up()
    else:
        assert key.rpartition("/")[2][:8] in " ".join(finding.message for finding in findings)
        with pytest.raises(PodliftError, match="lock"):
            stage.back_up()
    assert stage.podlift("unlock", "--remove-all") == 0
    newest = stage.back_up().snapshot_id
    assert stage.restored(newest, "newest") == all_content(stage.volume)
