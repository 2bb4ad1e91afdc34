"""What a person sees while it runs, and the few things around it."""

import ctypes
import os
import pty
import threading
from pathlib import Path

import pytest
from rich.progress import Progress

from agent import allocator, terminal
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.terminal import name_text, plain_text, problem_lines, size_text, time_text
from tests.cli.conftest import Run, started


class Ticks(threading.Event):
    """An event that comes after some frames, without waiting."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self._frames = frames

    def wait(self, timeout: float | None = None) -> bool:
        self._frames -= 1
        return self._frames < 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes_are_in_binary_units(size: int, text: str) -> None:
    assert size_text(size) == text


def test_times_that_no_calendar_has_are_seconds() -> None:
    assert time_text(0)[:2] in ("19", "20")
    assert time_text(10**12 * 10**9) == "@1000000000000"
    assert time_text(-(10**12) * 10**9) == "@-1000000000000"


def test_nothing_unprintable_is_printed() -> None:
    assert name_text(b"\x1b[31m\r\n\xff") == "\\x1b[31m\\r\\n\\xff"
    assert plain_text("größe 日本 \u202e") == "größe 日本 \\u202e"


def test_a_log_gets_a_line_that_tells_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor()
    monitor.add(bytes_total=2048, bytes_done=1024, bytes_uploaded=100, files_new=3)
    monitor.problem(SourceError(b"bad", "no"))
    expected = "backup: 1.0 KiB of 2.0 KiB, 3 files, 100 B uploaded, 1 problems, 0 s"
    terminal._lines(terminal._on_stderr, monitor, "backup", Ticks(1))
    assert capfd.readouterr().err == f"{expected}\n"
    said: list[str] = []
    terminal._lines(said.append, monitor, "backup", Ticks(1))
    assert said == [expected]


def test_problems_beyond_the_first_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    problem_lines([SourceError(b"f%d\n" % n, "gone") for n in range(25)], 105)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "  f0\\n: gone"
    assert len(lines) == 21
    assert lines[-1] == "  … and 85 more"


def test_a_bar_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor()
    monitor.add(bytes_total=2048, bytes_done=1024)
    shown: list[dict[str, object]] = []
    update = Progress.update
    monkeypatch.setattr(
        Progress,
        "update",
        lambda self, task, **fields: (shown.append(fields), update(self, task, **fields))[1],
    )
    terminal._bar(monitor, "backup", Ticks(0))
    monitor.walk_finished()
    terminal._bar(monitor, "backup", Ticks(1))
    assert [fields["total"] for fields in shown] == [None, 2048, 2048]
    assert {fields["completed"] for fields in shown} == {1024}


def test_a_terminal_gets_a_bar(repo: Path, source: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with started("backup", source, "--repo", repo, stderr=theirs, TERM="xterm") as process:
            process.communicate(timeout=60)
            assert process.returncode == 0
        assert b"backup" in os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_run_without_a_terminal_stays_silent_while_it_is_short(
    podlift: Run, repo: Path, source: Path
) -> None:
    assert podlift("backup", source, "--repo", repo).err == ""


def test_the_allocator_is_left_alone_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator.limit_arenas()

    def other_libc(_name: None) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", other_libc)
    allocator.limit_arenas()
    allocator.return_memory()


def test_memory_that_lies_between_what_lives_on_is_returned() -> None:
    scattered = [bytes(4096) for _ in range(20_000)]
    held = _resident_bytes()
    del scattered[: len(scattered) - 1]
    allocator.return_memory()
    assert _resident_bytes() < held - (60 << 20)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
