"""The estate: one location with all its repositories, and who needs their snapshots.

The rule guarded here: the bucket is the truth. That a PodVolumeBackup is gone from the cluster
says nothing: deleting a location or losing a cluster removes it too (velero.md section 5.6). One
that is still there only ever adds a need. Whatever of all this cannot be read ends the run.

Repositories are looked for where this location alone keeps them, ``<prefix>/restic/<namespace>``.
A record may name others, by a resticRepoPrefix or because the location was moved or copied.
Those may belong to another location, whose records we do not know: they are swept only on demand.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from agent.cancel import CancelToken
from agent.cluster import location, paths, record
from agent.cluster.client import Kube
from agent.cluster.location import Fetched, Location
from agent.cluster.places import Places
from agent.cluster.record import Folder, Standing, VolumeBackup
from agent.cluster.secrets import PrivateFiles, repository_password
from agent.cluster.session import connected
from agent.config import ClusterSettings
from agent.errors import ClusterError, ObjectMissing, StorageError
from agent.needs import Needs
from agent.storage.contract import Listed, Storage
from agent.storage.settings import S3Settings

CONFIG = "config"
"""The object that makes a prefix a repository (restic-format.md section 1)."""

ListObjects = Callable[[], list[bytes]]
"""Returns all PodVolumeBackups of the cluster, each as JSON; raises ``ClusterError``."""


@dataclasses.dataclass(frozen=True)
class Reach:
    """A location and what it takes to reach it."""

    place: Location
    fetched: Fetched
    password: str = dataclasses.field(repr=False)

    def settings(self, prefix: str, workers: int) -> S3Settings:
        """Return how a prefix of the location's bucket is reached."""
        return location.s3_settings(self.place, prefix, self.fetched, workers)


def reach(settings: ClusterSettings, name: str, private: Path, *, writing: bool = True) -> Reach:
    """Find a location and its secrets; raises ``ClusterError``, also for one that is read-only if ``writing``."""

    async def find(kube: Kube) -> Reach:
        files = PrivateFiles(private)
        places = Places(kube, settings.namespace, settings.credentials_file, files)
        place = await places.location(name)
        if writing:
            location.require_writable(place)
        return Reach(
            place, await places.fetch(place), await repository_password(kube, settings.namespace)
        )

    return asyncio.run(connected(settings.access, find))


def list_volume_backups(settings: ClusterSettings) -> list[bytes]:
    """Return every PodVolumeBackup of Velero's namespace; raises ``ClusterError``."""

    async def ask(kube: Kube) -> list[bytes]:
        return (await kube.list(paths.velero(settings.namespace, "podvolumebackups"))).items

    return asyncio.run(connected(settings.access, ask))


def repositories(place: Location, bucket: Storage, cancel: CancelToken) -> list[str]:
    """Return the prefixes of a location's own repositories; ``bucket`` is at the location's prefix.

    Raises ``ClusterError``.
    """
    try:
        return [
            _below(place, f"restic/{name}")
            for name in bucket.folders("restic/", cancel=cancel)
            if _exists(bucket, f"restic/{name}/{CONFIG}", cancel)
        ]
    except StorageError as error:
        raise ClusterError(
            f"the repositories in {bucket.place} cannot be listed; nothing is done: {error}"
        ) from error


def _below(place: Location, path: str) -> str:
    return f"{place.prefix}/{path}" if place.prefix else path


def _exists(bucket: Storage, key: str, cancel: CancelToken) -> bool:
    try:
        bucket.size(key, cancel=cancel)
    except ObjectMissing:
        return False
    return True


