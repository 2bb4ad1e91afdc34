"""``check`` as a doctor: each thing that can be wrong is named, with what it touches."""

import hashlib
import random
import time
from collections.abc import Iterator

import msgspec
import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import AccessDenied, Canceled, StorageError, UsageError
from agent.monitor import Monitor
from agent.repository import packreading, touched
from agent.repository.check import check
from agent.repository.finding import Advice, Finding
from agent.repository.identity import BlobType, PackId
from agent.repository.lockfile import Lock, encode_lock
from agent.repository.objects import Folder, file_key, pack_key
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.repository.subset import Subset, parse_subset
from agent.repository.times import utc
from agent.repository.tree import encode_tree
from agent.storage.contract import Buffer
from agent.storage.memory import MemoryStorage
from tests.repository.injection import (
    a_file,
    below,
    blob_id,
    index_of,
    node,
    pack_of,
    plant_root,
    plant_trees,
    raw_tree,
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

    def get(self, key: str, *, cancel: CancelToken = NEVER) -> bytes:
        self._refuse(key)
        return super().get(key, cancel=cancel)

    def get_range(
        self, key: str, offset: int, length: int, *, cancel: CancelToken = NEVER
    ) -> bytes:
        self._refuse(key)
        self.read.append((key, length))
        return super().get_range(key, offset, length, cancel=cancel)

    def _refuse(self, key: str) -> None:
        if key in self.errors:
            raise self.errors[key]


@pytest.fixture
def storage() -> Flaky:
    return Flaky()


@pytest.fixture
def repository(storage: Flaky) -> Repository:
    return new_repository(storage)


def damages(repository: Repository, **options: object) -> list[Finding]:
    """Return the damage that a check finds, all of which comes with advice or is a count."""
    found = [f for f in check(repository, **options) if f.damage]  # type: ignore[arg-type]
    assert all(f.advice or f.touched for f in found)
    return found


def places(found: list[Finding]) -> set[str]:
    """Return the touched paths."""
    return {f.touched.path.decode() for f in found if f.touched and f.touched.path is not None}


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


class TestTrees:
    def test_names_out_of_order(self, repository: Repository) -> None:
        inner = raw_tree([node(a_file("b")), node(a_file("a"))])
        outer = encode_tree([below("deep", inner)], utc)
        snapshot = plant_trees(repository, [inner, outer])
        (found,) = damages(repository)
        start = f"snapshot {snapshot[:8]}, /deep: the names of this directory are not in order"
        assert found.message.startswith(start)
        assert found.advice == (Advice.REWRITE,)
        assert places([found]) == {"/deep"}

    def test_a_name_that_occurs_twice(self, repository: Repository) -> None:
        plant_trees(repository, [raw_tree([node(a_file("a")), node(a_file("a"))])])
        (found,) = damages(repository)
        assert "b'a' occurs twice" in found.message
        assert places([found]) == {""}

    @pytest.mark.parametrize("size", [0, 6, 8, 1 << 40])
    def test_a_size_that_is_not_that_of_the_content(
        self, repository: Repository, size: int
    ) -> None:
        tree = encode_tree([a_file("good"), a_file("bad", size=size)], utc)
        plant_trees(repository, [tree])
        (found,) = damages(repository)
        assert f"/bad: says {size} bytes, its content has 7" in found.message

    @pytest.mark.parametrize(
        "bad",
        [
            b'{"name":"x","type":"irregular"}',
            b'{"name":"x","type":"file","content":null}',
            b'{"name":"x","type":"dir","content":null}',
            b'{"name":"..","type":"fifo","content":null}',
            b'{"name":"x","type":"fifo","uid":-1}',
            b'{"name":"x","type":"fifo","mtime":"10000-01-01T00:00:00Z"}',
        ],
    )
    def test_an_entry_that_restic_cannot_decode_hides_no_other(
        self, repository: Repository, bad: bytes
    ) -> None:
        wrong = node(a_file("wrong", size=1))
        plant_trees(repository, [raw_tree([wrong, bad])])
        first, second = damages(repository)
        assert "restic's check crashes on it" in first.message
        assert places([second]) == {"/wrong"}

    def test_blobs_that_no_index_names(self, repository: Repository) -> None:
        tree = encode_tree([a_file("lost", b"nowhere"), below("gone", b"no tree")], utc)
        plant_trees(repository, [tree])
        found = damages(repository)
        assert places(found) == {"/lost", "/gone"}
        assert all("is in no index" in f.message for f in found)

    def test_a_root_that_no_index_names(self, repository: Repository) -> None:
        plant_root(repository, b"?" * 32)
        (found,) = damages(repository)
        assert places([found]) == {""}
        assert "is in no index" in found.message


class TestLinks:
    def find(self, repository: Repository, *files: dict[str, object]) -> list[Finding]:
        entries = [a_file(f"f{n}", **changes) for n, changes in enumerate(files)]  # type: ignore[arg-type]
        tree = encode_tree(entries, utc)
        plant_trees(repository, [tree], chunks=(b"content", b"other"))
        return damages(repository)

    def test_one_identity_of_two_contents(self, repository: Repository) -> None:
        one = {"inode": 5, "device": 1, "links": 2}
        (found,) = self.find(repository, one, {**one, "content": b"other"})
        assert "/f1: has the inode of /f0 and other content" in found.message
        assert found.advice == (Advice.IDENTITY,)
        assert places([found]) == {"/f1"}

    def test_a_later_file_with_one_link_is_mistaken_as_well(self, repository: Repository) -> None:
        one = {"inode": 5, "device": 1}
        found = self.find(repository, {**one, "links": 2}, {**one, "content": b"other"})
        assert places(found) == {"/f1"}

    def test_an_earlier_file_with_one_link_is_mistaken_too(self, repository: Repository) -> None:
        one = {"inode": 5, "device": 1}
        found = self.find(repository, one, {**one, "links": 2, "content": b"other"})
        assert places(found) == {"/f0"}
        assert "has the inode of /f1" in found[0].message

    @pytest.mark.parametrize(
        "second",
        [
            {"inode": 5, "device": 1, "links": 2},
            {"inode": 6, "device": 1, "links": 2, "content": b"other"},
            {"inode": 5, "device": 2, "links": 2, "content": b"other"},
        ],
    )
    def test_links_that_are_what_they_say(
        self, repository: Repository, second: dict[str, object]
    ) -> None:
        assert self.find(repository, {"inode": 5, "device": 1, "links": 2}, second) == []

    def test_files_of_one_link_may_share_an_inode(self, repository: Repository) -> None:
        one = {"inode": 5, "device": 1}
        assert self.find(repository, one, {**one, "content": b"other"}) == []

    def test_two_snapshots_may_differ(self, repository: Repository) -> None:
        for content in (b"content", b"other"):
            linked = [a_file(n, content, inode=5, device=1, links=2) for n in ("a", "b")]
            plant_trees(repository, [encode_tree(linked, utc)], chunks=[content])
        assert damages(repository) == []

    def test_a_shared_directory_is_judged_within_each_snapshot(
        self, repository: Repository
    ) -> None:
        """The file of one link is met in the first snapshot, before anything has two."""
        shared = encode_tree([a_file("single", b"other", inode=5, device=1)], utc)
        first = encode_tree([below("z", shared)], utc)
        linked = a_file("a", inode=5, device=1, links=2)
        second = encode_tree([linked, below("z", shared)], utc)
        plant_trees(repository, [shared, first], chunks=[b"content", b"other"])
        snapshot = plant_trees(repository, [second], chunks=[b"more"])
        (found,) = damages(repository)
        assert found.touched is not None
        assert (found.touched.snapshot, found.touched.path) == (snapshot, b"/z/single")


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
        gone = blob_id(noise(1, 9000)[:4000])
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


class TestBounds:
    def test_of_many_touched_places_some_are_named_and_all_are_counted(
        self, repository: Repository, storage: Flaky
    ) -> None:
        files = [a_file(f"{n:04}", noise(n, 100)) for n in range(500)]
        tree = encode_tree([below("x", encode_tree(files, utc)), *files[:7]], utc)
        chunks = [noise(n, 100) for n in range(500)]
        snapshot = plant_trees(repository, [encode_tree(files, utc), tree], chunks=chunks)
        storage.delete(pack_key(pack_of(repository, BlobType.DATA)))
        _, *found = damages(repository)
        assert len(found) == touched.NAMED_OF_SNAPSHOT + 1
        assert found[-1].message.startswith(f"snapshot {snapshot[:8]}: 487 more places are touched")
        assert sum(f.touched.places for f in found if f.touched) == 507

    def test_of_many_snapshots_the_last_are_only_counted(
        self, repository: Repository, storage: Flaky, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(touched, "NAMED_IN_ALL", 5)
        files = [a_file("a"), a_file("b")]
        tree = encode_tree(files, utc)
        plant_trees(repository, [tree])
        for day in range(2, 6):
            plant_root(repository, blob_id(tree), day)
        storage.delete(pack_key(pack_of(repository, BlobType.DATA)))
        _, *found = damages(repository)
        named = [f for f in found if f.touched and f.touched.path is not None]
        assert len(named) == 5
        assert [f.touched.places for f in found[5:] if f.touched] == [1, 2, 2]
        assert len({f.touched.snapshot for f in found if f.touched}) == 5


class TestNamedFiles:
    def test_a_key_file_that_does_not_decode(self, repository: Repository, storage: Flaky) -> None:
        body = b'{"kdf":"scrypt","salt":"AAAA"}'
        name = hashlib.sha256(body).hexdigest()
        storage.put(f"keys/{name}", body)
        (found,) = damages(repository)
        assert f"keys/{name} is damaged: its salt has 3 bytes" in found.message
        assert found.advice == (Advice.KEY,)

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


STORED = {PackId(hashlib.sha256(bytes([n])).digest()): 100 for n in range(200)}


class TestSubset:
    def test_parts_are_disjoint_and_all_of_them_are_everything(self) -> None:
        parts = [parse_subset(f"{n}/7").choose(STORED, random.Random(n)) for n in range(1, 8)]
        assert sum(map(len, parts)) == len(STORED)
        assert frozenset().union(*parts) == STORED.keys()
        assert all(id[0] % 7 == 2 for id in parts[2])

    @pytest.mark.parametrize(
        ("words", "count"),
        [("5%", 10), ("0.1%", 1), ("100%", 200), ("1K", 11), ("1", 1), ("1G", 200)],
    )
    def test_a_share_or_a_size_is_taken_at_random(self, words: str, count: int) -> None:
        subset = parse_subset(words)
        one = subset.choose(STORED, random.Random(1))
        assert len(one) == count
        if 1 < count < 200:
            assert one != subset.choose(STORED, random.Random(2))

    def test_of_nothing_nothing_is_chosen(self) -> None:
        for words in ("5%", "1G", "1/3"):
            assert parse_subset(words).choose({}, random.Random(1)) == frozenset()

    @pytest.mark.parametrize(
        "words",
        [
            "",
            "%",
            "0%",
            "-1%",
            "100.1%",
            "1e2%",
            "nan%",
            "0/3",
            "4/3",
            "1/",
            "/2",
            "1/257",
            "1//2",
            "1.5",
            "-5M",
            "0",
            "5Q",
            "٣%",
        ],
    )
    def test_nonsense_is_refused_with_what_can_be_written(self, words: str) -> None:
        with pytest.raises(UsageError, match="write 5% of the packs"):
            parse_subset(words)

    def test_words_become_values(self) -> None:
        assert parse_subset("2.5%") == Subset(percent=2.5)
        assert parse_subset("3M") == Subset(bytes=3 << 20)
        assert parse_subset("256/256") == Subset(part=(256, 256))
