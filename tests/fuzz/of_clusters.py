"""What comes from the API server, from Velero's files in the bucket, and from mounted files."""

import asyncio
import datetime
import functools
import gzip
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from kubernetes.aio.client.configuration import Configuration

from agent.cluster import client, hostpath, location, objects, paths, watch
from agent.cluster.client import Page, Query, decode
from agent.cluster.concurrency import read_concurrency
from agent.cluster.credentials import KubeconfigCredentials, ServiceAccount
from agent.cluster.location import Fetched, Location
from agent.cluster.order import Order, OrderKind, parse
from agent.cluster.places import Places
from agent.cluster.pods import parse_pod
from agent.cluster.preparation import pod_alive
from agent.cluster.record import VolumeBackup, folders, read_object, read_record
from agent.cluster.secrets import PrivateFiles, repository_password
from agent.cluster.site import Site, site_of
from agent.cluster.status import discover
from agent.cluster.tuning import parse_config_map
from agent.cluster.watch import Collection, Pace, Watcher
from agent.cluster.wishes import EXCLUDE, KNOWN, PARALLEL_FILES, Annotated, Wishes, read_wishes
from agent.config import ClusterAccess
from agent.errors import ClusterError, UsageError
from agent.storage.contract import Listed
from agent.storage.settings import S3Settings
from tests.cluster.scene import NODE, pvb_object, pvr_object
from tests.fuzz.decoder import Decoder

UID = "pod-uid-1"
_OWNER = {"node": NODE, "pod": "agent-1", "podUid": "u", "attempt": "a"}


def _document(value: Any) -> bytes:
    return json.dumps(value).encode()


def _order(whole: Any) -> bytes:
    more = {
        "uid": "u1",
        "namespace": "velero",
        "resourceVersion": "17",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "deletionTimestamp": None,
        "annotations": {"podlift.io/owner": json.dumps(_OWNER)},
        "labels": {"velero.io/pvc-uid": "p1", "velero.io/backup-name": "nightly"},
    }
    status = {
        "phase": "InProgress",
        "snapshotID": "5a" * 32,
        "startTimestamp": "2026-01-02T03:04:05Z",
    }
    return _document({**whole, "metadata": {**whole["metadata"], **more}, "status": status})