class Estate:
    """Reads one location in one run; not for several threads.

    ``bucket`` is the storage at the location's prefix. ``without_volumes`` are doubtful backups
    of which the operator knows that no pod volume was backed up with them.
    """

    def __init__(
        self,
        place: Location,
        bucket: Storage,
        list_objects: ListObjects,
        without_volumes: Collection[str] = (),
    ) -> None:
        self._place = place
        self._bucket = bucket
        self._list_objects = list_objects
        self._without_volumes = frozenset(without_volumes)
        self._records: dict[Listed, list[VolumeBackup]] = {}
        self._volume_backups: dict[VolumeBackup, None] = {}
        self.unfinished: tuple[str, ...] = ()
        """Folders that are no backup (yet), as of the last reading."""
        self.all_needs = Needs()
        """Everything that was needed at any reading of this run."""

    def needs(self, cancel: CancelToken) -> Needs:
        """Read the needs as they are now, first of the cluster, then of the bucket.

        A record is fetched once in a run: one that is replaced by another of the same size
        meanwhile is that of a new backup, whose snapshots the cluster or the grace period protects.
        Raises ``ClusterError`` if any part cannot be read or understood.
        """
        found = [
            record.read_object(body, "a PodVolumeBackup of the cluster")
            for body in self._list_objects()
        ]
        backups = self._recorded(found, cancel)
        self._volume_backups.update(dict.fromkeys(found))
        named = [one.named(self._prefix(one)) for one in found]
        pending = [one.pending() for one in found]
        more = Needs(filter(None, named), filter(None, pending), backups)
        self.all_needs.learn(more)
        return self.all_needs

    def _recorded(self, found: list[VolumeBackup], cancel: CancelToken) -> list[str]:
        """Add what the bucket's records hold to ``found``, and return their backups."""
        try:
            folders = record.folders(self._bucket.list(record.FOLDER, cancel=cancel))
            self._refuse_doubtful(folders)
            for folder in folders:
                for listed in folder.records:
                    found += self._record(listed, cancel)
        except StorageError as error:
            raise ClusterError(
                f"the backups in {self._bucket.place} cannot be read, so what is needed is"
                f" unknown; nothing is removed: {error}"
            ) from error
        self.unfinished = tuple(f.name for f in folders if f.standing is Standing.UNFINISHED)
        return [folder.name for folder in folders if folder.standing is Standing.RECORDED]

    def _record(self, listed: Listed, cancel: CancelToken) -> list[VolumeBackup]:
        if listed not in self._records:
            what = f"{listed.key} in {self._bucket.place}"
            packed = self._bucket.get(listed.key, cancel=cancel)
            self._records[listed] = record.read_record(packed, what)
        return self._records[listed]

    def _refuse_doubtful(self, folders: Iterable[Folder]) -> None:
        doubtful = [
            folder.name
            for folder in folders
            if folder.standing is Standing.DOUBTFUL and folder.name not in self._without_volumes
        ]
        if doubtful:
            raise ClusterError(
                f"backup {doubtful[0]} in {self._bucket.place} has no"
                f" {doubtful[0]}-podvolumebackups.json.gz, so what it needs is unknown"
                f" ({len(doubtful)} backups are like that). Just being written or deleted? Then run"
                " again in some minutes. Damaged? Delete it with `velero backup delete`. Without"
                f" any pod volume? Add --without-volumes {doubtful[0]}"
            )

    def _prefix(self, one: VolumeBackup) -> str:
        """Return where the snapshot has to be; "" if that is not in this location."""
        try:
            return location.repository_prefix(self._place, one.repo_identifier, one.pod_namespace)
        except ClusterError:
            return ""

    def repositories(self, cancel: CancelToken) -> list[str]:
        """Return the prefixes of the location's own repositories; raises ``ClusterError``."""
        return repositories(self._place, self._bucket, cancel)

    def elsewhere(self) -> list[str]:
        """Return the repositories in the location's bucket that are named but not its own."""
        own = _below(self._place, "restic/")
        named = {self._prefix(one) for one in self._volume_backups if one.ours}
        return sorted(prefix for prefix in named if prefix and not prefix.startswith(own))

    def out_of_reach(self) -> list[str]:
        """Return the named repositories that are not in the location's bucket at all."""
        return sorted(
            {
                one.repo_identifier
                for one in self._volume_backups
                if one.ours and not self._prefix(one)
            }
        )
