"""The record: what Velero writes into the bucket about a backup's volumes; pure.

The rule guarded here: what does not decode, or decodes to something else than expected, is an
error and never "no volumes". Nobody may lose a snapshot because a file was not understood.

Below ``<prefix>/backups/<name>/`` Velero puts, at the end of a backup and in this order: its log,
``velero-backup.json``, ``<name>.tar.gz``, then all others in no order, among them
``<name>-podvolumebackups.json.gz``: every PodVolumeBackup of the backup as a whole object, in one
gzipped JSON list, or ``null`` if there was none (velero.md section 2.3; that it is always written
was read in Velero's ``persistBackup`` and ``PutBackup``). If one of the others fails, metadata and
contents are deleted again. To delete a backup it removes what a listing shows, one by one. So a
folder has one of three standings:

- recorded: there is a record. It counts, whatever else is there or not;
- unfinished: neither record nor metadata nor contents. To Velero this is no backup (yet); its
  snapshots are protected by the PodVolumeBackups in the cluster and by the grace period;
- doubtful: metadata or contents without a record. It is just being written or deleted, or was
  damaged, or an ancient Velero wrote it: what it needs is not known.
"""

import enum
import re
import zlib
from collections.abc import Iterable

import msgspec

from agent.cluster.objects import UNREADABLE
from agent.errors import ClusterError
from agent.needs import Named, Pending, is_name
from agent.storage.contract import Listed

FOLDER = "backups/"
_RECORD = "-podvolumebackups.json.gz"
_METADATA = "velero-backup.json"
_CONTENTS = ".tar.gz"
_LIMIT_BYTES = 128 << 20
"""A PodVolumeBackup has 2 KB: enough for 65,000 volumes in one backup, and four times that in memory."""

_BACKUP_NAME = "velero.io/backup-name"
_BACKUP_UID = "velero.io/backup-uid"
_FINAL = frozenset({"Completed", "Failed", "Canceled"})
_RESTIC = frozenset({"", "restic"})
_FULL_ID = re.compile(r"[0-9a-f]{64}")


class Standing(enum.Enum):
    """What a folder below ``backups/`` is."""

    RECORDED = "recorded"
    UNFINISHED = "unfinished"
    DOUBTFUL = "doubtful"


class Folder(msgspec.Struct, frozen=True):
    """A backup's folder in the bucket; ``records`` are keys and sizes, below the prefix."""

    name: str
    standing: Standing
    records: tuple[Listed, ...]


def folders(listed: Iterable[Listed]) -> list[Folder]:
    """Return the folders of a listing of ``backups/``, by name."""
    found: dict[str, list[Listed]] = {}
    for entry in listed:
        name, slash, file = entry.key.removeprefix(FOLDER).partition("/")
        if name and slash and file:  # a console marks a folder by a key that ends in a slash
            found.setdefault(name, []).append(entry)
    return [_folder(name, entries) for name, entries in sorted(found.items())]


def _folder(name: str, entries: list[Listed]) -> Folder:
    files = {entry.key.removeprefix(f"{FOLDER}{name}/"): entry for entry in entries}
    records = tuple(entry for file, entry in sorted(files.items()) if file.endswith(_RECORD))
    if records:
        return Folder(name, Standing.RECORDED, records)
    if _METADATA in files or f"{name}{_CONTENTS}" in files:
        return Folder(name, Standing.DOUBTFUL, ())
    return Folder(name, Standing.UNFINISHED, ())


class VolumeBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A PodVolumeBackup, as far as it says which snapshot it needs; "" for what is missing.

    ``snapshot_id`` is empty too if it cannot be a snapshot of ours (kopia's own ids).
    """

    name: str
    backup: str
    backup_uid: str
    pod_namespace: str
    repo_identifier: str
    uploader_type: str
    tags: tuple[tuple[str, str], ...]
    phase: str
    snapshot_id: str

    @property
    def ours(self) -> bool:
        """Tell whether its snapshot must be in a repository of restic's format.

        Velero's kopia calls its snapshots by 32 letters, podlift by 64 whatever the type says.
        """
        full = _FULL_ID.fullmatch(self.snapshot_id) is not None
        return bool(self.snapshot_id) and (full or self.uploader_type in _RESTIC)

    def named(self, prefix: str) -> Named | None:
        """Return the name that it gives to a snapshot; ``prefix`` is its repository, if known."""
        if not self.snapshot_id:
            return None
        who = f"PodVolumeBackup {self.name}" + (f" of backup {self.backup}" if self.backup else "")
        return Named(self.snapshot_id, who, prefix if self.ours else "")

    def pending(self) -> Pending | None:
        """Return what it may have made already, if it has not ended.

        Its whole backup is protected, if it says which.
        """
        if self.phase in _FINAL:
            return None
        tags = (("backup-uid", self.backup_uid),) if self.backup_uid else self.tags
        carried = frozenset(f"{key}={value}" for key, value in tags)
        by = f"PodVolumeBackup {self.name} of backup {self.backup} ({self.phase or 'New'})"
        return Pending(carried, by) if carried else None


class _Metadata(msgspec.Struct):
    name: str
    labels: dict[str, str] | None = None


class _Pod(msgspec.Struct):
    namespace: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    pod: _Pod
    volume: str
    backup_storage_location: str
    repo_identifier: str | None = None
    uploader_type: str | None = None
    tags: dict[str, str] | None = None


class _Status(msgspec.Struct):
    phase: str | None = None
    snapshot_id: str | None = msgspec.field(default=None, name="snapshotID")


class _Whole(msgspec.Struct, rename="camel"):
    metadata: _Metadata
    spec: _Spec
    status: _Status | None = None
    kind: str | None = None
    api_version: str | None = None


_record = msgspec.json.Decoder(list[_Whole] | None)
_object = msgspec.json.Decoder(_Whole)


def read_record(packed: bytes, what: str) -> list[VolumeBackup]:
    """Read a record; raises ``ClusterError`` that names ``what`` if anything is odd about it."""
    plain = _unzipped(packed, what)
    try:
        found = _record.decode(plain) or []
    except UNREADABLE as error:
        raise _odd(what, str(error)) from None
    return [_volume_backup(whole, what) for whole in found]


def read_object(body: bytes, what: str) -> VolumeBackup:
    """Read a PodVolumeBackup of the API server, as strictly; raises ``ClusterError``."""
    try:
        return _volume_backup(_object.decode(body), what)
    except UNREADABLE as error:
        raise _odd(what, str(error)) from None


def _unzipped(packed: bytes, what: str) -> bytes:
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # gzip alone
    try:
        plain = stream.decompress(packed, _LIMIT_BYTES)
    except zlib.error as error:
        raise _odd(what, f"it is not gzip: {error}") from None
    if stream.unconsumed_tail:
        raise _odd(what, f"it unpacks to more than {_LIMIT_BYTES >> 20} MiB")
    if not stream.eof:
        raise _odd(what, "it was cut short")
    if stream.unused_data:
        raise _odd(what, "something follows after its end")
    return plain


def _volume_backup(whole: _Whole, what: str) -> VolumeBackup:
    metadata, spec, status = whole.metadata, whole.spec, whole.status or _Status()
    if (whole.kind or "PodVolumeBackup") != "PodVolumeBackup":
        raise _odd(what, f"it holds a {whole.kind}")
    if not (whole.api_version or "velero.io/").startswith("velero.io/"):
        raise _odd(what, f"it holds an object of {whole.api_version}")
    if not metadata.name:
        raise _odd(what, "it holds an object without a name")
    labels, tags = metadata.labels or {}, spec.tags or {}
    uploader_type, snapshot_id = spec.uploader_type or "", status.snapshot_id or ""
    if snapshot_id and not is_name(snapshot_id):
        if uploader_type in _RESTIC:
            raise _odd(what, f"{metadata.name} has snapshotID {snapshot_id[:80]!r}")
        snapshot_id = ""
    return VolumeBackup(
        name=metadata.name,
        backup=tags.get("backup", "") or labels.get(_BACKUP_NAME, ""),
        backup_uid=tags.get("backup-uid", "") or labels.get(_BACKUP_UID, ""),
        pod_namespace=spec.pod.namespace,
        repo_identifier=spec.repo_identifier or "",
        uploader_type=uploader_type,
        tags=tuple(sorted(tags.items())),
        phase=status.phase or "",
        snapshot_id=snapshot_id,
    )


def _odd(what: str, reason: str) -> ClusterError:
    return ClusterError(
        f"{what} cannot be read, so what it needs is unknown: {reason}. Restore it from a copy, or"
        " delete the backup with `velero backup delete`"
    )
