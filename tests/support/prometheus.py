"""A real Prometheus of a test's own, which scrapes agents on loopback and answers queries.

Its programs are on the PATH, or in the folder that ``PODLIFT_PROMETHEUS`` names.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.requirements import missing

Json = dict[str, Any]

HOW = "name the folder that .ci/prometheus FOLDER prints in PODLIFT_PROMETHEUS"
START_SECONDS = 30


def program(name: str) -> str | None:
    """Return the path of prometheus or promtool; None where it is missing."""
    folder = os.environ.get("PODLIFT_PROMETHEUS")
    return shutil.which(name, path=folder) if folder else shutil.which(name)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One series of an answer: its labels, and values by time in seconds."""

    labels: Mapping[str, str]
    values: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.values[-1][1]


class Prometheus:
    """A running server."""

    def __init__(self, url: str, scrape_seconds: float) -> None:
        self.url = url
        self.scrape_seconds = scrape_seconds

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """Return what holds now, or held then; an expression that it does not take fails the test."""
        when = {} if at is None else {"time": f"{at:.3f}"}
        found = self._ask("query", query=expression, **when)["result"]
        return [Sample(each["metric"], _values([each["value"]])) for each in found]

    def value(self, expression: str) -> float:
        """Return the one value of an expression now."""
        (sample,) = self.query(expression)
        return sample.last

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Sample]:
        """Return values over time, as a graph shows them."""
        span = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        found = self._ask("query_range", query=expression, **span)["result"]
        return [Sample(each["metric"], _values(each["values"])) for each in found]

    def names(self) -> set[str]:
        """Return the names of all metrics that were seen."""
        return set(self._ask("label/__name__/values"))

    def targets(self) -> list[Json]:
        """Return what it scrapes, and how that went."""
        found: list[Json] = self._ask("targets")["activeTargets"]
        return found

    def _ask(self, what: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error


def _values(pairs: list[list[Any]]) -> list[tuple[float, float]]:
    return [(float(at), float(value)) for at, value in pairs]


@contextlib.contextmanager
def scraping(
    binary: str, folder: Path, targets: Mapping[str, str], rules: Json, every_seconds: float
) -> Iterator[Prometheus]:
    """Run a server for a scope that scrapes addresses, each in the name of an instance, and evaluates rules."""
    folder.mkdir()
    pace = f"{int(every_seconds * 1000)}ms"
    scrape = {
        "job_name": "podlift",
        "honor_labels": True,  # as deploy/monitoring/podmonitor.yaml has it
        "static_configs": [
            {"targets": [address], "labels": {"instance": instance}}
            for instance, address in targets.items()
        ],
    }
    (folder / "rules.json").write_text(json.dumps(rules))  # JSON is YAML
    config = folder / "prometheus.json"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": pace, "evaluation_interval": pace},
                "rule_files": [str(folder / "rules.json")],
                "scrape_configs": [scrape],
            }
        )
    )
    address = f"127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _wait_for(process, f"http://{address}/-/ready", folder / "log")
            yield Prometheus(f"http://{address}", every_seconds)
        finally:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.05)
    raise AssertionError(f"Prometheus did not start:\n{log.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def prometheus_binary() -> str:
    """Return the path of Debian's, or another one."""
    binary = program("prometheus")
    if binary is None:
        missing("prometheus", HOW)
    return binary
