"""Garbage of deleted backups, over the real parts: what Velero deleted goes, all else stays."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.demo.compare import differences
from tests.e2e.scene import Scene, Volume, until
from tests.e2e.test_backup import snapshots
from tests.e2e.velero import PREFIX, Velero
from tests.support.apihandle import ApiServer
from tests.support.apiservers import standing
from tests.support.faultproxy import Fault, FaultProxy, Kind, reply
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

NOW = ("--grace", "0s")
METADATA = ("name", "labels", "annotations", "ownerReferences")
"""What of an object's metadata is not the API server's own."""


def command(scene: Scene, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "agent", "gc", "--location", "default"),
        *("--kubeconfig", str(scene.server.kubeconfig), "--namespace", scene.server.namespace),
        *("--cache-dir", str(scene.directory / "gc-cache"), *options),
    ]


def environment(scene: Scene) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(scene.directory),
        "TMPDIR": str(scene.directory),
    }


def gc(scene: Scene, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(scene, *options),
        env=environment(scene),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=110,
    )


def found(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kept(scene: Scene) -> dict[str, str]:
    """Return everything in the bucket but locks, which come and go."""
    return {key: tag for key, tag in scene.objects().items() if "/locks/" not in key}


class Made:
    """Backups of one volume each, made by an agent and finished by Velero."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.velero = Velero(scene)
        self.volumes: dict[str, Volume] = {}
        self.names: dict[str, str] = {}
        self.ids: dict[str, str] = {}

    def make(self, *backups: str, finish: bool = True) -> "Made":
        with self.scene.agent() as agent:
            for backup in backups:
                volume = self.volumes[backup] = self.scene.volume()
                volume.fill(own=os.urandom(300_000), name=backup.encode(), same=b"same" * 9000)
                name = self.names[backup] = self.scene.backup(volume, backup)
                self.ids[backup] = self.scene.completed(name, agent)["snapshotID"]
                if finish:
                    self.velero.finish(backup, name)
        return self

    def copied(self, scene: Scene) -> "Made":
        """Return the same backups in another scene, which may be changed as if made there."""
        copy = Made(scene)
        copy.volumes, copy.names, copy.ids = dict(self.volumes), dict(self.names), dict(self.ids)
        assert scene.prefix == self.scene.prefix
        for key in self.scene.objects(f"{scene.prefix}/"):
            source = {"Bucket": self.scene.bucket, "Key": key}
            scene.s3.kept_client.copy_object(Bucket=scene.bucket, Key=key, CopySource=source)
        for backup, name in self.names.items():
            found = self.scene.read(name)
            found["spec"]["repoIdentifier"] = scene.identifier
            kept = {key: found["metadata"][key] for key in METADATA}
            scene.server.create(scene.server.path("podvolumebackups"), {**found, "metadata": kept})
            copy.velero.finish(backup, name)
        return copy

    def delete(self, backup: str) -> str:
        self.velero.delete(backup, self.names[backup])
        return self.ids[backup]

    def assert_restorable(self, restics: Sequence[Restic], *backups: str) -> None:
        for number, restic in enumerate(restics):
            self.scene.restic(restic, "check", "--read-data")
            for backup in backups:
                target = self.scene.directory / f"restored-{backup}-{number}"
                self.scene.restic(restic, "restore", self.ids[backup], "--target", str(target))
                assert list(differences(self.volumes[backup].path, target)) == []

    def assert_snapshots(self, restics: Sequence[Restic], ids: Collection[str]) -> None:
        for restic in restics:
            assert snapshots(self.scene, restic).keys() == set(ids)


