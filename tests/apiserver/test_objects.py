"""Objects come, change and go by the same rules on the stand-in and on kube-apiserver.

The bodies were captured from kube-apiserver 1.20.2 and the CRD server 1.36.4; they must not
move, because agents decide by them.
"""

from typing import Any

import pytest

from tests.apiserver.samples import add_backup, backup
from tests.support.apihandle import Answer, ApiServer, Json

MERGE = {"Content-Type": "application/merge-patch+json"}
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
PLURAL = "podvolumebackups"


def failure(code: int, reason: str, message: str, details: Any = None, **metadata: str) -> Json:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": metadata,
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return status if details is None else status | {"details": details}


def named(name: str, kind: str = PLURAL) -> Json:
    return {"name": name, "group": "velero.io", "kind": kind}


def patch(server: ApiServer, name: str, body: Any, headers: Any = MERGE, sub: str = "") -> Answer:
    return server.request("PATCH", server.path(PLURAL, name) + sub, body, headers=headers)


@pytest.fixture
def api(api_server: ApiServer) -> ApiServer:
    api_server.apply_velero_crds()
    return api_server


class TestCreate:
    def test_gives_an_object_its_identity(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), backup())
        made = answer.json
        assert answer.status == 201
        assert answer.headers["Content-Type"] == "application/json"
        assert made["metadata"]["generation"] == 1
        assert made["metadata"]["namespace"] == api.namespace
        assert {"uid", "resourceVersion", "creationTimestamp"} <= made["metadata"].keys()
        assert made["spec"] == backup()["spec"]
        assert api.get(api.path(PLURAL, "gold")) == made

    def test_makes_up_a_name_from_generate_name(self, api: ApiServer) -> None:
        made = add_backup(api, "", generateName="nightly-")
        name = made["metadata"]["name"]
        assert name.startswith("nightly-")
        assert len(name) == len("nightly-") + 5

    def test_refuses_a_name_that_is_taken(self, api: ApiServer) -> None:
        add_backup(api)
        answer = api.request("POST", api.path(PLURAL), backup())
        assert answer.json == failure(
            409,
            "AlreadyExists",
            'podvolumebackups.velero.io "gold" already exists',
            named("gold"),
        )

    def test_refuses_an_object_without_a_name(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), backup(""))
        assert (answer.status, answer.json["reason"]) == (422, "Invalid")
        assert answer.json["details"]["causes"][0]["field"] == "metadata.name"

    def test_refuses_a_name_that_is_no_dns_name(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), backup("Upper_Case"))
        assert (answer.status, answer.json["reason"]) == (422, "Invalid")

    def test_refuses_a_namespace_other_than_the_path(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), backup(namespace="elsewhere"))
        assert (answer.status, answer.json["reason"]) == (400, "BadRequest")
        assert answer.json["message"] == (
            "the namespace of the provided object does not match the namespace sent on the request"
        )

    def test_refuses_a_namespace_that_does_not_exist(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL, namespace="nowhere"), backup())
        assert (answer.status, answer.json["reason"]) == (404, "NotFound")
        assert answer.json["message"] == 'namespaces "nowhere" not found'

    def test_refuses_a_kind_of_another_resource(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), backup() | {"kind": "PodVolumeRestore"})
        assert (answer.status, answer.json["reason"]) == (422, "Invalid")
        assert answer.json["message"] == (
            'PodVolumeRestore.velero.io "gold" is invalid: kind: Invalid value: '
            '"PodVolumeRestore": must be PodVolumeBackup'
        )

    def test_refuses_a_version_of_its_own(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), backup(resourceVersion="5"))
        message = "resourceVersion should not be set on objects to be created"
        expected = failure(500, "", message)
        del expected["reason"]
        assert answer.json == expected

    def test_refuses_an_object_without_a_kind(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), {"metadata": {"name": "gold"}})
        assert (answer.status, answer.json["reason"]) == (400, "BadRequest")
        assert "Object 'Kind' is missing" in answer.json["message"]

    def test_refuses_a_body_that_is_not_json(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL), b"{half")
        assert (answer.status, answer.json["reason"]) == (400, "BadRequest")

    def test_keeps_nothing_of_a_dry_run(self, api: ApiServer) -> None:
        answer = api.request("POST", api.path(PLURAL) + "?dryRun=All", backup())
        assert answer.status == 201
        assert api.request("GET", api.path(PLURAL, "gold")).status == 404


