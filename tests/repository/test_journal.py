"""The journal: a dead run's packs are adopted and its lock removed; a living one's are its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import CacheDir
from agent.errors import AccessDenied, Unreachable
from agent.monitor import Monitor
from agent.repository import journal
from agent.repository.check import check
from agent.repository.identity import BlobId, BlobType, PackId
from agent.repository.journal import Inheritance, Journal
from agent.repository.opening import create_repository, open_repository
from agent.repository.repository import Repository
from agent.repository.scrypt import ScryptCost
from agent.repository.snapshot import Snapshot
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.local import LocalStorage
from agent.storage.memory import MemoryStorage
from tests.repository.making import PASSWORD, fill, keys, store_chunk
from tests.repository.test_writer import chunk

PACK, OTHER = PackId(b"p" * 32), PackId(b"q" * 32)


def journals(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("journal.*"))


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """Return a folder with the journal of a run that ended without finishing."""
    left = Journal(tmp_path)
    left.pack(PACK)
    left.pack(OTHER)
    left.indexed([OTHER])
    left.lock("ab" * 32)
    left.close()
    return tmp_path


def test_what_was_finished_leaves_no_journal(tmp_path: Path) -> None:
    done = Journal(tmp_path / "made")
    done.lock("ab" * 32)
    done.pack(PACK)
    assert len(journals(tmp_path / "made")) == 1
    done.indexed([PACK])
    done.unlocked("ab" * 32)
    done.close()
    assert journals(tmp_path / "made") == []


def test_what_was_not_finished_is_inherited_once(dead: Path) -> None:
    first = Inheritance(dead)
    assert first.left == ({PACK, OTHER}, {"ab" * 32})
    assert Inheritance(dead).left == (frozenset(), frozenset())
    first.release()
    again = Inheritance(dead)
    assert again.left.packs == {PACK, OTHER}
    again.settle()
    assert journals(dead) == []


def test_the_journal_of_a_living_run_is_its_own(tmp_path: Path) -> None:
    alive = Journal(tmp_path)
    alive.pack(PACK)
    inherited = Inheritance(tmp_path)
    assert inherited.left.packs == frozenset()
    inherited.settle()
    assert len(journals(tmp_path)) == 1
    alive.close()


def test_a_killed_process_is_known_for_dead(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from agent.repository.journal import Journal\n"
        f"Journal(pathlib.Path({str(tmp_path)!r})).pack(b'p' * 32); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert Inheritance(tmp_path).left.packs == {PACK}


@pytest.mark.parametrize(
    "content", [b"", b"P", b"P" + bytes(31), b"X" + bytes(32), os.urandom(500)]
)
def test_a_torn_or_foreign_journal_does_no_harm(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.torn").write_bytes(content)
    inherited = Inheritance(tmp_path)
    assert all(len(pack) == 32 for pack in inherited.left.packs)
    inherited.settle()
    assert journals(tmp_path) == []


def test_a_symlink_is_no_journal(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"P" + PACK)
    (tmp_path / "journal.link").symlink_to(victim)
    assert Inheritance(tmp_path).left.packs == frozenset()


def test_without_a_folder_or_room_nothing_is_noted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (None, tmp_path / "file" / "below"):
        run = Journal(folder)
        run.pack(PACK)
        run.close()
        assert Inheritance(folder).left.packs == frozenset()


def test_where_files_cannot_be_locked_no_journal_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    run = Journal(tmp_path)
    run.pack(PACK)
    run.close()
    assert journals(tmp_path) == []


def test_who_looks_for_the_dead_at_that_moment_does_not_keep_us_from_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, takers = journal.fcntl.flock, [Inheritance]
    taken: list[Inheritance] = []

    def look_first(descriptor: int, operation: int) -> None:
        while takers:
            taken.append(takers.pop()(tmp_path))  # locks the new file before its maker does
        real(descriptor, operation)

    monkeypatch.setattr(journal.fcntl, "flock", look_first)
    run = Journal(tmp_path)
    run.lock("ab" * 32)
    taken[0].settle()
    assert len(journals(tmp_path)) == 1
    run.close()
    assert Inheritance(tmp_path).left.locks == {"ab" * 32}


def test_a_journal_that_was_taken_and_removed_at_that_moment_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, takers = journal.fcntl.flock, [Inheritance]

    def look_first(descriptor: int, operation: int) -> None:
        while takers:
            takers.pop()(tmp_path).settle()  # finds the new file empty, and is done with it
        real(descriptor, operation)

    monkeypatch.setattr(journal.fcntl, "flock", look_first)
    run = Journal(tmp_path)
    run.lock("ab" * 32)
    run.close()
    assert Inheritance(tmp_path).left.locks == {"ab" * 32}


class Interrupted:
    """A repository whose writer sends packs and cannot write an index: a run that is as good as dead."""

    def __init__(self, root: Path, storage: MemoryStorage) -> None:
        self.cache = CacheDir(root / "cache", 64)
        self.storage = storage
        fill(storage)
        self.chunks = [chunk(number, 3000) for number in range(8)]

    def repository(self, *faults: Fault) -> Repository:
        return open_repository(Faulty(self.storage, *faults), PASSWORD, cache=self.cache)

    def write(self, repository: Repository) -> int:
        """Store everything; return how many bytes were sent."""
        monitor = Monitor()
        with (
            repository.locked(exclusive=False) as lock,
            repository.writing(lock, monitor) as writer,
        ):
            for each in self.chunks:
                store_chunk(writer, each)
            writer.finish(Snapshot(time_ns=0, tree=writer.store_tree([])))
        return monitor.counters.bytes_uploaded

    def die(self) -> None:
        """Leave all packs and the lock, and no index."""
        down = failing(Unreachable("down"))
        faults = Fault("put", down, key="index/*", times=10**6), Fault("delete", down, times=10**6)
        with pytest.raises(Unreachable):
            self.write(self.repository(*faults))
        assert keys(self.storage, "data")
        assert keys(self.storage, "locks")
        assert not keys(self.storage, "index")


@pytest.fixture
def interrupted(
    tmp_path: Path, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> Interrupted:
    monkeypatch.setattr("agent.repository.pack.TARGET_BYTES", 8000)
    return Interrupted(tmp_path, storage)


def test_packs_without_an_index_are_adopted_and_not_sent_again(interrupted: Interrupted) -> None:
    interrupted.die()
    packs = keys(interrupted.storage, "data")
    sent = interrupted.write(interrupted.repository())
    assert sent == 0
    assert keys(interrupted.storage, "data") == packs
    assert keys(interrupted.storage, "locks") == []
    assert list(check(interrupted.repository(), read_data=True)) == []
    folder = interrupted.cache.root
    assert not list(folder.rglob("journal.*"))


def test_a_pack_that_is_gone_or_cut_short_is_not_adopted(interrupted: Interrupted) -> None:
    interrupted.die()
    gone, short, *_ = keys(interrupted.storage, "data")
    interrupted.storage.delete(gone)
    interrupted.storage.put(short, interrupted.storage.get(short)[:-10])
    assert interrupted.write(interrupted.repository()) > 0
    view = interrupted.repository().load_index()
    named = view.naming({PackId(bytes.fromhex(key.rpartition("/")[2])) for key in (gone, short)})
    assert named == set()
    reading = interrupted.repository().reading()
    for id, _ in [(place.blob.id, place) for table in view.all(BlobType.DATA) for place in table]:
        assert reading.load_chunk(BlobId(id)) in interrupted.chunks


def test_a_prune_after_a_kill_need_not_wait_for_the_dead(interrupted: Interrupted) -> None:
    interrupted.die()
    with interrupted.repository().locked(exclusive=True) as lock:
        lock.check()
    assert keys(interrupted.storage, "locks") == []
    assert interrupted.write(interrupted.repository()) == 0  # its packs are still inherited


def test_a_lock_of_somebody_who_ended_since_we_began_goes_with_its_journal(
    interrupted: Interrupted,
) -> None:
    repository = interrupted.repository()
    with repository.locked(exclusive=False) as lock:
        interrupted.die()
        assert len(keys(interrupted.storage, "locks")) == 2
        with repository.writing(lock, Monitor()) as writer:
            writer.finish(Snapshot(time_ns=0, tree=writer.store_tree([])))
        assert len(keys(interrupted.storage, "locks")) == 1
    assert keys(interrupted.storage, "locks") == []


def test_a_lock_that_may_not_be_removed_keeps_no_backup_from_its_end(
    interrupted: Interrupted,
) -> None:
    interrupted.die()
    refused = Fault("delete", failing(AccessDenied("no")), key="locks/*", times=10**6)
    for _ in range(3):
        interrupted.write(interrupted.repository(refused))
    assert len(keys(interrupted.storage, "snapshots")) == 3
    assert len(keys(interrupted.storage, "locks")) == 4
    interrupted.write(interrupted.repository())
    assert keys(interrupted.storage, "locks") == []


def test_another_repository_of_the_node_inherits_nothing(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    interrupted.die()
    other = LocalStorage.create(tmp_path / "other")
    create_repository(other, PASSWORD, cost=ScryptCost(n=16, r=1, p=1))
    opened = open_repository(other, PASSWORD, cache=interrupted.cache)
    with opened.locked(exclusive=False) as lock, opened.writing(lock, Monitor()) as writer:
        store_chunk(writer, b"content")
        writer.finish(Snapshot(time_ns=0, tree=writer.store_tree([])))
    assert len(list(interrupted.cache.root.rglob("journal.*"))) == 1


def test_a_storage_that_is_down_keeps_the_inheritance(interrupted: Interrupted) -> None:
    interrupted.die()
    down = Fault("size", failing(Unreachable("down")), key="data/*", times=10**6)
    with pytest.raises(Unreachable):
        interrupted.write(interrupted.repository(down))
    assert interrupted.write(interrupted.repository()) == 0
