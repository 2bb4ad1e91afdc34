"""The Kubernetes and Velero objects of the demo, as an unmodified Velero would leave them."""

import base64
from typing import Any

NODE = "demo-node"
VELERO = "velero"
APP = "shop"
POD = "db-0"
PVC_UID = "6a0f43f5-2b1c-4b55-8f7e-9f1f0f3f7d10"
PV = f"pvc-{PVC_UID}"
VOLUME = "data"
BUCKET = "demo-bucket"
PREFIX = "cluster-1"
PASSWORD = "demo-password"  # noqa: S105 - the demo's own, gone with its folder
ACCESS_KEY = "demo"
SECRET_KEY = "demo-secret"  # noqa: S105 - the stand-in accepts any

Object = dict[str, Any]


def _secret(name: str, key: str, value: str) -> Object:
    data = {key: base64.b64encode(value.encode()).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": VELERO},
        "data": data,
    }


def cluster(s3_url: str) -> list[tuple[str, Object]]:
    """Return (path of the collection, object) of everything that a backup needs."""
    credentials = f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    core, velero = "/api/v1", f"/apis/velero.io/v1/namespaces/{VELERO}"
    return [
        (
            f"{core}/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        )
        for name in (VELERO, APP)
    ] + [
        (f"{core}/namespaces/{VELERO}/secrets", _secret("cloud-credentials", "cloud", credentials)),
        (
            f"{core}/namespaces/{VELERO}/secrets",
            _secret("velero-repo-credentials", "repository-password", PASSWORD),
        ),
        (f"{velero}/backupstoragelocations", _location(s3_url)),
        (f"{core}/persistentvolumes", _volume()),
        (f"{core}/namespaces/{APP}/persistentvolumeclaims", _claim()),
        (f"{core}/namespaces/{APP}/pods", _pod()),
    ]


def _location(s3_url: str) -> Object:
    return {
        "apiVersion": "velero.io/v1",
        "kind": "BackupStorageLocation",
        "metadata": {"name": "default", "namespace": VELERO},
        "spec": {
            "provider": "aws",
            "objectStorage": {"bucket": BUCKET, "prefix": PREFIX},
            "credential": {"name": "cloud-credentials", "key": "cloud"},
            "config": {"region": "us-east-1", "s3Url": s3_url, "s3ForcePathStyle": "true"},
        },
    }


def _volume() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": PV},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "10Gi"},
            "csi": {"driver": "demo.csi.example.com", "volumeHandle": PV},
            "volumeMode": "Filesystem",
        },
    }


def _claim() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-db-0", "namespace": APP},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "10Gi"}},
            "volumeName": PV,
        },
    }


def _pod() -> Object:
    container = {
        "name": "db",
        "image": "example/db",
        "volumeMounts": [{"name": VOLUME, "mountPath": "/data"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": APP},
        "spec": {
            "nodeName": NODE,
            "containers": [container],
            "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": "data-db-0"}}],
        },
        "status": {"phase": "Running"},
    }


def pod_volume_backup(name: str, pod_uid: str, repository: str) -> Object:
    """Return the PodVolumeBackup that Velero's server would create for the pod's volume."""
    tags = {
        "backup": name,
        "backup-uid": f"{name}-uid",
        "ns": APP,
        "pod": POD,
        "pod-uid": pod_uid,
        "pvc-uid": PVC_UID,
        "volume": VOLUME,
    }
    return {
        "apiVersion": "velero.io/v1",
        "kind": "PodVolumeBackup",
        "metadata": {
            "generateName": f"{name}-",
            "namespace": VELERO,
            "labels": {"velero.io/backup-name": name, "velero.io/pvc-uid": PVC_UID},
            "annotations": {"velero.io/pvc-name": "data-db-0"},
        },
        "spec": {
            "node": NODE,
            "pod": {"kind": "Pod", "namespace": APP, "name": POD, "uid": pod_uid},
            "volume": VOLUME,
            "backupStorageLocation": "default",
            "repoIdentifier": repository,
            "uploaderType": "restic",
            "tags": tags,
        },
    }