class TestRead:
    def test_says_not_found_of_an_object(self, api: ApiServer) -> None:
        answer = api.request("GET", api.path(PLURAL, "nope"))
        assert answer.status == 404
        assert answer.json == failure(
            404, "NotFound", 'podvolumebackups.velero.io "nope" not found', named("nope")
        )

    def test_says_not_found_of_a_resource_that_is_not_served(self, api: ApiServer) -> None:
        answer = api.request("GET", "/apis/velero.io/v1/namespaces/x/nothings")
        assert answer.status == 404
        assert answer.body == b"404 page not found\n"
        answer = api.request("GET", "/api/v1/namespaces/x/nothings")
        message = "the server could not find the requested resource"
        assert answer.json == failure(404, "NotFound", message, {})

    def test_says_method_not_allowed(self, api: ApiServer) -> None:
        answer = api.request("POST", "/api/v1/pods", {"metadata": {"name": "x"}})
        message = "the server does not allow this method on the requested resource"
        assert answer.json == failure(405, "MethodNotAllowed", message, {})

    def test_says_ok_when_it_is_ready(self, api: ApiServer) -> None:
        assert api.request("GET", "/readyz").body == b"ok"

    def test_refuses_a_token_that_it_does_not_know(self, api: ApiServer) -> None:
        headers = {"Authorization": "Bearer wrong"}
        answer = api.request("GET", api.path(PLURAL), headers=headers)
        assert answer.json == failure(401, "Unauthorized", "Unauthorized")


