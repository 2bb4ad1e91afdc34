"""The same judges over S3 with TLS: one repository, used by restic and by us in turn."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository.forget import remove_named
from agent.repository.prune import plan_prune, run_prune
from agent.storage.contract import Storage
from agent.storage.opening import open_s3
from tests.interop.runs import back_up, open_at, restore_latest
from tests.interop.test_prune import TIDY
from tests.interop.volumes import differences
from tests.repository.mess import make_mess
from tests.repository.test_prune import everything
from tests.support.restic import Restic
from tests.support.s3servers import S3Server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def storage(s3_server: S3Server, bucket: str) -> Iterator[Storage]:
    opened = open_s3(s3_server.settings("some/prefix", bucket=bucket))
    yield opened
    opened.close()


def test_restic_and_we_share_a_repository_on_s3(
    restic: Restic, s3_server: S3Server, bucket: str, storage: Storage, sample: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    shutil.copytree(sample / "small", volume)
    shutil.copy2(sample / "large", volume / "large")
    repo = s3_server.repository(bucket, "some/prefix")
    tls = ["--cacert", str(s3_server.ca)]
    environment = s3_server.environment()

    back_up(storage, volume)
    done = restic.run(repo, "check", "--read-data", *tls, env=environment)
    assert "no errors were found" in done.stdout
    target = tmp_path / "by-restic"
    restic.run(repo, "restore", "latest", "--target", str(target), *tls, env=environment)
    assert differences(volume, target) == []

    (volume / "added").write_bytes(b"added after our backup")
    restic.run(repo, "backup", ".", "--host", "interop", *tls, cwd=volume, env=environment)
    again = back_up(storage, volume)
    assert again.counters.files_new == again.counters.data_blobs == 0
    assert again.counters.tree_blobs == 0
    restore_latest(storage, tmp_path / "by-us")
    assert differences(volume, tmp_path / "by-us") == []


def test_what_we_prune_on_s3_restic_finds_in_order(
    restic: Restic, s3_server: S3Server, bucket: str, storage: Storage, tmp_path: Path
) -> None:
    repository = open_at(storage)
    kept, old = make_mess(repository)
    before = everything(repository)
    with repository.locked(exclusive=True) as lock:
        remove_named(repository, lock, old, NEVER)
        plan = plan_prune(repository, TIDY, Monitor(), NEVER)
        run_prune(repository, lock, plan, Monitor(), NEVER)
    assert plan.figures.packs_repacked > 2
    assert everything(repository) == {id: before[id] for id in kept}
    repo = s3_server.repository(bucket, "some/prefix")
    tls, environment = ["--cacert", str(s3_server.ca)], s3_server.environment()
    done = restic.run(repo, "check", "--read-data", *tls, env=environment)
    assert "no errors were found" in done.stdout
    pruned = restic.run(repo, "prune", "--max-unused", "0", "--dry-run", *tls, env=environment)
    assert "to repack:             0 blobs" in pruned.stdout
