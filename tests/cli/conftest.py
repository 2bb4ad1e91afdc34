"""The command line in this process, and as one of its own; a repository in a directory."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.repository.opening import create_repository
from agent.repository.scrypt import ScryptCost
from agent.storage.local import LocalStorage

PASSWORD = "correct horse"
CHEAP = ScryptCost(n=16, r=1, p=1)
PROJECT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test an environment of its own."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "PODLIFT_P", "RESTIC_", "KUBE"))]:
        monkeypatch.delenv(name)
    for name in ("NODE_NAME", "VELERO_NAMESPACE", "POD_NAME", "POD_UID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PODLIFT_PASSWORD", PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def podlift(capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs one command in this process."""

    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@contextlib.contextmanager
def started(
    *arguments: str | Path,
    wrapper: tuple[str, ...] = (),
    stderr: int = subprocess.PIPE,
    **environ: str,
) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a process of its own for the length of a scope."""
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "agent", *map(str, arguments)],
        cwd=PROJECT,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def with_password() -> Iterator[None]:
    """Set the password for the length of a scope, where ``monkeypatch`` is not to be had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PODLIFT_PASSWORD", PASSWORD)
        yield


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "repository"
    create_repository(LocalStorage.create(str(path)), PASSWORD, cost=CHEAP)
    return path


@pytest.fixture
def repo(empty_repository: Path, tmp_path: Path) -> Path:
    """Return a repository of this test's own."""
    return Path(shutil.copytree(empty_repository, tmp_path / "repository"))


def make_source(path: Path) -> Path:
    (path / "below").mkdir(parents=True)
    (path / "file").write_bytes(b"content" * 1000)
    (path / "below" / "other").write_bytes(b"other")
    (path / "link").symlink_to("file")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a directory worth a backup."""
    return make_source(tmp_path / "source")


@pytest.fixture
def filled(podlift: Run, repo: Path, source: Path) -> str:
    """Back ``source`` up into ``repo``, and return the snapshot's id."""
    done = podlift("backup", source, "--repo", repo, "--json", "--host", "host", "--tag", "a=b")
    assert done.code == 0, done
    return str(done.json["snapshot_id"])
