"""The main job over the real parts: a PodVolumeBackup is created, restic has the volume."""

import json
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.demo.compare import count, differences
from agent.demo.sample import make
from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import RESTORE_UID, WITHOUT_OVERRIDE, Scene, Volume
from tests.support.apihandle import ApiServer, Json
from tests.support.faultproxy import FaultProxy, reply
from tests.support.restic import Restic
from tests.support.s3servers import S3Server
from tests.support.velerocrds import VERSIONS, kind

on_the_real_one = pytest.mark.parametrize("api_server", ["kube-apiserver"], indirect=True)


def time_of(text: str) -> float:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text), text
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def assert_complete(
    scene: Scene, name: str, volume: Volume, began: float, version: str = "v1.16.2"
) -> str:
    """Compare every field of a backup's status with what is true; return the snapshot's id."""
    pvb = scene.read(name)
    status = pvb["status"]
    size = count(volume.path)[1]
    snapshot = status["snapshotID"]
    assert re.fullmatch("[0-9a-f]{64}", snapshot)
    assert began - 1 <= time_of(status["startTimestamp"]) <= time_of(status["completionTimestamp"])
    full = {
        "phase": "Completed",
        "path": str(volume.path),
        "snapshotID": snapshot,
        "progress": {"totalBytes": size, "bytesDone": size},
        "incrementalBytes": size,
        "startTimestamp": status["startTimestamp"],
        "acceptedTimestamp": status["startTimestamp"],
        "completionTimestamp": status["completionTimestamp"],
    }
    assert status == kind(version, "podvolumebackups").kept("status", full)
    owner = json.loads(pvb["metadata"]["annotations"]["podlift.io/owner"])
    assert owner["node"] == scene.node
    assert owner["attempt"]
    assert not pvb["metadata"].get("finalizers")
    return str(snapshot)


def snapshots(scene: Scene, restic: Restic) -> dict[str, Json]:
    found = json.loads(scene.restic(restic, "snapshots", "--json"))
    return {snapshot["id"]: snapshot for snapshot in found}


def assert_restorable(
    scene: Scene, restics: Sequence[Restic], snapshot: str, volume: Volume, prefix: str = ""
) -> None:
    """Let each restic read every byte, restore the snapshot, and compare."""
    for number, restic in enumerate(restics):
        scene.restic(restic, "check", "--read-data", prefix=prefix)
        target = scene.directory / f"restored-{snapshot[:8]}-{number}"
        scene.restic(restic, "restore", snapshot, "--target", str(target), prefix=prefix)
        assert list(differences(volume.path, target)) == []


def now() -> float:
    return datetime.now(UTC).timestamp()