@pytest.fixture(scope="module")
def original(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Yield two backups on a stand-in, to be copied and never changed."""
    directory = tmp_path_factory.mktemp("original")
    with standing(directory) as standin:
        standin.apply_velero_crds()
        scene = Scene(standin, s3_server, directory / "scene").with_repository()
        yield Made(scene).make("monday", "tuesday")


@pytest.fixture
def made(original: Made, new_standin_scene: Scene) -> Made:
    """Return two backups on the stand-in."""
    return original.copied(new_standin_scene)


class TestTheWholePath:
    def test_a_deleted_backup_goes_and_all_others_restore(
        self, scene: Scene, restics: list[Restic]
    ) -> None:
        made = Made(scene).make("monday", "tuesday", "wednesday")
        by_hand = scene.directory / "by-hand"
        by_hand.mkdir()
        (by_hand / "file").write_bytes(os.urandom(100_000))
        flags = ("--tag", "backup=tuesday", "--host", "velero")
        for restic in restics:
            scene.restic(restic, "backup", str(by_hand), *flags)
        foreign = len(restics)
        gone = made.delete("tuesday")
        before = kept(scene)

        looked = found(gc(scene, *NOW, "--json"))
        (repository,) = looked["repositories"]
        assert repository["snapshots"] == {
            "living": 2,
            "grace": 0,
            "foreign": foreign,
            "garbage": 1,
        }
        assert [one["id"] for one in repository["garbage"]] == [gone]
        assert (
            repository["garbage"][0]["reason"] == "backup tuesday is not in the location any more"
        )
        assert repository["bytes_freed"] > 300_000
        assert kept(scene) == before

        done = gc(scene, *NOW, "--apply")
        assert done.returncode == 0, done.stderr
        assert f"garbage  {gone[:8]}" in done.stdout
        assert "done: 1 snapshots forgotten" in done.stdout
        left = snapshots(scene, restics[0]).keys()
        assert left >= {made.ids["monday"], made.ids["wednesday"]}
        assert len(left) == 2 + foreign
        made.assert_restorable(restics, "monday", "wednesday")
        assert sum(key not in kept(scene) for key in before if "/data/" in key)
        assert not scene.objects(f"{scene.prefix}/locks/")

        again = found(gc(scene, *NOW, "--apply", "--json"))
        assert again["garbage"] == 0
        made.assert_snapshots(restics, left)

    def test_a_snapshot_within_the_grace_period_stays(
        self, made: Made, restics: list[Restic]
    ) -> None:
        made.delete("monday")
        report = found(gc(made.scene, "--apply", "--json"))
        assert report["repositories"][0]["snapshots"]["grace"] == 1
        made.assert_snapshots(restics, made.ids.values())

    def test_the_loss_of_all_podvolumebackups_in_the_cluster_removes_nothing(
        self, made: Made, restics: list[Restic]
    ) -> None:
        made.velero.forget_objects(*made.names.values())
        report = found(gc(made.scene, *NOW, "--apply", "--json"))
        assert report["repositories"][0]["snapshots"]["living"] == 2
        made.assert_restorable(restics, "monday", "tuesday")

    def test_a_backup_that_velero_has_not_finished_is_protected_by_its_objects(
        self, made: Made, restics: list[Restic]
    ) -> None:
        made.make("now", finish=False)
        made.velero.write("now", "now-logs.gz", b"the first file that velero writes")
        report = found(gc(made.scene, *NOW, "--apply", "--json"))
        assert report["unfinished"] == ["now"]
        assert report["repositories"][0]["snapshots"]["living"] == 3
        made.assert_restorable(restics, "now")

    def test_a_snapshot_of_a_running_podvolumebackup_is_protected_before_anybody_names_it(
        self, made: Made
    ) -> None:
        made.velero.remove("backups/monday/")
        path = made.scene.server.path("podvolumebackups", made.names["monday"])
        made.scene.server.patch_status(path, {"phase": "InProgress", "snapshotID": None})
        (repository,) = found(gc(made.scene, *NOW, "--apply", "--json"))["repositories"]
        assert repository["snapshots"]["living"] == 2

    def test_a_namespace_whose_backups_are_all_deleted_is_swept_too(
        self, standin_scene: Scene, restics: list[Restic]
    ) -> None:
        made = Made(standin_scene).make("monday")
        other = f"{PREFIX}/restic/elsewhere"
        standin_scene.with_repository(other)
        volume = standin_scene.volume().fill(a=os.urandom(50_000))
        with standin_scene.agent() as agent:
            identifier = standin_scene.identifier_of(other)
            name = standin_scene.backup(volume, "other", repoIdentifier=identifier)
            standin_scene.completed(name, agent)
        made.velero.finish("other", name)
        made.velero.delete("other", name)
        report = found(gc(standin_scene, *NOW, "--apply", "--json"))
        counts = {one["repository"]: one["snapshots"] for one in report["repositories"]}
        assert [c["garbage"] for c in counts.values()] == [1, 0]
        assert not standin_scene.objects(f"{other}/snapshots/")
        assert not standin_scene.objects(f"{other}/data/")
        made.assert_restorable(restics, "monday")

    def test_snapshots_of_velero_s_own_restic_live_by_their_short_ids(
        self, made: Made, restic: Restic
    ) -> None:
        scene = made.scene
        tags = ["backup=old", "backup-uid=u", "ns=n", "pod=p", "pod-uid=x", "volume=v"]
        folder = scene.directory / "old"
        folder.mkdir()
        for content in ("living", "garbage"):
            (folder / "file").write_text(content)
            flags = [flag for tag in tags for flag in ("--tag", tag)]
            scene.restic(restic, "backup", ".", "--host", "velero", *flags, cwd=folder)
        old = [one for one in snapshots(scene, restic).values() if "backup=old" in one["tags"]]
        living, garbage = sorted(old, key=lambda one: str(one["time"]))
        entry = scene.read(made.names["monday"])
        entry["status"]["snapshotID"] = living["short_id"]
        made.velero.finish("old")
        made.velero.record("old", [entry])
        (repository,) = found(gc(scene, *NOW, "--apply", "--json"))["repositories"]
        assert [one["id"] for one in repository["garbage"]] == [garbage["id"]]
        assert living["id"] in snapshots(scene, restic)

    def test_a_repository_outside_of_the_location_s_prefix_is_swept_on_demand_only(
        self, made: Made
    ) -> None:
        scene, elsewhere = made.scene, "shared/restic/app"
        identifier = scene.with_repository(elsewhere).identifier_of(elsewhere)
        with scene.agent() as agent:
            for backup in ("kept", "gone"):
                volume = scene.volume().fill(a=os.urandom(50_000))
                name = scene.backup(volume, backup, repoIdentifier=identifier)
                made.names[backup] = name
                made.ids[backup] = scene.completed(name, agent)["snapshotID"]
                made.velero.finish(backup, name)
        made.delete("gone")
        report = found(gc(scene, *NOW, "--apply", "--json"))
        assert report["not_swept"] == [elsewhere]
        assert report["garbage"] == 0
        assert len(scene.objects(f"{elsewhere}/snapshots/")) == 2
        report = found(gc(scene, *NOW, "--apply", "--json", "--outside"))
        assert report["not_swept"] == []
        assert report["garbage"] == 1
        assert f"{elsewhere}/snapshots/{made.ids['kept']}" in scene.objects(f"{elsewhere}/")

    def test_what_is_wrong_with_one_repository_does_not_keep_the_others_from_it(
        self, made: Made
    ) -> None:
        scene, broken = made.scene, f"{PREFIX}/restic/broken"
        scene.with_repository(broken, "a password of somebody else")
        made.delete("monday")
        done = gc(scene, *NOW, "--apply")
        assert done.returncode == 12
        assert f"{broken}: not done: the password opens none" in done.stderr
        assert "done: 1 snapshots forgotten" in done.stdout
        assert "1 repositories were not done" in done.stdout
        assert len(scene.objects(f"{scene.prefix}/snapshots/")) == 1

    def test_it_says_what_it_sees_in_words(self, made: Made) -> None:
        gone = made.delete("monday")
        done = gc(made.scene, *NOW)
        assert done.returncode == 0
        assert "shorter than the 4 h" in done.stderr
        first, repository, garbage, freed, last = done.stdout.splitlines()
        assert first.startswith("location default (s3:https://")
        assert "1 backups, 1 snapshots named, 0 PodVolumeBackups under way" in first
        assert repository.endswith(
            "/restic/velero-1: 2 snapshots: 1 living, 0 protected by the grace period,"
            " 0 not made for Velero, 1 garbage"
        )
        assert garbage.startswith(f"  garbage  {gone[:8]}  20")
        assert "backup=monday ns=" in garbage
        assert garbage.endswith(": backup monday is not in the location any more")
        assert re.fullmatch(r"  would free [\d.]+ KiB; [\d.]+ KiB would stay", freed)
        assert last.startswith("dry run, nothing was changed: --apply forgets 1 snapshots")

    def test_a_location_without_a_repository_has_nothing_to_do(
        self, new_standin_scene: Scene
    ) -> None:
        done = gc(new_standin_scene, "--apply")
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == (
            "there is no repository in it, so there is nothing to do"
        )


class TestRefusals:
    """Whatever is not understood: exit 1, the reason, and nothing changed."""

    def refused(self, scene: Scene, *options: str) -> str:
        before = kept(scene)
        done = gc(scene, *NOW, "--apply", *options)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert kept(scene) == before
        return done.stderr

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "cut short"),
            (b"no gzip", "not gzip"),
            ({"items": []}, "Expected"),
            (["text"], "Expected"),
            ([{"metadata": {"name": "x"}}], "missing required field `spec`"),
        ],
        ids=["empty", "not-gzip", "no-list", "not-objects", "no-spec"],
    )
    def test_a_record_that_is_not_understood(self, made: Made, content: Any, reason: str) -> None:
        made.delete("monday")
        made.velero.record("tuesday", content)
        said = self.refused(made.scene)
        assert "backups/tuesday/tuesday-podvolumebackups.json.gz" in said
        assert reason in said

    def test_a_backup_without_its_record_unless_it_had_no_volumes(self, made: Made) -> None:
        made.delete("monday")
        made.velero.write("ancient", "velero-backup.json", {"kind": "Backup"})
        assert "--without-volumes ancient" in self.refused(made.scene)
        report = found(gc(made.scene, *NOW, "--json", "--without-volumes", "ancient"))
        assert report["garbage"] == 1

    def test_a_location_without_any_backup_unless_that_is_said_to_be_so(
        self, made: Made, restics: list[Restic]
    ) -> None:
        for backup in ("monday", "tuesday"):
            made.delete(backup)
        assert "a wrong bucket or prefix" in self.refused(made.scene)
        report = found(gc(made.scene, *NOW, "--apply", "--json", "--empty-location"))
        assert report["garbage"] == 2
        made.assert_snapshots(restics, ())
        assert not made.scene.objects(f"{made.scene.prefix}/data/")

    def test_records_that_name_snapshots_of_some_other_repository(self, made: Made) -> None:
        entry = made.scene.read(made.names["tuesday"])
        entry["status"]["snapshotID"] = "ab" * 32
        made.velero.forget_objects(*made.names.values())
        made.velero.remove("backups/monday/")
        made.velero.record("tuesday", [entry])
        assert "it has none of them" in self.refused(made.scene)

    def test_an_object_of_the_cluster_that_is_not_understood(self, made: Made) -> None:
        made.delete("monday")
        path = made.scene.server.path("podvolumebackups", made.names["tuesday"])
        made.scene.server.patch_status(path, {"snapshotID": "not an id"})
        assert "a PodVolumeBackup of the cluster cannot be read" in self.refused(made.scene)

    def test_a_location_that_does_not_exist(self, made: Made) -> None:
        said = self.refused(made.scene, "--location", "nowhere")
        assert "BackupStorageLocation" in said
        assert "nowhere does not exist" in said

    def test_an_api_server_that_is_away(self, made: Made) -> None:
        made.delete("monday")
        made.scene.server.stop()
        assert "cannot be reached" in self.refused(made.scene)

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "prefix=velero%2Fone%2Fbackups"), ("GET", "-podvolumebackups.json.gz")],
        ids=["listing", "reading"],
    )
    def test_a_bucket_that_does_not_let_us_look(
        self, proxied: Made, proxy: FaultProxy, method: str, path: str
    ) -> None:
        proxied.delete("monday")
        proxy.add(reply(403, "AccessDenied"), method, path)
        assert "so what is needed is unknown" in self.refused(proxied.scene)

    def test_a_living_set_that_becomes_unreadable_under_the_lock(
        self, proxied: Made, proxy: FaultProxy
    ) -> None:
        proxied.delete("monday")
        proxy.add(reply(403, "AccessDenied"), "GET", "prefix=velero%2Fone%2Fbackups", skip=1)
        assert "so what is needed is unknown" in self.refused(proxied.scene)
        assert not proxied.scene.objects(f"{proxied.scene.prefix}/locks/")


@pytest.fixture
def proxied(original: Made, standin: ApiServer, proxy: FaultProxy, tmp_path: Path) -> Made:
    """Return two backups behind a proxy."""
    standin.apply_velero_crds()
    return original.copied(Scene(standin, original.scene.s3, tmp_path / "scene", proxy))


@contextlib.contextmanager
def started(scene: Scene, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(scene, *options),
        env=environment(scene),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class TestInterruptions:
    def test_killed_between_forget_and_prune_it_leaves_what_the_next_run_completes(
        self, proxied: Made, proxy: FaultProxy, restics: list[Restic]
    ) -> None:
        scene, gone = proxied.scene, proxied.delete("monday")
        proxy.add(Fault(Kind.STALL), "PUT", f"{scene.prefix}/(data|index)/")
        with started(scene, *NOW, "--apply") as process:
            snapshot = f"{scene.prefix}/snapshots/{gone}"
            until(lambda: snapshot not in scene.objects(snapshot), "the snapshot to be forgotten")
            until(lambda: any(r.fault for r in proxy.requests), "the prune to begin")
            process.send_signal(signal.SIGKILL)
            process.wait()
        data = scene.objects(f"{scene.prefix}/data/")
        for restic in restics:
            scene.restic(restic, "--no-lock", "check", "--read-data")
        report = found(gc(scene, *NOW, "--apply", "--json"))
        assert report["garbage"] == 0
        assert report["bytes_freed"] > 300_000
        assert data.keys() - scene.objects(f"{scene.prefix}/data/").keys()
        proxied.assert_restorable(restics, "tuesday")

    def test_while_a_backup_runs_it_touches_nothing_and_afterwards_it_does(
        self, proxied: Made, proxy: FaultProxy, restics: list[Restic]
    ) -> None:
        scene = proxied.scene
        proxied.delete("monday")
        busy = reply(503, "SlowDown", retry_after="1")
        proxy.add(busy, "PUT", f"{scene.prefix}/data/", times=1 << 30)
        volume = proxied.volumes["running"] = scene.volume().fill(large=os.urandom(20 << 20))
        with scene.agent() as agent:
            name = scene.backup(volume, "running")
            scene.under_way(name, agent)
            until(lambda: scene.objects(f"{scene.prefix}/locks/"), "the backup's lock")
            before = kept(scene)
            refused = gc(scene, *NOW, "--apply")
            assert refused.returncode == 11, refused
            assert "is locked" in refused.stderr
            assert kept(scene) == before
            with started(scene, *NOW, "--apply", "--lock-wait", "60", "--json") as waiting:
                proxy.clear()
                proxied.ids["running"] = scene.completed(name, agent)["snapshotID"]
                report = json.loads(waiting.communicate(timeout=90)[0])
        assert report["repositories"][0]["snapshots"]["living"] == 2
        assert report["garbage"] == 1
        proxied.assert_restorable(restics, "tuesday", "running")

    def test_asked_to_stop_it_gives_the_lock_back(self, proxied: Made, proxy: FaultProxy) -> None:
        scene = proxied.scene
        proxied.delete("monday")
        proxy.add(reply(503, "SlowDown"), "GET", "prefix=velero%2Fone%2Fbackups", skip=1, times=99)
        with started(scene, *NOW, "--apply") as process:
            until(lambda: any(r.fault for r in proxy.requests), "the living set to be read again")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 130
        assert not scene.objects(f"{scene.prefix}/locks/")
        assert len(scene.objects(f"{scene.prefix}/snapshots/")) == 2
