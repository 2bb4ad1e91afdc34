"""What ``podlift status`` shows of transfers: a table, a live one, or JSON."""

import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cluster.transfer import Transfer, sums
from agent.terminal import UNCUT_COLUMNS, plain_text, size_text

if TYPE_CHECKING:
    from rich.table import Table

_HEADINGS = ("Kind", "Name", "Node", "Pod/Volume", "Phase", "Done", "Rate", "ETA", "Age", "Message")
_NUMBERS = frozenset({"Done", "Rate", "ETA", "Age"})
_FRAME_LINES = 4
"""What a screen holds beside the rows: the sums, the headings, the rest in one line, the cursor."""


def facts(transfer: Transfer) -> dict[str, Any]:
    """Return a transfer for scripts; what is not known is null."""
    order = transfer.order
    return {
        "kind": order.kind.value,
        "namespace": order.namespace,
        "name": order.name,
        "node": transfer.node,
        "pod_namespace": order.pod_namespace,
        "pod": order.pod_name,
        "volume": order.volume,
        "phase": transfer.phase,
        "bytes_done": order.done_bytes,
        "bytes_total": order.total_bytes,
        "bytes_per_second": _rounded(transfer.bytes_per_second),
        "left_seconds": _rounded(transfer.left_seconds),
        "age_seconds": _rounded(transfer.age_seconds),
        "seconds": _rounded(transfer.seconds),
        "created": order.created,
        "started": order.started,
        "ended": order.ended,
        "snapshot_id": order.snapshot_id or order.wanted_snapshot,
        "message": order.message,
    }


def cells(transfer: Transfer) -> tuple[str, ...]:
    """Return a transfer for people, by the headings of the table."""
    order, rate = transfer.order, transfer.bytes_per_second
    done = size_text(order.done_bytes)
    if not order.final or order.done_bytes != order.total_bytes:
        done = f"{done} / {size_text(order.total_bytes)}"
    made = (
        order.kind.noun,
        order.name,
        transfer.node,
        f"{order.pod_namespace}/{order.pod_name}/{order.volume}",
        transfer.phase,
        done if order.total_bytes or order.done_bytes else "",
        f"{size_text(rate)}/s" if rate is not None else "",
        span_text(transfer.left_seconds),
        span_text(transfer.age_seconds),
        order.message,
    )
    return tuple(map(plain_text, made))


def span_text(seconds: float | None) -> str:
    """Return a span of time for people, such as ``3m20s``, in its two largest units."""
    if seconds is None:
        return ""
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(part for part in parts[:2] if part[0] != "0" or len(parts) == 1)


def print_table(transfers: Sequence[Transfer]) -> None:
    """Print all transfers; where there is no terminal nothing is cut or wrapped."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else UNCUT_COLUMNS
    text = io.StringIO()
    colours = sys.stdout.isatty()
    Console(file=text, width=wide, force_terminal=colours).print(_table(transfers, cut=colours))
    for line in text.getvalue().splitlines():
        click.echo(line.rstrip())
    click.echo(headline(transfers), err=True)


def print_json(transfers: Sequence[Transfer]) -> None:
    """Print all transfers as one line of JSON."""
    click.echo(json.dumps([facts(transfer) for transfer in transfers]))


def headline(transfers: Sequence[Transfer]) -> str:
    """Return the sums in words."""
    running, waiting, rate = sums(transfers)
    return f"{running} at work ({size_text(rate)}/s), {waiting} waiting"


class Screen:
    """A live table on the terminal, for the length of a scope."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False, transient=False)

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, transfers: Sequence[Transfer]) -> None:
        """Draw as many as the terminal has room for."""
        from rich.console import Group
        from rich.text import Text

        room = max(1, self._live.console.height - _FRAME_LINES)
        shown = transfers[:room]
        rest = [Text(f"… and {len(transfers) - room} more")] if len(transfers) > room else []
        words = Text(headline(transfers), style="bold")
        self._live.update(Group(words, _table(shown, cut=True), *rest), refresh=True)


class Changes:
    """A line for each transfer that has changed, where there is no terminal to draw on."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._told: dict[str, str] = {}

    def show(self, transfers: Sequence[Transfer]) -> None:
        """Print what is not as it was told last."""
        for transfer in transfers:
            order = transfer.order
            if self._told.get(order.uid) != order.resource_version:
                self._told[order.uid] = order.resource_version
                words = "  ".join(filter(None, cells(transfer)))
                click.echo(json.dumps(facts(transfer)) if self._as_json else words)
        sys.stdout.flush()


def _table(transfers: Sequence[Transfer], *, cut: bool) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(
            heading,
            justify="right" if heading in _NUMBERS else "left",
            no_wrap=True,
            overflow="ellipsis" if cut else "fold",
        )
    for transfer in transfers:
        table.add_row(*map(Text, cells(transfer)))  # as text: brackets in a message are no markup
    return table


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
