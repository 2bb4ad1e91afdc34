"""Volumes to read: a real directory on a real file system."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.volume.reader import Volume
from tests.support.requirements import missing


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def volume(source: Path) -> Iterator[Volume]:
    with Volume.open(source) as opened:
        yield opened


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        missing("the right to do this (the test needs root)", "run the tests as root")


@pytest.fixture
def mount(as_root: None) -> Iterator[Callable[..., None]]:
    mounted: list[Path] = []

    def do(*arguments: str | Path) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            missing("the right to mount", f"run as root with CAP_SYS_ADMIN ({done.stderr.strip()})")
        mounted.append(Path(arguments[-1]))

    yield do
    for path in reversed(mounted):
        subprocess.run(["umount", "--lazy", path], check=True)  # also when the test failed
