"""What a person sees: progress on a terminal, lines in a log, tables of results.

Progress goes to stderr, results to stdout. A terminal gets a live bar; anything else gets a line
every half minute, so that a log tells the same story. Nothing here can hold up a transfer: it
only reads the monitor's counters.
"""

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.entry import Entry, Kind
from agent.monitor import Counters, Monitor
from agent.repository.snapshot import Snapshot

LINE_SECONDS = 30.0
FRAME_SECONDS = 0.2

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LETTERS = {
    Kind.FILE: "-",
    Kind.DIRECTORY: "d",
    Kind.SYMLINK: "l",
    Kind.FIFO: "p",
    Kind.BLOCK_DEVICE: "b",
    Kind.CHARACTER_DEVICE: "c",
    Kind.SOCKET: "s",
}


def size_text(size: float) -> str:
    """Return a size for people, such as ``1.4 GiB``."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def time_text(time_ns: int) -> str:
    """Return a time for people, in local time to the second."""
    moment = datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def name_text(name: bytes) -> str:
    """Return a name that cannot move the cursor or colour the terminal."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def progress(monitor: Monitor, verb: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a run's progress for the length of a scope."""
    if quiet:
        yield
        return
    stop = threading.Event()
    show = _bar if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(monitor, verb, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bar(monitor: Monitor, verb: str, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
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


def _lines(monitor: Monitor, verb: str, stop: threading.Event) -> None:
    started = time.monotonic()
    while not stop.wait(LINE_SECONDS):
        seconds = time.monotonic() - started
        click.echo(f"{verb}: {_detail(monitor.counters)}, {seconds:.0f} s", err=True)


def _detail(now: Counters) -> str:
    text = f"{size_text(now.bytes_done)} of {size_text(now.bytes_total)}, {now.files} files"
    if now.bytes_uploaded:
        text += f", {size_text(now.bytes_uploaded)} uploaded"
    if now.problems:
        text += f", {now.problems} problems"
    return text


def snapshot_table(snapshots: Iterable[Snapshot]) -> None:
    """Print snapshots, oldest first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("ID", "Time", "Host", "Size", "Files", "Tags", "Paths"):
        table.add_column(heading, justify="right" if heading in {"Size", "Files"} else "left")
    for snapshot in snapshots:
        summary = snapshot.summary
        table.add_row(
            snapshot.id[:8],
            time_text(snapshot.time_ns),
            snapshot.hostname,
            size_text(summary.total_bytes_processed) if summary else "",
            str(summary.total_files_processed) if summary else "",
            "\n".join(snapshot.tags),
            "\n".join(snapshot.paths),
        )
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def entry_line(path: bytes, entry: Entry) -> str:
    """Return a line of ``ls --long``."""
    bits = "".join(
        letter if entry.permissions & (1 << (8 - place)) else "-"
        for place, letter in enumerate("rwxrwxrwx")
    )
    owner = f"{entry.user or entry.uid}:{entry.group or entry.gid}"
    target = f" -> {name_text(entry.link_target)}" if entry.kind is Kind.SYMLINK else ""
    return (
        f"{_LETTERS[entry.kind]}{bits} {owner:<16} {entry.size:>12}"
        f" {time_text(entry.mtime_ns)} {name_text(path)}{target}"
    )


def problem_lines(problems: Sequence[Exception], count: int) -> None:
    """Print the entries that were left out, to stderr."""
    for problem in problems[:20]:
        click.echo(f"  left out: {name_text(str(problem).encode())}", err=True)
    if count > 20:
        click.echo(f"  … and {count - 20} more", err=True)
