"""A job's log: the same words as for people, each line with a level and what it is about."""

import io
import json
import logging
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from agent import terminal
from agent.cli import main
from agent.commands.telling import LOG, Voice, told
from agent.errors import RepositoryError
from agent.logs import JsonLines, working_on
from agent.monitor import Monitor
from agent.terminal import progress
from tests.cli.conftest import Run, started


def lines_of(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """Return the log of a command that prints nothing else."""
    out, err = process.communicate(timeout=60)
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


@pytest.fixture
def damaged(repo: Path, tmp_path: Path) -> Path:
    """Return a repository that has lost a pack."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("content")
    assert main(["backup", str(tmp_path / "source"), "--repo", str(repo)]) == 0
    next(repo.glob("data/*/*")).unlink()
    return repo


def test_damage_is_an_error_of_the_log_and_so_is_the_verdict(damaged: Path, podlift: Run) -> None:
    told_people = podlift("check", "--repo", damaged)
    with started("check", "--repo", damaged, "--log-format", "json") as process:
        lines = lines_of(process)
    assert process.returncode == told_people.code == 1
    assert [line["message"] for line in lines] == [
        line.strip() for line in told_people.out.splitlines()
    ]
    for line in lines:
        grave = line["message"].startswith("damage: ") or " is DAMAGED: " in line["message"]
        assert line["level"] == ("error" if grave else "info")
    assert [line["level"] for line in lines].count("error") >= 2


def test_the_form_comes_from_the_environment_too_and_must_be_one_of_both(
    repo: Path, podlift: Run
) -> None:
    where = ("check", "--repo", repo)
    with started(*where, PODLIFT_LOG_FORMAT="json") as process:
        (line,) = lines_of(process)
    assert "is in order" in line["message"]
    done = podlift(*where, "--log-format", "xml")
    assert done.code == 2
    assert "--log-format (or PODLIFT_LOG_FORMAT) must be text or json, not 'xml'" in done.err


def test_what_ends_a_job_is_its_last_line_and_names_the_location() -> None:
    with started("gc", "--location", "west", "--grace", "3h", "--log-format", "json") as process:
        short, last = lines_of(process)
    assert process.returncode == 1
    assert (short["level"], last["level"]) == ("warning", "critical")
    assert "give --kubeconfig" in last["message"]
    assert (last["kind"], last["name"]) == ("BackupStorageLocation", "west")


def test_progress_names_the_location_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    lines, said = io.StringIO(), threading.Event()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    LOG.addHandler(handler)
    voice = Voice("json")

    def say(text: str) -> None:
        if not said.is_set():
            voice.say(text)
            said.set()

    with working_on("BackupStorageLocation", "west"), progress(Monitor(), "check", say=say):
        told_once = said.wait(10)
    LOG.removeHandler(handler)
    assert told_once
    (line,) = map(json.loads, lines.getvalue().splitlines())
    assert line["message"].startswith("check: ")
    assert (line["kind"], line["name"]) == ("BackupStorageLocation", "west")


def test_for_people_an_error_is_left_to_the_command_line() -> None:
    def fail(voice: Voice) -> int:
        assert voice.beside is None
        raise RepositoryError("it is damaged")

    with pytest.raises(RepositoryError, match="it is damaged"):
        told("text", "west", fail)


def test_what_is_said_aside_does_not_stand_in_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    voice = Voice()
    voice.say("found")
    voice.say("not done", logging.ERROR, aside=True)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("found\n", "not done\n")
