"""Samples are what they say: the same bytes each time, of the size and kind that was asked for."""

import hashlib
import os
import shutil
import zlib
from pathlib import Path

import pytest
from samples import FILES_A_FOLDER, MIB, PAGE, SAMPLES

AMOUNTS = {"incompressible": 8, "text": 4, "pages": 4, "sparse": 40, "small": 450, "tiny": 450}
STREAMS = ("incompressible", "text", "pages", "sparse")
TREES = ("small", "tiny")


@pytest.fixture
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a small volume of the sample that the test is about."""
    return made(request.getfixturevalue("name"), tmp_path / "volume")


def made(name: str, where: Path) -> Path:
    return SAMPLES[name].make(where, AMOUNTS[name])


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def digest(root: Path) -> str:
    whole = hashlib.sha256()
    for name, data in sorted(content(root).items()):
        whole.update(name.encode() + b"\0" + data)
    return whole.hexdigest()


def test_every_sample_is_tried_here() -> None:
    assert AMOUNTS.keys() == SAMPLES.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_the_same_each_time_and_so_is_its_change(name: str, tmp_path: Path) -> None:
    one, two = (made(name, tmp_path / each) for each in ("one", "two"))
    before = digest(one)
    assert digest(two) == before
    SAMPLES[name].change(one, 1)
    SAMPLES[name].change(two, 1)
    assert digest(one) == digest(two) != before
    SAMPLES[name].change(two, 2)
    assert digest(two) != digest(one)


@pytest.mark.parametrize("name", STREAMS)
def test_it_has_the_bytes_that_were_asked_for(name: str, volume: Path) -> None:
    assert sum(map(len, content(volume).values())) == AMOUNTS[name] * MIB


@pytest.mark.parametrize(("name", "sizes"), [("small", (200, 12_010)), ("tiny", (20, 410))])
def test_it_has_the_files_that_were_asked_for(
    name: str, sizes: tuple[int, int], volume: Path
) -> None:
    files = content(volume)
    assert len(files) == AMOUNTS[name]
    assert len(set(files.values())) == len(files)
    assert sizes[0] <= min(map(len, files.values())) < max(map(len, files.values())) <= sizes[1]
    folders = [len(list(p.iterdir())) for p in volume.rglob("*") if p.parent.parent == volume]
    assert sorted(folders) == [AMOUNTS[name] % FILES_A_FOLDER, FILES_A_FOLDER, FILES_A_FOLDER]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("incompressible", 0.99, 1.01),
        ("text", 0.2, 0.6),
        ("pages", 0.3, 0.6),
        ("small", 0.1, 0.6),
    ],
)
def test_it_compresses_as_its_name_says(name: str, least: float, most: float, volume: Path) -> None:
    files = content(volume).values()
    packed = sum(len(zlib.compress(data, 1)) for data in files)
    assert least < packed / sum(map(len, files)) < most


def test_the_disk_image_is_mostly_holes(tmp_path: Path) -> None:
    about = os.stat(made("sparse", tmp_path / "volume") / "disk.img")
    assert about.st_size == AMOUNTS["sparse"] * MIB
    assert about.st_blocks * 512 < about.st_size // 10


@pytest.mark.parametrize("name", STREAMS)
def test_one_percent_of_it_changes_in_place(name: str, volume: Path, tmp_path: Path) -> None:
    before = content(shutil.copytree(volume, tmp_path / "before"))
    SAMPLES[name].change(volume, 1)
    after = content(volume)
    assert {n: len(data) for n, data in before.items()} == {n: len(d) for n, d in after.items()}
    changed = total = 0
    for file, data in before.items():
        blocks = range(0, len(data), PAGE)
        changed += sum(data[at : at + PAGE] != after[file][at : at + PAGE] for at in blocks)
        total += len(blocks)
    assert 0.008 < changed / total < 0.025


@pytest.mark.parametrize("name", STREAMS[:1])
def test_every_large_file_changes_in_one_run(name: str, volume: Path) -> None:
    before = content(volume)
    SAMPLES[name].change(volume, 1)
    for file, data in content(volume).items():
        places = [n for n in range(len(data)) if data[n] != before[file][n]]
        assert places[-1] - places[0] < len(data) // 100


@pytest.mark.parametrize("name", TREES)
def test_one_percent_of_the_files_is_written_anew(name: str, volume: Path) -> None:
    before = content(volume)
    SAMPLES[name].change(volume, 1)
    after = content(volume)
    assert before.keys() == after.keys()
    assert sum(before[file] != after[file] for file in before) == AMOUNTS[name] // 100
