"""Each capability of the manifests is needed: without it, something that a volume holds is missed.

The programs run as root with what is left of the set, for good, as in a container without
privileges. What is missed is named, counted, and ends the command with 3; nothing is lost in silence.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.runs import PASSWORD
from tests.interop.volumes import differences, make_volume
from tests.support.manifests import DEPLOY, capabilities, confined, read_manifest
from tests.support.requirements import missing

FILE_CAPABILITY = b"\x01\x00\x00\x02\x00\x20" + bytes(14)  # cap_net_raw+ep, version 2
OWNER, OTHER = (1000, 2000), (3000, 3000)
DENIED = "permission denied"
RESTORING = capabilities(read_manifest("daemonset.yaml"))
READING = capabilities(read_manifest("components/backup-only/daemonset.yaml"))

MISSED = {
    "DAC_OVERRIDE": {f"private: {DENIED}", f"large: {DENIED}"},
    "CHOWN": {
        "private/key: owner 3000:3000 could not be set",
        "left off, since the owner is another",
    },
    "FOWNER": {"private/key: modification time could not be set", "system.posix_acl_access"},
    "FSETID": {"set-group-id: mode 2755 could not be set: it is 0755"},
    "MKNOD": {"kinds/block: operation not permitted", "kinds/character: operation not permitted"},
    "SETFCAP": {"program: attribute security.capability could not be set"},
}


def podlift(given: list[str], *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command with these capabilities and no other."""
    command = [*confined(given), sys.executable, "-m", "agent", *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "PODLIFT_PASSWORD": PASSWORD, "HOME": "/"}
    return subprocess.run(
        command, env=environment, cwd=DEPLOY.parent, capture_output=True, text=True, timeout=100
    )


def fill(root: Path) -> None:
    """Fill a volume with all kinds of entries, and files of several owners that nobody else may read."""
    make_volume(root)
    (root / "private").mkdir()
    for name, owner, mode in (
        ("private/key", OTHER, 0o600),
        ("set-group-id", OWNER, 0o2755),
        ("set-user-id", OWNER, 0o4755),
        ("program", (0, 0), 0o755),
    ):
        (root / name).write_text(name)
        os.chown(root / name, *owner)
        (root / name).chmod(mode)
    os.setxattr(root / "program", "security.capability", FILE_CAPABILITY)
    os.chown(root / "private", *OWNER)
    (root / "private").chmod(0o700)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a volume with files of several owners that nobody else may read."""
    if os.geteuid() != 0:
        missing("root (whose capabilities are taken away one by one)", "run the tests as root")
    root = tmp_path_factory.mktemp("volume") / "v"
    fill(root)
    return root


@pytest.fixture(scope="module")
def repository(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a backup that was taken with the right to read alone."""
    place = tmp_path_factory.mktemp("repository") / "r"
    assert podlift(READING, "init", "--repo", place).returncode == 0
    done = podlift(READING, "backup", volume, "--repo", place)
    assert (done.returncode, done.stderr) == (0, "")
    return place


def restored(
    repository: Path, given: list[str], tmp_path: Path
) -> "tuple[subprocess.CompletedProcess[str], Path]":
    """Restore into a volume that belongs to somebody else."""
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    os.chown(target, *OWNER)
    return podlift(given, "restore", "latest", "--repo", repository, "--target", target), target


def test_a_backup_needs_the_right_to_read_and_names_what_it_may_not(
    volume: Path, tmp_path: Path
) -> None:
    assert podlift([], "init", "--repo", tmp_path / "r").returncode == 0
    for given in ([], [name for name in RESTORING if name != "DAC_OVERRIDE"]):
        done = podlift(given, "backup", volume, "--repo", tmp_path / "r")
        assert done.returncode == 3, done
        assert f"private: {DENIED}" in done.stderr


def test_a_restore_with_all_of_them_brings_everything_back(
    volume: Path, repository: Path, tmp_path: Path
) -> None:
    done, target = restored(repository, RESTORING, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert differences(volume, target) == []


@pytest.mark.parametrize("lost", RESTORING)
def test_without_one_of_them_a_restore_names_what_it_could_not_give_back(
    lost: str, volume: Path, repository: Path, tmp_path: Path
) -> None:
    done, target = restored(repository, [name for name in RESTORING if name != lost], tmp_path)
    assert done.returncode == 3, done
    assert [words for words in MISSED[lost] if words not in done.stderr] == [], done.stderr
    named = {line.split("'")[1] for line in differences(volume, target)}
    unsaid = [name for name in named if name.split("/")[0] not in done.stderr]
    assert unsaid == []
