"""What we repair, restic finds in order."""

from pathlib import Path

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository.identity import BlobType
from agent.repository.objects import pack_key
from agent.repository.repair import (
    plan_index_repair,
    plan_pack_repair,
    run_index_repair,
    run_pack_repair,
)
from tests.interop.runs import back_up, open_at
from tests.interop.test_prune import restored, same
from tests.support.restic import Restic


def test_an_index_that_we_made_again_is_in_order(
    restic: Restic, repo: Path, tmp_path: Path
) -> None:
    before = restored(restic, repo, tmp_path / "before")
    for file in (repo / "index").iterdir():
        file.unlink()
    repository = open_at(repo)
    with repository.locked(exclusive=True) as lock:
        run_index_repair(repository, lock, plan_index_repair(repository))
    done = restic.run(str(repo), "check", "--read-data", "--no-cache")
    assert "no errors were found" in done.stdout
    same(before, restored(restic, repo, tmp_path / "after"))


def test_after_a_lost_blob_a_new_backup_makes_everything_whole(
    restic: Restic, repo: Path, sample: Path
) -> None:
    repository = open_at(repo)
    (table,) = repository.load_index().all(BlobType.DATA)
    pack = table.at(0).pack
    path = repo / pack_key(pack)
    body = bytearray(path.read_bytes())
    body[table.at(0).blob.offset + 17] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(body))
    assert restic.run(str(repo), "check", "--read-data", check=False).returncode != 0
    with repository.locked(exclusive=True) as lock:
        salvages = plan_pack_repair(repository, [pack], NEVER)
        run_pack_repair(repository, lock, salvages, Monitor(), NEVER)
    back_up(repo, sample, parent=False)
    done = restic.run(str(repo), "check", "--read-data", "--no-cache")
    assert "no errors were found" in done.stdout
