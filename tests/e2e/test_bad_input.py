"""What cannot be backed up: each has its own message, and nothing is changed or lost.

One agent serves the whole module; it is asked for one impossible backup after the other. The
command line's own bad input is in ``tests/cli``.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from agent.cancel import CancelToken
from agent.cluster.assignment import Assignment, BackupAssignment, Movers
from agent.cluster.events import Events
from agent.cluster.mover import Means, move
from agent.cluster.order import Order, Owner
from agent.cluster.patches import Final
from agent.cluster.restorer import give_back
from agent.cluster.secrets import PrivateFiles
from agent.cluster.shutdown import Shutdown
from agent.cluster.status import Clock, StatusDesk
from agent.cluster.work import Bench, Result, Work
from agent.errors import ClusterError, RepositoryLocked
from agent.monitor import Monitor
from agent.repository.objects import fresh_iv
from agent.repository.opening import create_repository, open_repository
from agent.storage.contract import Storage
from agent.storage.opening import open_s3
from tests.e2e.scene import CHEAP, KEY, PASSWORD, WITHOUT_OVERRIDE, Agent, Scene, Volume
from tests.support.apihandle import Json
from tests.support.apiservers import standing
from tests.support.requirements import missing
from tests.support.s3servers import S3Server


@pytest.fixture(scope="module")
def scene(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("bad-input")
    with standing(directory) as standin:
        standin.apply_velero_crds()
        yield Scene(standin, s3_server, directory / "scene")


@pytest.fixture(scope="module")
def agent(scene: Scene) -> Iterator[Agent]:
    with scene.agent(wrapper=WITHOUT_OVERRIDE) as agent:
        yield agent


@pytest.fixture
def volume(scene: Scene) -> Volume:
    return scene.volume().fill(file=b"content")


class Refusal:
    """Asks for a backup that must fail, and looks whether the bucket has changed."""

    def __init__(self, scene: Scene, agent: Agent) -> None:
        self._scene = scene
        self._agent = agent

    def __call__(self, where: Volume, **changes: object) -> str:
        before = self._scene.objects()
        status = self._scene.ended(self._scene.backup(where, **changes), self._agent)
        assert status["phase"] == "Failed", status
        assert "snapshotID" not in status
        assert status["completionTimestamp"] >= status["startTimestamp"]
        assert self._scene.objects() == before
        message = status["message"]
        assert "Traceback" not in message
        assert "internal error" not in message
        return str(message)


@pytest.fixture
def refusal(scene: Scene, agent: Agent) -> Refusal:
    return Refusal(scene, agent)


@contextlib.contextmanager
def storage_at(scene: Scene, prefix: str) -> Iterator[Storage]:
    with contextlib.closing(open_s3(scene.settings(prefix))) as storage:
        yield storage


class TestTheRepository:
    def test_wrong_password(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        with storage_at(scene, "bad/password") as storage:
            create_repository(storage, "another password", cost=CHEAP)
        message = refusal(volume, repoIdentifier=scene.identifier_of("bad/password"))
        assert "the password opens none of the 1 keys" in message
        assert "velero-repo-credentials" in message

    def test_version_3(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        with storage_at(scene, "bad/version") as storage:
            create_repository(storage, PASSWORD, cost=CHEAP)
            repository = open_repository(storage, PASSWORD)
            config = b'{"version":3,"id":"%s","chunker_polynomial":"3abc9bff07d9e5"}' % (b"ab" * 32)
            storage.put("config", repository.objects.key.seal(fresh_iv(), config))
        message = refusal(volume, repoIdentifier=scene.identifier_of("bad/version"))
        assert "version 3" in message

    def test_damaged_config(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        with storage_at(scene, "bad/config") as storage:
            create_repository(storage, PASSWORD, cost=CHEAP)
            config = bytearray(storage.get("config"))
            config[40] ^= 1
            storage.put("config", config)
        message = refusal(volume, repoIdentifier=scene.identifier_of("bad/config"))
        assert "config is damaged" in message
        assert "restore it from a copy" in message

    def test_locked_until_it_is_not(self, scene: Scene, volume: Volume) -> None:
        """The agent would wait for half an hour, so the mover is called with less patience."""
        with storage_at(scene, "bad/locked") as storage:
            create_repository(storage, PASSWORD, cost=CHEAP)
            repository = open_repository(storage, PASSWORD)
            before = scene.objects()
            with repository.locked(exclusive=True), pytest.raises(RepositoryLocked) as refused:
                move(
                    _assignment(scene, volume), Monitor(), CancelToken(), Means(lock_wait_seconds=0)
                )
        assert "is locked: exclusive lock of" in str(refused.value)
        assert f"(pid {os.getpid()})" in str(refused.value)
        assert scene.objects() == before
        outcome = move(_assignment(scene, volume), Monitor(), CancelToken(), Means())
        assert f"bad/locked/snapshots/{outcome.snapshot_id}" in scene.objects()
        assert (outcome.size_bytes, outcome.problems, outcome.message) == (7, 0, "")


def _assignment(scene: Scene, volume: Volume) -> BackupAssignment:
    metadata = volume.pod["metadata"]
    return BackupAssignment(
        name="nightly-1",
        namespace=scene.server.namespace,
        uid="uid",
        volume_path=volume.path,
        location="default",
        storage=scene.settings("bad/locked"),
        repository=scene.identifier_of("bad/locked"),
        password=PASSWORD,
        tags={"volume": "data"},
        pvc_uid=volume.claim_uid,
        pod_namespace=metadata["namespace"],
        pod_name=metadata["name"],
        volume="data",
        reported_path=str(volume.path),
    )


class TestTheLocation:
    def test_no_bucket(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        scene.location("no-bucket", bucket="never-made")
        message = refusal(
            volume,
            backupStorageLocation="no-bucket",
            repoIdentifier=f"s3:{scene.s3_url}/never-made/velero/restic/app",
        )
        assert "never-made" in message
        assert "bucket" in message
        assert "does not exist" in message

    def test_no_permission(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        s3 = scene.s3
        if not s3.checks:
            missing("a ministack that checks", "pip install 'ministack>=1.5.33'")
        keys = f"aws_access_key_id={s3.weak_access_key}\naws_secret_access_key={s3.weak_secret_key}"
        scene.secret("weak", KEY, f"[default]\n{keys}\n")
        scene.location("weak", secret="weak")
        message = refusal(volume, backupStorageLocation="weak")
        assert "check the access key and its rights to this bucket and prefix" in message

    def test_no_location(self, volume: Volume, refusal: Refusal) -> None:
        message = refusal(volume, backupStorageLocation="nowhere")
        assert "BackupStorageLocation" in message
        assert "nowhere does not exist" in message

    def test_no_credentials(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        scene.location("no-secret", secret="gone")
        message = refusal(volume, backupStorageLocation="no-secret")
        assert "gone" in message
        assert "no-secret" in message

    @pytest.mark.parametrize(
        ("identifier", "words"),
        [
            ("s3:https://s3.evil.example.com/{bucket}/velero/x", "its credentials are not sent"),
            ("s3:{url}/another-bucket/velero/x", "its credentials are not sent"),
            ("s3:{url}/{bucket}", "has no prefix"),
            ("/host_pods/somewhere", "is not in S3"),
            ("gs:bucket:/path", "cannot be used"),
        ],
        ids=["endpoint", "bucket", "root", "directory", "service"],
    )
    def test_an_identifier_outside_of_the_location(
        self, scene: Scene, volume: Volume, refusal: Refusal, identifier: str, words: str
    ) -> None:
        named = identifier.format(url=scene.s3_url, bucket=scene.bucket)
        message = refusal(volume, repoIdentifier=named)
        assert "spec.repoIdentifier" in message
        assert words in message


class TestTheVolume:
    def test_missing_pod(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        gone = dict(volume.pod["metadata"], name="gone")
        message = refusal(Volume(volume.path, {"metadata": gone}, "data"))
        assert f"pod {scene.server.namespace}/gone does not exist" in message

    def test_another_pod_of_the_same_name(self, volume: Volume, refusal: Refusal) -> None:
        before = dict(volume.pod["metadata"], uid="uid-before")
        message = refusal(Volume(volume.path, {"metadata": before}, "data"))
        assert "has been replaced: the backup is for uid 'uid-before'" in message

    def test_missing_volume(self, volume: Volume, refusal: Refusal) -> None:
        assert "has no volume 'other'" in refusal(volume, volume="other")

    def test_volume_that_is_not_mounted(self, volume: Volume, refusal: Refusal) -> None:
        shutil.rmtree(volume.path)
        assert "the volume is not mounted on this node" in refusal(volume)

    def test_two_matching_directories(self, scene: Scene, refusal: Refusal) -> None:
        volume = scene.volume("emptyDir")
        twin = volume.path.parents[1] / "other-plugin" / volume.path.name
        twin.mkdir(parents=True)
        message = refusal(volume)
        assert "expected one directory" in message
        assert str(twin) in message

    def test_root_that_cannot_be_read(self, volume: Volume, refusal: Refusal) -> None:
        os.chmod(volume.path, 0)
        if os.geteuid() == 0:
            os.chown(volume.path, 1000, 1000)
        message = refusal(volume)
        os.chmod(volume.path, 0o700)
        assert f"volume {volume.path} cannot be opened: permission denied" in message


class TestTheObject:
    def test_without_the_pods_uid(self, scene: Scene, volume: Volume, refusal: Refusal) -> None:
        pod: Json = {"kind": "Pod", "name": "x", "namespace": scene.server.namespace}
        message = refusal(volume, pod=pod)
        assert "the PodVolumeBackup is malformed: spec.pod.uid missing" in message

    def test_with_names_that_are_none(self, volume: Volume, refusal: Refusal) -> None:
        pod = {"kind": "Pod", "name": "../secrets/x", "namespace": "a/b", "uid": "u"}
        assert "is not a Kubernetes name" in refusal(volume, pod=pod)


class TestTheUploaderType:
    def test_one_that_is_not_taken_fails_at_once_naming_the_setting(
        self, volume: Volume, refusal: Refusal
    ) -> None:
        message = refusal(volume, uploaderType="kopia")
        assert "uploader type kopia is not taken" in message
        assert "--uploader-types" in message

    def test_or_is_left_alone_or_is_taken_as_told(
        self, standin_scene: Scene, tmp_path: Path
    ) -> None:
        scene = standin_scene
        volume = scene.volume().fill(file=b"content")
        with scene.agent("--other-uploader-types", "ignore") as agent:
            ignored = scene.backup(volume, uploaderType="kopia", repoIdentifier="")
            scene.completed(scene.backup(volume), agent)  # the older one would have been first
            assert "phase" not in scene.status(ignored)
        with scene.agent("--uploader-types", "restic,kopia") as agent:
            status = scene.completed(ignored, agent)
        assert status["snapshotID"] in "".join(scene.objects(f"{scene.prefix}/snapshots/"))


async def test_many_backups_may_write_one_locations_files_at_once(
    tmp_path: Path, s3_server: S3Server
) -> None:
    files = PrivateFiles(tmp_path / "private")
    pem = s3_server.ca.read_bytes()
    async with asyncio.TaskGroup() as tasks:
        bundles = [tasks.create_task(files.ca_bundle(pem)) for _ in range(50)]
        written = [tasks.create_task(files.write(b"keys", ".credentials")) for _ in range(50)]
    assert len({bundle.result() for bundle in bundles}) == 1
    assert len({path.result() for path in written}) == 1
    assert len(list((tmp_path / "private").iterdir())) == 3


async def test_no_room_for_credentials_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"credentials cannot be kept in .*writable /tmp"):
        await PrivateFiles(tmp_path / "file" / "private").write(b"keys", ".credentials")


class _Desk:
    """Remembers the final state instead of writing it."""

    def __init__(self) -> None:
        self.ends: list[Final] = []

    async def finish(self, _pvb: Order, end: Final, ending: Shutdown) -> bool:
        assert not ending.over
        self.ends.append(end)
        return True


async def test_a_bug_before_the_first_byte_fails_its_own_backup_only() -> None:
    """An error that escaped here would end the agent and everything it works on."""

    async def broken(_pvb: Order) -> Assignment:
        raise FileNotFoundError("a bug")

    desk, clock = _Desk(), Clock()
    bench = Bench(
        desk=cast(StatusDesk, desk),
        events=Events(cast(Any, None), Owner(), clock),
        us=Owner(),
        prepare=broken,
        refresh=cast(Any, None),
        movers=Movers(partial(move, means=Means()), partial(give_back, means=Means())),
        look_up=cast(Any, None),
        owner_alive=cast(Any, None),
        clock=clock,
        shutdown=Shutdown(clock, 1.0),
    )
    assert await Work(Order(name="nightly-1"), bench).run() is Result.FAILED
    (end,) = desk.ends
    assert end.phase == "Failed"
    assert "internal error FileNotFoundError: a bug; report this" in end.message
