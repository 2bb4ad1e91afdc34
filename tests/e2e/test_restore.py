"""The way back over the real parts: a PodVolumeRestore is created, its pod gets the volume."""

import os
import secrets
import shutil
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.compare import count, differences
from agent.demo.sample import make
from tests.e2e.restoring import HELPER, RUNNING, WAITING, ask, ended, helper, helper_is, waiting_pod
from tests.e2e.scene import DEADLINE_SECONDS, RESTORE_UID, Agent, Scene, Volume, until
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer
from tests.support.faultproxy import FaultProxy, reply
from tests.support.manifests import capabilities, confined, read_manifest
from tests.support.s3servers import S3Server

WITH_CANCEL = "v1.18.1"
FOREVER = 1 << 30
on_the_standin = pytest.mark.parametrize("api_server", ["standin"], indirect=True)
on_the_real_one = pytest.mark.parametrize("api_server", ["kube-apiserver"], indirect=True)


def as_deployed() -> tuple[str, ...]:
    """Return a wrapper that leaves an agent the capabilities of our manifest, and no other."""
    return confined(capabilities(read_manifest("daemonset.yaml")))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Return a directory that any user may enter, as a pod may enter its volumes."""
    with tempfile.TemporaryDirectory(prefix="podlift-restore-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def scene(
    api_server: ApiServer, s3_server: S3Server, proxy: FaultProxy, open_directory: Path
) -> Scene:
    api_server.apply_velero_crds(WITH_CANCEL)
    return Scene(api_server, s3_server, open_directory / "scene", proxy).with_repository()


def backed_up(scene: Scene, agent: Agent, source: Volume) -> str:
    return str(scene.completed(scene.backup(source), agent)["snapshotID"])


def assert_given_back(source: Volume, target: Volume) -> None:
    shutil.rmtree(target.path / ".velero", ignore_errors=True)
    assert list(differences(source.path, target.path)) == []


def done_file(target: Volume) -> Path:
    return target.path / ".velero" / RESTORE_UID


class TestTheHandshake:
    @pytest.mark.parametrize("status_subresource", [False, True], ids=["plain", "status"])
    def test_a_volume_of_every_kind_of_file_comes_back_and_the_pod_is_let_go(
        self, scene: Scene, status_subresource: bool
    ) -> None:
        scene.server.apply_velero_crds(WITH_CANCEL, status_subresource)
        if status_subresource:
            scene.location("default")  # other definitions delete every Velero object
        source = scene.volume()
        make(source.path, 3)
        with scene.agent(wrapper=as_deployed()) as agent:
            snapshot = backed_up(scene, agent, source)
            target = waiting_pod(scene)
            name = ask(scene, target, snapshot)
            status = scene.completed(name, agent)
            folder = done_file(target).parent
            assert stat.S_IMODE(folder.stat().st_mode) == 0o755
            assert stat.S_IMODE(done_file(target).stat().st_mode) == 0o644
            with helper(scene, [target]) as pod:
                assert pod.wait(DEADLINE_SECONDS) == 0
        size = count(source.path)[1]
        assert {k: v for k, v in status.items() if not k.endswith("Timestamp")} == {
            "phase": "Completed",
            "progress": {"totalBytes": size, "bytesDone": size},
        }
        assert status["startTimestamp"] <= status["completionTimestamp"]
        assert_given_back(source, target)
        assert not scene.objects(f"{scene.prefix}/locks/")

    @on_the_standin
    def test_the_pod_is_told_before_velero_is(self, scene: Scene, proxy: FaultProxy) -> None:
        """While no status can be stored, the helper sees already that the data are there."""
        assert isinstance(scene.server, StandinServer)
        source = scene.volume().fill(a=b"one")
        with scene.agent() as agent:
            snapshot = backed_up(scene, agent, source)
            target = waiting_pod(scene)
            with helper(scene, [target]) as pod:
                packs = f"{scene.prefix}/data/"
                proxy.add(reply(503, "SlowDown"), "GET", packs, times=FOREVER)
                name = ask(scene, target, snapshot)
                until(lambda: scene.status(name).get("phase"), "the claim", alive=agent)
                scene.server.faults.html_error(
                    500, FOREVER, method="PATCH", path="podvolumerestores"
                )
                proxy.clear()
                assert pod.wait(DEADLINE_SECONDS) == 0
                assert scene.status(name)["phase"] == "InProgress"
                helper_is(scene, target, ended(0), phase="Running")
                scene.server.faults.clear()
                assert scene.completed(name, agent)
        assert_given_back(source, target)

    def test_nothing_is_written_before_the_helper_runs_and_two_volumes_make_one_pod(
        self, scene: Scene
    ) -> None:
        source = scene.volume().fill(a=b"one", b=b"two")
        with scene.agent() as agent:
            snapshot = backed_up(scene, agent, source)
            target = scene.volume("emptyDir", helper="restic-wait")
            other = waiting_pod(scene)
            name = ask(scene, target, snapshot)
            until(lambda: f"{name}: waits: init container restic-wait" in agent.log_text, "a wait")
            helper_is(scene, target, WAITING)
            until(lambda: "does not run yet (PodInitializing)" in agent.log_text, "the reason")
            scene.completed(ask(scene, other, snapshot), agent)  # nobody waits for the first
            assert scene.status(name) == {}
            assert list(target.path.iterdir()) == []
            with helper(scene, [target, other]) as pod:
                assert pod.poll() is None
                helper_is(scene, target, RUNNING)
                scene.completed(name, agent)
                assert pod.wait(DEADLINE_SECONDS) == 0
        assert_given_back(source, target)
        assert_given_back(source, other)

    @on_the_standin
    def test_the_place_follows_from_the_location_and_what_was_there_already_stays(
        self, scene: Scene
    ) -> None:
        source = scene.volume().fill(a=b"one")
        with scene.agent() as agent:
            snapshot = backed_up(scene, agent, source)
            target = waiting_pod(scene).fill(a=b"old", mine=b"kept")
            (target.path / ".velero").symlink_to(source.path)
            changes = {"repoIdentifier": "", "uploaderType": "", "snapshotID": snapshot[:8]}
            scene.completed(ask(scene, target, snapshot, **changes), agent)
        assert done_file(target).is_file()
        assert not (target.path / ".velero").is_symlink()
        assert sorted(os.listdir(source.path)) == ["a"]
        assert (target.path / "a").read_bytes() == b"one"
        assert (target.path / "mine").read_bytes() == b"kept"

    @on_the_standin
    def test_a_location_that_is_read_only_is_restored_from_without_a_lock(
        self, scene: Scene, proxy: FaultProxy
    ) -> None:
        source = scene.volume().fill(a=b"one")
        with scene.agent() as agent:
            snapshot = backed_up(scene, agent, source)
            path = scene.server.path("backupstoragelocations", "default")
            scene.server.patch(path, {"spec": {"accessMode": "ReadOnly"}})
            proxy.add(reply(403, "AccessDenied"), "PUT", "/", times=FOREVER)
            target = waiting_pod(scene)
            scene.completed(ask(scene, target, snapshot), agent)
            assert "restored without a lock" in agent.log_text
            status = scene.ended(scene.backup(source), agent)
        assert "is read-only" in status["message"]
        assert_given_back(source, target)

    @on_the_standin
    def test_metadata_that_could_not_be_set_is_counted_and_named(self, scene: Scene) -> None:
        if os.geteuid() != 0:
            pytest.skip("left out: only root can give files away, and be kept from it")
        source = scene.volume().fill(mine=b"1", theirs=b"2")
        os.chown(source.path / "theirs", 1234, 1234)
        with scene.agent(wrapper=("setpriv", "--bounding-set=-chown")) as agent:
            snapshot = backed_up(scene, agent, source)
            target = waiting_pod(scene)
            status = scene.completed(ask(scene, target, snapshot), agent)
        assert status["message"].startswith("1 entry was not restored in full: theirs: owner 1234:")
        assert (target.path / "theirs").read_bytes() == b"2"
        assert done_file(target).is_file()


class TestInterruptions:
    @pytest.fixture
    def stuck(self, scene: Scene, proxy: FaultProxy) -> Iterator[tuple[Scene, Agent, str, Volume]]:
        """Yield a restore that is under way and cannot end, since S3 gives no more than two answers."""
        source = scene.volume().fill(
            **{f"f{number}": secrets.token_bytes(3 << 20) for number in range(12)}
        )
        with scene.agent() as agent:
            snapshot = backed_up(scene, agent, source)
            packs = f"{scene.prefix}/data/"
            proxy.add(reply(503, "SlowDown"), "GET", packs, times=FOREVER, skip=2)
            target = waiting_pod(scene)
            name = ask(scene, target, snapshot)
            until(lambda: scene.status(name).get("phase") == "InProgress", "the claim", alive=agent)
            until(lambda: scene.objects(f"{scene.prefix}/locks/"), "the lock", alive=agent)
            self.source = source
            yield scene, agent, name, target

    def test_cancel_ends_it_as_failed_and_the_pod_is_told_nothing(
        self, stuck: tuple[Scene, Agent, str, Volume]
    ) -> None:
        scene, agent, name, target = stuck
        scene.server.patch(scene.path_of(name), {"spec": {"cancel": True}})
        status = scene.ended(name, agent)
        assert (status["phase"], status["message"]) == ("Failed", "canceled: spec.cancel was set")
        assert not (target.path / ".velero").exists()
        assert not scene.objects(f"{scene.prefix}/locks/")

    @on_the_standin
    def test_a_pod_that_is_deleted_meanwhile_ends_it(
        self, stuck: tuple[Scene, Agent, str, Volume]
    ) -> None:
        scene, agent, name, target = stuck
        scene.server.delete(scene.server.path("pods", target.pod["metadata"]["name"]))
        status = scene.ended(name, agent)
        assert status["phase"] == "Failed"
        assert status["message"].startswith("canceled: pod ")
        assert "deleted" in status["message"]

    @on_the_standin
    def test_a_deleted_restore_is_stopped(self, stuck: tuple[Scene, Agent, str, Volume]) -> None:
        scene, agent, name, target = stuck
        scene.server.delete(scene.path_of(name))
        until(lambda: "the PodVolumeRestore was deleted" in agent.log_text, "the stop")
        until(lambda: not scene.objects(f"{scene.prefix}/locks/"), "the lock to be given back")
        assert not (target.path / ".velero").exists()

    @pytest.mark.parametrize(
        ("api_server", "number"),
        [("standin", signal.SIGTERM), ("kube-apiserver", signal.SIGKILL)],
        indirect=["api_server"],
    )
    def test_the_next_agent_begins_anew_what_one_that_ended_has_left(
        self,
        stuck: tuple[Scene, Agent, str, Volume],
        proxy: FaultProxy,
        number: signal.Signals,
    ) -> None:
        scene, agent, name, target = stuck
        agent.end(number)
        before = scene.status(name)
        assert before["phase"] == "InProgress"
        assert not (target.path / ".velero").exists()
        proxy.clear()
        with scene.agent() as second, helper(scene, [target]) as pod:
            status = scene.completed(name, second)
            assert pod.wait(DEADLINE_SECONDS) == 0
            assert f"{name}: claimed again" in second.log_text
        assert status["startTimestamp"] == before["startTimestamp"]
        assert_given_back(self.source, target)

    @on_the_standin
    def test_a_pod_that_was_let_go_is_left_alone_and_its_restore_is_complete(
        self, stuck: tuple[Scene, Agent, str, Volume], proxy: FaultProxy
    ) -> None:
        scene, agent, name, target = stuck
        agent.end(signal.SIGKILL)
        helper_is(scene, target, ended(0), phase="Running")
        shutil.rmtree(target.path)
        target.path.mkdir()
        target.fill(written=b"by the pod")
        proxy.clear()
        with scene.agent() as second:
            status = scene.completed(name, second)
        assert "restored by an agent that ended before it could say so" in status["message"]
        assert os.listdir(target.path) == ["written"]


class TestSeveral:
    @on_the_real_one
    def test_two_agents_of_one_node_share_fifty_restores_without_a_double_claim(
        self, scene: Scene
    ) -> None:
        source = scene.volume().fill(small=b"content")
        pods = [scene.pod({"emptyDir": {}}) for _ in range(2)]
        with (
            scene.agent("--concurrency", "4", pod=pods[0]) as one,
            scene.agent("--concurrency", "4", pod=pods[1]) as two,
        ):
            snapshot = backed_up(scene, one, source)
            targets = [waiting_pod(scene, "emptyDir") for _ in range(50)]
            names = [ask(scene, target, snapshot) for target in targets]
            for name in names:
                scene.completed(name, one)
            claims = Counter(
                line.split(": ")[0].split()[-1]
                for agent in (one, two)
                for line in agent.log_text.splitlines()
                if ": claimed" in line and line.split(": ")[0].split()[-1].startswith("restored-")
            )
        assert claims == dict.fromkeys(names, 1)
        for target in targets:
            assert done_file(target).is_file()
            assert_given_back(source, target)


class TestWhatCannotBeRestored:
    """Pods that are nobody's (another uid, never seen) are in ``tests/cluster``: they take a minute."""

    @pytest.fixture
    def served(self, scene: Scene) -> Iterator[tuple[Scene, Agent, str]]:
        with scene.agent() as agent:
            snapshot = backed_up(scene, agent, scene.volume().fill(a=b"one"))
            yield scene, agent, snapshot

    @on_the_standin
    def test_each_says_what_is_wrong_and_where_the_data_would_be(
        self, served: tuple[Scene, Agent, str]
    ) -> None:
        scene, agent, snapshot = served
        target = waiting_pod(scene)
        place = f"kopia/{scene.server.namespace} in BackupStorageLocation default"
        nowhere = scene.identifier_of("velero/one/restic/empty")
        cases: list[tuple[dict[str, object], list[str]]] = [
            ({"snapshotID": "ab" * 32}, ["no snapshots of", place]),
            ({"snapshotID": "latest"}, ["not the id of a snapshot", place]),
            ({"snapshotID": "5a" * 16}, ["not the id of a snapshot in restic's format", place]),
            ({"uploaderType": "kopia"}, ["uploader type kopia is not taken", place]),
            ({"repoIdentifier": nowhere}, ["there is no repository at", place]),
            ({"volume": "none"}, ["has no volume 'none'"]),
        ]
        if scene.server.keeps_empty_strings:
            cases.append(({"snapshotID": ""}, ["spec.snapshotID is empty"]))
        for changes, words in cases:
            status = scene.ended(ask(scene, target, snapshot, **changes), agent)
            assert status["phase"] == "Failed", changes
            for word in words:
                assert word in status["message"], changes
        assert os.listdir(target.path) == []

    def test_a_pod_that_cannot_be_restored_any_more_ends_its_restore(
        self, served: tuple[Scene, Agent, str]
    ) -> None:
        scene, agent, snapshot = served
        started = scene.volume("emptyDir", helper=HELPER)
        helper_is(scene, started, ended(0), phase="Running")
        failed = scene.volume("emptyDir", helper=HELPER)
        helper_is(scene, failed, WAITING, phase="Failed")
        unaware = scene.volume("emptyDir")
        vanishing = scene.volume("emptyDir", helper=HELPER)
        first = ask(scene, vanishing, snapshot)
        until(lambda: f"{first}: waits" in agent.log_text, "the wait", alive=agent)
        gone = scene.server.path("pods", vanishing.pod["metadata"]["name"])
        scene.server.delete(f"{gone}?gracePeriodSeconds=0")
        ends = {
            "has ended already": ask(scene, started, snapshot),
            "has ended (Failed)": ask(scene, failed, snapshot),
            "has no init container restore-wait": ask(scene, unaware, snapshot),
            "deleted": first,
        }
        for words, name in ends.items():
            status = scene.ended(name, agent)
            assert status["phase"] == "Failed"
            assert words in status["message"]
        for volume in (started, failed, unaware, vanishing):
            assert os.listdir(volume.path) == []
