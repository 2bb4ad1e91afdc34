"""Whatever is shown is made from a result: tables, pictures, and their places in the documents."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "about": report.about(["podlift 1", "other 2"], quick=False),
        "columns": ["volume", "wall s", "requests"],
        "rows": [["text", 1.5, None], ["small", 0.25, 12]],
        "bars": {
            "wall": {
                "title": "Wall <time>",
                "unit": "s",
                "groups": {"text": {"podlift": 1.5, "restic": 3.0}, "none": {"podlift": 0.0}},
            }
        },
        "lines": {
            "memory": {
                "title": "Memory",
                "unit": "MiB",
                "limit": 256,
                "points": {"podlift": [[0.0, 50.0], [2.0, 300.0]], "silent": []},
            }
        },
        "verdicts": ["held: one", "NOT held: other"],
    }


def test_a_table_has_a_row_for_each_and_says_with_what_it_was_measured(
    result: dict[str, Any],
) -> None:
    lines = report.markdown(result).splitlines()
    assert "| volume | wall s | requests |" in lines
    assert "| text | 1.50 |  |" in lines
    assert "| small | 0.25 | 12 |" in lines
    assert lines[-2:] == ["- held: one", "- NOT held: other"]
    assert lines[1].startswith("podlift 1; other 2. Command: `python benchmarks/")
    assert "Small data" not in report.markdown(result)
    result["about"]["quick"] = True
    assert "Small data (`--quick`)" in report.markdown(result)


def test_where_it_was_measured_names_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/somewhere/bench_x.py", "--restic", "/opt/restic-1", "--quick"]
    )
    about = report.about([], quick=True)
    assert about["command"] == "python benchmarks/bench_x.py --restic restic-1 --quick"
    assert "/" not in about["machine"].replace("AMD/Intel", "")
    assert set(about) == {"date", "machine", "system", "versions", "command", "quick"}


def test_bars_are_as_long_as_their_values(result: dict[str, Any]) -> None:
    picture = ElementTree.fromstring(report.bars(**result["bars"]["wall"]))
    assert picture.get("aria-label") == "Wall <time>"
    short, long, none = (int(each.get("width", "")) for each in picture.iter(f"{SVG}rect"))
    assert long == 2 * short
    assert none == 1
    said = [each.text for each in picture.iter(f"{SVG}text")]
    assert {"podlift 1.50 s", "restic 3.00 s"} <= set(said)


def test_lines_stay_inside_with_their_limit(result: dict[str, Any]) -> None:
    picture = ElementTree.fromstring(report.line(**result["lines"]["memory"]))
    axes, limit, ours, silent = (
        [tuple(map(float, p.split(","))) for p in each.get("points", "").split()]
        for each in picture.iter(f"{SVG}polyline")
    )
    assert silent == []
    assert len(ours) == 2
    assert axes[0][1] < ours[1][1] < limit[0][1] == limit[1][1] < ours[0][1] < axes[1][1]
    assert ours[1][0] == axes[2][0]


def test_nothing_measured_is_drawn_as_well() -> None:
    for picture in (report.bars("none", "s", {}), report.line("none", "s", 1.0, {})):
        assert ElementTree.fromstring(picture).tag == f"{SVG}svg"


def test_a_result_is_written_with_its_pictures(tmp_path: Path, result: dict[str, Any]) -> None:
    report.write(tmp_path / "out", "speed", result)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"speed.json", "speed.md", "wall.svg", "memory.svg"}
    assert json.loads((tmp_path / "out" / "speed.json").read_text()) == result


def test_documents_get_every_result_between_its_marks(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    report.write(tmp_path / "out", "speed", result)
    document = tmp_path / "benchmarks.md"
    document.write_text("# before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
    report.refresh(tmp_path / "out", tmp_path)
    once = document.read_text()
    assert once.startswith("# before\n<!-- speed: begin -->\n")
    assert once.endswith("<!-- speed: end -->\nafter\n")
    assert "| text | 1.50 |  |" in once
    assert "![wall](benchmarks/wall.svg)" in once
    assert "old" not in once
    assert (tmp_path / "benchmarks" / "memory.svg").exists()
    report.refresh(tmp_path / "out", tmp_path)
    assert document.read_text() == once


def test_a_result_without_a_place_in_the_documents_is_refused(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    report.write(tmp_path / "out", "speed", result)
    (tmp_path / "benchmarks.md").write_text("<!-- other: begin --><!-- other: end -->\n")
    with pytest.raises(SystemExit, match="no place for speed"):
        report.refresh(tmp_path / "out", tmp_path)