PVB = _order(pvb_object("gold", cancel=True))
PVR = _order(pvr_object("gold"))
POD = _document(
    {
        "metadata": {
            "name": "db-0",
            "namespace": "app",
            "uid": UID,
            "resourceVersion": "3",
            "annotations": {hostpath.MIRROR: "0123"},
            "ownerReferences": [{"uid": "r", "controller": True}],
        },
        "spec": {
            "nodeName": NODE,
            "restartPolicy": "Never",
            "initContainers": [{"name": "restore-wait"}],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
                {"name": "scratch", "emptyDir": {}, "csi": {"driver": "d", "readOnly": False}},
                {"name": "host", "hostPath": {"path": "/"}},
                {"name": "own", "ephemeral": {"volumeClaimTemplate": {}}},
            ],
        },
        "status": {
            "phase": "Pending",
            "initContainerStatuses": [
                {"name": "restore-wait", "state": {"terminated": {"exitCode": 1}}}
            ],
        },
    }
)
CLAIM = _document(
    {
        "metadata": {"name": "c", "uid": "c1", "ownerReferences": [{"uid": UID}]},
        "spec": {"volumeName": "pv-1"},
    }
)
VOLUME = _document(
    {
        "metadata": {"name": "pv-1", "annotations": {hostpath.PROVISIONED_BY: "ebs.csi"}},
        "spec": {"csi": {"driver": "d"}, "volumeMode": "Filesystem", "claimRef": {"uid": "c1"}},
    }
)
SECRET = _document({"data": {"repository-password": "c2VjcmV0Cg==", "cloud": "W2RlZmF1bHRd"}})
LOCATION = _document(
    {
        "spec": {
            "provider": "aws",
            "accessMode": "ReadWrite",
            "objectStorage": {
                "bucket": "bucket",
                "prefix": "/velero/",
                "caCert": "LS0tLS1CRUdJTg==",
                "caCertRef": {"name": "ca", "key": "crt"},
            },
            "config": {
                "region": "eu-west-1",
                "s3Url": "https://s3.example.org",
                "s3ForcePathStyle": "true",
                "insecureSkipTLSVerify": "0",
                "profile": "p",
                "credentialsFile": "/c",
                "checksumAlgorithm": "",
                "kmsKeyId": "k",
                "tagging": "a=1&b=2",
            },
            "credential": {"name": "s", "key": "cloud"},
        },
        "status": {"phase": "Unavailable", "lastValidationTime": "2026-01-01T00:00:00Z"},
    }
)
LOCATION_WITH_KEY = _document(
    {
        "spec": {
            "provider": "aws",
            "objectStorage": {"bucket": "bucket"},
            "config": {"customerKeyEncryptionSecret": "sse/key", "checksumAlgorithm": "CRC32C"},
        }
    }
)
NODE_AGENT_CONFIG = {
    "loadConcurrency": {
        "globalConfig": 2,
        "perNodeConfig": [
            {
                "nodeSelector": {
                    "matchLabels": {"a": "b"},
                    "matchExpressions": [
                        {"key": "k", "operator": "In", "values": ["v"]},
                        {"key": "k", "operator": "Exists"},
                    ],
                },
                "number": 3,
            }
        ],
    }
}
CONFIG_MAP = _document({"data": {"c.json": json.dumps(NODE_AGENT_CONFIG)}})
STATUS = _document({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
LIST = b'{"metadata":{"resourceVersion":"9","continue":"x"},"items":[%s,%s]}' % (PVB, PVR)
EVENT = b'{"type":"MODIFIED","object":%s}' % PVB
ERROR = b'{"type":"ERROR","object":%s}' % STATUS
RESOURCES = _document(
    {"resources": [{"name": n} for n in ("podvolumebackups", "podvolumerestores/status")]}
)
RECORD = b"[%s,%s]" % (PVB, PVB)
KUBECONFIG = """apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
contexts: [{name: c, context: {cluster: k, user: u, namespace: n}}]
users: [{name: u, user: {token: "t"}}]
"""
_WORDS = ('"restic"', '"kopia"', '"Completed"', '"BOOKMARK"', f'"{NODE}"', f'"{UID}"', '"data"')


class _Api:
    """Answers everything with one body."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def get(self, path: str, query: Query | None = None) -> bytes:
        return self.body

    async def patch(self, path: str, body: Any, *, attempts: int = 0) -> bytes:
        return self.body

    async def list(self, path: str, query: Query | None = None) -> Page:
        page = decode(self.body, client._List, path)
        return Page([bytes(item) for item in page.items or ()], page.metadata.resource_version)

    async def watch(
        self, path: str, query: Query, *, server_seconds: float, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        for line in self.body.split(b"\n"):
            yield line


class _Sink:
    def replace(self, objects: Any) -> None:
        pass

    changed = deleted = replace


async def _follow(listing: bytes, lines: bytes) -> float:
    """Follow a collection once: whatever the server sends, the next try is a matter of seconds."""

    class Both(_Api):
        async def list(self, path: str, query: Query | None = None) -> Page:
            return await _Api(listing).list(path)

    collection = Collection(paths.PODS, functools.partial(parse, OrderKind.BACKUP), "spec.x=y")
    watcher = Watcher(Both(lines), collection, _Sink(), Pace(chance=lambda low, high: low))
    return float(await watcher.iterate())


def _place(body: bytes) -> Location:
    found = decode(body, objects.BackupStorageLocation, "a location")
    return location.read_location("default", found)


def _storage(body: bytes) -> S3Settings:
    place = _place(body)
    prefix = location.repository_prefix(place, "", "app")
    location.require_available(place, datetime.datetime.now(datetime.UTC))
    settings = location.s3_settings(place, prefix, Fetched(Path("/c")), 3)
    assert str(settings.address)
    return settings


def _identifier(text: str) -> str:
    return location.repository_prefix(_place(LOCATION), text, "app")


async def _place_and_files(body: bytes) -> Fetched:
    with tempfile.TemporaryDirectory() as folder:
        places = Places(_Api(body), "velero", None, PrivateFiles(Path(folder)))
        return await places.fetch(await places.location("default"))


async def _bundle(pem: bytes) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        return await PrivateFiles(Path(folder)).ca_bundle(pem)


async def _configured(text: str) -> Configuration:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return await KubeconfigCredentials(file).configure()


async def _mounted(token: bytes) -> Configuration:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "token").write_bytes(token)
        access = ClusterAccess(None, "10.0.0.1", "443", Path(folder))
        return await ServiceAccount(access).configure()


def _at_a_time(found: objects.ConfigMap) -> int:
    return read_concurrency(found, "it").volumes({"k": "v"}, 1)


def _patterns(text: str) -> Wishes:
    order = Order(name="gold", annotations={f"podlift.io/{text}": text})
    return read_wishes(order, [Annotated("its claim", {EXCLUDE: text}), Annotated("its pod", {})])


def _single_values(text: str) -> Wishes:
    order = Order(name="gold", uploader_settings={PARALLEL_FILES: text} if text != "fail" else {})
    return read_wishes(order, [Annotated("its pod", dict.fromkeys(KNOWN[1:2], text))])


def _volume_directories(body: bytes) -> list[str]:
    pod = parse_pod(body)
    found = [hostpath.pod_directory(pod)]
    for volume in pod.spec.volumes or ():
        source = hostpath.source(pod, volume.name)
        found.append(source.claim if isinstance(source, hostpath.Claimed) else source.directory)
    return found


def _claimed(body: bytes) -> str:
    volume = decode(body, objects.PersistentVolume, "a volume")
    claim = decode(CLAIM, objects.Claim, "a claim")
    return hostpath.claimed_directory(volume, claim, hostpath.csi_driver_names(volume))


def _records(plain: bytes) -> list[VolumeBackup]:
    found = read_record(gzip.compress(plain, 1), "the record")
    for one in found:
        one.named("prefix")
        one.pending()
    return found


def _folders(text: str) -> object:
    return folders([Listed(key, 1) for key in text.split("\n")])


def _run(call: Any, *given: Any) -> Any:
    return asyncio.run(call(*given))


def _into(type: type, name: str, *examples: bytes) -> Decoder:
    return Decoder(name, lambda c: decode(c, type, name), "json", examples, (ClusterError,), type, ("agent.cluster.client.decode",), _WORDS)  # fmt: skip


_CLUSTER = (ClusterError,)
_EITHER = (ClusterError, UsageError)

DECODERS = [
    Decoder("PodVolumeBackup", lambda c: parse(OrderKind.BACKUP, c), "json", [PVB], _CLUSTER, Order, ("agent.cluster.order.parse",), _WORDS),
    Decoder("PodVolumeRestore", lambda c: parse(OrderKind.RESTORE, msgspec.Raw(c)), "json", [PVR], _CLUSTER, Order, ("agent.cluster.order.parse",), _WORDS),
    Decoder("owner of a claim", lambda t: parse(OrderKind.BACKUP, _document({"metadata": {"annotations": {"podlift.io/owner": t}}})), "text", [json.dumps(_OWNER), "[" * 5000], _CLUSTER, Order),
    _into(client._List, "list", LIST),
    _into(watch._Event, "event", EVENT, ERROR),
    _into(watch._Error, "error event", STATUS),
    _into(objects.Pod, "pod", POD),
    _into(objects.Claim, "PersistentVolumeClaim", CLAIM),
    _into(objects.PersistentVolume, "PersistentVolume", VOLUME),
    _into(objects.Secret, "Secret", SECRET),
    _into(objects.BackupStorageLocation, "BackupStorageLocation", LOCATION),
    _into(objects.Named, "CSIDriver", CLAIM),
    Decoder("Status", client._status_message, "json", [STATUS], (), str, ("agent.cluster.client._status_message",)),
    Decoder("Retry-After of the API server", client._retry_after, "text", ["7"], (), (float, type(None)), ("agent.cluster.client._retry_after",)),
    Decoder("watched pod", parse_pod, "json", [POD], _CLUSTER, objects.Pod, ("agent.cluster.pods.parse_pod",), _WORDS),
    Decoder("site of a restore", lambda c: site_of(parse_pod(c), UID, NODE), "json", [POD], _CLUSTER, Site, (), _WORDS),
    Decoder("directories of a pod", _volume_directories, "json", [POD], _CLUSTER, list, (), _WORDS),
    Decoder("claim that is bound", lambda c: hostpath.check_claim(decode(c, objects.Claim, "a claim"), hostpath.Claimed("c", UID)), "json", [CLAIM], _CLUSTER, str),
    Decoder("directory of a volume", _claimed, "json", [VOLUME], _CLUSTER, str),
    Decoder("listing and watch", lambda c: _run(_follow, LIST, c), "json", [EVENT, ERROR], (), float, (), _WORDS, share=0.5),
    Decoder("listing", lambda c: _run(_follow, c, EVENT), "json", [LIST], (), float, (), _WORDS, share=0.5),
    Decoder("discovery", lambda c: _run(discover, _Api(c)), "json", [RESOURCES], _CLUSTER, frozenset, share=0.5),
    Decoder("pod of a claim", lambda c: _run(pod_alive, _Api(c), "app", "db-0", UID), "json", [POD], _CLUSTER, bool, share=0.5),
    Decoder("password in a Secret", lambda c: _run(repository_password, _Api(c), "velero"), "json", [SECRET], _CLUSTER, str, share=0.5),
    Decoder("location", _place, "json", [LOCATION, LOCATION_WITH_KEY], _CLUSTER, Location, ("agent.cluster.location.read_location",), _WORDS),
    Decoder("storage of a location", _storage, "json", [LOCATION, LOCATION_WITH_KEY], _EITHER, S3Settings, (), _WORDS),
    Decoder("repoIdentifier", _identifier, "text", ["s3:https://s3.example.org/bucket/velero/restic/app", ""], _CLUSTER, str),
    Decoder("files of a location", lambda c: _run(_place_and_files, c), "json", [LOCATION, LOCATION_WITH_KEY], _CLUSTER, Fetched, ("agent.cluster.places.read_object",), share=0.3),
    Decoder("CA certificate", lambda c: _run(_bundle, c), "bytes", [b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"], _CLUSTER, Path, share=0.1),
    Decoder("kubeconfig", lambda t: _run(_configured, t), "text", [KUBECONFIG], _CLUSTER, Configuration, share=0.5),
    Decoder("service account's token", lambda c: _run(_mounted, c), "bytes", [b"a.b.c\n"], _CLUSTER, Configuration, share=0.3),
    Decoder("name of an object", lambda t: paths.checked(t, "pod"), "text", ["web-0", "a.b"], _CLUSTER, str),
    Decoder("ConfigMap", lambda c: _at_a_time(parse_config_map(c)), "json", [CONFIG_MAP], _CLUSTER, int, ("agent.cluster.tuning.parse_config_map",), _WORDS),
    Decoder("loadConcurrency", lambda c: _at_a_time(objects.ConfigMap(data={"c": c})), "text", [json.dumps(NODE_AGENT_CONFIG), "[" * 5000], _CLUSTER, int, ("agent.cluster.concurrency.read_concurrency",)),
    Decoder("exclude annotation", _patterns, "text", ["*.log, /cache\ntmp/\\,x", "\\\n,"], _CLUSTER, Wishes, ("agent.cluster.wishes.read_wishes",), _WORDS),
    Decoder("other wishes", _single_values, "text", ["fail", "8"], _CLUSTER, Wishes, (), _WORDS),
    Decoder("record", _records, "json", [RECORD, b"null"], _CLUSTER, list, ("agent.cluster.record.read_record",), _WORDS),
    Decoder("record in its gzip", lambda c: read_record(c, "the record"), "bytes", [gzip.compress(RECORD)], _CLUSTER, list, ("agent.cluster.record.read_record",)),
    Decoder("PodVolumeBackup that may need a snapshot", lambda c: read_object(c, "it"), "json", [PVB], _CLUSTER, VolumeBackup, ("agent.cluster.record.read_object",), _WORDS),
    Decoder("listing of backups", _folders, "text", ["backups/a/velero-backup.json\nbackups/a/a-podvolumebackups.json.gz\nbackups/b/b.tar.gz"], (), list),
]  # fmt: skip
