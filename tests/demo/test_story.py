"""The demo keeps what it promises, and leaves nothing behind however it ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import main
from agent.config import environment, isolated
from agent.demo import objects, processes, sample
from agent.demo.processes import DemoError, last_line, listening, running, wait_until
from tests.docs.picture import DEMO, words_of

SMALLEST = "30"
DEADLINE_SECONDS = 60


def children(parent: int) -> set[int]:
    """Return the processes that ``parent`` has started and that still run."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, ppid = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(ppid) == parent and state != "Z":
                found.add(int(entry.name))
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return where the demo makes its folder."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    hangup = signal.getsignal(signal.SIGHUP)
    yield place
    signal.signal(signal.SIGHUP, hangup)


def test_the_demo_holds_and_leaves_nothing_behind(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = children(os.getpid())
    terminate = signal.getsignal(signal.SIGTERM)
    assert main(["demo", "--megabytes", SMALLEST]) == 0
    out = capfd.readouterr().out
    share = re.search(r"the second backup stored .*, ([\d.]+) % of the first", out)
    assert share is not None
    assert float(share[1]) < 5
    assert len(re.findall(r"Completed: snapshot [0-9a-f]{8}", out)) == 2
    assert ": 0 differences" in out
    assert "" not in out.splitlines()
    acts = re.findall(r"^\d\. [a-z ]+", out, re.MULTILINE)
    pictured = words_of(DEMO)
    assert len(acts) == 7
    assert [act for act in acts if act.strip() not in pictured] == [], "run `make docs`"
    assert "is in order; checked: structure and every byte" in out
    assert "Verdict: GOOD" in out
    assert "Next: " in out
    assert list(folder.iterdir()) == []
    assert children(os.getpid()) == before
    assert signal.getsignal(signal.SIGTERM) is terminate
    for port in re.findall(r"127\.0\.0\.1:(\d+)", out):
        assert not listening(int(port))


def test_a_backup_that_fails_makes_the_verdict_bad(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objects.pod_volume_backup

    def of_another_type(name: str, pod_uid: str, repository: str) -> objects.Object:
        wanted = made(name, pod_uid, repository)
        wanted["spec"]["uploaderType"] = "kopia"
        return wanted

    monkeypatch.setattr(objects, "pod_volume_backup", of_another_type)
    monkeypatch.setattr(sample, "make", lambda volume, megabytes: (volume / "file").touch())
    before = children(os.getpid())
    assert main(["demo", "--megabytes", SMALLEST, "--keep"]) == 1
    out = capfd.readouterr().out
    assert "FAILED: the first backup is Failed: uploader type kopia is not taken" in out
    assert "Verdict: BAD" in out
    (kept,) = folder.iterdir()
    assert f"kept: {kept}" in out
    assert {log.name for log in kept.glob("*.log")} == {"agent.log", "apiserver.log", "s3.log"}
    assert children(os.getpid()) == before


@pytest.mark.parametrize(
    ("number", "line", "parts"),
    [(signal.SIGINT, "3. first backup", 3), (signal.SIGTERM, "2. making", 2)],
    ids=["Ctrl-C in a backup", "SIGTERM before it"],
)
def test_a_demo_that_is_stopped_stops_everything(
    tmp_path: Path, number: int, line: str, parts: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "demo", "--megabytes", SMALLEST],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started: set[int] = set()
    try:
        assert process.stdout is not None
        ports = []
        for said in process.stdout:
            ports += re.findall(r"127\.0\.0\.1:(\d+)", said)
            if line in said:
                break
        started = children(process.pid)
        assert len(started) == parts
        process.send_signal(number)
        rest, _ = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 130
        assert "Traceback" not in rest
        assert "stopping what was started" in rest
        assert alive(started) == set()
        assert list(tmp_path.iterdir()) == []
        assert ports
        assert not any(listening(int(port)) for port in ports)
    finally:
        process.kill()
        process.communicate()
        for pid in alive(started):
            os.kill(pid, signal.SIGKILL)


def test_a_part_that_does_not_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    dies = ["-c", "print('first'); raise SystemExit('no port is free')"]
    with (
        running("s3", dies, tmp_path, os.environ) as process,
        pytest.raises(DemoError, match=r"the S3 stand-in did not start; .*: no port is free"),
    ):
        wait_until(lambda: False, "the S3 stand-in", process, tmp_path / "s3.log")
    (tmp_path / "empty.log").touch()
    assert last_line(tmp_path / "empty.log") == "nothing"


def test_a_part_that_will_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_SECONDS", 0.05)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)"
    code += "; time.sleep(600)"
    with running("deaf", ["-c", code], tmp_path, os.environ) as process:
        log = tmp_path / "deaf.log"
        wait_until(lambda: "deaf" in log.read_text(), "the part", process, log)
    assert process.returncode == -signal.SIGKILL


def test_the_shell_that_it_is_started_in_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("PODLIFT_UPLOADER_TYPES", "kopia")
    with isolated(AWS_DEFAULT_REGION="us-east-1"):
        inside = environment()
        assert not {"AWS_PROFILE", "http_proxy", "PODLIFT_UPLOADER_TYPES"} & inside.keys()
        assert inside["AWS_DEFAULT_REGION"] == "us-east-1"
    assert environment()["AWS_PROFILE"] == "work"
