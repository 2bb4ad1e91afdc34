"""Our check beside restic's: what both accept is in order, and what it finds we find too."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.repository.check import check
from agent.repository.identity import BlobType
from agent.repository.objects import Folder, pack_key
from agent.repository.repository import Repository
from agent.repository.times import utc
from agent.repository.tree import encode_tree
from tests.interop.runs import back_up, open_at
from tests.interop.volumes import make_volume
from tests.repository.injection import (
    a_file,
    index_of,
    node,
    pack_of,
    plant_root,
    plant_trees,
    raw_tree,
    reindex,
)
from tests.repository.mess import noise, plant, save
from tests.support.restic import Restic


def test_what_restic_made_is_in_order(restic: Restic, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_volume(volume)
    place = tmp_path / "repo"
    restic.run(str(place), "init")
    restic.run(str(place), "backup", ".", cwd=volume)
    (volume / "more").write_bytes(noise(1, 100_000))
    restic.run(str(place), "backup", str(volume))
    restic.run(str(place), "check", "--read-data")
    assert list(check(open_at(place), read_data=True)) == []


def test_what_both_made_in_turn_is_in_order(restic: Restic, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_volume(volume)
    place = tmp_path / "repo"
    restic.run(str(place), "init")
    back_up(place, volume)
    (volume / "more").write_bytes(noise(1, 100_000))
    restic.run(str(place), "backup", ".", cwd=volume)
    (volume / "more").write_bytes(noise(2, 100_000))
    back_up(place, volume)
    restic.run(str(place), "check", "--read-data")
    assert list(check(open_at(place), read_data=True)) == []


def _gap(repository: Repository) -> None:
    reindex(
        repository,
        [(id, sorted(b, key=lambda x: x.offset)[1:]) for id, b in index_of(repository)],
    )


def _missing(repository: Repository) -> None:
    repository.objects.storage.delete(pack_key(pack_of(repository, BlobType.DATA)))


def _bit(repository: Repository) -> None:
    key = pack_key(pack_of(repository, BlobType.DATA))
    storage = repository.objects.storage
    body = bytearray(storage.get(key))
    body[40] ^= 1
    storage.delete(key)
    storage.put(key, bytes(body))


def _cut(repository: Repository) -> None:
    key = pack_key(pack_of(repository, BlobType.DATA))
    storage = repository.objects.storage
    body = storage.get(key)
    storage.delete(key)
    storage.put(key, body[:-5])


def _renamed_index(repository: Repository) -> None:
    storage = repository.objects.storage
    (key,) = [listed.key for listed in storage.list("index/")]
    storage.put(f"index/{'0' * 64}", storage.get(key))


def _no_index(repository: Repository) -> None:
    reindex(repository)


def _unknown_tree(repository: Repository) -> None:
    plant_root(repository, b"?" * 32)


def _unknown_type(repository: Repository) -> None:
    plant_trees(repository, [raw_tree([b'{"name":"x","type":"irregular"}'])])


def _no_content(repository: Repository) -> None:
    plant_trees(repository, [raw_tree([b'{"name":"x","type":"file","content":null}'])])


def _bad_time(repository: Repository) -> None:
    tree = b"0" * 64
    repository.objects.save(Folder.SNAPSHOTS, b'{"time":"2026-01-01","tree":"%s"}' % tree)


@pytest.mark.parametrize(
    "hurt",
    [
        _gap,
        _missing,
        _bit,
        _cut,
        _renamed_index,
        _no_index,
        _unknown_tree,
        _unknown_type,
        _no_content,
        _bad_time,
    ],
)
def test_what_restic_calls_damage_we_call_damage(
    restic: Restic, tmp_path: Path, hurt: Callable[[Repository], None]
) -> None:
    repository = open_at(tmp_path / "repo")
    save(repository, {"a": noise(1), "deep/b": noise(2)}, 1)
    restic.run(str(tmp_path / "repo"), "check", "--read-data")
    hurt(repository)
    # restic asks for 15 minutes for what no pack can give; only a bit must be read to be seen
    read = ["--read-data"] if hurt is _bit else []
    done = restic.run(str(tmp_path / "repo"), "check", "--no-lock", *read, check=False)
    assert done.returncode != 0, done.stdout
    assert any(found.damage for found in check(repository, read_data=True))


@pytest.mark.parametrize("first_links", [2, 1])
def test_files_that_restic_restores_as_one_are_the_ones_we_name(
    restic: Restic, tmp_path: Path, first_links: int
) -> None:
    """restic's own check is silent about them."""
    repository = open_at(tmp_path / "repo")
    files = [
        a_file("a", b"content", inode=5, device=1, links=first_links),
        a_file("b", b"other", inode=5, device=1, links=2),
        a_file("c", b"third", inode=5, device=1),
    ]
    chunks = [b"content", b"other", b"third"]
    plant_trees(repository, [encode_tree(files, utc)], chunks=chunks)
    restic.run(str(tmp_path / "repo"), "check", "--read-data")
    restic.run(str(tmp_path / "repo"), "restore", "latest", "--target", str(tmp_path / "out"))
    wanted = {"a": b"content", "b": b"other", "c": b"third"}
    restored = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    wrong = {name for name in wanted if restored.get(name) != wanted[name]}
    named = {
        found.touched.path.decode().lstrip("/")
        for found in check(repository)
        if found.touched and found.touched.path
    }
    assert wrong
    assert named == wrong


def test_order_and_sizes_are_found_where_restic_is_silent(restic: Restic, tmp_path: Path) -> None:
    repository = open_at(tmp_path / "repo")
    nodes = [node(a_file("b")), node(a_file("a", size=3))]
    plant_trees(repository, [raw_tree(nodes)])
    plant(repository, [(BlobType.DATA, b"unused", True)])
    restic.run(str(tmp_path / "repo"), "check", "--read-data")
    first, second = [found for found in check(repository) if found.damage]
    assert "not in order" in first.message
    assert "/a: says 3 bytes, its content has 7" in second.message
