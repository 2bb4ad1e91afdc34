"""What a person sees: progress on a terminal, lines in a log, tables of results; JSON for scripts.

Progress goes to stderr, results to stdout. A terminal gets a live bar; anything else gets a line
every half minute, so that a log tells the same story. Nothing here can hold up a transfer: it
only reads the monitor's counters. What draws is imported by who draws: an agent, and a run whose output
goes to a file, do without it.
"""

import base64
import contextlib
import datetime
import errno
import functools
import io
import json
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from agent.entry import Entry, Kind
from agent.monitor import Counters, Monitor
from agent.repository.difference import Difference, Side
from agent.repository.pruneplan import Figures
from agent.repository.retention import Verdict
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.stats import Stats
from agent.repository.times import format_time
from agent.repository.zone import local_zone
from agent.transfer.job import Result

LINE_SECONDS = 30.0
_UNCUT_COLUMNS = 10_000
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
    thread = threading.Thread(target=show, args=(monitor, verb, stop), name="progress", daemon=True)
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


def snapshot_table(snapshots: Iterable[Snapshot]) -> None:
    """Print snapshots, oldest first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("ID", "Time", "Host", "Size", "Files", "Tags", "Paths"):
        table.add_column(heading, justify="right" if heading in {"Size", "Files"} else "left")
    for snapshot in snapshots:
        summary = snapshot.summary
        cells = (
            snapshot.id[:8],
            time_text(snapshot.time_ns),
            plain_text(snapshot.hostname),
            size_text(summary.total_bytes_processed) if summary else "",
            str(summary.total_files_processed) if summary else "",
            "\n".join(map(plain_text, snapshot.tags)),
            "\n".join(map(plain_text, snapshot.paths)),
        )
        table.add_row(*map(Text, cells))  # as text: a tag in brackets is no markup
    wide = None if sys.stdout.isatty() else _UNCUT_COLUMNS
    Console(width=wide).print(table)


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """Return what becomes of snapshots and why, one a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for verdict in verdicts:
        snapshot = verdict.snapshot
        cells = (
            "keep" if verdict.keep else "remove",
            snapshot.id[:8],
            time_text(snapshot.time_ns),
            ", ".join(map(plain_text, snapshot.tags)),
            plain_text("; ".join(verdict.reasons) or "no rule keeps it"),
        )
        table.add_row(*map(Text, cells))
    text = io.StringIO()
    Console(file=text, width=_UNCUT_COLUMNS).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def prune_lines(figures: Figures) -> Iterator[str]:
    """Yield what a prune finds and does, for people."""

    def line(what: str, count: int, noun: str, size: int) -> str:
        return f"{what:<14}{count:>10} {noun:<6}{size_text(size):>12}"

    yield line("in use", figures.blobs_used, "blobs", figures.bytes_used)
    yield line("unused", figures.blobs_unused, "blobs", figures.bytes_unused)
    yield line("duplicate", figures.blobs_duplicate, "blobs", figures.bytes_duplicate)
    yield line("to delete", figures.packs_deleted, "packs", figures.bytes_deleted)
    yield line("in no index", figures.packs_unindexed, "packs", figures.bytes_unindexed)
    yield line("to copy from", figures.packs_repacked, "packs", figures.bytes_of_repacked_packs)
    yield line("to copy", figures.blobs_repacked, "blobs", figures.bytes_repacked)
    if figures.packs_missing:
        yield f"{'missing':<14}{figures.packs_missing:>10} packs that nothing needs"
    left = f"of which {size_text(figures.bytes_unused_left)} are unused"
    freed, stay = size_text(figures.bytes_freed), size_text(figures.bytes_total_after)
    yield f"frees {freed}; {stay} stay, {left}"


def entry_line(path: bytes, entry: Entry) -> str:
    """Return a line of ``ls --long``."""
    mode = stat.filemode(_KINDS[entry.kind] | entry.permissions)
    owner = plain_text(f"{entry.user or entry.uid}:{entry.group or entry.gid}")
    target = f" -> {name_text(entry.link_target)}" if entry.kind is Kind.SYMLINK else ""
    return (
        f"{mode} {owner:<16} {entry.size:>12} {time_text(entry.mtime_ns)} {name_text(path)}{target}"
    )


def problem_lines(problems: Sequence[Exception], count: int) -> None:
    """Print what was left out or is not complete, to stderr."""
    shown = problems[:NAMED_PROBLEMS]
    for problem in shown:
        click.echo(f"  {plain_text(str(problem))}", err=True)
    if count > len(shown):
        click.echo(f"  … and {count - len(shown)} more", err=True)


