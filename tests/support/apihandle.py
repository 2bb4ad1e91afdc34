"""One handle on an API server, whichever it is: what a test arranges and checks with.

Every call blocks (it is for a test's own arrangements, not for what is tested); the servers
live outside the test's event loop, so this cannot deadlock.
"""

import contextlib
import dataclasses
import http.client
import json
import select
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

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
    "daemonsets": "/apis/apps/v1",
    "cronjobs": "/apis/batch/v1beta1",  # the kube-apiserver build at hand has no v1 yet
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
}
CLUSTER_WIDE = {
    "namespaces": "/api/v1",
    "nodes": "/api/v1",
    "persistentvolumes": "/api/v1",
    "csidrivers": "/apis/storage.k8s.io/v1",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1",
    "clusterrolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "priorityclasses": "/apis/scheduling.k8s.io/v1",
    "securitycontextconstraints": "/apis/security.openshift.io/v1",
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

    def raw_rest(self) -> bytes:
        """Return what is left of the stream, as it comes."""
        return self._response.read()

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
        self._idle: list[http.client.HTTPConnection] = []

    def apply_velero_crds(self, version: str = "v1.16.2", status_subresource: bool = False) -> None:
        """Serve Velero's resources as of ``version``; with or without ``/status``.

        To change what is served deletes every Velero object.
        """
        raise NotImplementedError

    def upgrade_velero_crds(self, version: str) -> None:
        """Serve ``version`` in the place of what is served, as an upgrade of Velero does; objects stay.

        It may take a moment until the new schema is in force.
        """
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
        connection = self._connected()
        try:
            connection.request(method, path, body=data, headers=sent)
            response = connection.getresponse()
            answer = Answer(response.status, dict(response.getheaders()), response.read())
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return answer

    def _connected(self) -> http.client.HTTPConnection:
        """Return a connection that an earlier request has left, or a new one.

        Tests ask again and again until something has come about: to agree on keys each time costs
        both sides more than the answer.
        """
        while self._idle:
            connection = self._idle.pop()
            usable = connection.sock is not None
            if usable and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()  # by the server already, or it has something to say that nobody asked
        return self._connect()

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

    def apply(self, document: Json) -> Json:
        """Apply a manifest's document on the server's side, where an unknown field is refused."""
        kind = document["kind"].lower()
        plural = kind if kind in CLUSTER_WIDE else f"{kind}{'es' if kind.endswith('s') else 's'}"
        path = self.path(plural, document["metadata"]["name"])
        version = {**GROUPS, **CLUSTER_WIDE}[plural].split("/", 2)[2]
        assert document["apiVersion"] == version or plural == "cronjobs"
        if plural in CLUSTER_WIDE:
            self._cleanup.append(path)
        done: Json = self._expect(
            "PATCH",
            f"{path}?fieldManager=kubectl",
            {**document, "apiVersion": version},
            Content_Type="application/apply-patch+yaml",
        )
        return done

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

    def clear_velero(self) -> None:
        """Delete every Velero object there is, whatever finalizers hold it."""
        for plural in (name for name, prefix in GROUPS.items() if "velero.io" in prefix):
            answer = self.request("GET", f"/apis/velero.io/v1/{plural}")
            for item in answer.json["items"] if answer.status == 200 else ():
                metadata = item["metadata"]
                path = self.path(plural, metadata["name"], namespace=metadata["namespace"])
                if metadata.get("finalizers"):
                    self.patch(path, {"metadata": {"finalizers": None}})
                self.request("DELETE", path)

    def clean_up(self) -> None:
        """Remove what the test created outside its namespace."""
        for path in reversed(self._cleanup):
            self.request("DELETE", f"{path}?gracePeriodSeconds=0")

    def hang_up(self) -> None:
        """Close the connections that requests have left open."""
        while self._idle:
            self._idle.pop().close()
