"""The agent as the image and the manifests make it, without an engine: installed, confined, at work.

The image's own steps run off the network; the agent runs with a read-only root, the manifest's mounts,
arguments, variables and capabilities, and the token of its account. Only a kubelet is missing.
"""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import HERE, Agent, Scene
from tests.e2e.test_capabilities import OWNER, fill
from tests.e2e.test_rights import Account
from tests.interop.volumes import differences
from tests.support.apihandle import Json
from tests.support.apiservers import KubeApiServer
from tests.support.container import IMAGE, Container
from tests.support.kustomize import BARE, render, written
from tests.support.manifests import capabilities, pod_of, read_manifest
from tests.support.s3servers import S3Server, write_credentials


class TestTheImage:
    def test_it_is_installed_without_network_or_compiler_and_complete(self, image: Path) -> None:
        done = subprocess.run(
            [image / "bin/python", image / "bin/podlift", "--version"],
            env={"PATH": "/nowhere"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        site = next(path.parent for path in image.rglob("site-packages/agent"))
        ours = [site / room for room in ("agent", "chunker")]
        files = [path for room in ours for path in room.rglob("*") if path.is_file()]
        assert len(files) > 100
        assert [path for path in files if path.suffix in {".c", ".h"}] == []
        assert [path for path in site.rglob("*") if path.stat().st_mode & 0o222] == []


class Node:
    """A scene on the real API server, and the container of a set of manifests on its node."""

    def __init__(self, scene: Scene, image: Path, folder: Path) -> None:
        self.scene = scene
        self._image = image
        self._folder = folder

    def container(self, documents: list[Json]) -> Container:
        """Apply the manifests and return their container, with what a kubelet mounts."""
        server, folder = self.scene.server, self._folder
        assert isinstance(server, KubeApiServer)
        account = Account(server, documents)
        names = ("cache", "tmp", "cloud-credentials", "account")
        volumes = {name: Path(tempfile.mkdtemp(prefix=name, dir=folder)) for name in names}
        write_credentials(
            volumes["cloud-credentials"] / "cloud",
            self.scene.s3.access_key,
            self.scene.s3.secret_key,
        )
        (volumes["account"] / "token").write_text(server.token_of(account.name))
        (volumes["account"] / "ca.crt").write_bytes(server.ca.read_bytes())
        volumes["host-pods"] = self.scene.host_pods
        return Container(pod_of(documents), self._image, volumes, folder)

    def agent(self, container: Container) -> contextlib.AbstractContextManager[Agent]:
        """Run the container's agent for the length of a scope."""
        fields = {
            "spec.nodeName": self.scene.node,
            "metadata.namespace": self.scene.server.namespace,
            "metadata.name": "node-agent-x",
            "metadata.uid": "an-uid",
        }
        service = urlsplit(self.scene.server.url)
        given = {
            "KUBERNETES_SERVICE_HOST": str(service.hostname),
            "KUBERNETES_SERVICE_PORT": str(service.port),
        }
        command = [
            *container.agent(),
            f"--metrics-address={HERE}",
        ]  # others run here at the same time
        return self.scene.running(command, {**container.environment(fields), **given})


def assert_probed(agent: Agent, container: Container) -> None:
    """Ask what a kubelet asks of the container."""
    said = re.search(r"serving metrics on port (\d+)", agent.log_text)
    assert said, agent.log_text
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        url = f"http://127.0.0.1:{said[1]}{container.spec[probe]['httpGet']['path']}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200


@pytest.fixture
def node(kube_apiserver: KubeApiServer, s3_server: S3Server, image: Path, tmp_path: Path) -> Node:
    kube_apiserver.apply_velero_crds()
    scene = Scene(kube_apiserver, s3_server, tmp_path / "scene").with_repository()
    # Without a credential of its own the location is served by the mounted file.
    path = kube_apiserver.path("backupstoragelocations", "default")
    kube_apiserver.patch(path, {"spec": {"credential": None}})
    return Node(scene, image, tmp_path)


_LOOK = f"""
import json, os
places = ("/", "/usr", "/etc", "/opt", "{IMAGE}/bin", "/var/run", "/credentials", "/host_pods", "/cache", "/tmp")
writable = []
for place in places:
    try:
        os.close(os.open(f"{{place}}/probe", os.O_CREAT | os.O_WRONLY))
        os.unlink(f"{{place}}/probe")
        writable.append(place)
    except OSError:
        pass
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
keys = ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Uid")
print(json.dumps([writable, {{key: status[key].split()[0] for key in keys}}]))
"""

NUMBERS = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "FSETID": 4, "MKNOD": 27, "SETFCAP": 31,
}  # fmt: skip
"""capabilities(7), linux/capability.h."""


@pytest.mark.parametrize("components", [(), ("backup-only",)], ids=["base", "backup-only"])
def test_it_is_confined_as_the_manifest_says(
    node: Node, tmp_path: Path, components: tuple[str, ...]
) -> None:
    documents = render(written(BARE, tmp_path, *components))
    container = node.container(documents)
    done = subprocess.run(
        container.command("-c", _LOOK), env={}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    writable, status = json.loads(done.stdout)
    assert writable == (["/cache", "/tmp"] if components else ["/host_pods", "/cache", "/tmp"])
    mask = sum(1 << NUMBERS[name] for name in capabilities(documents))
    assert {key: int(status[key], 16) for key in ("CapBnd", "CapEff", "CapPrm")} == {
        "CapBnd": mask,
        "CapEff": mask,
        "CapPrm": mask,
    }
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Uid"]) == ("1", "0")


def test_a_volume_of_many_owners_is_backed_up_by_the_right_to_read_and_given_back_by_the_base(
    node: Node, tmp_path: Path
) -> None:
    scene = node.scene
    source = scene.volume()
    fill(source.path)
    reading = node.container(render(written(BARE, tmp_path, "backup-only")))
    with node.agent(reading) as agent:
        status = scene.completed(scene.backup(source), agent)
        assert "message" not in status
        assert_probed(agent, reading)
    restoring = node.container(read_manifest("daemonset.yaml"))
    target = waiting_pod(scene)
    os.chown(target.path, *OWNER)
    with node.agent(restoring) as agent:
        ended = scene.completed(ask(scene, target, status["snapshotID"]), agent)
        assert "message" not in ended
        assert agent.end() == 0
    subprocess.run(["rm", "-r", str(target.path / ".velero")], check=True)
    assert differences(source.path, target.path) == []
