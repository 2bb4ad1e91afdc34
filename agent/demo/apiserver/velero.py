"""Velero's resources, written down from velero.md section 1 and not from Velero's files.

What a field may hold changed over time; ``definitions`` answers for one release. Only what an
agent can run into is exact: the fields of PodVolumeBackup, PodVolumeRestore and
BackupStorageLocation, their enums, what is required, and that none has a ``/status`` unless a
test asks for it. A Backup is taken as it comes.
"""

import dataclasses

from agent.demo.apiserver.resource import AGE, Column, Json, Resource
from agent.demo.apiserver.schema import PRESERVE

GROUP = "velero.io"
DEFAULT_VERSION = "v1.16.2"
ORDERS = ("podvolumebackups", "podvolumerestores")

STRING: Json = {"type": "string"}
BOOLEAN: Json = {"type": "boolean"}
INT64: Json = {"type": "integer", "format": "int64"}
TIME: Json = {"type": "string", "format": "date-time", "nullable": True}
STRINGS: Json = {"type": "object", "additionalProperties": STRING}
OPTIONAL_STRINGS: Json = STRINGS | {"nullable": True}
OPTIONAL_STRING: Json = STRING | {"nullable": True}
FORMATS = ["kopia", "restic", ""]


def _object(*required: str, **properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        **({"required": sorted(required)} if required else {}),
    }


def _choice(*values: str) -> Json:
    return {"type": "string", "enum": list(values)}


OBJECT_REFERENCE = _object(
    apiVersion=STRING,
    fieldPath=STRING,
    kind=STRING,
    name=STRING,
    namespace=STRING,
    resourceVersion=STRING,
    uid=STRING,
)
KEY_SELECTOR = _object("key", key=STRING, name=STRING, optional=BOOLEAN)
PROGRESS = _object(bytesDone=INT64, totalBytes=INT64)


def release(version: str) -> tuple[int, int]:
    """Return major and minor of ``v1.16.2``; ``main`` counts as newer than all."""
    if version == "main":
        return (99, 0)
    major, minor = version.removeprefix("v").split(".")[:2]
    return int(major), int(minor)


def definitions(version: str, *, status_subresource: bool) -> list[Resource]:
    """Return Velero's resources as of ``version`` (``v1.16.2``, or ``main``).

    ``status_subresource`` gives PodVolumeBackup and PodVolumeRestore a ``/status``, which no
    Velero has so far (velero.md section 1).
    """
    at = release(version)
    anything = _object(spec={PRESERVE: True}, status={PRESERVE: True})
    resources = (
        _resource("podvolumebackups", "PodVolumeBackup", _backup(at), _backup_columns(at)),
        _resource("podvolumerestores", "PodVolumeRestore", _restore(at), _restore_columns(at)),
        _resource("backupstoragelocations", "BackupStorageLocation", _location(at), _OF_LOCATIONS),
        _resource("backuprepositories", "BackupRepository", _repository(at), _OF_REPOSITORIES),
        _resource("backups", "Backup", anything, (AGE,)),
    )
    return [
        dataclasses.replace(
            each,
            short_names=_short_names(each.plural, at),
            has_status=status_subresource and each.plural in ORDERS,
        )
        for each in resources
    ]


def _resource(plural: str, kind: str, schema: Json, columns: tuple[Column, ...]) -> Resource:
    return Resource(GROUP, "v1", plural, kind, custom=True, schema=schema, columns=columns)


def _short_names(plural: str, at: tuple[int, int]) -> tuple[str, ...]:
    old = {"backupstoragelocations": ("bsl",)}
    new = {
        "podvolumebackups": ("pvb",),
        "podvolumerestores": ("pvr",),
        "backuprepositories": ("repo",),
    }
    return (old | new if at >= (99, 0) else old).get(plural, ())


# What kubectl shows (velero.md section 1.4).
_PHASE = Column("Status", "status.phase")
_POD = (Column("Namespace", "spec.pod.namespace"), Column("Pod", "spec.pod.name"))
_VOLUME = Column("Volume", "spec.volume")
_LOCATION = Column("Storage Location", "spec.backupStorageLocation")
_TYPE = Column("Uploader Type", "spec.uploaderType")
_BEGUN = (
    _PHASE,
    Column("Started", "status.startTimestamp"),
    Column("Bytes Done", "status.progress.bytesDone"),
    Column("Total Bytes", "status.progress.totalBytes"),
)
_NODE = Column("Node", "status.node")  # which a PodVolumeBackup has not: always empty there
_OF_LOCATIONS = (
    Column("Phase", "status.phase"),
    Column("Last Validated", "status.lastValidationTime"),
    AGE,
    Column("Default", "spec.default"),
)
_OF_REPOSITORIES = (AGE, Column("Repository Type", "spec.repositoryType"))


def _backup_columns(at: tuple[int, int]) -> tuple[Column, ...]:
    if at < (1, 17):
        created = Column("Created", "status.startTimestamp")
        return (_PHASE, created, *_POD, _VOLUME, _TYPE, _LOCATION, AGE)
    read = (Column("Incremental Bytes", "status.incrementalBytes", 10),) if at >= (1, 18) else ()
    return (*_BEGUN, *read, _LOCATION, AGE, _NODE, Column("Uploader", "spec.uploaderType"))


