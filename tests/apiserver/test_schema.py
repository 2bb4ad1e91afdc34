"""Velero's fields are checked and pruned alike by our definitions and by Velero's own."""

import json
from typing import Any

import pytest

from agent.demo.apiserver.velero import definitions
from tests.apiserver.samples import add_backup, backup
from tests.support.apihandle import ApiServer, Json
from tests.support.apiservers import velero_definitions
from tests.support.velerocrds import VERSIONS

MERGE = {"Content-Type": "application/merge-patch+json"}
PLURAL = "podvolumebackups"


@pytest.fixture
def api(api_server: ApiServer) -> ApiServer:
    api_server.apply_velero_crds()
    return api_server


def refused(server: ApiServer, change: Json) -> Json:
    answer = server.request("PATCH", server.path(PLURAL, "gold"), change, headers=MERGE)
    assert answer.status == 422, answer.body
    body: Json = answer.json
    return body


class TestSchema:
    def test_prunes_what_velero_does_not_define(self, api: ApiServer) -> None:
        odd = backup() | {"extra": 1}
        odd["spec"]["surprise"] = {"deep": True}
        odd["spec"]["tags"] = {"any": "key"}
        made = api.create(api.path(PLURAL), odd)
        assert "extra" not in made
        assert "surprise" not in made["spec"]
        assert made["spec"]["tags"] == {"any": "key"}

    def test_prunes_fields_of_later_releases(self, api: ApiServer) -> None:
        add_backup(api)
        status = {"acceptedTimestamp": "2026-01-02T03:04:05Z", "incrementalBytes": 1}
        done = api.patch(api.path(PLURAL, "gold"), {"status": status, "spec": {"cancel": True}})
        assert done.get("status", {}) == {}
        assert "cancel" not in done["spec"]

    def test_refuses_phases_of_later_releases(self, api: ApiServer) -> None:
        add_backup(api)
        body = refused(api, {"status": {"phase": "Canceled"}})
        assert body["details"]["causes"][0]["message"] == (
            'Unsupported value: "Canceled": supported values: '
            '"New", "InProgress", "Completed", "Failed"'
        )

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"spec": {"node": 7}}, "spec.node"),
            ({"spec": {"tags": {"a": 1}}}, "spec.tags.a"),
            ({"status": {"progress": {"bytesDone": "1"}}}, "status.progress.bytesDone"),
            ({"status": {"progress": {"bytesDone": 1.5}}}, "status.progress.bytesDone"),
            ({"status": {"progress": []}}, "status.progress"),
            ({"status": {"startTimestamp": "yesterday"}}, "status.startTimestamp"),
            ({"spec": {"uploaderType": "rsync"}}, "spec.uploaderType"),
        ],
    )
    def test_refuses_wrong_types(self, api: ApiServer, change: Json, field: str) -> None:
        add_backup(api)
        body = refused(api, change)
        assert [cause["field"] for cause in body["details"]["causes"]] == [field]

    @pytest.mark.parametrize("value", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456Z"])
    def test_takes_times_with_and_without_fractions(self, api: ApiServer, value: str) -> None:
        add_backup(api)
        done = api.patch(api.path(PLURAL, "gold"), {"status": {"startTimestamp": value}})
        assert done["status"]["startTimestamp"] == value

    def test_says_the_type_that_it_wants(self, api: ApiServer) -> None:
        add_backup(api)
        body = refused(api, {"spec": {"node": 7}})
        assert body["message"] == (
            'PodVolumeBackup.velero.io "gold" is invalid: spec.node: Invalid value: "integer": '
            'spec.node in body must be of type string: "integer"'
        )

    @pytest.mark.parametrize(
        "field", ["backupStorageLocation", "node", "pod", "repoIdentifier", "volume"]
    )
    def test_requires_what_velero_requires(self, api: ApiServer, field: str) -> None:
        add_backup(api)
        body = refused(api, {"spec": {field: None}})
        cause = {
            "reason": "FieldValueRequired",
            "message": "Required value",
            "field": f"spec.{field}",
        }
        assert body["details"]["causes"] == [cause]

    def test_takes_null_where_velero_does(self, api: ApiServer) -> None:
        odd = backup()
        odd["spec"]["uploaderSettings"] = None
        odd["status"] = {"startTimestamp": None}
        assert api.create(api.path(PLURAL), odd)["metadata"]["generation"] == 1

    def test_requires_bucket_and_provider_of_a_location(self, api: ApiServer) -> None:
        location: Json = {
            "apiVersion": "velero.io/v1",
            "kind": "BackupStorageLocation",
            "metadata": {"name": "default"},
            "spec": {"objectStorage": {}},
        }
        answer = api.request("POST", api.path("backupstoragelocations"), location)
        fields = {cause["field"] for cause in answer.json["details"]["causes"]}
        assert fields == {"spec.provider", "spec.objectStorage.bucket"}
        location["spec"] = {
            "provider": "aws",
            "objectStorage": {"bucket": "b", "prefix": "p", "caCert": "QQ=="},
            "config": {"s3Url": "https://s3.example"},
            "credential": {"name": "cloud", "key": "cloud"},
        }
        made = api.create(api.path("backupstoragelocations"), location)
        assert made["spec"] == location["spec"]

    def test_keeps_a_restore_and_a_repository_whole(self, api: ApiServer) -> None:
        restore = {
            "apiVersion": "velero.io/v1",
            "kind": "PodVolumeRestore",
            "metadata": {"name": "r"},
            "spec": {
                **{k: v for k, v in backup()["spec"].items() if k != "node"},
                "snapshotID": "abc",
                "sourceNamespace": "app",
                "uploaderSettings": {"WriteSparseFiles": "true"},
            },
        }
        made = api.create(api.path("podvolumerestores"), restore)
        assert made["spec"] == restore["spec"]
        path = api.path("podvolumerestores", "r")
        status = {"phase": "InProgress", "progress": {"totalBytes": 2, "bytesDone": 1}}
        unknown = {"snapshotID": "abc", "path": "/x"}  # a backup's fields
        assert api.patch(path, {"status": status | unknown})["status"] == status
        assert api.request("PATCH", f"{path}/status", {}).status == 404
        repository = {
            "apiVersion": "velero.io/v1",
            "kind": "BackupRepository",
            "metadata": {"name": "app-default-restic"},
            "spec": {
                "backupStorageLocation": "default",
                "maintenanceFrequency": "1h0m0s",
                "repositoryType": "restic",
                "resticIdentifier": "s3:x",
                "volumeNamespace": "app",
            },
            "status": {"phase": "Ready"},
        }
        made = api.create(api.path("backuprepositories"), repository)
        assert made["spec"] == repository["spec"]
        assert made["status"] == {"phase": "Ready"}


class TestSchemaOfVelero118:
    @pytest.fixture
    def api(self, api_server: ApiServer) -> ApiServer:
        api_server.apply_velero_crds("v1.18.1")
        return api_server

    def test_refuses_a_phase_that_no_release_has(self, api: ApiServer) -> None:
        add_backup(api)
        supported = (
            'Unsupported value: "Bogus": supported values: "New", "Accepted", "Prepared", '
            '"InProgress", "Canceling", "Canceled", "Completed", "Failed"'
        )
        assert refused(api, {"status": {"phase": "Bogus"}}) == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": f'PodVolumeBackup.velero.io "gold" is invalid: status.phase: {supported}',
            "reason": "Invalid",
            "details": {
                "name": "gold",
                "group": "velero.io",
                "kind": "PodVolumeBackup",
                "causes": [
                    {
                        "reason": "FieldValueNotSupported",
                        "message": supported,
                        "field": "status.phase",
                    }
                ],
            },
            "code": 422,
        }

    def test_keeps_the_fields_that_came_later(self, api: ApiServer) -> None:
        add_backup(api)
        status = {
            "phase": "Accepted",
            "acceptedTimestamp": "2026-01-02T03:04:05Z",
            "incrementalBytes": 1,
        }
        done = api.patch(api.path(PLURAL, "gold"), {"status": status, "spec": {"cancel": True}})
        assert done["status"] == status
        assert done["spec"]["cancel"] is True


