"""The picture of the dashboard: what is drawn is what was answered, and it shows every panel there is."""

import copy
import itertools
from xml.etree import ElementTree

import pytest

from tests.docs.charts import CELL, HEAD, page
from tests.docs.dashboard import NOTE, PICTURE
from tests.docs.quantities import ticks, written
from tests.monitoring.panels import Json, Line, Panel, Span, panels, read

SVG = "{http://www.w3.org/2000/svg}"
SPAN = Span(1000.0, 1100.0, 1.0, points=1)
EACH_SECOND = Span(1000.0, 1100.0, 1.0, points=100)


@pytest.fixture
def dashboard() -> Json:
    """Return one that has a panel of each kind: a heading, a number, a graph."""
    whole = read()
    firsts: dict[str, Json] = {}
    for panel in whole["panels"]:
        firsts.setdefault(panel["type"], copy.deepcopy(panel))
    return {**whole, "panels": list(firsts.values())}


def graph(dashboard: Json, **custom: object) -> None:
    """Have the graph look as asked."""
    shown = dashboard["panels"][-1]["fieldConfig"]["defaults"]
    shown["custom"].update({"lineInterpolation": "linear", "stacking": {"mode": "none"}} | custom)


def texts(picture: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def shapes(picture: str, kind: str) -> list[list[tuple[float, float]]]:
    """Return the points of each polygon, or polyline, in the order in which they were drawn."""
    found = ElementTree.fromstring(picture).iter(SVG + kind)
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in each.get("points", "").split())]
        for each in found
    ]  # fmt: skip


ONE = [Line("ready", [(1000.0, 1.0), (1100.0, 2.0)])]


def test_a_number_is_the_last_one_in_the_colour_of_its_threshold(dashboard: Json) -> None:
    defaults = dashboard["panels"][1]["fieldConfig"]["defaults"]
    for last, colour in ((2.0, "#73bf69"), (3.0, "#f2495c")):
        defaults["thresholds"]["steps"] = [
            {"color": "green", "value": None},
            {"color": "red", "value": 3},
        ]
        picture = page(dashboard, [[], [Line("x", [(1000.0, 9.0), (1100.0, last)])], []], SPAN, "")
        (large,) = [
            each for each in ElementTree.fromstring(picture).iter() if each.get("class") == "v"
        ]
        assert (large.text, large.get("style")) == (f"{last:.0f}", f"fill:{colour}")


def test_a_graph_without_answers_says_so(dashboard: Json) -> None:
    assert "No data" in texts(page(dashboard, [[], ONE, []], SPAN, ""))
    assert "No data" not in texts(page(dashboard, [[], ONE, ONE], SPAN, ""))


def test_stacked_lines_stand_on_those_before_them(dashboard: Json) -> None:
    graph(dashboard, stacking={"mode": "normal"})
    low, high = (
        Line("low", [(1000.0, 1.0), (1100.0, 1.0)]),
        Line("high", [(1000.0, 2.0), (1100.0, 3.0)]),
    )
    *_, first, second = shapes(page(dashboard, [[], ONE, [low, high]], SPAN, ""), "polygon")
    assert first[:2] == second[:1:-1]  # the upper one's base is the lower one's top
    floor, step = first[-1][1], first[-1][1] - first[0][1]
    assert [round((floor - y) / step, 1) for _, y in second[:2]] == [3.0, 4.0]


def test_a_line_has_a_gap_where_there_was_no_answer(dashboard: Json) -> None:
    graph(dashboard)
    values = [(1000.0 + second, 1.0) for second in (*range(10), *range(50, 60))]
    *_, before, after = shapes(
        page(dashboard, [[], ONE, [Line("x", values)]], EACH_SECOND, ""), "polyline"
    )
    width = after[1][0] - before[0][0]
    assert (after[0][0] - before[1][0]) / width == pytest.approx(41 / 59, rel=0.01)


def test_steps_keep_a_value_until_the_next(dashboard: Json) -> None:
    graph(dashboard, lineInterpolation="stepAfter")
    values = [(1000.0, 1.0), (1001.0, 2.0), (1002.0, 2.0)]
    *_, line = shapes(page(dashboard, [[], ONE, [Line("x", values)]], SPAN, ""), "polyline")
    moves = [(a == x, b == y) for (a, b), (x, y) in itertools.pairwise(line)]
    assert all(level or upright for level, upright in moves)
    assert len({y for _, y in line}) == 2


def test_thresholds_are_drawn_within_the_axis_and_names_below_it(dashboard: Json) -> None:
    graph(dashboard)
    shown = dashboard["panels"][-1]["fieldConfig"]
    shown["defaults"]["thresholds"] = {
        "steps": [{"color": "transparent", "value": None}, {"color": "orange", "value": 1}]
    }
    for most, drawn in ((2.0, 1), (0.5, 0)):
        lines = [Line(f"a & b {number}", [(1000.0, 0.0), (1100.0, most)]) for number in range(40)]
        picture = page(dashboard, [[], ONE, lines], SPAN, "")
        marks = [
            each
            for each in ElementTree.fromstring(picture).iter(f"{SVG}path")
            if each.get("class") == "l d"
        ]
        assert len(marks) == drawn
        assert {line.name for line in lines} <= set(texts(picture))


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.0, "short", "0"),
        (14.08, "short", "14.1"),
        (1500.0, "short", "1.5 K"),
        (0.25, "percentunit", "25 %"),
        (0.0, "s", "0 s"),
        (0.5, "s", "500 ms"),
        (90.0, "s", "1.5 mins"),
        (0.0, "Bps", "0 B/s"),
        (80e6, "Bps", "80 MB/s"),
        (192 * 2.0**20, "bytes", "192 MiB"),
        (2.345, "none", "2.35"),
        (1200.0, "none", "1200"),
    ],
)
def test_values_are_written_in_the_unit_of_their_panel(value: float, unit: str, words: str) -> None:
    assert written(value, unit) == words


def test_ticks_are_round_and_reach_over_the_most() -> None:
    assert ticks(3.9, "short") == [0, 1, 2, 3, 4]
    assert ticks(0, "short") == [0, 0.5, 1]
    assert ticks(230 * 2.0**20, "bytes") == [64 * 2.0**20 * number for number in range(5)]
    for most in (0.1, 1.0, 7.3, 99.0, 12345.0):
        marks = ticks(most, "short")
        assert marks[-1] >= most * (1 - 1e-9)
        assert 3 <= len(marks) <= 6


def test_the_picture_shows_every_panel_of_the_dashboard_and_who_drew_it() -> None:
    text = PICTURE.read_text()
    assert len(text) < 300_000
    root = ElementTree.fromstring(text)
    drawn = set(texts(text))
    hints = {each.text for each in root.iter(f"{SVG}title")}
    for panel in map(Panel, read()["panels"]):
        assert panel.title in drawn, "make docs"
        assert panel.kind == "row" or panel.json["description"] in hints, "make docs"
    assert NOTE in drawn
    assert "not by Grafana" in NOTE
    lowest = max(panel.place[1] + panel.place[3] for panel in panels(read()))
    assert float(root.get("viewBox", "").split()[3]) >= HEAD + CELL * lowest
