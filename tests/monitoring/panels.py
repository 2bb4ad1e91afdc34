"""The dashboard as Grafana reads it: panels, where they stand, and what each asks of Prometheus."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.prometheus import Prometheus

Json = dict[str, Any]

PAGE = Path(__file__).parents[2] / "deploy/monitoring/dashboard.json"


@dataclasses.dataclass(frozen=True)
class Span:
    """What is looked at: from when to when in seconds, in how many points, scraped how often."""

    start: float
    end: float
    scrape_seconds: float
    points: int = 200

    @property
    def step(self) -> float:
        """Return what Grafana calls ``$__interval``."""
        return max(self.scrape_seconds, (self.end - self.start) / self.points)

    @property
    def rate_interval(self) -> float:
        """Return ``$__rate_interval``, as Grafana's documentation of its Prometheus source has it."""
        return max(self.step + self.scrape_seconds, 4 * self.scrape_seconds)


@dataclasses.dataclass(frozen=True)
class Line:
    """One series of a panel, under the name that its legend has for it."""

    name: str
    values: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.values[-1][1]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel, or the heading of a row."""

    json: Json

    @property
    def title(self) -> str:
        return str(self.json["title"])

    @property
    def kind(self) -> str:
        return str(self.json["type"])

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Return x, y, width and height in Grafana's grid of 24 columns."""
        at = self.json["gridPos"]
        return at["x"], at["y"], at["w"], at["h"]

    @property
    def defaults(self) -> Json:
        found: Json = self.json.get("fieldConfig", {}).get("defaults", {})
        return found

    @property
    def queries(self) -> list[tuple[str, str]]:
        """Return each expression, as it is written, with its legend."""
        return [(each["expr"], each["legendFormat"]) for each in self.json.get("targets", ())]

    def answers(self, prometheus: Prometheus, span: Span, instance: str = ".+") -> list[Line]:
        """Return what Prometheus has to say, of all agents or of some."""
        lines = []
        for expression, legend in self.queries:
            sent = resolved(expression, span.rate_interval, instance)
            for found in prometheus.query_range(sent, span.start, span.end, span.step):
                values = [pair for pair in found.values if math.isfinite(pair[1])]
                if values:
                    lines.append(Line(legend_of(legend, dict(found.labels)), values))
        return lines


def resolved(expression: str, rate_interval: float, instance: str = ".+") -> str:
    """Return an expression as Grafana sends it."""
    length = f"{int(rate_interval * 1000)}ms"
    return expression.replace("$__rate_interval", length).replace("$instance", instance)


def legend_of(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def read(page: Path = PAGE) -> Json:
    found: Json = json.loads(page.read_text())
    return found


def panels(dashboard: Json) -> Iterator[Panel]:
    """Yield every panel, headings included."""
    return map(Panel, dashboard["panels"])
