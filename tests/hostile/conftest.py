"""What all attacks share: a scene, and no waiting for a lock to settle."""

from pathlib import Path

import pytest

from agent.repository import locking
from tests.hostile.scene import Scene
from tests.volume.conftest import as_root, mount

__all__ = ["as_root", "mount"]


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.make(tmp_path)
