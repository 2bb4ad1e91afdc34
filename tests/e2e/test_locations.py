"""A location with a customer's key, tags and an authority in a Secret: there and back again.

Whoever opens it has the key from the Secret that the location names: the agent, gc and check. The server
refuses every request without it, so nothing of these tests could pass by accident.
"""

import base64
import contextlib
import datetime
import secrets
from pathlib import Path
from typing import Any

import pytest

from agent.demo.compare import differences
from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import PASSWORD, Scene, Volume
from tests.e2e.test_check import check
from tests.e2e.test_gc import NOW, found, gc
from tests.e2e.velero import Velero
from tests.support.apiservers import StandinServer
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

KEY = b"SSE-C takes thirty-two bytes: it"
BY_KEY: dict[str, Any] = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": KEY}
TAGS = {"team": "data base", "cost-center": "4711"}


class KeyedVelero(Velero):
    """Writes with the key of the location, as Velero's plugin does."""

    def put(self, key: str, body: bytes) -> None:
        self.scene.s3.kept_client.put_object(
            Bucket=self.scene.bucket, Key=f"velero/one/{key}", Body=body, **BY_KEY
        )


@pytest.fixture
def scene(standin: StandinServer, checking_server: S3Server, tmp_path: Path) -> Scene:
    """Return a scene whose location has all of it; its repository is made by the agent."""
    standin.apply_velero_crds("v1.18.1")
    made = Scene(standin, checking_server, tmp_path / "scene")
    made.secret("sse", "customer-key", KEY.decode())
    made.secret("authorities", "ca.crt", checking_server.ca.read_text())
    change(
        made,
        objectStorage={"caCert": None, "caCertRef": {"name": "authorities", "key": "ca.crt"}},
        config={
            "customerKeyEncryptionSecret": "sse/customer-key",
            "tagging": "team=data%20base&cost-center=4711",
            "checksumAlgorithm": "CRC64NVME",
        },
    )
    return made


def change(scene: Scene, **spec: Any) -> None:
    path = scene.server.path("backupstoragelocations", "default")
    scene.server.patch(path, {"spec": spec})


def body_of(scene: Scene, key: str) -> bytes:
    """Return an object, which the server gives away for the key alone."""
    client = scene.s3.kept_client
    with pytest.raises(client.exceptions.ClientError, match="Server Side Encryption"):
        client.get_object(Bucket=scene.bucket, Key=key)
    body: bytes = client.get_object(Bucket=scene.bucket, Key=key, **BY_KEY)["Body"].read()
    return body


def tags_of(scene: Scene, key: str) -> dict[str, str]:
    tags = scene.s3.kept_client.get_object_tagging(Bucket=scene.bucket, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in tags}


def filled(scene: Scene) -> Volume:
    return scene.volume().fill(large=secrets.token_bytes(20 << 20), small=b"1", empty=b"")


def assert_given_back(source: Volume, target: Volume) -> None:
    (done,) = (target.path / ".velero").iterdir()
    done.unlink()
    done.parent.rmdir()
    assert list(differences(source.path, target.path)) == []


def files_with(folder: Path, secret: bytes) -> list[Path]:
    """Return the files in which a secret lies, in any of the forms that it is sent in."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            content = path.read_bytes() if path.is_file() else b""
            if secret in content or base64.b64encode(secret) in content:
                found.append(path)
    return found


def test_a_volume_goes_there_and_comes_back_and_nobody_reads_it_without_the_key(
    scene: Scene, restics: list[Restic], tmp_path: Path
) -> None:
    source = filled(scene)
    with scene.agent("--verify-stored", "all") as agent:
        snapshot = scene.completed(scene.backup(source), agent)["snapshotID"]
        (source.path / "small").write_bytes(b"2")
        again = scene.completed(scene.backup(source), agent)["snapshotID"]
        target = waiting_pod(scene)
        scene.completed(ask(scene, target, again), agent)
        assert_given_back(source, target)
        assert files_with(scene.directory, KEY) == []
    assert again != snapshot

    copied = tmp_path / "copied"
    for key in scene.objects():
        assert tags_of(scene, key) == TAGS
        file = copied / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body_of(scene, key))
    for restic in restics:
        repository = str(copied / scene.prefix)
        assert "no errors were found" in restic.run(
            repository, "check", "--read-data", "--no-lock", password=PASSWORD
        ).stdout  # fmt: skip
        given_back = tmp_path / f"by-restic-{restic.version}"
        restic.run(
            repository,
            "restore",
            again,
            "--no-lock",
            "--target",
            str(given_back),
            password=PASSWORD,
        )
        assert list(differences(source.path, given_back)) == []


def test_check_and_gc_have_the_key_as_well(scene: Scene) -> None:
    velero = KeyedVelero(scene)
    source = filled(scene)
    with scene.agent() as agent:
        names = [scene.backup(source, backup) for backup in ("monday", "tuesday")]
        snapshots = [scene.completed(name, agent)["snapshotID"] for name in names]
    for backup, name in zip(("monday", "tuesday"), names, strict=True):
        velero.finish(backup, name)
    done = check(scene, "--read-data")
    assert done.returncode == 0, done
    assert "is in order" in done.stdout

    velero.delete("monday", names[0])
    found(gc(scene, *NOW, "--apply", "--json"))
    left = {key.rpartition("/")[2] for key in scene.objects(f"{scene.prefix}/snapshots/")}
    assert left == {snapshots[1]}
    for key in scene.objects(scene.prefix):
        body_of(scene, key)


def test_a_location_without_its_key_says_so(scene: Scene) -> None:
    scene.server.delete(scene.server.path("secrets", "sse"))
    with scene.agent() as agent:
        status = scene.ended(scene.backup(filled(scene)), agent)
    assert status["phase"] == "Failed"
    name = f"Secret {scene.server.namespace}/sse"
    assert (
        f"{name}, the customer key of BackupStorageLocation default, does not exist"
        in (status["message"])
    )
    assert scene.objects() == {}


def test_what_was_stored_before_the_key_is_restored_and_continued(scene: Scene) -> None:
    source = filled(scene)
    change(scene, config={"customerKeyEncryptionSecret": None})
    with scene.agent() as agent:
        before = scene.completed(scene.backup(source), agent)["snapshotID"]
        old = set(scene.objects())
        change(scene, config={"customerKeyEncryptionSecret": "sse/customer-key"})
        (source.path / "new").write_bytes(secrets.token_bytes(100_000))
        after = scene.completed(scene.backup(source), agent)["snapshotID"]
        for snapshot in (before, after):
            target = waiting_pod(scene)
            scene.completed(ask(scene, target, snapshot), agent)
        assert_given_back(source, target)
    for name in scene.objects().keys() - old:
        body_of(scene, name)


def test_an_unavailable_location_takes_no_backup_until_the_word_is_old_and_gives_back(
    scene: Scene,
) -> None:
    source = filled(scene)
    path = scene.server.path("backupstoragelocations", "default")

    def say(age_seconds: int) -> None:
        moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_seconds)
        said = {"phase": "Unavailable", "message": "no such bucket"}
        said["lastValidationTime"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        scene.server.patch(path, {"status": said})

    with scene.agent() as agent:
        say(3600)
        snapshot = scene.completed(scene.backup(source), agent)["snapshotID"]
        say(1)
        refused = scene.ended(scene.backup(source), agent)
        assert refused["phase"] == "Failed"
        assert "default is unavailable to Velero's server (no such bucket)" in refused["message"]
        target = waiting_pod(scene)
        scene.completed(ask(scene, target, snapshot), agent)
        assert_given_back(source, target)
