"""A dashboard as a picture: panels drawn from their JSON and from what Prometheus answered.

It looks as Grafana shows it in its dark colours: the same grid, titles, axes, legends and thresholds.
It knows the kinds of panel that podlift's dashboard has, and their options that it sets; another kind is
an error. Pure: values in, SVG text out.
"""

import datetime
import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from benchmarks.report import svg
from tests.docs.quantities import ticks, written
from tests.monitoring.panels import Json, Line, Panel, Span

WIDTH, GAP, CELL, HEAD, FOOT = 1080, 8, 38, 52, 30
COLUMN = (WIDTH - GAP) / 24
PALETTE = (
    "#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0",
    "#37872d", "#fade2a",
)  # fmt: skip
NAMED = {
    "green": "#73bf69", "yellow": "#fade2a", "orange": "#ff9830", "red": "#f2495c",
    "dark-red": "#c4162a", "blue": "#5794f2", "purple": "#b877d9",
}  # fmt: skip
STYLE = (
    "<style>text{font:11px Inter,Helvetica,Arial,sans-serif;fill:#9fa0ab}"
    ".t{font-size:13px;font-weight:500;fill:#ccccdc}.v{font-size:38px;font-weight:600}"
    ".g{stroke:#ccccdc;stroke-opacity:.09}.p{fill:#181b1f;stroke:#2a2d33}"
    ".l{fill:none;stroke-width:1.3;stroke-linejoin:round}.d{stroke-dasharray:5 4}</style>"
)
TITLE, MIDDLE, END = ' class="t"', ' text-anchor="middle"', ' text-anchor="end"'
LETTER = 6.0
"""How wide a letter of a legend is, more or less."""


class Box(NamedTuple):
    """Where something is drawn."""

    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def right(self) -> float:
        return self.x + self.width


Points = list[tuple[float, float]]


class Drawn(NamedTuple):
    """A line with its colour, whether it is dashed, and its pieces: on what each stands, and itself."""

    line: Line
    colour: str
    dashed: bool
    pieces: list[tuple[Points, Points]]


def page(dashboard: Json, answers: Sequence[list[Line]], span: Span, note: str) -> str:
    """Return the whole dashboard; ``answers`` are those of its panels in order."""
    panels = [Panel(each) for each in dashboard["panels"]]
    height = HEAD + CELL * max(panel.place[1] + panel.place[3] for panel in panels) + FOOT
    parts = [STYLE, f'<rect width="{WIDTH}" height="{height}" fill="#111217"/>']
    parts += _head(dashboard, span)
    for panel, lines in zip(panels, answers, strict=True):
        x, y, width, tall = panel.place
        box = Box(GAP + x * COLUMN, HEAD + y * CELL, width * COLUMN - GAP, tall * CELL - GAP)
        parts += KINDS[panel.kind](panel, lines, box, span)
    parts.append(_text(GAP + 4, height - 11, note))
    return svg(f"The dashboard {dashboard['title']}", (WIDTH, height), parts)


def _head(dashboard: Json, span: Span) -> list[str]:
    begin, end = (
        datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (span.start, span.end)
    )
    period = f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"
    chosen = "    ".join(
        f"{each['label']}: {each['current'].get('text', 'default')}"
        for each in dashboard["templating"]["list"]
    )
    name = ' style="font-size:18px;font-weight:500;fill:#ccccdc"'
    return [
        _text(GAP + 4, 31, dashboard["title"], name),
        _text(100, 31, chosen, ' xml:space="preserve"'),
        _text(WIDTH - GAP, 31, period, END),
    ]


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'


def _row(panel: Panel, _lines: list[Line], box: Box, _span: Span) -> list[str]:
    x, y = box.x + 4, box.y + 16
    chevron = f'<path d="M{x:.1f} {y - 2:.1f}l4 4l4-4" class="l" stroke="#ccccdc"/>'
    return [chevron, _text(x + 16, y + 4, panel.title, TITLE)]


