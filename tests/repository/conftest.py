"""What all tests of repositories share: an empty one in memory, and nobody waits for a lock."""

import pytest

from agent.repository import locking
from agent.repository.repository import Repository
from agent.storage.memory import MemoryStorage
from tests.repository.making import new_repository


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def repository(storage: MemoryStorage) -> Repository:
    return new_repository(storage)
