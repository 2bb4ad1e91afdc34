"""Results as JSON, Markdown and pictures; as a program: put them into the documents.

    python benchmarks/report.py --out benchmarks/results --docs docs

writes each result's table into docs/benchmarks.md between its markers, and its pictures to
docs/benchmarks/. A result is one JSON file NAME.json with `about` (machine, versions, date, command),
`columns`, `rows`, `bars` and `lines`; everything that is shown is made from it, so that a document never
says what no file says. Pictures are SVG text that follows the reader's light or dark colours.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, ROW, LEFT = 720, 18, 230
COLOURS = {"podlift": "#2f81f7", "restic": "#d29922", "kopia": "#a371f7", "borg": "#3fb950"}
STYLE = (
    "<style>text{font:12px sans-serif;fill:#1f2328}.a{stroke:#8c959f;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.a{stroke:#6e7681}}</style>"
)


def about(versions: Sequence[str], quick: bool) -> dict[str, Any]:
    """Return where, when and how a result was measured; nothing that names the machine."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib()} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": list(versions),
        "command": " ".join(["python benchmarks/" + Path(sys.argv[0]).name, *_told()]),
        "quick": quick,
    }


def _told() -> list[str]:
    """Return the arguments, without those that are paths of this machine."""
    return [Path(each).name if "/" in each else each for each in sys.argv[1:]]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30))


def write(out: Path, name: str, result: dict[str, Any]) -> None:
    """Write NAME.json, NAME.md and one SVG for each picture into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown(result))
    pictures(out, result)
    print(f"results: {out / name}.json, .md and pictures")


def markdown(result: dict[str, Any]) -> str:
    """Return the table and what it was measured with."""
    known = result["about"]
    lines = [f"{known['date']}, {known['machine']}; {known['system']}."]
    lines += [f"{'; '.join(known['versions'])}. Command: `{known['command']}`."]
    if known["quick"]:
        lines += ["Small data (`--quick`): these figures only show that the benchmark works."]
    lines += ["", "| " + " | ".join(result["columns"]) + " |"]
    lines += ["|" + "---|" * len(result["columns"])]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in result["rows"]]
    lines += ["", *(f"- {verdict}" for verdict in result["verdicts"]), ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def pictures(folder: Path, result: dict[str, Any]) -> None:
    """Write the pictures of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in result.get("bars", {}).items():
        (folder / f"{name}.svg").write_text(bars(**picture))
    for name, picture in result.get("lines", {}).items():
        (folder / f"{name}.svg").write_text(line(**picture))


def bars(title: str, unit: str, groups: dict[str, dict[str, float]]) -> str:
    """Return horizontal bars: for each group one bar a side, shorter is better."""
    most = max((v for group in groups.values() for v in group.values()), default=0) or 1
    parts, y = [f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>'], 34
    for group, values in groups.items():
        parts.append(f'<text x="8" y="{y + 13}">{escape(group)}</text>')
        for side, value in values.items():
            width = max(1, round((WIDTH - LEFT - 150) * value / most))
            fill = COLOURS.get(side, "#8c959f")
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width}" height="{ROW - 3}" fill="{fill}"/>'
                f'<text x="{LEFT + width + 6}" y="{y + 12}">{escape(side)} {value:.2f} {unit}</text>'
            )
            y += ROW
        y += 8
    return svg(title, (WIDTH, y), [STYLE, *parts])


def line(title: str, unit: str, limit: float, points: dict[str, list[list[float]]]) -> str:
    """Return values over seconds, one line a side, with the limit as a broken line."""
    height, left, bottom = 260, 50, 220
    last = max((p[0] for each in points.values() for p in each), default=1) or 1
    most = max([limit, *(p[1] for each in points.values() for p in each)]) * 1.1

    def at(second: float, value: float) -> str:
        x = left + (WIDTH - left - 110) * second / last
        return f"{x:.1f},{bottom - (bottom - 40) * value / most:.1f}"

    parts = [f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>']
    parts.append(f'<polyline class="a" points="{at(0, most)} {at(0, 0)} {at(last, 0)}"/>')
    parts.append(
        f'<polyline class="a" stroke-dasharray="4" points="{at(0, limit)} {at(last, limit)}"/>'
    )
    x, y = at(last, limit).split(",")
    parts.append(f'<text x="{float(x) + 6:.1f}" y="{y}">{limit:g} {unit}</text>')
    parts.append(f'<text x="{left}" y="{bottom + 18}">0 s</text>')
    parts.append(f'<text x="{WIDTH - 140}" y="{bottom + 18}">{last:.0f} s</text>')
    for side, seen in points.items():
        path = " ".join(at(*point) for point in seen)
        colour = COLOURS.get(side, "#8c959f")
        parts.append(f'<polyline fill="none" stroke="{colour}" points="{path}"/>')
        x, y = at(*(seen[-1] if seen else (0, 0))).split(",")
        parts.append(f'<text x="{float(x) + 6:.1f}" y="{y}">{escape(side)}</text>')
    return svg(title, (WIDTH, height), [STYLE, *parts])


def svg(title: str, size: tuple[int, int], parts: Sequence[str]) -> str:
    """Return a picture of a width and height, with what a reader who sees none is told."""
    head = f'viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>\n{body}\n</svg>\n'


def refresh(out: Path, docs: Path) -> None:
    """Put every result into the documents; raise ``SystemExit`` where a marker is missing."""
    document = docs / "benchmarks.md"
    text = document.read_text()
    for path in sorted(out.glob("*.json")):
        begin, end = f"<!-- {path.stem}: begin -->", f"<!-- {path.stem}: end -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise SystemExit(f"{document} has no place for {path.stem}: {begin} … {end}")
        result = json.loads(path.read_text())
        shown = [*result.get("bars", {}), *result.get("lines", {})]
        images = "".join(f"\n![{name}](benchmarks/{name}.svg)\n" for name in shown)
        text = f"{before}{begin}\n{markdown(result)}{images}{end}{after}"
        pictures(docs / "benchmarks", result)
    document.write_text(text)


def main() -> None:
    """Refresh the documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder with the results")
    parser.add_argument("--docs", type=Path, required=True, help="folder of the documents")
    options = parser.parse_args()
    refresh(options.out, options.docs)


if __name__ == "__main__":
    main()
