"""Opening a volume, and reading one without root's rights."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import VolumeError
from agent.volume.descriptors import raise_descriptor_limit
from agent.volume.reader import Volume
from tests.volume.listing import listing

ROOM = Path(__file__).resolve().parents[2]


def test_a_missing_root_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="does not exist; check the path"):
        Volume.open(tmp_path / "none")


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError, match="is not a directory"):
        Volume.open(tmp_path / "file")


def test_a_loop_of_symlinks_is_no_root(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(VolumeError, match="loop of symlinks"):
        Volume.open(str(tmp_path / "loop"))


def test_a_path_with_a_nul_is_no_root() -> None:
    with pytest.raises(VolumeError, match="check the path"):
        Volume.open("a\0b")


def test_the_root_may_be_reached_through_a_symlink_once_and_is_then_pinned(
    source: Path, tmp_path: Path
) -> None:
    (source / "mine").touch()
    os.symlink(source, tmp_path / "way")
    with Volume.open(os.fsencode(tmp_path / "way")) as volume:
        (tmp_path / "way").unlink()
        os.symlink("/", tmp_path / "way")
        source.rename(tmp_path / "moved")
        assert list(listing(volume.root)) == [b"mine"]
        assert volume.path == os.fsencode(tmp_path / "way")
        assert volume.root.path == b""
        assert volume.device == os.stat(tmp_path / "moved").st_dev


SCRIPT = """
import os, sys
from agent.cancel import NEVER
from agent.errors import SourceError, VolumeError
from agent.monitor import Monitor
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume
root = os.open(sys.argv[1], os.O_RDONLY)
if os.geteuid() == 0:  # only now: who takes our place may not even see the interpreter
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
volume = Volume.open(f"/proc/self/fd/{root}")
monitor = Monitor()
found = {e.name: e for e in volume.root.entries(Exclude(), monitor, NEVER)}
print(*[name.decode() for name in found])
for attempt in (
    lambda: volume.root.open_file(found[b"file"]),
    lambda: volume.root.open_directory(found[b"dir"]),
    lambda: list(volume.root.open_directory(found[b"blind"]).entries(Exclude(["skip*"]), monitor, NEVER)),
    lambda: Volume.open(f"/proc/self/fd/{root}/dir"),
    lambda: volume.root.open_file(found[b"open"]).close(),
):
    try:
        attempt()
        print("ok")
    except (SourceError, VolumeError) as error:
        print(error)
for problem in monitor.problems:
    print("problem", problem)
"""


def test_what_cannot_be_read_is_named_with_advice_and_the_rest_goes_on(source: Path) -> None:
    (source / "file").write_text("x")
    (source / "open").write_text("x")
    (source / "open").chmod(0o644)
    (source / "dir").mkdir()
    (source / "blind").mkdir()
    (source / "blind" / "child").touch()
    (source / "blind" / "skipped").touch()
    (source / "file").chmod(0)
    (source / "dir").chmod(0)
    (source / "blind").chmod(0o444)  # can be listed, but its entries cannot be looked at
    source.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source],
        capture_output=True, text=True, cwd=ROOM, check=True,
    )  # fmt: skip
    (source / "dir").chmod(0o700)
    (source / "blind").chmod(0o700)
    advice = "permission denied; run podlift as root"
    lines = done.stdout.splitlines()
    assert lines[0] == "blind dir file open"
    assert lines[1] == f"file: {advice}"
    assert lines[2] == f"dir: {advice}"
    assert lines[3] == "ok"
    assert lines[4].endswith(advice)
    assert lines[5] == "ok"
    assert lines[6:] == [f"problem blind/child: {advice}"]


LIMIT = """
import os, resource, sys
from agent.cancel import NEVER
from agent.errors import SourceError
from agent.monitor import Monitor
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume
volume = Volume.open(sys.argv[1])
entry, = volume.root.entries(Exclude(), Monitor(), NEVER)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
try:
    volume.root.open_directory(entry)
except SourceError as error:
    print(error)
"""


def test_running_out_of_descriptors_says_which_limit_to_raise(source: Path) -> None:
    (source / "dir").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIMIT, source],
        capture_output=True, text=True, cwd=ROOM, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == (
        "dir: too many open files; raise podlift's limit of open files (ulimit -Hn)"
    )


def test_the_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert raise_descriptor_limit() == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
