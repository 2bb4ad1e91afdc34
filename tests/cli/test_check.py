"""``check`` finds each kind of damage, goes on to the next, and says what helps."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from agent.cancel import NEVER, CancelToken
from agent.cli import main
from agent.demo.sample import make
from agent.repository.finding import Advice
from agent.repository.identity import BlobType, PackId
from agent.repository.indexfile import decode_index, encode_index
from agent.repository.locking import HeldLock, SystemClock
from agent.repository.objects import Folder, Objects, file_key, names
from agent.repository.opening import open_repository
from agent.repository.pack import PackedBlob
from agent.repository.snapshot import Snapshot
from agent.storage.local import LocalStorage
from tests.cli.conftest import PASSWORD, Run, make_source, with_password

Packs = list[tuple[PackId, list[PackedBlob]]]


class Damage:
    """Does to a repository what disks, networks and people do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._repository = open_repository(LocalStorage(str(path)), PASSWORD)
        self.objects: Objects = self._repository.objects

    @property
    def snapshot(self) -> Snapshot:
        return self._repository.snapshot("latest")

    def only(self, folder: Folder) -> Path:
        (name,) = names(self.objects.storage, folder)
        return self.path / file_key(folder, name)

    def index(self) -> Packs:
        name = self.only(Folder.INDEX).name
        return list(decode_index(self.objects.load(Folder.INDEX, name), name))

    def reindex(self, packs: Packs, *, keep: bool = False) -> None:
        """Put another index in the place of the one that is there, or beside it."""
        if not keep:
            self.only(Folder.INDEX).unlink()
        self.objects.save(Folder.INDEX, encode_index(packs))

    def pack(self, kind: BlobType) -> Path:
        """Return the file of a pack with blobs of this type."""
        found = next(id for id, blobs in self.index() if blobs[0].type is kind)
        return self.path / "data" / found.hex()[:2] / found.hex()

    def flip(self, path: Path, at: int) -> None:
        """Change one bit, and nothing else that would show it."""
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.chmod(0o600)
        path.write_bytes(content)


