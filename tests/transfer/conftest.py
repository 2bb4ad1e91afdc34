"""What all tests of transfers share: nobody waits for a lock to settle."""

import pytest

from agent.repository import locking


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.0)
