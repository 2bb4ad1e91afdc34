"""Handing a restored volume to its pod, whatever its owner has put in the way."""

import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import Canceled, VolumeError
from agent.volume import handover
from agent.volume.handover import FOLDER, Handover
from tests.support.requirements import missing

UID = "5f9c3c51-4d1f-4a6f-9d1c-0d8f6f9a1b2c"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    (path / "data").write_text("the pod's")
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a directory of somebody else's, which must stay as it is."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "precious").write_text("theirs")
    return path


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def hand_over(volume: Path, name: str = UID) -> None:
    with Handover.open(volume, NEVER) as open_volume:
        open_volume.flush()
        open_volume.finish(name)


def assert_handed_over(volume: Path) -> None:
    folder = volume / ".velero"
    assert stat.S_ISDIR(folder.lstat().st_mode)
    assert stat.S_IMODE(folder.lstat().st_mode) == 0o755
    assert [entry.name for entry in folder.iterdir()] == [UID]
    assert stat.S_ISREG((folder / UID).lstat().st_mode)
    assert stat.S_IMODE((folder / UID).lstat().st_mode) == 0o644
    assert (folder / UID).read_bytes() == b""
    assert (volume / "data").read_text() == "the pod's"


@pytest.mark.usefixtures("closed_umask")
def test_the_done_file_can_be_read_by_anybody_whatever_the_umask(volume: Path) -> None:
    hand_over(volume)
    assert_handed_over(volume)


def test_handing_over_twice_leaves_one_done_file(volume: Path) -> None:
    hand_over(volume, "an-earlier-restore")
    hand_over(volume)
    assert_handed_over(volume)


def plant_file(path: Path, _outside: Path) -> None:
    path.write_text("not a folder")


def plant_fifo(path: Path, _outside: Path) -> None:
    os.mkfifo(path)


def plant_symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def plant_dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def plant_folder(path: Path, outside: Path) -> None:
    path.mkdir(mode=0o700)
    (path / UID).symlink_to(outside / "made-by-us")
    (path / "folder").symlink_to(outside)
    (path / "below").mkdir()
    (path / "below" / "link").symlink_to(outside)
    (path / "below" / "file").write_text("x")


