"""What happens to a backup when somebody stops it, and when several agents meet."""

import secrets
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.scene import Agent, Scene, Volume, until
from tests.e2e.test_backup import assert_restorable, snapshots
from tests.support.apihandle import ApiServer
from tests.support.faultproxy import FaultProxy, reply
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

STUCK = "velero/stuck"
FOREVER = 1 << 30
WITH_CANCEL = "v1.18.1"

on_the_standin = pytest.mark.parametrize("api_server", ["standin"], indirect=True)
on_the_real_one = pytest.mark.parametrize("api_server", ["kube-apiserver"], indirect=True)


@pytest.fixture
def stuck(api_server: ApiServer, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path) -> Scene:
    """Return a scene whose S3 takes no pack for the repository ``STUCK``."""
    api_server.apply_velero_crds(WITH_CANCEL)
    proxy.add(reply(503, "SlowDown"), "PUT", f"/{STUCK}/data/", times=FOREVER)
    return Scene(api_server, s3_server, tmp_path / "scene", proxy).with_repository(STUCK)


def start(scene: Scene, agent: Agent) -> tuple[str, Volume]:
    """Start a backup that cannot end by itself, and wait until it is under way."""
    volume = scene.volume().fill(large=secrets.token_bytes(20 << 20))
    name = scene.backup(volume, repoIdentifier=scene.identifier_of(STUCK))
    scene.under_way(name, agent)
    assert scene.objects(f"{STUCK}/locks/")
    return name, volume


def assert_nothing_left(scene: Scene) -> None:
    """A backup that did not end leaves no lock and no snapshot."""
    assert not scene.objects(f"{STUCK}/locks/")
    assert not scene.objects(f"{STUCK}/snapshots/")


class TestOneBackup:
    def test_cancel_ends_it_as_failed_and_gives_the_lock_back(self, stuck: Scene) -> None:
        with stuck.agent() as agent:
            name, _ = start(stuck, agent)
            stuck.server.patch(
                stuck.server.path("podvolumebackups", name), {"spec": {"cancel": True}}
            )
            status = stuck.ended(name, agent)
        assert status["phase"] == "Failed"
        assert status["message"] == "canceled: spec.cancel was set"
        assert "snapshotID" not in status
        assert status["completionTimestamp"] >= status["startTimestamp"]
        assert_nothing_left(stuck)

    @on_the_standin
    def test_a_deleted_one_is_stopped_and_the_agent_works_on(self, stuck: Scene) -> None:
        with stuck.agent() as agent:
            name, volume = start(stuck, agent)
            stuck.server.delete(stuck.server.path("podvolumebackups", name))
            until(lambda: "the PodVolumeBackup was deleted" in agent.log_text, "the stop")
            until(lambda: not stuck.objects(f"{STUCK}/locks/"), "the lock to be given back")
            stuck.completed(stuck.backup(volume), agent)
        assert_nothing_left(stuck)

    @on_the_real_one
    def test_sigterm_leaves_it_to_the_next_agent_and_ends_in_time(
        self, stuck: Scene, restics: list[Restic], proxy: FaultProxy
    ) -> None:
        with stuck.agent() as agent:
            name, volume = start(stuck, agent)
            began = time.monotonic()
            assert agent.end(signal.SIGTERM) == 0
            assert time.monotonic() - began < 40  # 25 of them are its grace
        left = stuck.status(name)
        assert left["phase"] == "InProgress"
        assert "message" not in left
        assert_nothing_left(stuck)
        proxy.clear()
        with stuck.agent() as agent:
            status = stuck.completed(name, agent)
        assert status["startTimestamp"] == left["startTimestamp"]
        assert_restorable(stuck, restics, status["snapshotID"], volume, STUCK)

    @on_the_standin
    def test_what_a_killed_agent_left_running_is_completed_by_the_next(
        self, stuck: Scene, restics: list[Restic], proxy: FaultProxy
    ) -> None:
        with stuck.agent() as agent:
            name, volume = start(stuck, agent)
            agent.end(signal.SIGKILL)
        assert stuck.status(name)["phase"] == "InProgress"
        assert stuck.objects(f"{STUCK}/locks/")
        proxy.clear()
        with stuck.agent() as agent:
            status = stuck.completed(name, agent)
            assert "claimed again" in agent.log_text
        assert not stuck.objects(f"{STUCK}/locks/")
        assert_restorable(stuck, restics, status["snapshotID"], volume, STUCK)


class TestSeveralAgents:
    @on_the_real_one
    def test_two_nodes_make_one_repository_at_the_same_moment(
        self, new_scene: Scene, restics: list[Restic]
    ) -> None:
        scene = new_scene
        nodes = [scene.node, f"other-{scene.node}"]
        volumes = [scene.volume(node=n).fill(mine=secrets.token_bytes(100_000)) for n in nodes]
        names = [scene.backup(v, node=n) for v, n in zip(volumes, nodes, strict=True)]
        with scene.agent(node=nodes[0]) as one, scene.agent(node=nodes[1]) as two:
            first = scene.completed(names[0], one)["snapshotID"]
            second = scene.completed(names[1], two)["snapshotID"]
        places = Counter(
            key.removeprefix(f"{scene.prefix}/").split("/")[0]
            for key in scene.objects(scene.prefix)
        )
        assert places["config"] == places["keys"] == 1
        assert places["snapshots"] == 2
        assert places["locks"] == 0
        assert_restorable(scene, restics, first, volumes[0])
        assert_restorable(scene, restics, second, volumes[1])

    @on_the_real_one
    def test_two_agents_of_one_node_share_thirty_backups_without_a_double_claim(
        self, scene: Scene, restics: list[Restic]
    ) -> None:
        volume = scene.volume().fill(small=b"content")
        pods = [scene.pod({"emptyDir": {}}) for _ in range(2)]
        with (
            scene.agent("--concurrency", "3", pod=pods[0]) as one,
            scene.agent("--concurrency", "3", pod=pods[1]) as two,
        ):
            names = [scene.backup(volume) for _ in range(30)]
            ids = {scene.completed(name, one)["snapshotID"] for name in names}
            claims = Counter(
                line.split(": ")[0].split()[-1]
                for agent in (one, two)
                for line in agent.log_text.splitlines()
                if line.endswith(": claimed")
            )
        assert claims == dict.fromkeys(names, 1)
        for restic in restics:
            assert snapshots(scene, restic).keys() == ids
        assert len(ids) == 30