@pytest.fixture(scope="session")
def sound(empty_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one backup for all of these tests."""
    path = tmp_path_factory.mktemp("sound")
    make_source(path / "source")
    repo = path / "repository"
    shutil.copytree(empty_repository, repo)
    with with_password():
        assert main(["backup", str(path / "source"), "--repo", str(repo), "--json"]) == 0
    return repo


@pytest.fixture
def damage(sound: Path, tmp_path: Path) -> Damage:
    return Damage(Path(shutil.copytree(sound, tmp_path / "sound")))


class TestSound:
    def test_a_sound_repository_is_in_order(self, podlift: Run, damage: Damage) -> None:
        quick = podlift("check", "--repo", damage.path)
        whole = podlift("check", "--repo", damage.path, "--read-data")
        assert (quick.code, whole.code) == (0, 0)
        assert "is in order; checked: structure (--read-data reads it all)\n" in quick.out
        assert "is in order; checked: structure and every byte\n" in whole.out
        assert not list(damage.path.glob("locks/*"))

    def test_a_volume_of_every_kind_of_file_is_in_order(
        self, podlift: Run, repo: Path, tmp_path: Path
    ) -> None:
        make(tmp_path / "volume", 1)
        assert podlift("backup", tmp_path / "volume", "--repo", repo).code == 0
        done = podlift("check", "--repo", repo, "--read-data")
        assert done.code == 0, done.out

    def test_hints_cost_space_only_and_end_with_0(self, podlift: Run, damage: Damage) -> None:
        damage.reindex(damage.index(), keep=True)
        stray = b"no index knows me"
        name = hashlib.sha256(stray).hexdigest()
        (damage.path / "data" / name[:2]).mkdir(exist_ok=True)
        (damage.path / "data" / name[:2] / name).write_bytes(stray)
        done = podlift("check", "--repo", damage.path)
        assert done.code == 0
        assert f"hint: pack {name} is in no index; prune removes it" in done.out
        assert "is in two index files" in done.out
        assert "; 3 hints" in done.out


class TestDamage:
    def find(self, podlift: Run, damage: Damage, *options: str) -> list[str]:
        """Return the findings of a check that must fail without giving up."""
        done = podlift("check", "--repo", damage.path, *options)
        assert done.code == 1, done
        lines = done.out.splitlines()
        found = [line for line in lines if line.startswith(("damage: ", "hint: "))]
        verdict, heading, *self.advice = lines[len(found) :]
        count = sum(line.startswith("damage: ") for line in found)
        assert f"is DAMAGED: {count} findings" in verdict
        assert count
        assert heading == "what to do:"
        assert self.advice
        assert done.err == ""
        return found

    def test_a_damaged_snapshot(self, podlift: Run, damage: Damage) -> None:
        file = damage.only(Folder.SNAPSHOTS)
        damage.flip(file, 30)
        (found,) = self.find(podlift, damage)
        assert f"snapshot {file.name[:8]} cannot be used" in found
        assert self.advice == [f"  1. {Advice.SNAPSHOT}"]

    def test_a_damaged_index_does_not_hide_what_else_is_wrong(
        self, podlift: Run, damage: Damage
    ) -> None:
        damage.flip(damage.only(Folder.INDEX), 30)
        found = self.find(podlift, damage)
        assert "does not match its name" in found[0]
        assert f"  1. {Advice.INDEX}" in self.advice
        assert any("this directory cannot be read" in line for line in found)
        assert any("is in no index" in line for line in found)

    def test_a_pack_that_is_missing(self, podlift: Run, damage: Damage) -> None:
        pack = damage.pack(BlobType.DATA)
        pack.unlink()
        first, *touched = self.find(podlift, damage)
        assert first == f"damage: pack {pack.name} is missing"
        start = f"damage: snapshot {damage.snapshot.id[:8]}, "
        paths = {line.removeprefix(start).partition(": data blob ")[0] for line in touched}
        assert {path.rpartition("/")[2] for path in paths} == {"file", "other"}
        assert f"  1. {Advice.MISSING}" in self.advice
        assert self.find(podlift, damage, "--read-data") == [first, *touched]

    def test_a_pack_that_was_cut_short(self, podlift: Run, damage: Damage) -> None:
        pack = damage.pack(BlobType.DATA)
        pack.chmod(0o600)
        size = pack.stat().st_size
        os.truncate(pack, size - 10)
        (found,) = self.find(podlift, damage)
        assert f"pack {pack.name} has {size - 10} bytes, its index describes {size}" in found
        everything = self.find(podlift, damage, "--read-data")
        assert any("does not match its name" in line for line in everything)

    def test_a_bit_in_a_pack_of_data_is_found_by_reading_it(
        self, podlift: Run, damage: Damage
    ) -> None:
        pack = damage.pack(BlobType.DATA)
        damage.flip(pack, 20)
        assert podlift("check", "--repo", damage.path).code == 0
        found = self.find(podlift, damage, "--read-data")
        assert f"damage: pack {pack.name} does not match its name" in found
        assert any("data blob" in line for line in found)

    def test_a_bit_in_the_header_of_a_pack(self, podlift: Run, damage: Damage) -> None:
        pack = damage.pack(BlobType.DATA)
        damage.flip(pack, pack.stat().st_size - 8)
        found = self.find(podlift, damage, "--read-data")
        assert f"damage: pack {pack.name} does not match its name" in found
        assert len(found) == 2

    def test_a_bit_in_a_pack_of_trees_names_the_directories(
        self, podlift: Run, damage: Damage
    ) -> None:
        pack = damage.pack(BlobType.TREE)
        for at in range(0, pack.stat().st_size, 40):
            damage.flip(pack, at)
        (found,) = self.find(podlift, damage)
        assert f"snapshot {damage.snapshot.id[:8]}, /: this directory cannot be read" in found

    def test_a_blob_that_no_index_knows_names_the_file(self, podlift: Run, damage: Damage) -> None:
        trees = [(id, blobs) for id, blobs in damage.index() if blobs[0].type is BlobType.TREE]
        damage.reindex(trees)
        found = self.find(podlift, damage)
        start = f"damage: snapshot {damage.snapshot.id[:8]}"
        assert any(line.startswith(f"{start}, /file: data blob") for line in found)
        assert any(line.startswith(f"{start}, /below/other: data blob") for line in found)

    def test_an_index_that_leaves_a_gap(self, podlift: Run, damage: Damage) -> None:
        packs = [
            (id, sorted(blobs, key=lambda b: b.offset)[1:] if len(blobs) > 1 else blobs)
            for id, blobs in damage.index()
        ]
        damage.reindex(packs)
        found = self.find(podlift, damage)
        assert any("the index leaves a gap in pack" in line for line in found)

    def test_two_index_files_that_disagree(self, podlift: Run, damage: Damage) -> None:
        packs = [(id, blobs[:1]) for id, blobs in damage.index() if len(blobs) > 1]
        damage.reindex(packs, keep=True)
        found = self.find(podlift, damage)
        assert any("is described differently by two index files" in line for line in found)

    def test_an_index_that_disagrees_with_the_pack(self, podlift: Run, damage: Damage) -> None:
        packs = [(id, list(blobs)) for id, blobs in damage.index()]
        id, blobs = next((i, b) for i, b in packs if b[0].type is BlobType.DATA)
        first, second = sorted(blobs, key=lambda b: b.offset)[:2]
        swapped = [
            msgspec.structs.replace(first, id=second.id),
            msgspec.structs.replace(second, id=first.id),
        ]
        damage.reindex([(i, swapped if i == id else b) for i, b in packs])
        everything = self.find(podlift, damage, "--read-data")
        assert any("and its index disagree" in line for line in everything)
        assert any("/below/other: data blob" in line for line in everything)
        found = self.find(podlift, damage)
        assert any("/below/other: says 5 bytes, its content has" in line for line in found)


def test_a_name_in_a_finding_cannot_steer_the_terminal(
    podlift: Run, repo: Path, source: Path
) -> None:
    (source / "evil-\x1b[2J").write_bytes(b"evil")
    assert podlift("backup", source, "--repo", repo).code == 0
    damage = Damage(repo)
    damage.reindex([(i, b) for i, b in damage.index() if b[0].type is BlobType.TREE])
    out = podlift("check", "--repo", repo).out
    assert "/evil-\\x1b[2J: data blob" in out
    assert "\x1b" not in out


class TestOptions:
    def test_json_has_a_line_for_each_finding_and_a_summary(
        self, podlift: Run, damage: Damage
    ) -> None:
        pack = damage.pack(BlobType.DATA)
        pack.unlink()
        done = podlift("check", "--repo", damage.path, "--json")
        *found, summary = [json.loads(line) for line in done.out.splitlines()]
        assert done.code == 1
        assert found[0]["message"] == f"pack {pack.name} is missing"
        assert {place["path"] for place in found[1:]} == {"/file", "/below/other"}
        assert {place["snapshot_id"] for place in found[1:]} == {damage.snapshot.id}
        assert summary["damaged"] is True
        assert (summary["damage"], summary["hints"]) == (3, 0)
        assert summary["places_touched"] == 2
        assert summary["snapshots_touched"] == [damage.snapshot.id]
        assert Advice.MISSING in summary["advice"]

    def test_json_of_a_sound_repository_is_the_summary_alone(
        self, podlift: Run, damage: Damage
    ) -> None:
        done = podlift("check", "--repo", damage.path, "--json", "--read-data-subset", "1/1")
        assert done.code == 0
        assert done.json["damaged"] is False
        assert done.json["advice"] == []
        assert done.json["checked"] == "structure and 1/1 of the packs"

    @pytest.mark.parametrize(
        "words", ["0%", "101%", "x", "0/7", "8/7", "1/300", "-1G", "0G", "week/0"]
    )
    def test_a_subset_that_means_nothing_is_refused(
        self, podlift: Run, damage: Damage, words: str
    ) -> None:
        done = podlift("check", "--repo", damage.path, f"--read-data-subset={words}")
        assert done.code == 2
        assert "write 5% of the packs" in done.err

    def test_all_and_some_at_once_is_refused(self, podlift: Run, damage: Damage) -> None:
        done = podlift("check", "--repo", damage.path, "--read-data", "--read-data-subset", "5%")
        assert done.code == 2
        assert "leave out --read-data-subset" in done.err

    def test_neither_or_both_of_a_repository_and_a_location_is_refused(
        self, podlift: Run, damage: Damage
    ) -> None:
        for options in ((), ("--repo", damage.path, "--location", "default")):
            done = podlift("check", *options)
            assert done.code == 2
            assert (
                "name one repository with --repo, or all of a location with --location" in done.err
            )

    @pytest.mark.parametrize("option", ["--password-file", "--cacert", "--customer-key"])
    def test_what_a_location_has_of_its_own_is_not_quietly_ignored(
        self, podlift: Run, option: str
    ) -> None:
        done = podlift("check", "--location", "default", option, "somewhere")
        assert done.code == 2
        assert "leave out --password-file, --cacert and --customer-key" in done.err

    def test_a_location_without_a_way_to_the_cluster_says_what_to_give(self, podlift: Run) -> None:
        done = podlift("check", "--location", "default")
        assert done.code == 1
        assert "give --kubeconfig" in done.err
        assert done.out == ""

    def test_a_lock_of_somebody_else_is_waited_for_if_there_is_time(
        self, podlift: Run, damage: Damage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock = HeldLock(damage.objects, exclusive=True)
        lock.begin(NEVER)
        try:
            assert podlift("check", "--repo", damage.path).code == 11
            ended = iter([lock.release])
            pauses = []

            def pause(_clock: SystemClock, _cancel: CancelToken, seconds: float) -> None:
                pauses.append(seconds)
                next(ended, lambda: None)()

            monkeypatch.setattr(SystemClock, "pause", pause)
            assert podlift("check", "--repo", damage.path, "--lock-wait", "10m").code == 0
            assert pauses[0] == 5
        finally:
            lock.release()

    @pytest.mark.parametrize("words", ["-1", "1w", "x", "1.5h", "٣"])
    def test_a_wait_that_is_no_time_is_refused(self, podlift: Run, words: str) -> None:
        done = podlift("check", "--repo", "r", f"--lock-wait={words}")
        assert done.code == 2
        assert "is not a time such as" in done.err

    def test_a_subset_of_all_parts_finds_what_one_part_holds(
        self, podlift: Run, damage: Damage
    ) -> None:
        pack = damage.pack(BlobType.DATA)
        damage.flip(pack, 20)
        codes = [
            podlift("check", "--repo", damage.path, "--read-data-subset", f"{part}/3").code
            for part in (1, 2, 3)
        ]
        wanted = [0, 0, 0]
        wanted[int(pack.name[:2], 16) % 3] = 1
        assert codes == wanted

    def test_no_lock_writes_nothing_and_shows_a_lock_that_nobody_can_read(
        self, podlift: Run, damage: Damage
    ) -> None:
        name = hashlib.sha256(b"x").hexdigest()
        (damage.path / "locks").mkdir(exist_ok=True)
        (damage.path / "locks" / name).write_bytes(b"torn")
        done = podlift("check", "--repo", damage.path, "--no-lock")
        assert done.code == 1
        assert f"damage: locks/{name} is damaged" in done.out
        assert "podlift unlock --remove-all" in done.out
        assert [file.name for file in damage.path.glob("locks/*")] == [name]

    def test_a_key_file_that_restic_would_refuse_is_damage(
        self, podlift: Run, damage: Damage
    ) -> None:
        name = "0" * 64
        (damage.path / "keys" / name).write_bytes(b"{}")
        done = podlift("check", "--repo", damage.path)
        assert done.code == 1
        assert f"damage: the key file keys/{name} does not match its name" in done.out
