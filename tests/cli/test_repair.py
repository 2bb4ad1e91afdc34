"""repair from the command line: what is damaged is named, mended, and check agrees."""

from pathlib import Path

import pytest

from agent.repository.identity import BlobType
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.storage.local import LocalStorage
from tests.cli.conftest import PASSWORD, Run
from tests.repository.mess import noise, save


@pytest.fixture
def opened(repo: Path) -> Repository:
    return open_repository(LocalStorage(repo), PASSWORD)


def overwrite(path: Path, body: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(body)


def data_pack(repo: Path, opened: Repository) -> Path:
    (table,) = opened.load_index().all(BlobType.DATA)
    name = table.at(0).pack.hex()
    return repo / "data" / name[:2] / name


def test_an_index_is_made_again(podlift: Run, repo: Path, opened: Repository) -> None:
    save(opened, {"a": noise(1)}, 1)
    (file,) = (repo / "index").iterdir()
    overwrite(file, b"damaged")
    ahead = podlift("repair", "index", "--repo", repo, "--dry-run")
    assert ahead.code == 0, ahead
    assert f"index file {file.name} is damaged" in ahead.out
    assert "needs repair" in ahead.out
    assert file.exists()
    done = podlift("repair", "index", "--repo", repo)
    assert "was repaired" in done.out
    assert "with 3 blobs" in done.out
    assert "is in order" in podlift("check", "--repo", repo, "--read-data").out
    assert "is in order" in podlift("repair", "index", "--repo", repo).out


def test_damaged_packs_are_found_and_replaced(podlift: Run, repo: Path, opened: Repository) -> None:
    save(opened, {"a": noise(1, 20_000)}, 1)
    pack = data_pack(repo, opened)
    body = bytearray(pack.read_bytes())
    body[20] ^= 1
    overwrite(pack, bytes(body))
    ahead = podlift("repair", "packs", "--all", "--dry-run", "--repo", repo)
    assert f"pack {pack.name}: 4 blobs are intact, 1 are not" in ahead.out
    assert "1 packs would be replaced" in ahead.out
    assert pack.exists()
    done = podlift("repair", "packs", pack.name[:10], "--repo", repo)
    assert done.code == 0, done
    assert not pack.exists()
    assert podlift("check", "--repo", repo, "--read-data").code == 1  # one blob is lost
    save(opened, {"a": noise(1, 20_000)}, 2)
    assert podlift("check", "--repo", repo, "--read-data").code == 0
    assert "0 packs replaced" in podlift("repair", "packs", "--all", "--repo", repo).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name packs, or say --all"),
        (["--all", "ab"], "--all"),
        (["0000ffff"], "names no packs"),
    ],
)
def test_what_to_repair_must_be_said(
    podlift: Run, repo: Path, arguments: list[str], words: str
) -> None:
    done = podlift("repair", "packs", "--repo", repo, *arguments)
    assert done.code == 2
    assert words in done.err


def test_help_gives_examples(podlift: Run) -> None:
    for what in ("index", "packs"):
        assert f"podlift repair {what} --repo REPO" in podlift("repair", what, "--help").out
