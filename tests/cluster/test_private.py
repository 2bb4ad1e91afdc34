"""The folder for credentials: private while in use, and gone when nobody lives in it."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from agent.cluster.private import PREFIX, private_folder, remove_abandoned

HOLD = """
import sys, time
from pathlib import Path
from agent.cluster.private import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "credentials").write_text("secret")
    print(folder, flush=True)
    time.sleep(100)
"""


def test_it_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_it_stays_while_its_agent_lives_and_goes_when_that_was_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        remove_abandoned(tmp_path)
        assert (folder / "credentials").read_text() == "secret"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with private_folder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]


def test_one_that_is_just_being_made_is_left_alone_and_an_old_one_is_not(tmp_path: Path) -> None:
    young, old = tmp_path / f"{PREFIX}young", tmp_path / f"{PREFIX}old"
    young.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


def test_what_only_looks_like_one_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.utime(elsewhere, (0, 0))
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    (tmp_path / f"{PREFIX}file").touch()
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
