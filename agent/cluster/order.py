"""An order: a PodVolumeBackup or a PodVolumeRestore as the agent sees it, flat and typed.

Only the few fields that the agent reads are kept. Objects are written by others, so reading one
never fails: what does not fit becomes ``defect``, a sentence for the operator, while name, uid
and version are kept so that the object can be answered. Fields: velero.md sections 1.1 to 1.3
and 7.
"""

import enum
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from agent.cluster.objects import UNREADABLE
from agent.errors import ClusterError

PREFIX = "podlift.io/"
OWNER = f"{PREFIX}owner"
"""The annotation that carries a claim."""

PVC_UID_LABEL = "velero.io/pvc-uid"

FINALIZER = "velero.io/pod-volume-finalizer"
"""What Velero 1.17 and newer puts on each object, and its own node agent takes off at the end."""

T = TypeVar("T")

NEW_PHASES = frozenset({"", "New"})
RUNNING_PHASE = "InProgress"
FINAL_PHASES = frozenset({"Completed", "Failed", "Canceled"})


_SHORT = 12
"""Digits of an attempt that people see; enough to tell a handful of them apart."""


class OrderKind(enum.Enum):
    """Which of Velero's two kinds an order is; the value is its ``kind``."""

    BACKUP = "PodVolumeBackup"
    RESTORE = "PodVolumeRestore"

    @property
    def plural(self) -> str:
        """Return the name of its collection."""
        return f"{self.value.lower()}s"

    @property
    def noun(self) -> str:
        """Return what it asks for in one word: backup, or restore."""
        return self.name.lower()


