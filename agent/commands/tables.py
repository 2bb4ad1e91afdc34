"""What commands tell people: snapshots, entries, differences and figures as tables and lines."""

import io
import sys
from collections.abc import Iterable, Iterator

import click

from agent.entry import Entry, Kind
from agent.repository.difference import Difference
from agent.repository.pruneplan import Figures
from agent.repository.retention import Verdict
from agent.repository.snapshot import Snapshot
from agent.repository.stats import Stats
from agent.terminal import UNCUT_COLUMNS, mode_text, name_text, plain_text, size_text, time_text


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
    wide = None if sys.stdout.isatty() else UNCUT_COLUMNS
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
    Console(file=text, width=UNCUT_COLUMNS).print(table)
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
    mode = mode_text(entry)
    owner = plain_text(f"{entry.user or entry.uid}:{entry.group or entry.gid}")
    target = f" -> {name_text(entry.link_target)}" if entry.kind is Kind.SYMLINK else ""
    return (
        f"{mode} {owner:<16} {entry.size:>12} {time_text(entry.mtime_ns)} {name_text(path)}{target}"
    )


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