def result_json(result: Result) -> str:
    """Return a backup's result for scripts, as one line of JSON."""
    now = result.counters
    report = {
        "snapshot_id": result.snapshot_id,
        "files": now.files,
        "bytes": now.bytes_done,
        "data_added": now.bytes_added,
        "data_added_packed": now.bytes_stored,
        "data_read_back": now.bytes_read_back,
        "errors": now.problems,
        "seconds": round(result.seconds, 3),
    }
    return json.dumps(report)


def result_line(result: Result) -> str:
    """Return a backup's result for people."""
    now = result.counters
    return (
        f"snapshot {result.snapshot_id[:8]}: {now.files} files, {size_text(now.bytes_done)};"
        f" added {size_text(now.bytes_added)}, stored as {size_text(now.bytes_stored)},"
        f" in {result.seconds:.1f} s"
        + (f"; {now.problems} entries were left out" if now.problems else "")
    )


def snapshot_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot for scripts, in the fields of `restic snapshots --json`."""
    stored: dict[str, Any] = json.loads(encode_snapshot(snapshot, local_zone))
    return {**stored, "id": snapshot.id, "short_id": snapshot.id[:8]}


def path_facts(path: bytes) -> dict[str, str]:
    """Return a path for scripts; ``path_base64`` has the bytes if they are not UTF-8."""
    facts = {"path": path.decode("utf-8", "replace")}
    if facts["path"].encode() != path:
        facts["path_base64"] = base64.b64encode(path).decode()
    return facts


def entry_facts(path: bytes, entry: Entry) -> dict[str, Any]:
    """Return an entry for scripts; what does not apply to its kind is not there."""
    facts: dict[str, Any] = {
        **path_facts(path),
        "type": entry.kind.name.lower(),
        "size": entry.size,
        "mode": f"{entry.permissions:04o}",
        "permissions": stat.filemode(_KINDS[entry.kind] | entry.permissions),
        "mtime": format_time(entry.mtime_ns, local_zone),
        "ctime": format_time(entry.ctime_ns, local_zone),
        "uid": entry.uid,
        "gid": entry.gid,
        "user": entry.user,
        "group": entry.group,
        "inode": entry.inode,
        "links": entry.links,
    }
    if entry.kind is Kind.SYMLINK:
        facts["target"] = entry.link_target.decode("utf-8", "replace")
    if entry.kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE):
        facts["device"] = f"{os.major(entry.rdev)}:{os.minor(entry.rdev)}"
    if entry.xattrs:
        facts["xattrs"] = [name.decode("utf-8", "replace") for name, _ in entry.xattrs]
    return facts


def difference_facts(found: Difference, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return the sums of a difference for scripts."""
    return {
        "message_type": "statistics",
        "source_snapshot": before.id,
        "target_snapshot": after.id,
        "changed_files": found.changed_files,
        "changed_others": found.changed_others,
        "added": _side_facts(found.added),
        "removed": _side_facts(found.removed),
    }


def _side_facts(side: Side) -> dict[str, int]:
    names = ("files", "directories", "others", "bytes")
    return {name: getattr(side, name) for name in names}


def difference_lines(found: Difference) -> None:
    """Print the sums of a difference."""
    for word, side in (("added", found.added), ("removed", found.removed)):
        click.echo(
            f"{word + ':':<9}{side.files} files, {side.directories} directories,"
            f" {side.others} others, {size_text(side.bytes)}"
        )
    click.echo(f"changed: {found.changed_files} files, {found.changed_others} others")


def stats_lines(found: Stats) -> None:
    """Print the sizes of snapshots."""
    entries = f"{found.files} files, {found.directories} directories, {found.others} others"
    blobs = f"{found.data_blobs + found.tree_blobs} blobs ({found.tree_blobs} of them trees)"
    for name, words in (
        ("snapshots", str(found.snapshots)),
        ("restore size", f"{size_text(found.restore_bytes)} in {entries}"),
        ("unique content", f"{size_text(found.content_bytes)} in {found.data_blobs} chunks"),
        ("deduplication", _ratio(found.dedup_ratio, "restored to unique")),
        ("raw data", f"{size_text(found.stored_bytes)} in {found.packs} packs, {blobs}"),
        ("compression", _ratio(found.compression_ratio, "plain to stored")),
        (
            "repository",
            f"{size_text(found.repository_bytes)} in {found.repository_packs} packs, all snapshots",
        ),
    ):
        click.echo(f"{name + ':':<17}{words}")


def _ratio(ratio: float | None, words: str) -> str:
    return "nothing is stored" if ratio is None else f"{ratio:.2f} ({words})"
