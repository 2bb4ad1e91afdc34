"""Prometheus' own judge of rules and expressions: promtool, found as ``tests.support.prometheus`` says."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.prometheus import HOW, program
from tests.support.requirements import missing

Json = dict[str, Any]


class Promtool:
    """Calls the program in a folder of its own, for files as values. JSON is YAML, too."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder

    def check(self, rules: Json) -> str:
        """Return what it says of a rule file; "" if it is good."""
        return self._run("check", "rules", self._write("rules.json", rules))

    def test(self, rules: Json, tests: Sequence[Json], interval: str = "1m") -> str:
        """Return what it says of unit tests of rules; "" if all hold."""
        self._write("rules.json", rules)
        whole = {"rule_files": ["rules.json"], "evaluation_interval": interval, "tests": tests}
        return self._run("test", "rules", self._write("tests.json", whole))

    def _write(self, name: str, value: Json) -> Path:
        path = self._folder / name
        path.write_text(json.dumps(value))
        return path

    def _run(self, *command: str | Path) -> str:
        done = subprocess.run([self._binary, *command], capture_output=True, text=True)
        return (
            "" if done.returncode == 0 else f"exit {done.returncode}:\n{done.stdout}{done.stderr}"
        )


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    binary = program("promtool")
    if binary is None:
        missing("promtool", HOW)
    return Promtool(binary, tmp_path)