class TestMergePatch:
    def test_changes_removes_and_keeps_fields(self, api: ApiServer) -> None:
        add_backup(api, labels={"a": "1", "b": "2"})
        change = {
            "metadata": {"labels": {"a": None, "c": "3"}},
            "status": {"phase": "InProgress", "startTimestamp": None},
        }
        done = patch(api, "gold", change).json
        assert done["metadata"]["labels"] == {"b": "2", "c": "3"}
        assert done["status"] == {"phase": "InProgress"}
        assert done["metadata"]["generation"] == 2
        assert done["spec"] == backup()["spec"]

    def test_with_a_stale_version_is_a_conflict(self, api: ApiServer) -> None:
        version = add_backup(api)["metadata"]["resourceVersion"]
        first = {"metadata": {"resourceVersion": version}, "status": {"phase": "InProgress"}}
        assert patch(api, "gold", first).status == 200
        answer = patch(api, "gold", first | {"status": {"phase": "Failed"}})
        assert answer.status == 409
        assert answer.json == failure(
            409,
            "Conflict",
            'Operation cannot be fulfilled on podvolumebackups.velero.io "gold": the object has '
            "been modified; please apply your changes to the latest version and try again",
            named("gold"),
        )

    def test_with_another_uid_is_invalid(self, api: ApiServer) -> None:
        add_backup(api)
        answer = patch(api, "gold", {"metadata": {"uid": "other"}})
        assert (answer.status, answer.json["reason"]) == (422, "Invalid")
        assert answer.json["details"]["causes"][0]["field"] == "metadata.uid"

    def test_of_a_recreated_object_with_both_preconditions_is_a_conflict(
        self, api: ApiServer
    ) -> None:
        old = add_backup(api)["metadata"]
        api.delete(api.path(PLURAL, "gold"))
        add_backup(api)
        both = {"uid": old["uid"], "resourceVersion": old["resourceVersion"]}
        answer = patch(api, "gold", {"metadata": both, "status": {"phase": "InProgress"}})
        assert (answer.status, answer.json["reason"]) == (409, "Conflict")

    def test_to_another_name_is_refused(self, api: ApiServer) -> None:
        add_backup(api)
        answer = patch(api, "gold", {"metadata": {"name": "other"}})
        assert answer.json == failure(
            400,
            "BadRequest",
            "the name of the object (other) does not match the name on the URL (gold)",
        )

    def test_with_a_version_that_is_no_number_is_an_internal_error(self, api: ApiServer) -> None:
        add_backup(api)
        answer = patch(api, "gold", {"metadata": {"resourceVersion": "y"}})
        assert answer.status == 500
        assert answer.json["message"] == 'strconv.ParseUint: parsing "y": invalid syntax'

    def test_that_changes_nothing_moves_no_version(self, api: ApiServer) -> None:
        made = add_backup(api)
        done = patch(api, "gold", {"spec": {"node": "n1"}}).json
        assert done["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]

    def test_of_metadata_alone_keeps_the_generation(self, api: ApiServer) -> None:
        add_backup(api)
        done = patch(api, "gold", {"metadata": {"annotations": {"podlift/owner": "me"}}}).json
        assert done["metadata"]["generation"] == 1

    def test_does_not_create_what_is_missing(self, api: ApiServer) -> None:
        answer = patch(api, "nope", {"status": {"phase": "Failed"}})
        assert (answer.status, answer.json["reason"]) == (404, "NotFound")

    def test_of_a_custom_resource_cannot_be_strategic(self, api: ApiServer) -> None:
        add_backup(api)
        kind = {"Content-Type": "application/strategic-merge-patch+json"}
        answer = patch(api, "gold", {"spec": {"node": "n2"}}, kind)
        assert answer.json == failure(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json-patch+json, application/merge-patch+json, "
            "application/apply-patch+yaml",
        )


class TestJsonPatch:
    def test_applies_all_its_operations(self, api: ApiServer) -> None:
        add_backup(api, finalizers=["podlift.example/a", "podlift.example/b"])
        operations = [
            {"op": "test", "path": "/metadata/finalizers/0", "value": "podlift.example/a"},
            {"op": "remove", "path": "/metadata/finalizers/0"},
            {"op": "add", "path": "/spec/tags", "value": {"x/y": "1"}},
            {"op": "replace", "path": "/spec/tags/x~1y", "value": "2"},
        ]
        done = patch(api, "gold", operations, JSON_PATCH).json
        assert done["metadata"]["finalizers"] == ["podlift.example/b"]
        assert done["spec"]["tags"] == {"x/y": "2"}

    def test_whose_test_fails_changes_nothing(self, api: ApiServer) -> None:
        made = add_backup(api)
        operations = [
            {"op": "replace", "path": "/spec/node", "value": "n2"},
            {"op": "test", "path": "/spec/volume", "value": "other"},
        ]
        answer = patch(api, "gold", operations, JSON_PATCH)
        assert answer.status == 422
        assert answer.json["message"] == (
            "the server rejected our request due to an error in our request"
        )
        assert api.get(api.path(PLURAL, "gold")) == made


class TestUpdate:
    def test_replaces_what_was_read(self, api: ApiServer) -> None:
        made = add_backup(api)
        made["spec"]["node"] = "n2"
        done = api.request("PUT", api.path(PLURAL, "gold"), made).json
        assert done["spec"]["node"] == "n2"
        assert done["metadata"]["generation"] == 2

    def test_with_a_stale_version_is_a_conflict(self, api: ApiServer) -> None:
        made = add_backup(api)
        patch(api, "gold", {"spec": {"node": "n2"}})
        answer = api.request("PUT", api.path(PLURAL, "gold"), made)
        assert (answer.status, answer.json["reason"]) == (409, "Conflict")

    def test_of_a_recreated_object_is_a_conflict(self, api: ApiServer) -> None:
        made = add_backup(api)
        made["metadata"]["uid"] = "abc"
        answer = api.request("PUT", api.path(PLURAL, "gold"), made)
        assert (answer.status, answer.json["reason"]) == (409, "Conflict")
        assert "UID in precondition: abc, UID in object meta: " in answer.json["message"]

    def test_of_another_name_is_refused(self, api: ApiServer) -> None:
        made = add_backup(api)
        made["metadata"]["name"] = "other"
        answer = api.request("PUT", api.path(PLURAL, "gold"), made)
        assert (answer.status, answer.json["reason"]) == (400, "BadRequest")

    def test_without_a_version_is_invalid(self, api: ApiServer) -> None:
        add_backup(api)
        answer = api.request("PUT", api.path(PLURAL, "gold"), backup())
        assert answer.status == 422
        assert answer.json["message"] == (
            'podvolumebackups.velero.io "gold" is invalid: metadata.resourceVersion: '
            "Invalid value: 0x0: must be specified for an update"
        )


class TestDelete:
    def test_removes_and_says_what(self, api: ApiServer) -> None:
        uid = add_backup(api)["metadata"]["uid"]
        done = api.delete(api.path(PLURAL, "gold"))
        assert done["status"] == "Success"
        assert done["details"] == named("gold") | {"uid": uid}
        assert api.request("GET", api.path(PLURAL, "gold")).status == 404

    def test_waits_for_finalizers(self, api: ApiServer) -> None:
        add_backup(api, finalizers=["velero.io/pod-volume-finalizer"])
        marked = api.delete(api.path(PLURAL, "gold"))
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 0
        assert marked["metadata"]["generation"] == 2
        assert "deletionTimestamp" in marked["metadata"]
        again = api.delete(api.path(PLURAL, "gold"))
        assert again["metadata"]["resourceVersion"] == marked["metadata"]["resourceVersion"]
        last = api.patch(api.path(PLURAL, "gold"), {"metadata": {"finalizers": None}})
        assert last["metadata"]["resourceVersion"] == marked["metadata"]["resourceVersion"]
        assert "finalizers" not in last["metadata"]
        assert api.request("GET", api.path(PLURAL, "gold")).status == 404

    def test_allows_no_new_finalizer_afterwards(self, api: ApiServer) -> None:
        add_backup(api, finalizers=["podlift.example/a"])
        api.delete(api.path(PLURAL, "gold"))
        both = {"metadata": {"finalizers": ["podlift.example/a", "podlift.example/b"]}}
        answer = patch(api, "gold", both)
        assert (answer.status, answer.json["reason"]) == (422, "Invalid")
        assert answer.json["details"]["causes"][0] == {
            "reason": "FieldValueForbidden",
            "message": "Forbidden: no new finalizers can be added if the object is being "
            'deleted, found new finalizers []string{"podlift.example/b"}',
            "field": "metadata.finalizers",
        }

    @pytest.mark.parametrize("field", ["uid", "resourceVersion"])
    def test_holds_to_its_preconditions(self, api: ApiServer, field: str) -> None:
        add_backup(api)
        options = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {field: "123456"},
        }
        answer = api.request("DELETE", api.path(PLURAL, "gold"), options)
        assert (answer.status, answer.json["reason"]) == (409, "Conflict")
        assert answer.json["message"].startswith(
            'Operation cannot be fulfilled on PodVolumeBackup.velero.io "gold": the '
        )
        assert "in the precondition (123456) does not match" in answer.json["message"]

    def test_of_a_collection_takes_what_the_selector_takes(self, api: ApiServer) -> None:
        add_backup(api, "one", labels={"go": "yes"})
        add_backup(api, "two")
        answer = api.request("DELETE", api.path(PLURAL) + "?labelSelector=go%3Dyes")
        assert answer.status == 200
        left = api.list(api.path(PLURAL))["items"]
        assert [item["metadata"]["name"] for item in left] == ["two"]


