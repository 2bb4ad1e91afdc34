"""API servers for tests: the stand-in, and the real kube-apiserver, behind one handle.

A test that takes ``api_server`` runs once over each of the two, so that the stand-in cannot
drift from the real one. The handle is ``tests.support.apihandle.ApiServer``; each has a
namespace of its own. The stand-in is made for each test, the real server once a session.
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.demo.apiserver import Faults, Seen, Standin
from tests.support.apihandle import DEADLINE_SECONDS, ApiServer, Json
from tests.support.ports import free_port
from tests.support.requirements import missing

SHARED = Path(
    os.environ.get("PODLIFT_SHARED") or Path(__file__).resolve().parents[2].parent / "shared"
)
LAUNCHER = SHARED / "apiserver" / "apiserver"
CRDS = SHARED / "velero-crds"
HOW_SHARED = "keep the shared folder beside the project, or name it in PODLIFT_SHARED"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WITH_STATUS = ("podvolumebackups", "podvolumerestores")

AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}
"""The server writes down what service accounts ask for, and how it answers."""


class StandinServer(ApiServer):
    """The stand-in, in a thread of its own, with faults to inject."""

    kind = "standin"

    def __init__(self, standin: Standin) -> None:
        super().__init__("velero-1")
        self.standin = standin
        self._velero = ("v1.16.2", False)
        self.url = standin.url
        self.kubeconfig = standin.kubeconfig
        self.ca = standin.ca
        self.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    @property
    def faults(self) -> Faults:
        return self.standin.faults

    @property
    def requests(self) -> list[Seen]:
        return self.standin.requests

    def restart(self) -> None:
        self.standin.restart()

    def stop(self) -> None:
        self.standin.stop()

    def apply_velero_crds(self, version: str = "v1.16.2", status_subresource: bool = False) -> None:
        if self._velero != (version, status_subresource):
            self.clear_velero()
            self.standin.serve_velero(version, status_subresource=status_subresource)
            self._velero = (version, status_subresource)

    def upgrade_velero_crds(self, version: str) -> None:
        self.standin.serve_velero(version)
        self._velero = (version, False)


class KubeProcess:
    """The one real kube-apiserver of a session, with its etcd."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.velero: tuple[str, bool] | None = None
        self.names = itertools.count(1)
        self.running = False
        self.port = free_port(3)  # etcd takes the next two
        self.audit_log = directory / "audit.log"
        policy = directory / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT))
        self._flags = f"--audit-policy-file={policy} --audit-log-path={self.audit_log}"

    def start(self) -> None:
        """Start both processes and wait until the server is ready (about 5 s)."""
        self._launch("start")
        self.running = True

    def kill(self) -> None:
        """End both processes without notice; etcd's data stay."""
        if self.running:
            self._launch("kill")
        self.running = False

    def _launch(self, verb: str) -> None:
        log = self.directory / "launcher.log"
        with log.open("ab") as out:
            done = subprocess.run(
                [str(LAUNCHER), verb, str(self.directory), str(self.port)],
                env={**os.environ, "APISERVER_FLAGS": self._flags},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=90,
            )
        assert done.returncode == 0, f"apiserver {verb}: {log.read_text()}"


