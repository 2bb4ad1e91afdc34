"""What people wish of a backup by annotations, from their objects to what restic finds."""

import os
import random
import secrets

import pytest

from agent.cluster.wishes import MOST_CHARACTERS
from tests.e2e.scene import WITHOUT_OVERRIDE, Scene, Volume
from tests.support.apihandle import Json
from tests.support.restic import Restic


def annotate(scene: Scene, plural: str, name: str, **annotations: str) -> None:
    """Write annotations of ours; an underscore stands for a hyphen."""
    ours = {f"podlift.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    scene.server.patch(scene.server.path(plural, name), {"metadata": {"annotations": ours}})


def on_pod(scene: Scene, volume: Volume, **annotations: str) -> None:
    annotate(scene, "pods", volume.pod["metadata"]["name"], **annotations)


def on_claim(scene: Scene, volume: Volume, **annotations: str) -> None:
    source = volume.pod["spec"]["volumes"][0]["persistentVolumeClaim"]
    annotate(scene, "persistentvolumeclaims", source["claimName"], **annotations)


def backup_with(scene: Scene, volume: Volume, **annotations: str) -> str:
    """Create a backup that bears annotations from the first moment, and return its name."""
    create = scene.server.create

    def annotated(path: str, obj: Json) -> Json:
        ours = {f"podlift.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
        before = obj["metadata"].get("annotations", {})
        return create(path, {**obj, "metadata": {**obj["metadata"], "annotations": before | ours}})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene.server, "create", annotated)
        return scene.backup(volume)


def files(scene: Scene, restic: Restic, status: Json) -> set[str]:
    """Return the paths of a snapshot."""
    listed = scene.restic(restic, "ls", status["snapshotID"]).split()
    return {path for path in listed if path.startswith("/")}


class TestExcludes:
    def test_of_claim_pod_and_backup_are_added_together_and_may_change(
        self, scene: Scene, restics: list[Restic]
    ) -> None:
        names = ("keep", "a.tmp", "b.log", "c.bak", "with,comma")
        volume = scene.volume().fill(**{name: secrets.token_bytes(9000) for name in names})
        (volume.path / "cache").mkdir()
        (volume.path / "cache/deep").write_bytes(b"x")
        on_claim(scene, volume, exclude="*.tmp\n/cache/*")
        on_pod(scene, volume, exclude="*.log, with\\,comma")
        with scene.agent() as agent:
            one = scene.completed(backup_with(scene, volume, exclude="*.bak"), agent)
            two = scene.completed(scene.backup(volume), agent)
            on_claim(scene, volume, exclude="")
            three = scene.completed(scene.backup(volume), agent)
            on_claim(scene, volume, exclude="cache/")
            four = scene.completed(scene.backup(volume), agent)
        rest = {"/keep", "/a.tmp", "/c.bak", "/cache", "/cache/deep"}
        for restic in restics:
            assert files(scene, restic, one) == {"/keep", "/cache"}
            assert files(scene, restic, two) == {"/keep", "/c.bak", "/cache"}
            assert files(scene, restic, three) == rest
            assert files(scene, restic, four) == rest - {"/cache", "/cache/deep"}
        assert [one.get("message"), two.get("message")] == [None, None]

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("*.log,[ab", "exclude pattern '[ab' opens a class that is not closed"),
            ("x" * (MOST_CHARACTERS + 1), "has more than 2048 characters"),
        ],
    )
    def test_that_are_none_fail_the_backup_at_once(
        self, standin_scene: Scene, value: str, why: str
    ) -> None:
        scene = standin_scene
        volume = scene.volume().fill(a=b"a")
        on_pod(scene, volume, exclude=value)
        before = scene.objects()
        with scene.agent() as agent:
            status = scene.ended(scene.backup(volume), agent)
        assert status["phase"] == "Failed"
        pod = volume.pod["metadata"]
        origin = f"annotation podlift.io/exclude of pod {pod['namespace']}/{pod['name']}"
        assert status["message"].startswith(f"data path backup failed: {origin}")
        assert why in status["message"]
        assert "snapshotID" not in status
        assert scene.objects() == before