def _frame(panel: Panel, box: Box) -> list[str]:
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    hint = f"<title>{escape(panel.json['description'])}</title>"
    title = _text(box.x + 10, box.y + 20, panel.title, TITLE)
    return [f'<g>{hint}<rect class="p" {place} rx="2"/>{title}</g>']


def _stat(panel: Panel, lines: list[Line], box: Box, span: Span) -> list[str]:
    """Draw the last value large, in the colour of its threshold, over a small graph."""
    parts = _frame(panel, box)
    (line,) = lines
    colour = NAMED[_step(panel, line.last)]
    inner = Box(box.x + 1, box.bottom - 36, box.width - 2, 35)
    most = max(value for _, value in line.values) or 1.0
    top = [_at(inner, span, most, pair) for pair in line.values]
    base = [(x, inner.bottom) for x, _ in top]
    parts.append(_area(top, base, colour, 0.12))
    parts.append(f'<polyline class="l" stroke="{colour}" points="{_points(top)}"/>')
    value = written(line.last, panel.defaults["unit"], panel.defaults.get("decimals"))
    large = f'{MIDDLE} class="v" style="fill:{colour}"'
    return [*parts, _text(box.x + box.width / 2, box.y + 74, value, large)]


def _step(panel: Panel, value: float) -> str:
    """Return the colour of the highest threshold that a value has reached."""
    steps = panel.defaults["thresholds"]["steps"]
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return str(reached[-1]["color"])


def _timeseries(panel: Panel, lines: list[Line], box: Box, span: Span) -> list[str]:
    parts = _frame(panel, box)
    if not lines:
        return [*parts, _text(box.x + box.width / 2, box.y + box.height / 2, "No data", MIDDLE)]
    legend, rows = _legend(panel, lines, box, span.step)
    inner = Box(box.x + 64, box.y + 34, box.width - 76, box.height - 62 - 16 * rows)
    drawn = _drawn(panel, lines, span.step)
    tops = [value for each in drawn for _, top in each.pieces for _, value in top]
    marks = ticks(max(tops), panel.defaults["unit"])
    parts += _axes(panel, inner, span, marks)
    opacity = panel.defaults["custom"]["fillOpacity"] / 100
    for each in drawn:
        filled = not each.dashed and any(value for _, value in each.line.values)
        dash = " d" if each.dashed else ""
        for low, high in each.pieces:
            base, top = ([_at(inner, span, marks[-1], pair) for pair in row] for row in (low, high))
            parts += [_area(top, base, each.colour, opacity)] if filled else []
            parts.append(
                f'<polyline class="l{dash}" stroke="{each.colour}" points="{_points(top)}"/>'
            )
    return parts + _thresholds(panel, inner, marks[-1]) + legend


def _drawn(panel: Panel, lines: list[Line], step: float) -> list[Drawn]:
    """Return lines with their colours, each upon those before it where they are stacked."""
    below: dict[float, float] = {}
    drawn = []
    for number, line in enumerate(lines):
        pieces = []
        for piece in _unbroken(line.values, step):
            base = [(at, below.get(at, 0.0)) for at, _ in piece]
            top = [(at, value + low) for (at, value), (_, low) in zip(piece, base, strict=True)]
            if panel.defaults["custom"]["stacking"]["mode"] == "normal":
                below.update(top)
            pieces.append(_shaped(panel, base, top))
        own = _overrides(panel, line.name)
        colour = NAMED[own["color"]["fixedColor"]] if "color" in own else PALETTE[number % 10]
        drawn.append(Drawn(line, colour, "custom.lineStyle" in own, pieces))
    return drawn


def _unbroken(values: Points, step: float) -> Iterator[Points]:
    """Yield the pieces of a line: where there was no answer for a while, it has a gap."""
    begin = 0
    for number in range(1, len(values) + 1):
        if number == len(values) or values[number][0] - values[number - 1][0] > 1.5 * step:
            yield values[begin:number]
            begin = number


def _shaped(panel: Panel, base: Points, top: Points) -> tuple[Points, Points]:
    if panel.defaults["custom"]["lineInterpolation"] == "stepAfter":
        return _steps(base), _steps(top)
    return base, top


