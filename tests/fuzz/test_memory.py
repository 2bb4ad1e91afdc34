"""Memory stays bounded whatever is decoded: the bombs, a few to a program that forks for each."""

import subprocess
import sys

import pytest

from tests.fuzz.bombs import BOMBS

PROGRAMS = 4


@pytest.mark.parametrize("number", range(PROGRAMS))
def test_no_bomb_takes_more_than_its_limit(number: int) -> None:
    names = list(BOMBS)[number::PROGRAMS]
    run = [sys.executable, "-m", "tests.fuzz.bombs", *names]
    done = subprocess.run(run, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
