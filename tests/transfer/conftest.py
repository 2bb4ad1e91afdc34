"""What all tests of transfers share: a bench to run on, and no waiting for a lock to settle."""

from pathlib import Path

import pytest

from agent.repository import locking
from tests.transfer.running import Bench


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.new(tmp_path / "volume")
