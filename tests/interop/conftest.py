"""One repository of ours for all restics to judge, made once a session."""

import shutil
from pathlib import Path

import pytest

from tests.interop.runs import back_up
from tests.interop.volumes import make_volume


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a volume with every kind of entry; nobody changes it."""
    root = tmp_path_factory.mktemp("sample") / "v"
    make_volume(root)
    return root


@pytest.fixture(scope="session")
def made(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of ours that holds ``sample``; copy it before writing."""
    place = tmp_path_factory.mktemp("made") / "repo"
    back_up(place, sample)
    return place


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Path:
    """Return a copy of ``made`` to work on."""
    return Path(shutil.copytree(made, tmp_path / "repo"))
