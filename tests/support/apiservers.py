"""API servers for tests: the stand-in, and the real kube-apiserver, behind one handle.

A test that takes ``api_server`` runs once over each of the two, so that the stand-in cannot
drift from the real one. The handle blocks (it is for a test's own arrangements and checks, not
for what is tested); both servers live outside the test's event loop, so this cannot deadlock.
Each handle has a namespace of its own; the real server is started once a session.
"""

import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import yaml

from tests.support.requirements import missing

SHARED = Path(
    os.environ.get("PODLIFT_SHARED") or Path(__file__).resolve().parents[2].parent / "shared"
)
LAUNCHER = SHARED / "apiserver" / "apiserver"
CRDS = SHARED / "velero-crds"
WITH_STATUS = ("podvolumebackups", "podvolumerestores")
DEADLINE_SECONDS = 30.0
Json = dict[str, Any]

GROUPS = {
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "configmaps": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "serviceaccounts": "/api/v1",
    "events": "/apis/events.k8s.io/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "podvolumebackups": "/apis/velero.io/v1",
    "podvolumerestores": "/apis/velero.io/v1",
    "backupstoragelocations": "/apis/velero.io/v1",
    "backuprepositories": "/apis/velero.io/v1",
    "backups": "/apis/velero.io/v1",
}
CLUSTER_WIDE = {
    "namespaces": "/api/v1",
    "nodes": "/api/v1",
    "persistentvolumes": "/api/v1",
    "csidrivers": "/apis/storage.k8s.io/v1",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server said to one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ApiRefused(AssertionError):
    """A request of the test's own was refused; ``answer`` says how."""

    def __init__(self, request: str, answer: Answer) -> None:
        super().__init__(f"{request}: {answer.status} {answer.body.decode(errors='replace')}")
        self.answer = answer


class Watch:
    """An open watch, read a line at a time."""

    def __init__(self, connection: http.client.HTTPConnection, path: str) -> None:
        self._connection = connection
        connection.request("GET", path, headers={"Authorization": f"Bearer {ApiServer.token}"})
        self._response = connection.getresponse()
        self.status = self._response.status

    def event(self) -> Json | None:
        """Return the next event, or None at the end of the stream; ``TimeoutError`` if silent."""
        line = self._response.readline()
        return json.loads(line) if line else None

    def events(self, count: int) -> list[Json]:
        """Return the next ``count`` events; fails if the stream ends before."""
        found = [self.event() for _ in range(count)]
        assert None not in found, f"the watch ended early: {found}"
        return [event for event in found if event is not None]

    def rest(self) -> list[Json]:
        """Return every event until the server ends the stream."""
        return list(iter(self.event, None))

    def close(self) -> None:
        self._response.close()
        self._connection.close()


class ApiServer:
    """One API server, and a namespace in it that is this test's alone."""

    kind = ""
    keeps_empty_strings = True
    """The kube-apiserver build at hand reads ``""`` in a custom resource as null: 422."""
    token = "admin-token"
    url: str
    kubeconfig: Path
    ca: Path

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._cleanup: list[str] = []

    def apply_velero_crds(self, version: str = "v1.16.2", status_subresource: bool = False) -> None:
        """Serve Velero's resources as of ``version``; with or without ``/status``."""
        raise NotImplementedError

    def restart(self) -> None:
        """End the server without notice and start it on the same port, with the same objects."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server without notice; ``restart`` brings it back."""
        raise NotImplementedError

    def path(self, plural: str, name: str = "", *, namespace: str | None = None) -> str:
        """Return the path of a resource (in this test's namespace), or of one object of it."""
        if plural in CLUSTER_WIDE:
            collection = f"{CLUSTER_WIDE[plural]}/{plural}"
        else:
            collection = f"{GROUPS[plural]}/namespaces/{namespace or self.namespace}/{plural}"
        return f"{collection}/{name}" if name else collection

    def _connect(self, timeout_seconds: float = DEADLINE_SECONDS) -> http.client.HTTPConnection:
        where = urlsplit(self.url)
        assert where.hostname is not None
        context = ssl.create_default_context(cafile=str(self.ca))
        return http.client.HTTPSConnection(
            where.hostname, where.port, timeout=timeout_seconds, context=context
        )

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send one request and return whatever the answer is; a dict or list goes out as JSON."""
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        sent.update(headers or {})
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self._connect()
        try:
            connection.request(method, path, body=data, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def _expect(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send a request of the test's own; 429 is waited out, any other refusal fails the test."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        while True:
            answer = self.request(method, path, body, headers=named)
            if answer.status < 300:
                return answer.json
            if answer.status != 429 or time.monotonic() > deadline:
                raise ApiRefused(f"{method} {path}", answer)
            time.sleep(0.05)

    def create(self, path: str, obj: Json) -> Json:
        """Create an object; one outside any namespace is removed again after the test."""
        made: Json = self._expect("POST", path, obj)
        if "/namespaces/" not in path and not path.endswith("/namespaces"):
            self._cleanup.append(f"{path}/{made['metadata']['name']}")
        return made

    def get(self, path: str) -> Json:
        """Read an object."""
        found: Json = self._expect("GET", path)
        return found

    def list(self, path: str, **query: str) -> Json:
        """Read a collection; returns the list object, not its items alone."""
        found: Json = self._expect("GET", f"{path}?{urlencode(query)}" if query else path)
        return found

    def patch(self, path: str, merge: Json) -> Json:
        """Apply a merge patch."""
        kind = "application/merge-patch+json"
        done: Json = self._expect("PATCH", path, merge, Content_Type=kind)
        return done

    def patch_status(self, path: str, status: Json) -> Json:
        """Merge ``status`` into an object's status, by ``/status`` where that is served."""
        plural = path.split("/")[-2]
        group = "/".join(path.split("/")[:3] if path.startswith("/api/") else path.split("/")[:4])
        served = {found["name"] for found in self.get(group)["resources"]}
        where = f"{path}/status" if f"{plural}/status" in served else path
        return self.patch(where, {"status": status})

    def delete(self, path: str) -> Json:
        """Delete an object; returns it, or the Status of the deletion."""
        done: Json = self._expect("DELETE", path)
        return done

    @contextlib.contextmanager
    def watch(self, path: str, *, timeout_seconds: float = 10.0, **query: str) -> Iterator[Watch]:
        """Open a watch; reading waits at most ``timeout_seconds`` for a line."""
        asked = f"{path}?{urlencode({'watch': 'true', **query})}"
        watch = Watch(self._connect(timeout_seconds), asked)
        try:
            yield watch
        finally:
            watch.close()

    def clean_up(self) -> None:
        """Remove what the test created outside its namespace."""
        for path in reversed(self._cleanup):
            self.request("DELETE", f"{path}?gracePeriodSeconds=0")


class KubeProcess:
    """The one real kube-apiserver of a session, with its etcd."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.velero: tuple[str, bool] | None = None
        self.names = itertools.count(1)
        self.running = False
        self.port = _free_port_block()

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

    def apply_velero_crds(self, version: str = "v1.16.2", status_subresource: bool = False) -> None:
        """Apply Velero's own definitions; changing the variant deletes every Velero object."""
        if self._process.velero == (version, status_subresource):
            return
        where = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for item in self.list(where)["items"]:
            self.delete(f"{where}/{item['metadata']['name']}")
        self._wait(lambda: not self.list(where)["items"])
        self._process.velero = None
        files = sorted((CRDS / version).glob("*.yaml"))
        assert files, f"no definitions of Velero {version} below {CRDS}"
        plurals = [self._apply_crd(where, file, status_subresource) for file in files]
        for plural in plurals:
            self._wait(
                lambda p=plural: self.request("GET", f"/apis/velero.io/v1/{p}").status == 200
            )
        expected = {f"{p}/status" for p in WITH_STATUS if status_subresource} | set(plurals)
        self._wait(
            lambda: {r["name"] for r in self.get("/apis/velero.io/v1")["resources"]} == expected
        )
        self._process.velero = (version, status_subresource)

    def _apply_crd(self, where: str, file: Path, status_subresource: bool) -> str:
        definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        plural: str = definition["spec"]["names"]["plural"]
        if status_subresource and plural in WITH_STATUS:
            for served in definition["spec"]["versions"]:
                served["subresources"] = {"status": {}}
        self._expect("POST", where, definition)
        return plural

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "kube-apiserver does not serve the definitions"
            time.sleep(0.02)


def _free_port_block() -> int:
    """Return a port that is free together with the next two (etcd takes those)."""
    for _ in range(100):
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for offset in (1, 2):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no three free ports in a row")


def _unpacked(cache: Path) -> Path:
    """Return the unpacked server binary, kept between sessions (110 MB, 3 s to unpack)."""
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
        missing("the real kube-apiserver", "put it into ../shared, or name that in PODLIFT_SHARED")
    for tool in ("etcd", "openssl", "xz", "curl"):
        if shutil.which(tool) is None:
            missing(
                f"{tool} (for the real kube-apiserver)",
                "apt-get install etcd-server openssl xz-utils curl",
            )
    process = KubeProcess(tmp_path_factory.mktemp("kube-apiserver"))
    binary = _unpacked(pytestconfig.cache.mkdir("kube-apiserver"))
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


@pytest.fixture(params=["kube-apiserver"])
def api_server(request: pytest.FixtureRequest) -> ApiServer:
    """Yield the stand-in, then the real server, behind one interface."""
    server: ApiServer = request.getfixturevalue(request.param.replace("-", "_"))
    return server