class TestTheWholePath:
    @pytest.mark.parametrize("status_subresource", [False, True], ids=["plain", "status"])
    def test_a_backup_completes_with_every_field_right_and_restic_restores_it(
        self, scene: Scene, restics: list[Restic], status_subresource: bool
    ) -> None:
        scene.server.apply_velero_crds("v1.16.2", status_subresource)
        if status_subresource:
            scene.location("default")  # other definitions delete every Velero object
        volume = scene.volume()
        make(volume.path, 3)
        began = now()
        with scene.agent() as agent:
            name = scene.backup(volume)
            scene.completed(name, agent)
        snapshot = assert_complete(scene, name, volume, began)
        tags = {f"{k}={v}" for k, v in scene.read(name)["spec"]["tags"].items()}
        assert f"pvc-uid={volume.claim_uid}" in tags
        for restic in restics:
            found = snapshots(scene, restic)[snapshot]
            assert found["hostname"] == "velero"
            assert found["paths"] == [str(volume.path)]
            assert set(found["tags"]) == tags
        assert_restorable(scene, restics, snapshot, volume)

    @on_the_real_one
    @pytest.mark.parametrize("version", VERSIONS)
    def test_with_the_definitions_of_each_release_a_volume_is_stored_and_given_back(
        self, api_server: ApiServer, s3_server: S3Server, tmp_path: Path, version: str
    ) -> None:
        """What agents do over each of them otherwise is in ``tests/cluster/test_versions``."""
        api_server.apply_velero_crds(version)
        scene = Scene(api_server, s3_server, tmp_path / "scene").with_repository()
        volume = scene.volume().fill(a=b"one")
        began = now()
        with scene.agent() as agent:
            name = scene.backup(volume)
            scene.completed(name, agent)
            snapshot = assert_complete(scene, name, volume, began, version)
            target = waiting_pod(scene)
            scene.completed(ask(scene, target, snapshot), agent)
        assert (target.path / "a").read_bytes() == b"one"
        assert (target.path / ".velero" / RESTORE_UID).is_file()

    @on_the_real_one
    def test_a_backup_that_is_to_be_full_reads_everything_again(
        self, api_server: ApiServer, s3_server: S3Server, tmp_path: Path
    ) -> None:
        api_server.apply_velero_crds("main")
        scene = Scene(api_server, s3_server, tmp_path / "scene")
        volume = scene.volume().fill(a=b"one", b=b"three")
        read = []
        with scene.agent() as agent:
            for wish in ("auto", "auto", "none", "auto"):
                name = scene.backup(volume, parentSnapshot=wish)
                read.append(scene.completed(name, agent)["incrementalBytes"])
        assert read == [8, 0, 8, 0]

    def test_an_s3_server_of_another_kind_takes_it_too(
        self, standin: ApiServer, moto_server: S3Server, tmp_path: Path, restics: list[Restic]
    ) -> None:
        scene = Scene(standin, moto_server, tmp_path / "scene")
        volume = scene.volume().fill(a=b"one")
        began = now()
        with scene.agent() as agent:
            name = scene.backup(volume)
            scene.completed(name, agent)
        assert_restorable(scene, restics, assert_complete(scene, name, volume, began), volume)

    def test_every_kind_of_volume_is_found(self, scene: Scene, restics: list[Restic]) -> None:
        kinds = ["csi", "plain", "inline", "emptyDir"]
        if scene.server.kind == "standin":
            kinds.append("ephemeral")  # kube-apiserver 1.20 drops it
        volumes = {kind: scene.volume(kind).fill(**{f"in-{kind}": b"x"}) for kind in kinds}
        began = now()
        with scene.agent("--concurrency", "2") as agent:
            names = {kind: scene.backup(volume) for kind, volume in volumes.items()}
            for name in names.values():
                scene.completed(name, agent)
        expected = {
            assert_complete(scene, name, volumes[kind], began): [f"/in-{kind}"]
            for kind, name in names.items()
        }
        for restic in restics:
            found = json.loads(scene.restic(restic, "find", "--json", "in-*"))
            assert {f["snapshot"]: [m["path"] for m in f["matches"]] for f in found} == expected

    def test_progress_is_seen_before_the_end_and_never_goes_back(
        self, api_server: ApiServer, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
    ) -> None:
        api_server.apply_velero_crds()
        scene = Scene(api_server, s3_server, tmp_path / "scene", proxy)
        proxy.add(reply(503, "SlowDown"), "PUT", "/data/", times=4)
        volume = scene.volume().fill(**{f"f{n}": secrets.token_bytes(4 << 20) for n in range(8)})
        with scene.agent() as agent:
            path = api_server.path("podvolumebackups")
            version = api_server.list(path)["metadata"]["resourceVersion"]
            with api_server.watch(path, timeout_seconds=60, resourceVersion=version) as watch:
                name = scene.backup(volume)
                seen: list[Json] = []
                while not seen or seen[-1].get("phase") != "Completed":
                    seen.append(watch.events(1)[0]["object"].get("status") or {})
                    assert seen[-1].get("phase") != "Failed", seen[-1]
            scene.completed(name, agent)
        running = [
            s["progress"] for s in seen if s.get("phase") == "InProgress" and "progress" in s
        ]
        done = [progress["bytesDone"] for progress in running]
        assert any(done), seen
        assert done == sorted(done)
        assert all(p["bytesDone"] <= p["totalBytes"] <= 32 << 20 for p in running)

    @on_the_real_one
    def test_the_next_backup_of_a_claim_has_the_last_as_parent_in_a_new_pod_too(
        self, scene: Scene, restics: list[Restic]
    ) -> None:
        first = scene.volume().fill(same=secrets.token_bytes(300_000), changing=b"before")
        other = scene.volume().fill(same=b"of another claim")
        with scene.agent() as agent:
            one = scene.completed(scene.backup(first), agent)["snapshotID"]
            scene.completed(scene.backup(other), agent)
            claim = first.pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
            scene.server.delete(
                scene.server.path("pods", first.pod["metadata"]["name"]) + "?gracePeriodSeconds=0"
            )
            second = scene.volume(claim=claim)
            os.rename(first.path / "same", second.path / "same")  # the same inode, as on a volume
            second.fill(changing=b"after!")
            before = scene.objects(f"{scene.prefix}/data/")
            two = scene.completed(scene.backup(second), agent)["snapshotID"]
        for restic in restics:
            found = snapshots(scene, restic)
            assert found[two]["parent"] == one
            assert "parent" not in found[one]
        assert len(scene.objects(f"{scene.prefix}/data/").keys() - before.keys()) <= 2
        assert_restorable(scene, restics, two, second)


class TestPartialProblems:
    def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_stored(
        self, standin_scene: Scene, restics: list[Restic]
    ) -> None:
        scene = standin_scene
        volume = scene.volume().fill(good=b"good", other=b"fine", bad=b"somebody's secret")
        os.chmod(volume.path / "bad", 0)
        if os.geteuid() == 0:
            os.chown(volume.path / "bad", 1000, 1000)
        with scene.agent(wrapper=WITHOUT_OVERRIDE) as agent:
            status = scene.completed(scene.backup(volume), agent)
        advice = "root lacks a capability here" if os.geteuid() == 0 else "run podlift as root"
        assert status["message"].startswith(
            f"1 entry was left out: bad: permission denied; {advice}"
        )
        assert status["progress"]["bytesDone"] == status["progress"]["totalBytes"] == 8
        for restic in restics:
            listed = scene.restic(restic, "ls", status["snapshotID"]).split()
            assert "/good" in listed
            assert "/other" in listed
            assert "/bad" not in listed

    def test_a_volume_without_a_file_gets_a_snapshot_all_the_same(
        self, standin_scene: Scene, restics: list[Restic]
    ) -> None:
        volume = standin_scene.volume()
        began = now()
        with standin_scene.agent() as agent:
            name = standin_scene.backup(volume)
            standin_scene.completed(name, agent)
        snapshot = assert_complete(standin_scene, name, volume, began)
        for restic in restics:
            assert snapshot in snapshots(standin_scene, restic)