class KubeApiServer(ApiServer):
    """The real kube-apiserver 1.20.2."""

    kind = "kube-apiserver"
    keeps_empty_strings = False

    def __init__(self, process: KubeProcess) -> None:
        super().__init__(f"velero-{next(process.names)}")
        self._process = process
        self._defined = False
        self.url = f"https://127.0.0.1:{process.port}"
        self.kubeconfig = process.directory / "kubeconfig"
        self.ca = process.directory / "ca.crt"
        self.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    def restart(self) -> None:
        self.stop()
        self._process.start()

    def stop(self) -> None:
        self._process.kill()

    def revive(self) -> None:
        """Bring the server back if a test left it stopped."""
        if not self._process.running:
            self._process.start()

    def token_of(self, account: str) -> str:
        """Return a token of a service account (TokenRequest)."""
        wish = {"spec": {"expirationSeconds": 3600}}
        path = f"{self.path('serviceaccounts', account)}/token"
        token: str = self._expect("POST", path, wish)["status"]["token"]
        return token

    def log_in(self, account: str) -> Path:
        """Return a kubeconfig with nothing but a token of a service account."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": self.token_of(account)}
        file = self._process.directory / f"kubeconfig-{self.namespace}-{account}"
        file.write_text(json.dumps(config))
        return file

    def audited(self, account: str) -> list[Json]:
        """Return the audit log's lines about a service account of this test's namespace."""
        user = f"system:serviceaccount:{self.namespace}:{account}"
        lines = map(json.loads, self._process.audit_log.read_text().splitlines())
        return [line for line in lines if line["user"]["username"] == user]

    def create(self, path: str, obj: Json) -> Json:
        chance = not self._defined and "/velero.io/" in path
        assert not chance, "apply_velero_crds before: an earlier test may have, or not"
        return super().create(path, obj)

    def apply_velero_crds(self, version: str = "v1.16.2", status_subresource: bool = False) -> None:
        self._defined = True
        if self._process.velero == (version, status_subresource):
            return
        self.clear_velero()
        for item in self.list(DEFINITIONS)["items"]:
            self.delete(f"{DEFINITIONS}/{item['metadata']['name']}")
        self._wait(lambda: not self.list(DEFINITIONS)["items"])
        self._process.velero = None
        plurals = [
            self._apply_crd(definition, status_subresource)
            for definition in velero_definitions(version)
        ]
        for plural in plurals:
            self.served(f"/apis/velero.io/v1/{plural}")
        expected = {f"{p}/status" for p in WITH_STATUS if status_subresource} | set(plurals)
        self._wait(
            lambda: {r["name"] for r in self.get("/apis/velero.io/v1")["resources"]} == expected
        )
        self._process.velero = (version, status_subresource)

    def upgrade_velero_crds(self, version: str) -> None:
        for definition in velero_definitions(version):
            path = f"{DEFINITIONS}/{definition['metadata']['name']}"
            self._expect("PUT", path, {**self.get(path), "spec": definition["spec"]})
        self._process.velero = (version, False)

    def _apply_crd(self, definition: Json, status_subresource: bool) -> str:
        plural: str = definition["spec"]["names"]["plural"]
        if status_subresource and plural in WITH_STATUS:
            for served in definition["spec"]["versions"]:
                served["subresources"] = {"status": {}}
        self._expect("POST", DEFINITIONS, definition)
        return plural

    def served(self, path: str) -> None:
        """Wait until a kind that was just defined is served."""
        self._wait(lambda: self.request("GET", path).status == 200)

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "kube-apiserver does not serve the definitions"
            time.sleep(0.02)


def velero_definitions(version: str) -> list[Json]:
    """Return Velero's own CustomResourceDefinitions of a release."""
    files = sorted((CRDS / version).glob("*.yaml"))
    if not files:
        missing(f"Velero's definitions of {version}", HOW_SHARED)
    return [yaml.load(file.read_text(), Loader=yaml.CSafeLoader) for file in files]


def _unpacked(config: pytest.Config, fallback: Path) -> Path:
    """Return the unpacked server binary, kept between sessions (110 MB, 3 s to unpack)."""
    kept = config.pluginmanager.has_plugin("cacheprovider")
    cache = config.cache.mkdir("kube-apiserver") if kept else fallback
    packed = SHARED / "apiserver" / "kube-apiserver.xz"
    binary = cache / f"kube-apiserver-{packed.stat().st_size}"
    if not binary.exists():
        part = cache / f"unpacking-{os.getpid()}"
        with part.open("wb") as out:
            subprocess.run(["xz", "-dc", str(packed)], stdout=out, check=True, timeout=110)
        part.chmod(0o755)
        part.rename(binary)
    return binary


@pytest.fixture(scope="session")
def kube_process(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[KubeProcess]:
    """Start the real server once for the session; tests take ``kube_apiserver`` instead."""
    if not LAUNCHER.exists() or not CRDS.exists():
        missing("the real kube-apiserver", HOW_SHARED)
    for tool in ("etcd", "openssl", "xz", "curl"):
        if shutil.which(tool) is None:
            missing(
                f"{tool} (for the real kube-apiserver)",
                "apt-get install etcd-server openssl xz-utils curl",
            )
    process = KubeProcess(tmp_path_factory.mktemp("kube-apiserver"))
    binary = _unpacked(pytestconfig, tmp_path_factory.mktemp("unpacked"))
    (process.directory / "kube-apiserver").symlink_to(binary)
    try:
        process.start()
        yield process
    finally:
        process.running = True
        process.kill()


@pytest.fixture
def kube_apiserver(kube_process: KubeProcess) -> Iterator[KubeApiServer]:
    """Yield the real server with a fresh namespace."""
    server = KubeApiServer(kube_process)
    yield server
    server.revive()
    server.clean_up()
    server.hang_up()


@contextlib.contextmanager
def standing(parent: Path) -> Iterator[StandinServer]:
    """Run a stand-in for the length of a scope; its files go to a folder of ``parent``."""
    directory = parent / "standin"
    directory.mkdir()
    process = Standin(directory)
    process.start()
    try:
        server = StandinServer(process)
        yield server
        server.hang_up()
    finally:
        process.stop()


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandinServer]:
    """Yield a stand-in of this test's own, with ``.faults`` and ``.requests``."""
    with standing(tmp_path) as server:
        yield server


@pytest.fixture(params=["standin", "kube-apiserver"])
def api_server(request: pytest.FixtureRequest) -> ApiServer:
    """Yield the stand-in, then the real server, behind one interface."""
    server: ApiServer = request.getfixturevalue(request.param.replace("-", "_"))
    return server