@pytest.mark.parametrize(
    "plant", [plant_file, plant_fifo, plant_symlink, plant_dangling, plant_folder]
)
def test_what_stands_in_the_folders_place_is_removed_and_never_followed(
    volume: Path, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(volume / ".velero", outside)
    hand_over(volume)
    assert_handed_over(volume)
    assert sorted(entry.name for entry in outside.iterdir()) == ["precious"]
    assert (outside / "precious").read_text() == "theirs"


def test_a_folder_deeper_than_there_are_descriptors_is_removed(volume: Path) -> None:
    deep = 3000
    descriptor = os.open(volume, os.O_RDONLY)
    for name in [FOLDER, *[b"d"] * deep]:
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open(b"last", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    hand_over(volume)
    assert_handed_over(volume)


def test_a_folder_with_more_names_than_are_held_at_once_is_removed(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "NAMES", 7)
    for folder in ("one", "two"):
        (volume / ".velero" / folder).mkdir(parents=True)
        for number in range(50):
            (volume / ".velero" / folder / f"f{number}").touch()
            (volume / ".velero" / folder / f"d{number}").mkdir()
    hand_over(volume)
    assert_handed_over(volume)


def test_something_mounted_on_the_folder_is_not_emptied(volume: Path, outside: Path) -> None:
    (volume / ".velero").mkdir()
    if subprocess.run(["mount", "--bind", outside, volume / ".velero"], check=False).returncode:
        missing("a bind mount", "run the tests as root with CAP_SYS_ADMIN")
    try:
        with pytest.raises(VolumeError, match=r"mounted in \.velero"):
            hand_over(volume)
        assert (outside / "precious").read_text() == "theirs"
    finally:
        subprocess.run(["umount", volume / ".velero"], check=True)


def test_an_owner_who_swaps_the_folder_all_the_time_gains_nothing(
    volume: Path, outside: Path
) -> None:
    """The outcome may be an error; but nothing is ever made outside of the volume."""
    stop = threading.Event()
    folder = volume / ".velero"

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                if number % 2:
                    os.rename(folder, volume / f"moved-{number}")
                os.symlink(outside, folder)
            except OSError:
                continue

    attacker = threading.Thread(target=swap)
    attacker.start()
    ends = []
    try:
        for _ in range(200):
            with Handover.open(volume, NEVER) as open_volume:
                try:
                    open_volume.finish(UID)
                    ends.append("done")
                except VolumeError as error:
                    ends.append(str(error))
    finally:
        stop.set()
        attacker.join()
    assert len(ends) == 200
    assert all(end == "done" or "stop what writes to the volume" in end for end in ends)
    assert sorted(entry.name for entry in outside.iterdir()) == ["precious"]


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\0b", ".hidden", "x" * 300])
def test_a_name_that_is_no_uid_is_refused_and_nothing_is_made(volume: Path, name: str) -> None:
    with pytest.raises(VolumeError, match="is no Restore's uid"):
        hand_over(volume, name)
    assert not (volume / ".velero").exists()


def test_a_volume_that_was_mounted_anew_meanwhile_is_not_told_done(
    volume: Path, tmp_path: Path
) -> None:
    with Handover.open(volume, NEVER) as open_volume:
        volume.rename(tmp_path / "unmounted")
        with pytest.raises(VolumeError, match="has gone"):
            open_volume.finish(UID)
        volume.mkdir()
        with pytest.raises(VolumeError, match="was unmounted"):
            open_volume.finish(UID)
    assert list(volume.iterdir()) == []
    assert not (tmp_path / "unmounted" / ".velero").exists()


def test_a_volume_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="does not exist"):
        Handover.open(tmp_path / "none", NEVER)
    assert not (tmp_path / "none").exists()


def test_a_stop_comes_before_the_done_file(volume: Path) -> None:
    cancel = CancelToken()
    with Handover.open(volume, cancel) as open_volume:
        cancel.cancel("enough")
        with pytest.raises(Canceled):
            open_volume.finish(UID)
    assert not (volume / ".velero").exists()


LOCKER = "import fcntl, os, sys; f = os.open(sys.argv[1], 0); fcntl.flock(f, 2); print(1, flush=True); input()"


def test_a_second_restore_waits_for_the_first_and_death_lets_go(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, volume], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()

        class Waiting(CancelToken):
            def pause(self, seconds: float) -> None:
                waits.append(seconds)
                if len(waits) == 3:
                    first.kill()
                    first.wait()

        with Handover.open(volume, Waiting()):
            assert len(waits) == 3
            descriptor = os.open(volume, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
    monkeypatch.setattr(handover, "LOCK_SECONDS", 2)
    with Handover.open(volume, NEVER), pytest.raises(VolumeError, match="locked by another"):
        Handover.open(volume, Patient())


class Patient(CancelToken):
    """Does not really wait."""

    def pause(self, seconds: float) -> None:
        self.check()


class TestTheNextProcess:
    """One that takes over finds out whether the pod was told already."""

    def finished(self, volume: Path) -> bool:
        with Handover.open(volume, NEVER) as open_volume:
            return open_volume.finished(UID)

    def test_knows_the_file_of_an_earlier_one_and_makes_it_readable(self, volume: Path) -> None:
        assert not self.finished(volume)
        hand_over(volume)
        assert self.finished(volume)
        (volume / ".velero").chmod(0o700)  # killed in between
        (volume / ".velero" / UID).chmod(0o600)
        assert self.finished(volume)
        assert_handed_over(volume)

    @pytest.mark.parametrize("planted", ["folder", "symlink", "full", "linked", "fifo", "away"])
    def test_believes_nothing_else(self, volume: Path, outside: Path, planted: str) -> None:
        folder, precious = volume / ".velero", outside / "precious"
        mode = precious.stat().st_mode
        if planted == "away":
            folder.symlink_to(outside)
            (outside / UID).touch()
        else:
            folder.mkdir()
        if planted == "symlink":
            (folder / UID).symlink_to(precious)
        elif planted == "full":
            (folder / UID).write_text("mine")
        elif planted == "linked":
            (volume / "empty").touch(mode=0o600)
            os.link(volume / "empty", folder / UID)
        elif planted == "fifo":
            os.mkfifo(folder / UID)
        assert not self.finished(volume)
        assert precious.stat().st_mode == mode
