"""A repository in a directory: what a file system adds to the contract."""

import errno
import os
import stat
from pathlib import Path

import pytest

from agent.errors import (
    AccessDenied,
    BucketMissing,
    IntegrityRefused,
    ObjectMissing,
    StorageError,
    StorageFull,
)
from agent.storage.local import LocalStorage
from agent.storage.memory import MemoryStorage


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage.create(tmp_path / "repository")


def fail(code: int):  # type: ignore[no-untyped-def]
    def failing(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return failing


def test_directories_and_files_carry_restics_modes(local: LocalStorage) -> None:
    local.put("data/ab/abcd", b"1")
    root = Path(local.place)
    for directory in (root, root / "data", root / "data/ab"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "data/ab/abcd").stat().st_mode) == 0o400


def test_no_temporary_file_stays_after_a_put(local: LocalStorage) -> None:
    local.put("data/ab/abcd", b"1")
    assert [p.name for p in Path(local.place).rglob("*") if p.is_file()] == ["abcd"]


def test_temporary_files_of_a_killed_writer_are_not_listed(local: LocalStorage) -> None:
    local.put("index/abcd", b"1")
    (Path(local.place) / "index/abce-tmp-123456").write_bytes(b"half")
    assert [listed.key for listed in local.list("index/")] == ["index/abcd"]


def test_a_missing_root_is_a_missing_bucket_for_every_call(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "unmounted")
    calls = [
        lambda: storage.put("x", b""),
        lambda: storage.get("x"),
        lambda: storage.size("x"),
        lambda: storage.delete("x"),
        lambda: list(storage.list("")),
    ]
    for call in calls:
        with pytest.raises(BucketMissing, match="unmounted is not a directory; mount it"):
            call()
    assert not (tmp_path / "unmounted").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BucketMissing, match="is not a directory"):
        LocalStorage(tmp_path / "file").put("x", b"")
    with pytest.raises(StorageError, match="File exists"):
        LocalStorage.create(tmp_path / "file")


def test_create_makes_parents_and_accepts_what_exists(tmp_path: Path) -> None:
    LocalStorage.create(tmp_path / "a/b/c").put("x", b"1")
    assert LocalStorage.create(tmp_path / "a/b/c").get("x") == b"1"


@pytest.mark.parametrize("step", ["write", "fsync", "fchmod", "replace"])
def test_a_full_disk_is_named_and_leaves_nothing(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    local.put("data/other", b"1")
    monkeypatch.setattr(os, step, fail(errno.ENOSPC))
    with pytest.raises(StorageFull, match=r"No space left on device; free some space under"):
        local.put("data/abcd", b"123")
    monkeypatch.undo()
    assert [p.name for p in Path(local.place).rglob("*") if p.is_file()] == ["other"]


def test_a_forbidden_directory_is_named_with_advice(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", fail(errno.EACCES))
    with pytest.raises(AccessDenied, match="Permission denied; run podlift as the owner") as caught:
        local.get("data/abcd")
    assert caught.value.key == "data/abcd"
    with pytest.raises(AccessDenied):
        local.put("data/abcd", b"")


def test_a_bad_disk_is_told_apart(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put("x", b"1")
    for step, call in (
        ("preadv", lambda: local.get("x")),
        ("scandir", lambda: list(local.list(""))),
        ("unlink", lambda: local.delete("x")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail(errno.EIO))
            with pytest.raises(StorageError, match="check the disk"):
                call()
    assert local.get("x") == b"1"


def test_a_file_cut_short_while_it_is_read_is_an_error(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("x", b"123")
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(StorageError, match="became shorter"):
        local.get("x")


def test_a_file_system_that_cannot_sync_directories_is_accepted(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def picky(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    local.put("data/ab/abcd", b"1")
    assert local.get("data/ab/abcd") == b"1"


def test_a_file_is_synced_before_it_gets_its_name_and_the_directory_after(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync directory" if is_directory else "sync file")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    local.put("x", b"1")
    assert steps == ["sync file", "rename", "sync directory"]


def test_a_file_system_without_hard_links_still_has_one_first_writer(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fail(errno.EPERM))
    assert local.put_new("config", b"first")
    assert not local.put_new("config", b"second")
    assert local.get("config") == b"first"
    assert [p.name for p in Path(local.place).iterdir()] == ["config"]


def test_a_new_object_on_a_full_disk_is_an_error(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fail(errno.ENOSPC))
    with pytest.raises(StorageError, match="free some space"):
        local.put_new("config", b"1")
    assert list(local.list("")) == []


def test_a_component_that_is_a_file_holds_no_objects(local: LocalStorage) -> None:
    local.put("config", b"1")
    with pytest.raises(ObjectMissing):
        local.get("config/x")
    local.delete("config/x")


def test_other_kinds_of_files_are_not_listed(local: LocalStorage) -> None:
    local.put("keys/a", b"1")
    os.mkfifo(Path(local.place) / "keys/fifo")
    (Path(local.place) / "keys/dangling").symlink_to("nowhere")
    assert [listed.key for listed in local.list("")] == ["keys/a"]


def test_memory_refuses_bytes_that_do_not_match_their_digest() -> None:
    with pytest.raises(IntegrityRefused):
        MemoryStorage().put("x", b"1", sha256=bytes(32))