def _restore_columns(at: tuple[int, int]) -> tuple[Column, ...]:
    if at < (1, 17):
        total = Column("TotalBytes", "status.progress.totalBytes")
        done = Column("BytesDone", "status.progress.bytesDone")
        return (*_POD, _TYPE, _VOLUME, _PHASE, total, done, AGE)
    return (*_BEGUN, _LOCATION, AGE, _NODE, _TYPE)


def _phases(at: tuple[int, int]) -> Json:
    """Return the phases of both (velero.md section 1.3: four more since v1.17)."""
    if at >= (1, 17):
        early, late = ("New", "Accepted", "Prepared", "InProgress"), ("Canceling", "Canceled")
        return _choice(*early, *late, "Completed", "Failed")
    return _choice("New", "InProgress", "Completed", "Failed")


def _backup(at: tuple[int, int]) -> Json:
    """Return PodVolumeBackup's schema (velero.md sections 1.1 to 1.3)."""
    required = ("node", "pod", "volume", "backupStorageLocation", "repoIdentifier")
    spec = {
        "node": STRING,
        "pod": OBJECT_REFERENCE,
        "volume": STRING,
        "backupStorageLocation": STRING,
        "repoIdentifier": STRING,
        "uploaderType": _choice(*FORMATS),
        "tags": STRINGS,
        "uploaderSettings": OPTIONAL_STRINGS,
    }
    status = _common_status(at) | {"path": STRING, "snapshotID": STRING}
    if at >= (1, 17):
        spec["cancel"] = BOOLEAN
    if at >= (1, 18):
        status["incrementalBytes"] = INT64
    if at >= (99, 0):
        spec["parentSnapshot"] = STRING
    return _object(spec=_object(*required, **spec), status=_object(**status))


def _restore(at: tuple[int, int]) -> Json:
    """Return PodVolumeRestore's schema (velero.md sections 1.3 and 7)."""
    spec = {
        "pod": OBJECT_REFERENCE,
        "volume": STRING,
        "backupStorageLocation": STRING,
        "repoIdentifier": STRING,
        "snapshotID": STRING,
        "sourceNamespace": STRING,
        "uploaderType": _choice(*FORMATS),
        "uploaderSettings": OPTIONAL_STRINGS,
    }
    required = ("pod", "volume", "backupStorageLocation", "repoIdentifier", "snapshotID")
    status = _common_status(at)
    if at >= (1, 17):
        spec["cancel"] = BOOLEAN
        status["node"] = STRING
    if at >= (1, 18):
        spec["snapshotSize"] = INT64
    return _object(
        spec=_object(*required, "sourceNamespace", **spec), status=_object(**status)
    )  # fmt: skip


def _common_status(at: tuple[int, int]) -> Json:
    accepted = {"acceptedTimestamp": TIME} if at >= (1, 17) else {}
    return accepted | {
        "phase": _phases(at),
        "message": STRING,
        "startTimestamp": TIME,
        "completionTimestamp": TIME,
        "progress": PROGRESS,
    }


def _location(at: tuple[int, int]) -> Json:
    """Return BackupStorageLocation's schema (velero.md section 5.2)."""
    storage = {"bucket": STRING, "prefix": STRING, "caCert": STRING | {"format": "byte"}}
    if at >= (1, 18):
        storage["caCertRef"] = KEY_SELECTOR
    access = _choice("ReadOnly", "ReadWrite")
    return _object(
        spec=_object(
            "objectStorage",
            "provider",
            provider=STRING,
            config=STRINGS,
            credential=KEY_SELECTOR,
            default=BOOLEAN,
            accessMode=access,
            objectStorage=_object("bucket", **storage),
            backupSyncPeriod=OPTIONAL_STRING,
            validationFrequency=OPTIONAL_STRING,
        ),
        status=_object(
            phase=_choice("Available", "Unavailable"),
            message=STRING,
            accessMode=access,
            lastSyncedRevision=STRING,
            lastSyncedTime=TIME,
            lastValidationTime=TIME,
        ),
    )


def _repository(at: tuple[int, int]) -> Json:
    """Return BackupRepository's schema (velero.md section 5.4)."""
    items = {"type": "object", PRESERVE: True}
    recent = {"recentMaintenance": {"type": "array", "items": items}} if at >= (1, 16) else {}
    config = {"repositoryConfig": OPTIONAL_STRINGS} if at >= (1, 15) else {}
    required = ["backupStorageLocation", "maintenanceFrequency", "volumeNamespace"]
    if at < (1, 17):
        required.append("resticIdentifier")
    return _object(
        spec=_object(
            *required,
            volumeNamespace=STRING,
            backupStorageLocation=STRING,
            repositoryType=_choice(*FORMATS),
            resticIdentifier=STRING,
            maintenanceFrequency=STRING,
            **config,
        ),
        status=_object(
            phase=_choice("New", "Ready", "NotReady"),
            message=STRING,
            lastMaintenanceTime=TIME,
            **recent,
        ),
    )