class TestReadErrors:
    def test_fail_the_backup_where_that_is_wished_and_name_what_was_left_out(
        self, standin_scene: Scene
    ) -> None:
        scene = standin_scene
        names = {f"bad{number:02}": b"secret" for number in range(12)}
        volume = scene.volume().fill(good=b"good", **names)
        for name in names:
            os.chmod(volume.path / name, 0)
            if os.geteuid() == 0:
                os.chown(volume.path / name, 1000, 1000)
        on_claim(scene, volume, on_read_error="fail")
        with scene.agent(wrapper=WITHOUT_OVERRIDE) as agent:
            failed = scene.ended(scene.backup(volume), agent)
            passed = scene.completed(backup_with(scene, volume, on_read_error="warn"), agent)
            on_claim(scene, volume, exclude="bad*")
            whole = scene.completed(scene.backup(volume), agent)
        assert failed["phase"] == "Failed"
        assert "snapshotID" not in failed
        begun = "data path backup failed: 12 entries were left out, which podlift.io/on-read-error"
        assert failed["message"].startswith(begun)
        assert failed["message"].count("permission denied") == 10
        assert failed["message"].endswith("; and 2 more")
        assert passed["message"].startswith("12 entries were left out: bad")
        assert "message" not in whole


def log_of(seed: str) -> bytes:
    """Return 4 MB of text of which, wherever it is cut, ``better`` takes a fifth less than ``fastest``."""
    chance = random.Random(seed)
    lines = [chance.randbytes(chance.randrange(20, 80)).hex() for _ in range(5000)]
    return "\n".join(chance.choices(lines, k=40_000)).encode()


class TestOtherWishes:
    def test_compression_is_a_volumes_own(self, scene: Scene) -> None:
        sizes = {}
        with scene.agent() as agent:
            for wish in ("fastest", "better"):
                volume = scene.volume().fill(text=log_of(wish))
                on_pod(scene, volume, compression="default")
                on_claim(scene, volume, compression=wish)
                before = scene.sizes("data/")
                scene.completed(scene.backup(volume), agent)
                after = scene.sizes("data/")
                sizes[wish] = sum(after[key] for key in after.keys() - before.keys())
        assert sizes["better"] < sizes["fastest"] * 0.97

    def test_a_value_that_cannot_be_fails_the_backup_and_names_what_can(self, scene: Scene) -> None:
        volume = scene.volume().fill(a=b"a")
        on_claim(scene, volume, compression="zstd-19")
        with scene.agent() as agent:
            failed = scene.ended(scene.backup(volume), agent)
            on_claim(scene, volume, compression="better")
            scene.completed(scene.backup(volume), agent)
            settings = {"ParallelFilesUpload": "lots"}
            refused = scene.ended(scene.backup(volume, uploaderSettings=settings), agent)
            settings = {"ParallelFilesUpload": "10"}
            scene.completed(scene.backup(volume, uploaderSettings=settings), agent)
        assert failed["phase"] == refused["phase"] == "Failed"
        assert "must be fastest, default or better, not 'zstd-19'" in failed["message"]
        assert "annotation podlift.io/compression of PersistentVolumeClaim" in failed["message"]
        assert "ParallelFilesUpload of PodVolumeBackup" in refused["message"]

    def test_one_that_is_misspelt_is_named_and_the_backup_completes(self, scene: Scene) -> None:
        volume = scene.volume().fill(a=b"a")
        on_pod(scene, volume, exlude="*")
        with scene.agent() as agent:
            status = scene.completed(scene.backup(volume), agent)
            pod = volume.pod["metadata"]
            words = (
                f"annotation podlift.io/exlude of pod {pod['namespace']}/{pod['name']} is not known and"
                " was ignored; podlift.io/exclude may be meant"
            )
            assert status["message"] == words
            assert words in agent.log_text
