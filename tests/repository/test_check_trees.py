"""Trees and links under examination, and lists of what is touched that stay short."""

import pytest

from agent.repository import touched
from agent.repository.finding import Advice, Finding
from agent.repository.identity import BlobType
from agent.repository.objects import pack_key
from agent.repository.repository import Repository
from agent.repository.times import utc
from agent.repository.tree import encode_tree
from agent.storage.memory import MemoryStorage
from tests.repository.injection import (
    a_file,
    below,
    blob_id,
    damages,
    node,
    pack_of,
    places,
    plant_root,
    plant_trees,
    raw_tree,
)
from tests.repository.mess import noise


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


class TestBounds:
    def test_of_many_touched_places_some_are_named_and_all_are_counted(
        self, repository: Repository, storage: MemoryStorage
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
        self, repository: Repository, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
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
