"""A command in a hostile place: no room for its output, a cache of somebody else, odd names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.cli import main
from agent.errors import AccessDenied
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.storage.local import LocalStorage
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume

POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def podlift(*arguments: str, stdout: str = "", **environ: str) -> tuple[int, str, str]:
    """Run podlift, with its output into the file ``stdout`` if that is given."""
    with open(stdout or os.devnull, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "agent", *arguments],
            env={**os.environ, "PODLIFT_PASSWORD": "secret", **environ},
            stdout=output if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """Return a repository with one snapshot of a file with a name of many alphabets."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "größe-尺寸").write_text("x")
    place = str(tmp_path / "repository")
    assert podlift("init", "--repo", place)[0] == 0
    assert podlift("backup", str(tmp_path / "volume"), "--repo", place)[0] == 0
    return place


def test_output_that_cannot_be_written_is_said_in_one_line(repository: str) -> None:
    for command in (["snapshots"], ["snapshots", "--json"], ["ls", "latest"], ["check"]):
        code, _, said = podlift(*command, "--repo", repository, stdout="/dev/full")
        assert code == 1
        assert said == "podlift: the output cannot be written: No space left on device\n"


def test_a_table_is_shown_on_a_terminal_of_few_letters(repository: str) -> None:
    code, table, said = podlift("snapshots", "--repo", repository, COLUMNS="40", **POSIX)
    assert (code, said) == (0, "")
    assert table.isascii()


def test_a_cache_directory_of_somebody_else_is_done_without(
    repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("PODLIFT_PASSWORD", "secret")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert main(["snapshots", "--repo", repository, "--cache-dir", str(tmp_path / "cache")]) == 0


def test_an_attribute_whose_name_no_repository_keeps_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.setxattr(tmp_path / "file", b"user.good", b"1")
    os.setxattr(tmp_path / "file", b"user.\xff\xfe", b"2")
    monitor = Monitor()
    with Volume.open(tmp_path) as volume:
        (entry,) = volume.root.entries(Exclude(), monitor, NEVER)
        (together,) = volume.root.read_files([entry], memoryview(bytearray(9)), monitor)
        with volume.root.open_file(entry, monitor) as alone:
            assert alone.entry.xattrs == ((b"user.good", b"1"),)
    assert together is not None
    assert together.entry == alone.entry
    assert ["not UTF-8" in problem.reason for problem in monitor.problems] == [True, True]


def test_a_target_that_cannot_be_a_directory_is_called_so(repository: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    restore = ("restore", "latest", "--repo", repository, "--target")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, said = podlift(*restore, str(target))
        assert code == 1
        assert "something else than a directory is in the way" in said
    code, _, said = podlift(*restore, "/proc/none")
    assert code == 1
    assert "vanished" not in said


def test_a_lock_that_was_refused_is_not_said_to_stay_behind(
    repository: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AccessDenied("read-only")

    opened = open_repository(LocalStorage(repository), "secret")
    monkeypatch.setattr(opened.objects.storage, "put", refuse)
    with (
        pytest.raises(AccessDenied),
        opened.locked(exclusive=False),
    ):
        pytest.fail("locked without a lock")
    assert caplog.records == []
