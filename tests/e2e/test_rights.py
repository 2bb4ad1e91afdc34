"""Each ServiceAccount of deploy/ has the rights that its program uses, and no other.

The real kube-apiserver judges: it takes the manifests as they are, in this test's namespace, with
RBAC as its only authority, and its audit log tells what each account asked for and was answered.
Nothing may be forbidden, and nothing granted that was never asked for. So a right for a rare case is
kept only as long as the case is met here.
"""

import contextlib
import json
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import Agent, Scene, Volume, until
from tests.e2e.test_check import check
from tests.e2e.test_gc import NOW, Made, gc
from tests.support.apihandle import ApiRefused, Json
from tests.support.apiservers import KubeApiServer
from tests.support.faultproxy import FaultProxy, reply
from tests.support.kustomize import BARE, render, written
from tests.support.manifests import (
    Right,
    agent_options,
    capabilities,
    confined,
    granted,
    job_arguments,
    moved,
    of_kind,
    read_manifest,
)
from tests.support.s3servers import S3Server

WITH_CANCEL = "v1.18.1"
FINALIZER = "velero.io/pod-volume-finalizer"
STUCK = "velero/stuck"
FOREVER = 1 << 30


class Account:
    """The ServiceAccount of a set of documents, which are applied."""

    def __init__(self, server: KubeApiServer, documents: list[Json]) -> None:
        self._server = server
        self._granted = granted(documents)
        for document in moved(documents, server.namespace):
            server.apply(document)
        self.name: str = of_kind(documents, "ServiceAccount")["metadata"]["name"]
        self.options = ("--kubeconfig", str(server.log_in(self.name)))

    def refused(self) -> set[Right]:
        """Return what it asked for in vain."""
        return {right for code, right in self._asked() if code in (401, 403)}

    def unused(self) -> set[Right]:
        """Return what it is granted and has not asked for."""
        used = {right for _, right in self._asked()}
        return self._granted - used - {right._replace(name="") for right in used}

    def _asked(self) -> list[tuple[int, Right]]:
        """Return what it asked for, with the status of each answer."""
        return [
            (line["responseStatus"]["code"], right_of(line["verb"], line["objectRef"]))
            for line in self._server.audited(self.name)
            if "objectRef" in line
        ]


def right_of(verb: str, about: Json) -> Right:
    resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
    return Right(about.get("apiGroup", ""), resource, verb, about.get("name", ""))


@pytest.fixture
def scene(
    kube_apiserver: KubeApiServer, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
) -> Scene:
    """Return a scene on the real API server, whose S3 takes no pack for the repository ``STUCK``."""
    kube_apiserver.apply_velero_crds(WITH_CANCEL)
    proxy.add(reply(503, "SlowDown"), "PUT", f"/{STUCK}/data/", times=FOREVER)
    scene = Scene(kube_apiserver, s3_server, tmp_path / "scene", proxy)
    return scene.with_repository().with_repository(STUCK)


def back_up(scene: Scene, agent: Agent, kind: str) -> str:
    """Return the name of the backup."""
    name = scene.backup(scene.volume(kind).fill(a=secrets.token_bytes(300_000)))
    scene.completed(name, agent)
    return name


def back_up_and_restore(scene: Scene, agent: Agent, kind: str) -> str:
    """Return the name of the backup."""
    name = back_up(scene, agent, kind)
    scene.completed(ask(scene, waiting_pod(scene), scene.status(name)["snapshotID"]), agent)
    return name


def follow_load_concurrency(scene: Scene, agent: Agent) -> None:
    """Change what the ConfigMap says, with a rule for nodes."""
    labels = {"size": "large"}
    scene.server.create(
        scene.server.path("nodes"), {"metadata": {"name": scene.node, "labels": labels}}
    )
    rule = '{"nodeSelector": {"matchLabels": {"size": "large"}}, "number": 2}'
    data = {"any": f'{{"loadConcurrency": {{"globalConfig": 3, "perNodeConfig": [{rule}]}}}}'}
    scene.server.create(
        scene.server.path("configmaps"), {"metadata": {"name": "node-agent-config"}, "data": data}
    )
    until(lambda: "2 volumes at a time" in agent.log_text, "loadConcurrency", alive=agent)


def cancel(scene: Scene, agent: Agent, where: Volume) -> None:
    name = scene.backup(where, repoIdentifier=scene.identifier_of(STUCK))
    scene.under_way(name, agent)
    until(lambda: told_again(scene, name), "an Event that is counted up", alive=agent)
    scene.server.patch(scene.path_of(name), {"spec": {"cancel": True}})
    assert scene.ended(name, agent)["message"] == "canceled: spec.cancel was set"


def told_again(scene: Scene, name: str) -> bool:
    """Tell whether progress was said twice, which takes ten seconds."""
    events = scene.server.list(scene.server.path("events"))["items"]
    return any(e["regarding"]["name"] == name and e["deprecatedCount"] > 1 for e in events)


def release(scene: Scene, name: str) -> None:
    """Delete what has ended and carries Velero's finalizer."""
    path = scene.path_of(name)
    scene.server.patch(path, {"metadata": {"finalizers": [FINALIZER]}})
    scene.server.delete(path)
    until(lambda: scene.server.request("GET", path).status == 404, "the deletion")


