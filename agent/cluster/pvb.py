"""A PodVolumeBackup as the agent sees it: the few fields that it reads, flat and typed.

Objects are written by others, so reading one never fails: what does not fit becomes ``defect``,
a sentence for the operator, while name, uid and version are kept so that the object can be
answered. Fields: velero.md sections 1.1 to 1.3.
"""

import msgspec

from agent.errors import ClusterError

PLURAL = "podvolumebackups"
OWNER = "podlift.io/owner"
"""The annotation that carries a claim."""

PVC_UID_LABEL = "velero.io/pvc-uid"

FINAL_PHASES = frozenset({"Completed", "Failed", "Canceled"})


class Owner(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Who holds a claim: a node, a pod on it, and one process (``attempt``) in that pod."""

    node: str = ""
    pod: str = ""
    pod_uid: str = ""
    attempt: str = ""


class Pvb(msgspec.Struct, frozen=True, kw_only=True):
    """One observed PodVolumeBackup. Missing strings are ``""``; times are RFC 3339 text."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    created: str = ""
    deleting: bool = False
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
    pvc_uid: str = ""
    cancel: bool = False
    phase: str = ""
    started: str = ""
    snapshot_id: str = ""
    message: str = ""
    defect: str = ""

    @property
    def final(self) -> bool:
        """Tell whether nobody will work on it any more."""
        return self.phase in FINAL_PHASES


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


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
    cancel: bool | None = None


class _Status(msgspec.Struct, rename="camel"):
    phase: str | None = None
    message: str | None = None
    start_timestamp: str | None = None
    snapshot_id: str | None = msgspec.field(default=None, name="snapshotID")


class _Whole(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status | None = None


class _NodeOnly(msgspec.Struct):
    node: str = ""


class _Sketch(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


def parse(body: bytes | msgspec.Raw) -> Pvb:
    """Read one object; raises ``ClusterError`` only if it has no usable metadata."""
    try:
        return _flat(msgspec.json.decode(body, type=_Whole))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _sketch(body, str(error))


def owner_text(owner: Owner) -> str:
    """Return the annotation's value."""
    return msgspec.json.encode(owner).decode()


def _flat(whole: _Whole) -> Pvb:
    metadata, spec, status = whole.metadata, whole.spec, whole.status or _Status()
    return Pvb(
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        created=metadata.creation_timestamp or "",
        deleting=metadata.deletion_timestamp is not None,
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
        pvc_uid=(metadata.labels or {}).get(PVC_UID_LABEL, ""),
        cancel=bool(spec.cancel),
        phase=status.phase or "",
        started=status.start_timestamp or "",
        snapshot_id=status.snapshot_id or "",
        message=status.message or "",
        defect=_missing(spec),
    )


def _missing(spec: _Spec) -> str:
    values = {
        "spec.pod.name": spec.pod.name,
        "spec.pod.namespace": spec.pod.namespace,
        "spec.pod.uid": spec.pod.uid,
        "spec.volume": spec.volume,
        "spec.backupStorageLocation": spec.backup_storage_location,
    }
    missing = [name for name, value in values.items() if not value]
    return f"{', '.join(missing)} missing" if missing else ""


def _owner(metadata: _Metadata) -> Owner | None:
    text = (metadata.annotations or {}).get(OWNER)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Owner)
    except (msgspec.MsgspecError, UnicodeError):
        return Owner()


def _sketch(body: bytes | msgspec.Raw, reason: str) -> Pvb:
    try:
        sketch = msgspec.json.decode(body, type=_Sketch)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ClusterError(f"the API server sent an object without metadata: {error}") from None
    try:
        node = msgspec.json.decode(sketch.spec, type=_NodeOnly).node
    except msgspec.MsgspecError:
        node = ""
    status = _sketched_status(body)
    metadata = sketch.metadata
    return Pvb(
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        deleting=metadata.deletion_timestamp is not None,
        owner=_owner(metadata),
        node=node,
        phase=status.phase or "",
        defect=reason,
    )


class _StatusOnly(msgspec.Struct):
    status: _Status | None = None


def _sketched_status(body: bytes | msgspec.Raw) -> _Status:
    try:
        return msgspec.json.decode(body, type=_StatusOnly).status or _Status()
    except msgspec.MsgspecError:
        return _Status(phase="Failed")  # unreadable: nothing can be said about it, leave it