def _steps(points: Points) -> Points:
    """Return points between which a value stays as it was until the next one."""
    held = [(later[0], earlier[1]) for earlier, later in itertools.pairwise(points)]
    return [points[0], *(each for pair in zip(held, points[1:], strict=True) for each in pair)]


def _overrides(panel: Panel, name: str) -> Json:
    """Return what is set for the line of one name."""
    return {
        each["id"]: each["value"]
        for override in panel.json["fieldConfig"]["overrides"]
        if override["matcher"] == {"id": "byName", "options": name}
        for each in override["properties"]
    }


def _axes(panel: Panel, inner: Box, span: Span, marks: list[float]) -> list[str]:
    parts = []
    for mark in marks:
        y = inner.bottom - inner.height * mark / marks[-1]
        parts.append(f'<path class="g" d="M{inner.x:.1f} {y:.1f}H{inner.right:.1f}"/>')
        value = written(mark, panel.defaults["unit"])
        parts.append(_text(inner.x - 7, y + 4, value, END))
    for at in _moments(span, inner.width):
        x = inner.x + inner.width * (at - span.start) / (span.end - span.start)
        parts.append(f'<path class="g" d="M{x:.1f} {inner.y:.1f}V{inner.bottom:.1f}"/>')
        clock = f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%H:%M:%S}"
        parts.append(_text(x, inner.bottom + 16, clock, MIDDLE))
    return parts


def _moments(span: Span, width: float) -> list[float]:
    """Return round times, each with room for its words."""
    second = width / (span.end - span.start)
    least = 80 / second
    step = next((each for each in (5, 10, 15, 30, 60, 120, 300, 600) if each >= least), 3600)
    first = math.ceil(span.start / step) * step
    last = span.end - 12 / second  # half of the words may stand beside the graph, and no more
    return [float(at) for at in range(first, math.floor(last) + 1, step)]


def _thresholds(panel: Panel, inner: Box, most: float) -> list[str]:
    """Draw those that are within the axis; Grafana does not widen it for them."""
    parts = []
    for step in panel.defaults.get("thresholds", {}).get("steps", ()):
        if step["value"] is not None and step["value"] <= most:
            y = inner.bottom - inner.height * step["value"] / most
            colour = NAMED[step["color"]]
            parts.append(
                f'<path class="l d" stroke="{colour}" d="M{inner.x:.1f} {y:.1f}H{inner.right:.1f}"/>'
            )
    return parts


def _legend(panel: Panel, lines: list[Line], box: Box, step: float) -> tuple[list[str], int]:
    """Return the names of lines below a graph, and how many rows they take."""
    places, x, row = [], 0.0, 0
    for line in lines:
        width = 26 + LETTER * len(line.name)
        if x and x + width > box.width - 20:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += width
    parts = []
    for (x, number), each in zip(places, _drawn(panel, lines, step), strict=True):
        y = box.bottom - 10 - 16 * (row - number)
        left = box.x + 12 + x
        parts.append(
            f'<path d="M{left:.1f} {y - 4:.1f}h12" stroke="{each.colour}" stroke-width="3"/>'
        )
        parts.append(_text(left + 17, y, each.line.name))
    return parts, row + 1


def _at(inner: Box, span: Span, most: float, pair: tuple[float, float]) -> tuple[float, float]:
    across = (pair[0] - span.start) / (span.end - span.start)
    return inner.x + inner.width * across, inner.bottom - inner.height * pair[1] / most


def _area(top: Points, base: Points, colour: str, opacity: float) -> str:
    outline = f"{_points(top)} {_points(base[::-1])}"
    return f'<polygon fill="{colour}" fill-opacity="{opacity:g}" points="{outline}"/>'


def _points(points: Points) -> str:
    """Return points as text, without those within a level stretch."""
    kept = [
        point
        for number, point in enumerate(points)
        if number in (0, len(points) - 1)
        or not points[number - 1][1] == point[1] == points[number + 1][1]
    ]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in kept)


KINDS = {"row": _row, "stat": _stat, "timeseries": _timeseries}
