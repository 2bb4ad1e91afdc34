"""Commands that are stopped: the right exit code, no lock left, a repository that is whole."""

import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import PASSWORD, Run, started
from tests.e2e.scene import until
from tests.support.faultproxy import FaultProxy, reply
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

FOREVER = 1 << 30
DEADLINE_SECONDS = 60


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def stuck(
    podlift: Run, s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    """Yield a backup that cannot go on: its first packs are stored, the others refused."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large").write_bytes(secrets.token_bytes(60 << 20))
    repository = s3_server.repository(bucket, "it")
    assert podlift("init", "--repo", repository, "--cacert", s3_server.ca).code == 0
    with FaultProxy(s3_server) as proxy:
        proxy.add(reply(503, "SlowDown"), "PUT", "/it/data/", skip=1, times=FOREVER)
        place = ("--repo", f"s3:{proxy.endpoint_url}/{bucket}/it", "--cacert", proxy.ca)
        with started("backup", tmp_path / "source", *place) as process:
            until(lambda: any(r.fault for r in proxy.requests), "the first refusal")
            yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_backup_ends_with_130_and_leaves_a_whole_repository(
    stuck: subprocess.Popen[str], s3_server: S3Server, bucket: str, restic: Restic, number: int
) -> None:
    stuck.send_signal(signal.SIGHUP)  # restic unlock sends it; nothing may come of it
    stuck.send_signal(number)
    _, err = stuck.communicate(timeout=DEADLINE_SECONDS)
    assert stuck.returncode == 130, err
    assert f"interrupted by {signal.Signals(number).name}" in err
    assert "Traceback" not in err
    whole = ("--cacert", str(s3_server.ca))
    repository, environment = s3_server.repository(bucket, "it"), s3_server.environment()

    def ask(*arguments: str) -> str:
        return restic.run(repository, *whole, *arguments, password=PASSWORD, env=environment).stdout

    assert ask("list", "locks", "--no-lock") == ""
    assert ask("list", "snapshots") == ""
    assert "no errors were found" in ask("check", "--read-data")


def test_even_a_hole_of_tebibytes_is_left_at_once(repo: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "hole").open("wb") as file:
        file.truncate(8 << 40)
    with started("backup", source, "--repo", repo) as process:
        until(lambda: list(repo.glob("locks/*")), "the lock")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert not list(repo.glob("locks/*"))
    assert not list(repo.glob("snapshots/*"))