class TestStatusWithoutSubresource:
    def test_is_not_found_as_if_the_object_were_gone(self, api: ApiServer) -> None:
        add_backup(api)
        answer = patch(api, "gold", {"status": {"phase": "Failed"}}, sub="/status")
        assert answer.status == 404
        assert answer.json == failure(
            404, "NotFound", 'podvolumebackups.velero.io "gold" not found', named("gold")
        )

    def test_is_written_with_the_rest_and_moves_the_generation(self, api: ApiServer) -> None:
        add_backup(api)
        change = {"metadata": {"labels": {"a": "1"}}, "status": {"phase": "InProgress"}}
        done = patch(api, "gold", change).json
        assert done["status"] == {"phase": "InProgress"}
        assert done["metadata"]["labels"] == {"a": "1"}
        assert done["metadata"]["generation"] == 2

    def test_is_kept_when_the_object_is_created_with_it(self, api: ApiServer) -> None:
        made = api.create(api.path(PLURAL), backup() | {"status": {"phase": "New"}})
        assert made["status"] == {"phase": "New"}


class TestStatusWithSubresource:
    @pytest.fixture
    def split(self, api_server: ApiServer) -> ApiServer:
        api_server.apply_velero_crds(status_subresource=True)
        return api_server

    def test_is_dropped_when_an_object_is_created(self, split: ApiServer) -> None:
        made = split.create(split.path(PLURAL), backup() | {"status": {"phase": "New"}})
        assert "status" not in made

    def test_ignores_status_on_the_main_path(self, split: ApiServer) -> None:
        add_backup(split)
        done = patch(split, "gold", {"spec": {"node": "n2"}, "status": {"phase": "Failed"}}).json
        assert done["spec"]["node"] == "n2"
        assert "status" not in done

    def test_ignores_all_but_status_on_its_own_path(self, split: ApiServer) -> None:
        made = add_backup(split)
        change = {
            "metadata": {"labels": {"a": "1"}, "annotations": {"b": "2"}},
            "spec": {"node": "n2"},
            "status": {"phase": "InProgress"},
        }
        done = patch(split, "gold", change, sub="/status").json
        assert done["status"] == {"phase": "InProgress"}
        assert done["spec"] == made["spec"]
        assert not {"labels", "annotations"} & done["metadata"].keys()
        assert done["metadata"]["generation"] == 1

    def test_conflicts_on_a_stale_version(self, split: ApiServer) -> None:
        version = add_backup(split)["metadata"]["resourceVersion"]
        change = {"metadata": {"resourceVersion": version}, "status": {"phase": "InProgress"}}
        assert patch(split, "gold", change, sub="/status").status == 200
        change["status"] = {"phase": "Failed"}
        assert patch(split, "gold", change, sub="/status").status == 409

    def test_is_in_discovery(self, split: ApiServer) -> None:
        served = {found["name"] for found in split.get("/apis/velero.io/v1")["resources"]}
        assert {"podvolumebackups/status", "podvolumerestores/status"} <= served