class Owner(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Who holds a claim: a node, a pod on it, and one process (``attempt``) in that pod.

    ``since`` is when it was claimed (RFC 3339), ``earlier`` who held it before and is gone, in words.
    """

    node: str = ""
    pod: str = ""
    pod_uid: str = ""
    attempt: str = ""
    since: str = ""
    earlier: tuple[str, ...] = ()

    def succeeding(self, before: "Owner | None", now: str) -> "Owner":
        """Return this owner as it takes over from ``before``, or begins if nobody was there."""
        if before is None:
            return msgspec.structs.replace(self, since=now)
        return msgspec.structs.replace(self, since=now, earlier=(*before.earlier, before.words))

    @property
    def words(self) -> str:
        """Return who this is, for people."""
        return f"pod {self.pod or '?'} ({self.attempt[:_SHORT]}) from {self.since or '?'}"

    def succeeds(self, other: "Owner") -> bool:
        """Tell whether this one has taken over from the other, or from one that had."""
        return any(f"({other.attempt[:_SHORT]})" in words for words in self.earlier)

    def same(self, other: "Owner | None") -> bool:
        """Tell whether the other is this process."""
        return other is not None and other.attempt == self.attempt


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One observed object. Missing strings are ``""``; times are RFC 3339 text.

    ``annotations`` are those with our prefix, but not the claim's own.

    ``node``, ``tags``, ``parent_snapshot`` and ``snapshot_id`` (what its status says) are a backup's alone;
    ``wanted_snapshot``, ``source_namespace`` and ``restore_uid`` (the Restore's that it is part
    of) a restore's.
    """

    kind: OrderKind = OrderKind.BACKUP
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    created: str = ""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    owner: Owner | None = None
    node: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    volume: str = ""
    location: str = ""
    repo_identifier: str = ""
    uploader_type: str = ""
    tags: dict[str, str] = {}
    annotations: dict[str, str] = {}
    uploader_settings: dict[str, str] = {}
    pvc_uid: str = ""
    parent_snapshot: str = ""
    wanted_snapshot: str = ""
    source_namespace: str = ""
    restore_uid: str = ""
    cancel: bool = False
    phase: str = ""
    started: str = ""
    ended: str = ""
    snapshot_id: str = ""
    message: str = ""
    total_bytes: int = 0
    done_bytes: int = 0
    defect: str = ""

    @property
    def final(self) -> bool:
        """Tell whether nobody will work on it any more."""
        return self.phase in FINAL_PHASES

    @property
    def resumed(self) -> bool:
        """Tell whether its owner has taken it over from a process that had begun it."""
        return self.owner is not None and bool(self.owner.earlier)

    @property
    def detained(self) -> bool:
        """Tell whether it has ended and is being deleted, but still carries Velero's finalizer."""
        return self.final and self.deleting and FINALIZER in self.finalizers

    @property
    def pod(self) -> str:
        """Return the pod in words."""
        return f"pod {self.pod_namespace}/{self.pod_name}"


class _OwnerReference(msgspec.Struct):
    uid: str = ""
    controller: bool | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    finalizers: list[str] | None = None
    owner_references: list[_OwnerReference] | None = None


class _PodReference(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    node: str = ""
    pod: _PodReference = msgspec.field(default_factory=_PodReference)
    volume: str = ""
    backup_storage_location: str = ""
    repo_identifier: str | None = None
    uploader_type: str | None = None
    tags: dict[str, str] | None = None
    uploader_settings: dict[str, str] | None = None
    snapshot_id: str = msgspec.field(default="", name="snapshotID")
    source_namespace: str = ""
    parent_snapshot: str | None = None
    cancel: bool | None = None


class _Progress(msgspec.Struct, rename="camel"):
    total_bytes: int = 0
    bytes_done: int = 0


class _Status(msgspec.Struct, rename="camel"):
    phase: str | None = None
    message: str | None = None
    start_timestamp: str | None = None
    completion_timestamp: str | None = None
    snapshot_id: str | None = msgspec.field(default=None, name="snapshotID")
    progress: _Progress | None = None


class _Whole(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status | None = None


class _NodeOnly(msgspec.Struct):
    node: str = ""


class _PodOnly(msgspec.Struct):
    pod: _PodReference = msgspec.field(default_factory=_PodReference)


class _Sketch(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


def parse(kind: OrderKind, body: bytes | msgspec.Raw) -> Order:
    """Read one object; raises ``ClusterError`` only if it has no usable metadata."""
    try:
        return _flat(kind, msgspec.json.decode(body, type=_Whole))
    except UNREADABLE as error:
        return _sketch(kind, body, str(error))


def ours(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """Return the annotations with our prefix that are not a claim."""
    found = annotations or {}
    return {key: found[key] for key in found if key.startswith(PREFIX) and key != OWNER}


def owner_text(owner: Owner) -> str:
    """Return the annotation's value."""
    return msgspec.json.encode(owner).decode()


def _flat(kind: OrderKind, whole: _Whole) -> Order:
    metadata, spec, status = whole.metadata, whole.spec, whole.status or _Status()
    progress = status.progress or _Progress()
    return Order(
        kind=kind,
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        created=metadata.creation_timestamp or "",
        deleting=metadata.deletion_timestamp is not None,
        finalizers=tuple(metadata.finalizers or ()),
        owner=_owner(metadata),
        node=spec.node,
        pod_name=spec.pod.name,
        pod_namespace=spec.pod.namespace,
        pod_uid=spec.pod.uid,
        volume=spec.volume,
        location=spec.backup_storage_location,
        repo_identifier=spec.repo_identifier or "",
        uploader_type=spec.uploader_type or "",
        tags=spec.tags or {},
        annotations=ours(metadata.annotations),
        uploader_settings=spec.uploader_settings or {},
        pvc_uid=(metadata.labels or {}).get(PVC_UID_LABEL, ""),
        parent_snapshot=spec.parent_snapshot or "",
        wanted_snapshot=spec.snapshot_id,
        source_namespace=spec.source_namespace,
        restore_uid=_restore_uid(metadata),
        cancel=bool(spec.cancel),
        phase=status.phase or "",
        started=status.start_timestamp or "",
        ended=status.completion_timestamp or "",
        snapshot_id=status.snapshot_id or "",
        message=status.message or "",
        total_bytes=progress.total_bytes,
        done_bytes=progress.bytes_done,
        defect=_missing(kind, spec, _restore_uid(metadata)),
    )


def _missing(kind: OrderKind, spec: _Spec, restore_uid: str) -> str:
    values = {
        "spec.pod.name": spec.pod.name,
        "spec.pod.namespace": spec.pod.namespace,
        "spec.pod.uid": spec.pod.uid,
        "spec.volume": spec.volume,
        "spec.backupStorageLocation": spec.backup_storage_location,
    }
    if kind is OrderKind.RESTORE:
        values["metadata.ownerReferences[].uid"] = restore_uid
        values["spec.sourceNamespace"] = spec.source_namespace or spec.repo_identifier or ""
    missing = [name for name, value in values.items() if not value]
    return f"{', '.join(missing)} missing" if missing else ""


def _restore_uid(metadata: _Metadata) -> str:
    """Return the uid that the restore helper waits for (velero.md section 7, step 3)."""
    owners = metadata.owner_references or [_OwnerReference()]
    return next((owner.uid for owner in owners if owner.controller), owners[0].uid)


def _owner(metadata: _Metadata) -> Owner | None:
    text = (metadata.annotations or {}).get(OWNER)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Owner)
    except (*UNREADABLE, UnicodeEncodeError):
        return Owner()


def _sketch(kind: OrderKind, body: bytes | msgspec.Raw, reason: str) -> Order:
    try:
        sketch = msgspec.json.decode(body, type=_Sketch)
    except UNREADABLE as error:
        raise ClusterError(f"the API server sent an object without metadata: {error}") from None
    node = _readable(sketch.spec, _NodeOnly).node
    pod = _readable(sketch.spec, _PodOnly).pod
    status = _sketched_status(body)
    metadata = sketch.metadata
    return Order(
        kind=kind,
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        deleting=metadata.deletion_timestamp is not None,
        finalizers=tuple(metadata.finalizers or ()),
        owner=_owner(metadata),
        node=node,
        pod_name=pod.name,
        pod_namespace=pod.namespace,
        pod_uid=pod.uid,
        phase=status.phase or "",
        defect=reason,
    )


def _readable(body: msgspec.Raw, into: type[T]) -> T:
    """Return what can be read of a part, or nothing of it."""
    try:
        return msgspec.json.decode(body, type=into)
    except UNREADABLE:
        return into()


class _StatusOnly(msgspec.Struct):
    status: _Status | None = None


def _sketched_status(body: bytes | msgspec.Raw) -> _Status:
    try:
        return msgspec.json.decode(body, type=_StatusOnly).status or _Status()
    except UNREADABLE:
        return _Status(phase="Failed")  # unreadable: nothing can be said about it, leave it
