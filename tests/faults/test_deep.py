"""Directories nested so deeply that what a walk holds open runs out."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.volume.directory import Directory
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume

LIMIT = 200
PASSWORD = {"PODLIFT_PASSWORD": "secret"}


def nest(root: Path, name: bytes, levels: int) -> None:
    """Make directories of one name inside each other, and a file in the innermost."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)


def podlift(*arguments: str, open_files: int = 1024) -> subprocess.CompletedProcess[str]:
    """Run podlift with a hard limit of open files."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        env={**os.environ, **PASSWORD},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_directory_too_deep_for_the_limit_of_open_files_is_named_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    volume, repository = tmp_path / "volume", str(tmp_path / "repository")
    volume.mkdir()
    nest(volume, b"d", LIMIT + 50)
    (volume / "zebra").write_text("at the surface")
    common = ("--repo", repository, "--cache-dir", str(tmp_path / "cache"))
    assert podlift("init", *common).returncode == 0
    done = podlift("backup", str(volume), *common, open_files=LIMIT)
    assert done.returncode == 3, done.stderr
    assert "too many open files" in done.stderr
    listed = podlift("ls", "latest", *common).stdout.split()
    assert "/zebra" in listed
    assert not any(name.endswith("leaf") for name in listed)


def test_a_path_of_unreasonable_length_is_left_out_before_it_costs_memory(tmp_path: Path) -> None:
    nest(tmp_path, b"n" * 255, 80)
    opened: list[Directory] = []
    with Volume.open(tmp_path) as volume:
        with pytest.raises(SourceError, match="bytes; what lies below"):
            descend(volume.root, opened)
        for directory in opened:
            directory.close()
    assert len(opened) == 64


def descend(root: Directory, opened: list[Directory]) -> None:
    """Open one directory below the other for as long as it goes."""
    monitor, current = Monitor(), root
    while True:
        (entry,) = current.entries(Exclude(), monitor, NEVER)
        current = current.open_directory(entry)
        opened.append(current)