class TestDefinitionsOfTheStandin:
    """Our definitions name the same fields and columns as Velero's (of five releases)."""

    @pytest.mark.parametrize("version", VERSIONS)
    def test_name_the_fields_that_velero_names(self, version: str) -> None:
        ours = {r.plural: r for r in definitions(version, status_subresource=False)}
        for theirs in velero_definitions(version):
            plural = theirs["spec"]["names"]["plural"]
            schema = theirs["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            if plural == "backups":
                continue
            mine = ours[plural].schema
            assert mine is not None
            assert ours[plural].kind == theirs["spec"]["names"]["kind"]
            assert list(ours[plural].short_names) == theirs["spec"]["names"].get("shortNames", [])
            assert [tuple(column) for column in ours[plural].columns] == [
                (column["name"], column["jsonPath"].removeprefix("."), column.get("priority", 0))
                for column in theirs["spec"]["versions"][0]["additionalPrinterColumns"]
            ]
            for part in ("spec", "status"):
                assert shape(mine["properties"][part]) == shape(schema["properties"][part]), (
                    f"{version} {plural} {part}"
                )


def shape(schema: Any) -> Any:
    """Return a schema without its prose, in an order of its own."""
    if isinstance(schema, list):
        return sorted(json.dumps(item) for item in schema)
    if not isinstance(schema, dict):
        return schema
    dropped = {"description", "x-kubernetes-map-type"}
    kept = {key: shape(value) for key, value in schema.items() if key not in dropped}
    return {"type": "array"} if kept.get("type") == "array" else kept
