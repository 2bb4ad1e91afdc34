"""``check`` as a doctor: each thing that can be wrong is named, with what it touches."""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import AccessDenied, Canceled, StorageError
from agent.monitor import Monitor
from agent.repository import packreading
from agent.repository.check import check
from agent.repository.finding import Advice
from agent.repository.identity import BlobType
from agent.repository.lockfile import Lock, encode_lock
from agent.repository.objects import Folder, file_key, pack_key
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.repository.subset import parse_subset
from agent.repository.times import utc
from agent.storage.contract import Buffer, Room
from agent.storage.memory import MemoryStorage
from tests.repository.injection import (
    blob_id,
    damages,
    index_of,
    pack_of,
    places,
    reindex,
)
from tests.repository.making import (
    FROZEN_PASSWORD,
    frozen_repository,
    new_repository,
    store_chunks,
)
from tests.repository.mess import make_mess, noise, plant, save


class Flaky(MemoryStorage):
    """A storage with one object that cannot be read, or that counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, StorageError] = {}
        self.read: list[tuple[str, int]] = []

    def get(self, key: str, **how: Any) -> bytes:
        self._refuse(key)
        return super().get(key, **how)

    def get_range(self, key: str, offset: int, out: Room, *, cancel: CancelToken = NEVER) -> None:
        self._refuse(key)
        self.read.append((key, len(out)))
        super().get_range(key, offset, out, cancel=cancel)

    def _refuse(self, key: str) -> None:
        if key in self.errors:
            raise self.errors[key]


@pytest.fixture
def storage() -> Flaky:
    return Flaky()


@pytest.fixture
def repository(storage: Flaky) -> Repository:
    return new_repository(storage)


def change(storage: MemoryStorage, key: str, at: int) -> None:
    body = bytearray(storage.get(key))
    body[at] ^= 1
    storage.put(key, bytes(body))


class TestSound:
    def test_nothing_is_found_where_nothing_is_wrong(self, repository: Repository) -> None:
        save(repository, {"a": noise(1), "deep/b": noise(2), "empty": b""}, 1)
        save(repository, {"a": noise(1), "c": noise(3)}, 2)
        assert list(check(repository, read_data=True)) == []

    def test_a_new_repository_is_in_order(self, repository: Repository) -> None:
        assert list(check(repository, read_data=True)) == []

    def test_what_years_of_use_leave_behind_is_a_hint_at_most(self, repository: Repository) -> None:
        make_mess(repository)
        found = list(check(repository, read_data=True))
        assert found
        assert not [f for f in found if f.damage]
        assert all(f.advice for f in found)

    def test_a_repository_of_restic_has_only_the_lock_that_was_left_there(self) -> None:
        repository = open_repository(frozen_repository(), FROZEN_PASSWORD)
        (found,) = check(repository, read_data=True)
        assert not found.damage
        assert "was left behind" in found.message
        assert found.advice == (Advice.UNLOCK,)


class TestStructure:
    @pytest.fixture(autouse=True)
    def _filled(self, repository: Repository) -> None:
        self.snapshot = save(repository, {"a": noise(1, 9000), "deep/b": noise(2)}, 1)
        self.data = pack_of(repository, BlobType.DATA)
        self.key = pack_key(self.data)

    def test_a_pack_that_no_index_names_is_a_hint(self, repository: Repository) -> None:
        pack = plant(repository, [(BlobType.DATA, b"stray", True)], indexed=False)
        (found,) = check(repository)
        assert (found.damage, found.advice) == (False, (Advice.PRUNE,))
        assert f"pack {pack.hex()} is in no index" in found.message

    def test_a_pack_in_two_index_files_is_a_hint(self, repository: Repository) -> None:
        content = index_of(repository)
        reindex(repository, content, content[:1])
        (found,) = check(repository, read_data=True)
        assert not found.damage
        assert "is in two index files" in found.message

    def test_a_pack_that_is_split_over_two_index_files(self, repository: Repository) -> None:
        content = index_of(repository)
        blobs = dict(content)[self.data]
        rest = [(id, b) for id, b in content if id != self.data]
        reindex(repository, [*rest, (self.data, blobs[:1])], [(self.data, blobs[1:])])
        (found,) = damages(repository)
        assert f"pack {self.data.hex()} is described differently by two" in found.message

    def test_an_index_that_leaves_a_gap_touches_what_lay_there(
        self, repository: Repository
    ) -> None:
        blobs = sorted(dict(index_of(repository))[self.data], key=lambda b: b.offset)
        # where a blob lies in a pack is chance; behind the last one there would be no gap
        gone = next(b.id for b in blobs[:-1] if b.id in _ids(noise(1, 9000)))
        packs = [(id, [b for b in blobs if b.id != gone]) for id, blobs in index_of(repository)]
        reindex(repository, packs)
        gap, size, place = damages(repository)
        assert "the index leaves a gap" in gap.message
        assert "its index describes" in size.message
        assert places([place]) == {"/a"}

    def test_a_missing_pack_touches_what_it_held_and_nothing_else(
        self, repository: Repository, storage: Flaky
    ) -> None:
        save(repository, {"new": noise(3), "deep/b": noise(2)}, 2)
        storage.delete(self.key)
        missing, *touched_ = damages(repository)
        assert missing.message == f"pack {self.data.hex()} is missing"
        assert missing.advice == (Advice.MISSING, Advice.BACKUP)
        by_snapshot = {
            (f.touched.snapshot == self.snapshot, f.touched.path) for f in touched_ if f.touched
        }
        assert by_snapshot == {(True, b"/a"), (True, b"/deep/b"), (False, b"/deep/b")}

    def test_a_pack_that_was_cut_touches_only_what_is_cut_off(
        self, repository: Repository, storage: Flaky
    ) -> None:
        blobs = sorted(dict(index_of(repository))[self.data], key=lambda b: b.offset)
        storage.put(self.key, storage.get(self.key)[: blobs[-1].offset + 10])
        last = "/a" if blobs[-1].id in _ids(noise(1, 9000)) else "/deep/b"
        size, lost, place = damages(repository)
        assert "its index describes" in size.message
        assert f"1 of its {len(blobs)} blobs do not open" in lost.message
        assert places([place]) == {last}

    def test_a_pack_in_a_wrong_folder_is_missing_and_its_place_is_told(
        self, repository: Repository, storage: Flaky
    ) -> None:
        wrong = "data/zz/" + self.data.hex()
        storage.put(wrong, storage.get(self.key))
        (found,) = check(repository)
        assert (found.damage, wrong in found.message) == (False, True)
        storage.delete(self.key)
        first, second, *touched_ = damages(repository)
        assert f"lies at {wrong}" in first.message
        assert first.advice == (Advice.MISPLACED,)
        assert "is missing" in second.message
        assert places(touched_) == {"/a", "/deep/b"}

    def test_an_index_file_of_another_name(self, repository: Repository, storage: Flaky) -> None:
        save(repository, {"new": noise(3)}, 2)
        (old, *_) = [listed.key for listed in storage.list("index/")]
        storage.put("index/" + "0" * 64, storage.get(old))
        found = damages(repository)
        assert [f.message for f in found] == [
            f"index/{'0' * 64} is damaged: its content does not match its name"
        ]
        assert found[0].advice == (Advice.INDEX,)

    def test_another_copy_of_a_lost_blob_saves_what_needs_it(
        self, repository: Repository, storage: Flaky
    ) -> None:
        plant(repository, [(BlobType.DATA, part, True) for part in _pieces(noise(1, 9000))])
        storage.delete(self.key)
        assert places(damages(repository)) == {"/deep/b"}

    def test_mixed_packs_are_a_hint(self, repository: Repository) -> None:
        plant(repository, [(BlobType.DATA, b"d", True), (BlobType.TREE, b'{"nodes":[]}\n', True)])
        (found,) = check(repository, read_data=True)
        assert (found.damage, found.advice) == (False, (Advice.PRUNE,))


def _pieces(data: bytes) -> list[bytes]:
    return [data[at : at + 4000] for at in range(0, len(data), 4000)]


def _ids(data: bytes) -> set[bytes]:
    return set(map(blob_id, _pieces(data)))


class TestReading:
    @pytest.fixture(autouse=True)
    def _filled(self, repository: Repository) -> None:
        save(repository, {"a": noise(1, 40_000), "deep/b": noise(2)}, 1)
        self.data = pack_of(repository, BlobType.DATA)
        self.key = pack_key(self.data)
        self.blobs = sorted(dict(index_of(repository))[self.data], key=lambda b: b.offset)

    @pytest.fixture(params=[(1 << 20, 5000), (4000, 5000), (4000, 700), (1, 99)])
    def _steps(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read packs whole, and in steps longer and shorter than their blobs."""
        whole, step = request.param
        monkeypatch.setattr(packreading, "WHOLE_BYTES", whole)
        monkeypatch.setattr(packreading, "STEP_BYTES", step)

    @pytest.mark.usefixtures("_steps")
    def test_every_byte_is_read_once_in_bounded_ranges(
        self, repository: Repository, storage: Flaky
    ) -> None:
        monitor = Monitor()
        storage.read.clear()  # what the writer has read back
        assert list(check(repository, read_data=True, monitor=monitor)) == []
        size = storage.size(self.key)
        read = [length for key, length in storage.read if key == self.key]
        assert sum(read) == size
        longest = max(b.length for b in self.blobs)
        assert max(read) <= max(packreading.WHOLE_BYTES, packreading.STEP_BYTES, longest)
        counters = monitor.counters
        assert counters.bytes_done == counters.bytes_total == counters.bytes_read
        assert counters.trees == 2

    @pytest.mark.usefixtures("_steps")
    @pytest.mark.parametrize("which", [0, 4, -1])
    def test_a_bit_in_a_blob_touches_the_file_that_needs_it(
        self, repository: Repository, storage: Flaky, which: int
    ) -> None:
        bad = self.blobs[which]
        change(storage, self.key, bad.offset + bad.length // 2)
        assert damages(repository) == []
        name, blob, place = damages(repository, read_data=True)
        assert name.message == f"pack {self.data.hex()} does not match its name"
        assert f"1 of its {len(self.blobs)} blobs do not open" in blob.message
        assert bad.id.hex() in blob.message
        assert places([place]) == {"/a" if bad.id in _ids(noise(1, 40_000)) else "/deep/b"}

    @pytest.mark.usefixtures("_steps")
    def test_a_bit_in_the_header_touches_nothing(
        self, repository: Repository, storage: Flaky
    ) -> None:
        change(storage, self.key, storage.size(self.key) - 10)
        name, header = damages(repository, read_data=True)
        assert "does not match its name" in name.message
        assert f"the header of pack {self.data.hex()} cannot be read" in header.message

    def test_a_bit_in_a_tree_touches_the_directory(
        self, repository: Repository, storage: Flaky
    ) -> None:
        trees = dict(index_of(repository))[pack_of(repository, BlobType.TREE)]
        root = repository.snapshot("latest").tree
        (inner,) = [b for b in trees if b.id != root]
        change(storage, pack_key(pack_of(repository, BlobType.TREE)), inner.offset + 20)
        assert places(damages(repository)) == {"/deep"}
        assert places(damages(repository, read_data=True)) == {"/deep"}

    def test_an_index_that_disagrees_with_the_header(self, repository: Repository) -> None:
        bad = msgspec.structs.replace(self.blobs[0], plain_length=1)
        packs = [
            (id, [bad, *self.blobs[1:]] if id == self.data else blobs)
            for id, blobs in index_of(repository)
        ]
        reindex(repository, packs)
        found = damages(repository, read_data=True)
        assert any("and its index disagree" in f.message for f in found)

    def test_one_object_that_cannot_be_read_does_not_end_the_check(
        self, repository: Repository, storage: Flaky
    ) -> None:
        storage.errors[self.key] = StorageError("bad sector", key=self.key)
        first, *touched_ = damages(repository, read_data=True)
        assert first.message == f"pack {self.data.hex()} cannot be read: bad sector"
        assert places(touched_) == {"/a", "/deep/b"}

    def test_a_storage_that_refuses_everything_ends_it(
        self, repository: Repository, storage: Flaky
    ) -> None:
        storage.errors[self.key] = AccessDenied("no", key=self.key)
        with pytest.raises(AccessDenied):
            list(check(repository, read_data=True))

    def test_a_stop_request_ends_it(self, repository: Repository) -> None:
        cancel = CancelToken()
        cancel.cancel("enough")
        with pytest.raises(Canceled):
            list(check(repository, read_data=True, cancel=cancel))

    def test_whoever_stops_listening_leaves_no_thread_behind(
        self, repository: Repository, storage: Flaky
    ) -> None:
        change(storage, self.key, 40)
        found = check(repository, read_data=True)
        assert next(found).damage
        assert isinstance(found, Iterator)
        found.close()  # type: ignore[attr-defined]

    def test_a_subset_reads_what_it_names(self, repository: Repository, storage: Flaky) -> None:
        change(storage, self.key, 40)
        part = self.data[0] % 5 + 1
        assert damages(repository, subset=parse_subset(f"{part}/5"))
        others = [n for n in range(1, 6) if n != part]
        assert not any(damages(repository, subset=parse_subset(f"{n}/5")) for n in others)
        assert damages(repository, subset=parse_subset("100%"))


class TestNamedFiles:
    def test_a_key_file_that_does_not_decode(self, repository: Repository, storage: Flaky) -> None:
        body = b'{"kdf":"scrypt","salt":"AAAA"}'
        name = hashlib.sha256(body).hexdigest()
        storage.put(f"keys/{name}", body)
        (found,) = damages(repository)
        assert f"keys/{name} is damaged: its salt has 3 bytes" in found.message
        assert found.advice == (Advice.KEY,)

    def test_one_of_a_huge_size_is_damaged_and_not_read(
        self, storage: Flaky, repository: Repository
    ) -> None:
        name = "b" * 64
        storage.put(f"keys/{name}", bytes(2 << 20))
        (found,) = check(repository)
        assert (
            f"keys/{name} is damaged: it has 2097152 bytes, and may have 1048576" in found.message
        )

    def test_a_key_file_of_another_name(self, repository: Repository, storage: Flaky) -> None:
        (key,) = [listed.key for listed in storage.list("keys/")]
        storage.put(f"keys/{'a' * 64}", storage.get(key))
        (found,) = damages(repository)
        assert found.message == f"the key file keys/{'a' * 64} does not match its name"

    def test_a_file_among_the_keys_that_restic_ignores_is_ignored(
        self, repository: Repository, storage: Flaky
    ) -> None:
        storage.put("keys/README", b"hello")
        assert list(check(repository)) == []

    @pytest.mark.parametrize("how", ["gone", "torn", "exchanged"])
    def test_a_config_that_is_no_longer_what_was_opened(
        self, repository: Repository, storage: Flaky, how: str
    ) -> None:
        bodies: dict[str, Buffer] = {"torn": b"torn", "exchanged": b""}
        if how == "gone":
            storage.delete("config")
        elif how == "torn":
            storage.put("config", bodies[how])
        else:
            other = repository.objects.key.seal(
                b"1" * 16,
                b'{"version":2,"id":"%s","chunker_polynomial":"%s"}'
                % (b"a" * 64, repository.config.chunker_polynomial.encode()),
            )
            storage.put("config", bytes(other))
        (found,) = damages(repository)
        assert found.advice == (Advice.CONFIG,)

    def test_a_lock_that_was_left_behind_is_a_hint(self, repository: Repository) -> None:
        lock = Lock(time_ns=0, exclusive=True, hostname="elsewhere", username="u", pid=1)
        repository.objects.save(Folder.LOCKS, encode_lock(lock, utc))
        (found,) = check(repository)
        assert (found.damage, found.advice) == (False, (Advice.UNLOCK,))
        assert "older than 30 minutes" in found.message

    def test_a_lock_of_one_who_works_is_no_finding(self, repository: Repository) -> None:
        with repository.locked(exclusive=False):
            assert list(check(repository)) == []

    def test_a_lock_that_nobody_can_read_is_damage_and_an_empty_one_is_not(
        self, repository: Repository, storage: Flaky
    ) -> None:
        storage.put(file_key(Folder.LOCKS, "a" * 64), b"torn")
        storage.put(file_key(Folder.LOCKS, "b" * 64), b"")
        found = {f.damage: f for f in check(repository)}
        assert found[True].advice == (Advice.LOCK,)
        assert found[False].advice == (Advice.UNLOCK,)

    @pytest.mark.parametrize(
        "json",
        [
            b'{"time":"2026-01-01T00:00:00Z","paths":[]}',
            b'{"time":"2026-01-01 00:00:00","tree":"%s"}' % (b"0" * 64),
            b'{"time":"2026-01-01T00:00:00Z","tree":"%s","uid":-1}' % (b"0" * 64),
            b'{"time":"2026-01-01T00:00:00Z","tree":"00"}',
            b"[]",
        ],
    )
    def test_a_snapshot_that_restic_cannot_use(self, repository: Repository, json: bytes) -> None:
        name = repository.objects.save(Folder.SNAPSHOTS, json)
        (found,) = damages(repository)
        assert f"snapshot {name[:8]} cannot be used" in found.message
        assert found.advice == (Advice.SNAPSHOT,)

    def test_a_snapshot_of_a_time_to_come_is_a_hint(self, repository: Repository) -> None:
        _, name = store_chunks(repository, [b"x"])
        days = (time.time_ns() // (86_400 * 10**9)) - 20_000 + 9
        save(repository, {"a": b"a"}, days)
        (found,) = check(repository)
        assert not found.damage
        assert "is of a time to come" in found.message
        assert name[:8] not in found.message
