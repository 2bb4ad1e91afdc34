"""What a person sees of every command: progress on a terminal or in a log, sizes, times and names.

Progress goes to stderr, results to stdout. A terminal gets a live bar; anything else gets a line
every half minute, so that a log tells the same story. Nothing here can hold up a transfer: it
only reads the monitor's counters. What draws is imported by who draws: an agent, and a run whose output
goes to a file, do without it.
"""

import contextlib
import datetime
import errno
import functools
import io
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import click

from agent.entry import Entry, Kind
from agent.monitor import Counters, Monitor
from agent.threads import within_context

LINE_SECONDS = 30.0
UNCUT_COLUMNS = 10_000
"""Where no terminal has a width, a table is as wide as its content: nothing is cut or wrapped."""

FRAME_SECONDS = 0.2
NAMED_PROBLEMS = 20

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_KINDS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.SOCKET: stat.S_IFSOCK,
}


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def escape_missing_letters() -> None:
    """Let no name end a command because the terminal's encoding lacks a letter of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say_more(level: int) -> None:
    """Set the level of our own log; the libraries' stays at warnings."""
    logging.getLogger("agent").setLevel(level)


def is_output_error(error: OSError) -> bool:
    """Tell whether an error that became none of our own came from writing the output."""
    return error.filename is None and error.errno in _OUTPUT_ERRORS


def drop_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def size_text(size: float) -> str:
    """Return a size for people, such as ``1.4 GiB``."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def time_text(time_ns: int) -> str:
    """Return a time for people, in local time to the second, or in seconds if no calendar has it."""
    seconds = time_ns // 1_000_000_000
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone()
    except (ValueError, OverflowError, OSError):  # a file's owner may set any year
        return f"@{seconds}"
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def mode_text(entry: Entry) -> str:
    """Return an entry's kind and permissions as `ls -l` shows them."""
    return stat.filemode(_KINDS[entry.kind] | entry.permissions)


def name_text(name: bytes) -> str:
    """Return a name that cannot move the cursor or colour the terminal."""
    return plain_text(name.decode("utf-8", "backslashreplace"))


def plain_text(text: str) -> str:
    """Return a text as one line that cannot move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def progress(
    monitor: Monitor,
    verb: str,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Show a run's progress for the length of a scope; by lines to ``say``, if that is given."""
    if quiet:
        yield
        return
    stop = threading.Event()
    lines = functools.partial(_lines, say or _on_stderr)
    show = _bar if say is None and sys.stderr.isatty() else lines
    thread = threading.Thread(
        target=within_context(show), args=(monitor, verb, stop), name="progress", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bar(monitor: Monitor, verb: str, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    # what is printed meanwhile goes above the bar, but never from a file's stdout to stderr
    above = sys.stdout.isatty()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as bar:
        task = bar.add_task(verb, total=None, detail="")
        ended = False
        while not ended:
            ended = stop.wait(FRAME_SECONDS)
            now = monitor.counters
            bar.update(
                task,
                completed=now.bytes_done,
                total=max(now.bytes_total, 1) if monitor.walked else None,
                detail=_detail(now),
            )


def _on_stderr(text: str) -> None:
    click.echo(text, err=True)


def _lines(say: Callable[[str], None], monitor: Monitor, verb: str, stop: threading.Event) -> None:
    started = time.monotonic()
    while not stop.wait(LINE_SECONDS):
        seconds = time.monotonic() - started
        say(f"{verb}: {_detail(monitor.counters)}, {seconds:.0f} s")


def _detail(now: Counters) -> str:
    if now.trees:
        done = "copied" if now.bytes_read == 0 else "read"
        size = f"{size_text(now.bytes_done)} of {size_text(now.bytes_total)} {done}"
        return f"{now.trees} directories read" + (f", {size}" if now.bytes_total else "")
    text = f"{size_text(now.bytes_done)} of {size_text(now.bytes_total)}, {now.files} files"
    if now.bytes_uploaded:
        text += f", {size_text(now.bytes_uploaded)} uploaded"
    if now.problems:
        text += f", {now.problems} problems"
    return text


def problem_lines(problems: Sequence[Exception], count: int) -> None:
    """Print what was left out or is not complete, to stderr."""
    shown = problems[:NAMED_PROBLEMS]
    for problem in shown:
        click.echo(f"  {plain_text(str(problem))}", err=True)
    if count > len(shown):
        click.echo(f"  … and {count - len(shown)} more", err=True)
