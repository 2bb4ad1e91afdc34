from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cluster import hostpath
from agent.cluster.hostpath import Claimed, Plain
from agent.cluster.objects import Claim, PersistentVolume, Pod
from agent.errors import ClusterError

UID = "3e2c8c1a-0000-4000-8000-000000000001"


def pod(*volumes: dict[str, Any], **metadata: Any) -> Pod:
    return msgspec.convert(
        {
            "metadata": {"name": "db-0", "namespace": "app", "uid": UID, **metadata},
            "spec": {"nodeName": "n1", "volumes": list(volumes)},
        },
        Pod,
    )


def claim(volume: str = "pv-1", **metadata: Any) -> Claim:
    return msgspec.convert(
        {
            "metadata": {"name": "c", "namespace": "app", "uid": "claim-uid", **metadata},
            "spec": {"volumeName": volume},
        },
        Claim,
    )


def persistent(name: str = "pv-1", annotations: Any = None, **spec: Any) -> PersistentVolume:
    body = {"metadata": {"name": name, "annotations": annotations}, "spec": spec}
    return msgspec.convert(body, PersistentVolume)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ({"name": "data", "emptyDir": {}}, Plain("data")),
        ({"name": "data", "csi": {"driver": "d"}}, Plain("data/mount")),
        ({"name": "data", "persistentVolumeClaim": {"claimName": "c"}}, Claimed("c")),
        ({"name": "data", "ephemeral": {"volumeClaimTemplate": {}}}, Claimed("db-0-data", UID)),
    ],
)
def test_the_source_of_a_volume_decides_what_is_fetched(
    volume: dict[str, Any], expected: Plain | Claimed
) -> None:
    assert hostpath.source(pod({"name": "other"}, volume), "data") == expected


@pytest.mark.parametrize(
    ("volume", "drivers", "directory"),
    [
        (persistent(), [], "pv-1"),
        (persistent(csi={"driver": "d"}), [], "pv-1/mount"),
        (persistent(csi={"driver": "d"}, volumeMode="Filesystem"), [], "pv-1/mount"),
        (persistent(annotations={hostpath.MIGRATED_TO: "ebs"}), ["ebs"], "pv-1/mount"),
        (persistent(annotations={hostpath.PROVISIONED_BY: "ebs"}), ["ebs"], "pv-1/mount"),
        (persistent(annotations={hostpath.PROVISIONED_BY: "nfs"}), ["ebs"], "pv-1"),
        (persistent(claimRef={"uid": "claim-uid"}), [], "pv-1"),
    ],
)
def test_the_directory_of_a_claimed_volume_is_veleros(
    volume: PersistentVolume, drivers: list[str], directory: str
) -> None:
    assert hostpath.claimed_directory(volume, claim(), drivers) == directory


def test_drivers_are_asked_for_only_when_they_can_matter() -> None:
    notes = {hostpath.MIGRATED_TO: "ebs"}
    assert hostpath.csi_driver_names(persistent(annotations=notes)) == {"ebs"}
    assert not hostpath.csi_driver_names(persistent(annotations=notes, csi={"driver": "d"}))
    assert not hostpath.csi_driver_names(persistent())


def test_a_block_volume_is_refused() -> None:
    with pytest.raises(ClusterError, match="block device"):
        hostpath.claimed_directory(persistent(volumeMode="Block", csi={}), claim(), [])


def test_a_volume_that_is_bound_to_another_claim_is_refused() -> None:
    with pytest.raises(ClusterError, match="bound to another claim"):
        hostpath.claimed_directory(persistent(claimRef={"uid": "else"}), claim(), [])


def test_a_claim_that_is_not_bound_is_refused() -> None:
    with pytest.raises(ClusterError, match="not bound"):
        hostpath.check_claim(claim(volume=""), Claimed("c"))


def test_an_ephemeral_volumes_claim_must_belong_to_the_pod() -> None:
    wanted = Claimed("c", UID)
    with pytest.raises(ClusterError, match="does not belong to the pod"):
        hostpath.check_claim(claim(), wanted)
    owned = claim(ownerReferences=[{"uid": UID, "controller": True}])
    assert hostpath.check_claim(owned, wanted) == "pv-1"


def test_a_missing_volume_and_a_host_path_are_refused() -> None:
    with pytest.raises(ClusterError, match="has no volume 'data'"):
        hostpath.source(pod(), "data")
    with pytest.raises(ClusterError, match="hostPath"):
        hostpath.source(pod({"name": "data", "hostPath": {"path": "/"}}), "data")


def test_the_pod_must_be_the_one_that_was_meant_and_here() -> None:
    hostpath.check_pod(pod(), UID, "n1", "backup")
    with pytest.raises(ClusterError, match="has been replaced"):
        hostpath.check_pod(pod(), "another-uid", "n1", "backup")
    with pytest.raises(ClusterError, match="runs on node 'n1'"):
        hostpath.check_pod(pod(), UID, "n2", "backup")


def test_a_static_pods_directory_is_its_mirror_hash() -> None:
    assert hostpath.pod_directory(pod()) == UID
    mirror = pod(annotations={hostpath.MIRROR: "c0ffee"})
    assert hostpath.pod_directory(mirror) == "c0ffee"


@pytest.mark.parametrize("name", ["..", "a/b", "*", "a..b", "", "[ab]", "x?", "a\x00b", ".hidden"])
def test_a_name_that_could_lead_elsewhere_never_joins_a_path(name: str) -> None:
    with pytest.raises(ClusterError, match="cannot be a directory's name"):
        hostpath.source(pod({"name": name, "emptyDir": {}}), name)
    with pytest.raises(ClusterError, match="cannot be a directory's name"):
        hostpath.claimed_directory(persistent(name), claim(), [])
    with pytest.raises(ClusterError):
        hostpath.pod_directory(pod(annotations={hostpath.MIRROR: name or "/"}))


def make(host_pods: Path, *directories: str) -> None:
    for directory in directories:
        (host_pods / UID / "volumes" / directory).mkdir(parents=True)


def test_the_one_matching_directory_is_found(tmp_path: Path) -> None:
    make(tmp_path, "kubernetes.io~csi/pv-1/mount", "kubernetes.io~empty-dir/data")
    found = hostpath.find(tmp_path, UID, "pv-1/mount")
    assert found == tmp_path / UID / "volumes/kubernetes.io~csi/pv-1/mount"


def test_no_match_and_two_matches_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="not mounted on this node"):
        hostpath.find(tmp_path, UID, "data")
    make(tmp_path, "a/data", "b/data")
    with pytest.raises(ClusterError, match=r"expected one directory .* there are 2"):
        hostpath.find(tmp_path, UID, "data")
    with pytest.raises(ClusterError, match="not mounted on this node"):
        hostpath.find(tmp_path, UID, "pv")


def test_a_missing_pods_directory_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="mount the kubelet's pods directory"):
        hostpath.find(tmp_path / "none", UID, "data")


def test_symlinks_above_the_volume_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/data/mount", "plugin/pv-1")
    volumes = tmp_path / UID / "volumes"
    (volumes / "linked").symlink_to(volumes / "real")
    (volumes / "plugin" / "pv-2").symlink_to(volumes / "real" / "data")
    (volumes / "plugin" / "pv-1" / "mount").symlink_to("/")
    assert hostpath.find(tmp_path, UID, "data/mount") == volumes / "real/data/mount"
    for directory in ("pv-1/mount", "pv-2/mount", "pv-2"):
        with pytest.raises(ClusterError, match="not mounted"):
            hostpath.find(tmp_path, UID, directory)
