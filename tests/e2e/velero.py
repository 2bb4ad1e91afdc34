"""What Velero's server leaves in the bucket of a location, and how it takes it away again."""

import gzip
import json
from typing import Any

from tests.e2e.scene import Scene

PREFIX = "velero/one"


class Velero:
    """Writes and deletes backups of a scene's location."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def put(self, key: str, body: bytes) -> None:
        """Store an object below the location's prefix."""
        self.scene.s3.kept_client.put_object(
            Bucket=self.scene.bucket, Key=f"{PREFIX}/{key}", Body=body
        )

    def remove(self, prefix: str) -> None:
        """Remove all objects whose key begins so, below the location's prefix."""
        for key in self.scene.objects(f"{PREFIX}/{prefix}"):
            self.scene.s3.kept_client.delete_object(Bucket=self.scene.bucket, Key=key)

    def finish(self, backup: str, *volume_backups: str) -> None:
        """Write a backup's files as Velero does when all of its PodVolumeBackups have ended."""
        objects = [self.scene.read(name) for name in volume_backups]
        self.write(backup, f"{backup}-logs.gz", b"time=...")
        self.write(backup, "velero-backup.json", {"kind": "Backup", "metadata": {"name": backup}})
        self.write(backup, f"{backup}.tar.gz", [])
        self.record(backup, objects or None)
        for kind in ("volumesnapshots", "resource-list", "volumeinfo"):
            self.write(backup, f"{backup}-{kind}.json.gz", None)

    def record(self, backup: str, content: Any) -> None:
        self.write(backup, f"{backup}-podvolumebackups.json.gz", content)

    def write(self, backup: str, file: str, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if file.endswith(".gz") and not isinstance(content, bytes):
            body = gzip.compress(body)
        self.put(f"backups/{backup}/{file}", body)

    def delete(self, backup: str, *volume_backups: str) -> None:
        """Delete a backup: its files, then its Backup, whose PodVolumeBackups follow it."""
        self.remove(f"backups/{backup}/")
        self.forget_objects(*volume_backups)

    def forget_objects(self, *volume_backups: str) -> None:
        """Remove PodVolumeBackups alone, as losing or leaving a cluster does."""
        for name in volume_backups:
            self.scene.server.delete(self.scene.server.path("podvolumebackups", name))
