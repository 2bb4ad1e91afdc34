"""A backup stores again what the repository has lost, and says what it could not."""

import logging
import re
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.cli import main
from agent.monitor import Monitor
from agent.repository.check import check
from agent.repository.identity import BlobType
from agent.repository.opening import open_repository
from agent.storage.contract import Storage
from agent.storage.local import LocalStorage
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import by_paths
from agent.transfer.restore import RestoreRequest, restore
from tests.repository.making import PASSWORD, fill, keys
from tests.support.restic import Restic, restic
from tests.transfer.running import all_content, noise

__all__ = ["restic"]

STILL = re.compile(r"(\d+) of the blobs that .* has lost are not in this volume")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    (root / "sub").mkdir(parents=True)
    for number in range(6):
        (root / "sub" / f"file-{number}").write_bytes(noise(number, 200_000))
    (root / "large").write_bytes(noise(99, 5_000_000))
    return root


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = LocalStorage.create(tmp_path / "repository")
    fill(made)
    return made


def back_up(storage: Storage, volume: Path) -> Result:
    path = str(volume)
    request = Request(
        path, (path,), "host", {}, lambda every, now: by_paths(every, "host", [path], now)
    )
    return run_backup(open_repository(storage, PASSWORD), request, Monitor(), NEVER)


def restored(storage: Storage, snapshot: str, target: Path) -> dict[bytes, bytes]:
    repository = open_repository(storage, PASSWORD)
    request = RestoreRequest(repository.snapshot(snapshot).tree, target)
    monitor = Monitor()
    restore(repository.reading(), request, monitor, NEVER)
    assert monitor.problems == []
    return all_content(target)


def packs(storage: Storage, type: BlobType) -> list[str]:
    """Return the keys of all packs of one type."""
    view = open_repository(storage, PASSWORD).load_index()
    ids = {found.pack.hex() for table in view.all(type) for found in table}
    return [f"data/{id[:2]}/{id}" for id in sorted(ids)]


def lose(storage: Storage, keys: list[str], how: str) -> None:
    for key in keys:
        body = storage.get(key)
        storage.delete(key)
        if how == "truncate":
            storage.put(key, body[: len(body) // 2])


def repair(folder: Path, *what: str) -> None:
    secret = folder / "password"
    secret.write_text(PASSWORD)
    places = ["--repo", str(folder / "repository"), "--cache-dir", str(folder / "cache")]
    assert main(["repair", *what, *places, "--password-file", str(secret)]) == 0


@pytest.mark.parametrize("how", ["delete", "truncate"])
@pytest.mark.parametrize("type", list(BlobType))
def test_what_is_still_in_the_volume_is_stored_again(
    storage: Storage,
    volume: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    restic: Restic,
    how: str,
    type: BlobType,
) -> None:
    back_up(storage, volume)
    gone = packs(storage, type)
    lose(storage, gone, how)
    with caplog.at_level(logging.WARNING, "agent"):
        result = back_up(storage, volume)
    assert f"has lost {len(gone)} packs" in caplog.text
    assert [match[1] for match in STILL.finditer(caplog.text)] == ["0"]
    if type is BlobType.DATA:  # nothing changed, so all of it was lost and is new
        assert result.counters.bytes_added > 6_000_000
    assert restored(storage, result.snapshot_id, tmp_path / "ours") == all_content(volume)

    damage = [finding for finding in check(open_repository(storage, PASSWORD)) if finding.damage]
    assert damage  # the old index still names what is gone: said, until it is repaired
    # Older restics read a blob from the first pack that an index names, there or not.
    repair(tmp_path, *(["packs", "--all"] if how == "truncate" else ["index"]))
    assert [
        finding for finding in check(open_repository(storage, PASSWORD)) if finding.damage
    ] == []
    target, repository = tmp_path / "theirs", str(tmp_path / "repository")
    restic.run(repository, "restore", result.snapshot_id, "--target", str(target))
    assert all_content(target) == all_content(volume)


def test_what_is_in_the_volume_no_more_stays_lost_and_is_counted(
    storage: Storage, volume: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    back_up(storage, volume)
    for number in range(2):
        (volume / "sub" / f"file-{number}").unlink()
    lose(storage, packs(storage, BlobType.DATA), "delete")
    with caplog.at_level(logging.WARNING, "agent"):
        result = back_up(storage, volume)
    assert [match[1] for match in STILL.finditer(caplog.text)] == ["2"]
    assert restored(storage, result.snapshot_id, tmp_path / "ours") == all_content(volume)


def test_a_repository_that_is_whole_is_not_warned_about(
    storage: Storage, volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    back_up(storage, volume)
    with caplog.at_level(logging.WARNING, "agent"):
        again = back_up(storage, volume)
    assert caplog.text == ""
    assert again.counters.data_blobs == 0


def test_the_next_backup_finds_nothing_lost_once_the_index_is_repaired(
    storage: Storage, volume: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    back_up(storage, volume)
    lose(storage, packs(storage, BlobType.DATA)[:1], "delete")
    result = back_up(storage, volume)
    repair(tmp_path, "index")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "agent"):
        back_up(storage, volume)
    assert caplog.text == ""
    opened = open_repository(storage, PASSWORD)
    assert [f for f in check(opened, read_data=True) if f.damage] == []
    assert restored(storage, result.snapshot_id, tmp_path / "ours") == all_content(volume)
    assert keys(storage, "locks") == []
