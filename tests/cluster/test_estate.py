"""Who needs what, read from a cluster and a bucket in memory: the order, the union, the refusals."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from agent.cancel import NEVER
from agent.cluster.estate import Estate
from agent.cluster.location import read_location
from agent.errors import AccessDenied, ClusterError, ObjectMissing
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.cluster.test_location import location
from tests.cluster.test_record import ID, item

URL = "https://s3.example.org"
OTHER = "ef" * 32


class Scene:
    """A location ``bucket/velero`` with what a test puts into it."""

    def __init__(self) -> None:
        self.bucket = MemoryStorage("bucket/velero")
        self.objects: list[dict[str, Any]] = []
        self.storage = Faulty(self.bucket)
        storage = {"bucket": "bucket", "prefix": "velero"}
        self.place = read_location("default", location({"s3Url": URL}, objectStorage=storage))

    def record(self, backup: str, *items: dict[str, Any]) -> None:
        body = gzip.compress(json.dumps(list(items) or None).encode())
        self.bucket.put(f"backups/{backup}/{backup}-podvolumebackups.json.gz", body)
        self.bucket.put(f"backups/{backup}/velero-backup.json", b"{}")

    def list_objects(self) -> list[bytes]:
        return [json.dumps(one).encode() for one in self.objects]

    def estate(
        self, *without: str, list_objects: Callable[[], list[bytes]] | None = None
    ) -> Estate:
        return Estate(self.place, self.storage, list_objects or self.list_objects, without)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_needs_are_those_of_the_bucket_and_of_the_cluster(scene: Scene) -> None:
    scene.record("monday", item())
    scene.record("no-volumes")
    scene.objects = [item(OTHER), item(None, "InProgress")]
    needs = scene.estate().needs(NEVER)
    assert {name.id for name in needs.named} == {ID, OTHER}
    assert needs.backups == {"monday", "no-volumes"}
    assert [work.tags for work in needs.pending] == [{"backup-uid=u1"}]
    assert {name.id for name in needs.expected("velero/restic/app")} == {ID, OTHER}


def test_the_cluster_is_asked_before_the_bucket(scene: Scene) -> None:
    def cluster_first() -> list[bytes]:
        assert scene.storage.calls == []
        scene.record("just-now", item())  # Velero writes its record while we look
        return []

    needs = scene.estate(list_objects=cluster_first).needs(NEVER)
    assert needs.who(ID, ())


def test_what_was_read_once_is_not_fetched_again_and_stays_needed(scene: Scene) -> None:
    scene.record("monday", item())
    estate = scene.estate()
    estate.needs(NEVER)
    scene.record("tuesday", item(OTHER))
    estate.needs(NEVER)
    gets = [key for operation, key in scene.storage.calls if operation == "get"]
    assert [key.split("/")[1] for key in gets] == ["monday", "tuesday"]
    for key, _ in list(scene.bucket.list("backups/monday/")):
        scene.bucket.delete(key)
    assert estate.needs(NEVER).who(ID, ())


def test_unfinished_backups_are_named_and_need_nothing_by_themselves(scene: Scene) -> None:
    scene.record("monday", item())
    scene.bucket.put("backups/now/now-logs.gz", b"")
    estate = scene.estate()
    assert estate.needs(NEVER).backups == {"monday"}
    assert estate.unfinished == ("now",)


def test_a_doubtful_backup_is_refused_by_name_unless_it_is_known(scene: Scene) -> None:
    scene.bucket.put("backups/ancient/velero-backup.json", b"{}")
    scene.bucket.put("backups/older/older.tar.gz", b"")
    with pytest.raises(ClusterError, match=r"backup ancient in .* \(2 backups are like that\)"):
        scene.estate().needs(NEVER)
    with pytest.raises(ClusterError, match="--without-volumes older"):
        scene.estate("ancient").needs(NEVER)
    assert scene.estate("ancient", "older").needs(NEVER).backups == set()


@pytest.mark.parametrize(
    ("operation", "key", "error"),
    [
        ("list", "backups/", AccessDenied("denied")),
        ("get", "*.json.gz", AccessDenied("denied")),
        ("get", "*.json.gz", ObjectMissing("gone since it was listed")),
    ],
)
def test_what_cannot_be_read_is_refused(
    scene: Scene, operation: Any, key: str, error: Exception
) -> None:
    scene.record("monday", item())
    scene.storage.faults.append(Fault(operation, failing(error), key))
    with pytest.raises(ClusterError, match="what is needed is unknown; nothing is removed"):
        scene.estate().needs(NEVER)


def test_an_object_of_the_cluster_that_is_not_understood_is_refused(scene: Scene) -> None:
    scene.objects = [{"metadata": {"name": "x"}, "spec": {}}]
    with pytest.raises(ClusterError, match="a PodVolumeBackup of the cluster cannot be read"):
        scene.estate().needs(NEVER)


class TestRepositories:
    def test_the_location_s_own_are_found_in_the_bucket(self, scene: Scene) -> None:
        for key in (
            "restic/app/config",
            "restic/app/data/00/x",
            "restic/web/config",
            "kopia/app/x",
        ):
            scene.bucket.put(key, b"")
        scene.bucket.put("restic/no-repository/data/00/x", b"")
        assert scene.estate().repositories(NEVER) == ["velero/restic/app", "velero/restic/web"]

    def test_a_location_without_a_prefix_has_them_at_the_top(self, scene: Scene) -> None:
        scene.place = read_location(
            "default", location({"s3Url": URL}, objectStorage={"prefix": ""})
        )
        scene.bucket.put("restic/app/config", b"")
        assert scene.estate().repositories(NEVER) == ["restic/app"]

    def test_a_listing_that_fails_is_refused(self, scene: Scene) -> None:
        scene.storage.faults.append(Fault("folders", failing(AccessDenied("denied"))))
        with pytest.raises(ClusterError, match="cannot be listed"):
            scene.estate().repositories(NEVER)

    def test_those_elsewhere_are_told_apart(self, scene: Scene) -> None:
        scene.record(
            "monday",
            item(),
            item(repoIdentifier=f"s3:{URL}/bucket/shared/app"),
            item(repoIdentifier="s3:https://old.example.org/bucket/velero/restic/app"),
            item("ab" * 16, uploaderType="kopia", repoIdentifier=""),
        )
        estate = scene.estate()
        estate.needs(NEVER)
        assert estate.elsewhere() == ["shared/app"]
        assert estate.out_of_reach() == ["s3:https://old.example.org/bucket/velero/restic/app"]
