"""The other objects that an order needs, as far as they are read.

Each is a projection: unknown fields are skipped, missing ones have a default. Shapes: the
Kubernetes API (core/v1, storage.k8s.io/v1) and velero.md sections 4 and 5.
"""

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises: for another shape, text that is not UTF-8, nesting without end."""


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """The part of ObjectMeta that decisions depend on."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    owner_references: list["OwnerReference"] | None = None


class OwnerReference(msgspec.Struct, frozen=True):
    """Who an object belongs to."""

    uid: str = ""
    controller: bool | None = None


class ClaimSource(msgspec.Struct, frozen=True, rename="camel"):
    """A volume that is a PersistentVolumeClaim."""

    claim_name: str = ""


class Volume(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of a pod's ``spec.volumes``; at most one source is set."""

    name: str = ""
    persistent_volume_claim: ClaimSource | None = None
    csi: dict[str, object] | None = None
    ephemeral: dict[str, object] | None = None
    host_path: dict[str, object] | None = None


class Container(msgspec.Struct, frozen=True):
    """A container, of which only the name matters."""

    name: str = ""


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Where a pod runs and what it mounts."""

    node_name: str = ""
    volumes: list[Volume] | None = None
    init_containers: list[Container] | None = None
    restart_policy: str = "Always"


class Waiting(msgspec.Struct, frozen=True):
    """Why a container does not run."""

    reason: str = ""


class Running(msgspec.Struct, frozen=True):
    """That a container runs."""


class Terminated(msgspec.Struct, frozen=True, rename="camel"):
    """How a container ended."""

    exit_code: int = 0


class ContainerState(msgspec.Struct, frozen=True):
    """At most one is set; none counts as waiting."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, frozen=True):
    """How far one container is."""

    name: str = ""
    state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How far a pod is."""

    phase: str = ""
    init_container_statuses: list[ContainerStatus] | None = None


class Pod(msgspec.Struct, frozen=True):
    """A pod."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)

    @property
    def resource_version(self) -> str:
        """Return the version to watch on from."""
        return self.metadata.resource_version


class ClaimSpec(msgspec.Struct, frozen=True, rename="camel"):
    """What a claim is bound to."""

    volume_name: str = ""


class Claim(msgspec.Struct, frozen=True):
    """A PersistentVolumeClaim."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: ClaimSpec = msgspec.field(default_factory=ClaimSpec)


class ClaimReference(msgspec.Struct, frozen=True):
    """Which claim a PersistentVolume is bound to."""

    uid: str = ""


class PersistentVolumeSpec(msgspec.Struct, frozen=True, rename="camel"):
    """What a PersistentVolume is."""

    csi: dict[str, object] | None = None
    volume_mode: str | None = None
    claim_ref: ClaimReference | None = None


class PersistentVolume(msgspec.Struct, frozen=True):
    """A PersistentVolume."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: PersistentVolumeSpec = msgspec.field(default_factory=PersistentVolumeSpec)


class Named(msgspec.Struct, frozen=True):
    """Any object of which only the metadata matters."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)


class ConfigMap(msgspec.Struct, frozen=True):
    """A ConfigMap."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    data: dict[str, str] | None = None

    @property
    def resource_version(self) -> str:
        """Return the version to watch on from."""
        return self.metadata.resource_version


class Secret(msgspec.Struct, frozen=True):
    """A Secret; its values are decoded from base64 and never shown."""

    data: dict[str, bytes] | None = None


class KeyReference(msgspec.Struct, frozen=True):
    """One key of a Secret."""

    name: str = ""
    key: str = ""


class ObjectStorage(msgspec.Struct, frozen=True, rename="camel"):
    """The bucket of a location; ``ca_cert`` is PEM, decoded from base64."""

    bucket: str = ""
    prefix: str | None = None
    ca_cert: bytes | None = None
    ca_cert_ref: KeyReference | None = None


class LocationSpec(msgspec.Struct, frozen=True, rename="camel"):
    """What a BackupStorageLocation says."""

    provider: str = ""
    access_mode: str | None = None
    object_storage: ObjectStorage = msgspec.field(default_factory=ObjectStorage)
    config: dict[str, str] | None = None
    credential: KeyReference | None = None


class LocationStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What Velero's server found when it last looked at a location."""

    phase: str = ""
    message: str = ""
    last_validation_time: str | None = None


class BackupStorageLocation(msgspec.Struct, frozen=True):
    """A BackupStorageLocation."""

    spec: LocationSpec = msgspec.field(default_factory=LocationSpec)
    status: LocationStatus = msgspec.field(default_factory=LocationStatus)
