"""What modules about whole agents share: the mover, and an agent that does not wait."""

import pytest

from agent.cluster import controller, pods, work
from tests.cluster.fakemover import FakeMover


@pytest.fixture
def mover() -> FakeMover:
    return FakeMover()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an agent look again at once at what failed, and at pods that it has not seen."""
    monkeypatch.setattr(controller, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(pods, "UNSEEN_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(work, "SETTLE_SECONDS", 0.0)