class Deployed:
    """Agents with an account's token, options and capabilities."""

    def __init__(self, scene: Scene, documents: list[Json]) -> None:
        assert isinstance(scene.server, KubeApiServer)
        self.scene = scene
        self.account = Account(scene.server, documents)
        self._options = [*self.account.options, *agent_options(documents)]
        self._wrapper = confined(capabilities(documents))

    def agent(self, pod: Json | None = None) -> contextlib.AbstractContextManager[Agent]:
        return self.scene.agent(*self._options, pod=pod, wrapper=self._wrapper)

    def leave(self, large: Volume) -> str:
        """Kill an agent at work, and its pod; return the name of the backup that it leaves."""
        pod = self.scene.pod({"emptyDir": {}})
        with self.agent(pod) as agent:
            name = self.scene.backup(large, repoIdentifier=self.scene.identifier_of(STUCK))
            self.scene.under_way(name, agent)
        path = self.scene.server.path("pods", pod["metadata"]["name"])
        self.scene.server.delete(f"{path}?gracePeriodSeconds=0")
        return name

    def live(self, move: Callable[[Scene, Agent, str], str], proxy: FaultProxy) -> None:
        """Run agents through everything that their rights are for; ``move`` moves a volume."""
        scene = self.scene
        with self.agent() as agent:
            follow_load_concurrency(scene, agent)
            release(scene, move(scene, agent, "migrated"))
            large = scene.volume().fill(large=secrets.token_bytes(20 << 20))
            cancel(scene, agent, large)
        left = self.leave(large)
        proxy.clear()
        with self.agent() as agent:
            scene.completed(left, agent)
            # Other definitions delete every Velero object: what was watched is gone, and listed again.
            scene.server.apply_velero_crds(WITH_CANCEL, status_subresource=True)
            scene.location("default")
            move(scene, agent, "csi")
        assert (self.account.refused(), self.account.unused()) == (set(), set())


def test_the_agent_uses_every_right_of_its_account_and_is_refused_none(
    scene: Scene, proxy: FaultProxy
) -> None:
    Deployed(scene, read_manifest("daemonset.yaml")).live(back_up_and_restore, proxy)


def test_an_agent_for_backups_alone_does_with_the_rights_that_are_left(
    scene: Scene, proxy: FaultProxy, tmp_path: Path
) -> None:
    documents = render(written(BARE, tmp_path, "backup-only"))
    Deployed(scene, documents).live(back_up, proxy)


def test_an_agent_that_may_not_write_events_says_so_once_and_does_its_work(
    scene: Scene, kube_apiserver: KubeApiServer
) -> None:
    documents = read_manifest("daemonset.yaml")
    for role in documents:
        rules = role.get("rules", [])
        rules[:] = [rule for rule in rules if rule["resources"] != ["events"]]
    account = Account(kube_apiserver, documents)
    with scene.agent(*account.options) as agent:
        back_up_and_restore(scene, agent, "csi")
    assert account.refused() == {Right("", "events", "create", "")}
    assert agent.log_text.count("Events cannot be written") == 1
    assert len(scene.server.list(scene.server.path("events"))["items"]) == 0


def as_the_job(scene: Scene, documents: list[Json], command: str) -> list[str]:
    """Return the arguments of a CronJob, but for the place of its cache."""
    first, *options = job_arguments(documents)
    assert first == command
    return [*options, "--cache-dir", str(scene.directory / "cache")]


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the messages of a log that is JSON to its last line, each of the location."""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines
    assert {(line["kind"], line["name"]) for line in lines} == {
        ("BackupStorageLocation", "default")
    }
    return [line["message"] for line in lines]


def test_gc_uses_every_right_of_its_account_and_is_refused_none(
    scene: Scene, kube_apiserver: KubeApiServer
) -> None:
    documents = read_manifest("components/gc/gc.yaml")
    account = Account(kube_apiserver, documents)
    made = Made(scene).make("monday", "tuesday")
    gone = made.delete("monday")
    done = gc(scene, *as_the_job(scene, documents, "gc"), *account.options)
    assert (done.returncode, done.stdout) == (0, ""), done
    assert "1 protected by the grace period" in str(told(done))
    done = gc(scene, *as_the_job(scene, documents, "gc"), *NOW, "--apply", *account.options)
    assert any(gone[:8] in line for line in told(done)), done
    assert told(done)[-1].startswith("done: 1 snapshots forgotten")
    assert (account.refused(), account.unused()) == (set(), set())


def test_the_scrub_uses_every_right_of_its_account_and_is_refused_none(
    scene: Scene, kube_apiserver: KubeApiServer
) -> None:
    documents = read_manifest("components/scrub/scrub.yaml")
    account = Account(kube_apiserver, documents)
    done = check(scene, *as_the_job(scene, documents, "check"), *account.options)
    assert (done.returncode, done.stdout) == (0, ""), done
    assert all("is in order; checked: structure and week/8" in line for line in told(done))
    assert (account.refused(), account.unused()) == (set(), set())


def test_a_right_that_is_missing_or_never_used_and_a_misspelt_field_are_noticed(
    scene: Scene, kube_apiserver: KubeApiServer
) -> None:
    documents = read_manifest("components/scrub/scrub.yaml")
    of_kind(documents, "Role")["rules"][0]["verbs"].append("list")
    account = Account(kube_apiserver, documents)
    assert check(scene, *account.options).returncode == 0
    locations = Right("velero.io", "backupstoragelocations", "get")
    assert account.unused() == {locations._replace(verb="list")}
    of_kind(documents, "Role")["rules"].clear()
    account = Account(kube_apiserver, documents)
    assert check(scene, *account.options).returncode == 1
    assert account.refused() == {locations._replace(name="default")}

    daemonset = of_kind(moved(read_manifest("daemonset.yaml"), scene.server.namespace), "DaemonSet")
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    container["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(ApiRefused, match="readOnlyRootFileSystem"):
        kube_apiserver.apply(daemonset)
