"""Lists and watches behave alike on the stand-in and on kube-apiserver."""

import pytest

from tests.apiserver.samples import add_backup, backup
from tests.support.apihandle import ApiServer, Json
from tests.support.apiservers import StandinServer

PLURAL = "podvolumebackups"


@pytest.fixture
def api(api_server: ApiServer) -> ApiServer:
    api_server.apply_velero_crds()
    return api_server


def names(items: list[Json]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


def told(events: list[Json]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events]


def refusal_message(server: ApiServer, query: str, plural: str = PLURAL) -> tuple[int, str]:
    answer = server.request("GET", f"{server.path(plural)}?{query}")
    return answer.status, answer.json["message"]


class TestList:
    def test_has_a_kind_and_a_version(self, api: ApiServer) -> None:
        add_backup(api, "one")
        found = api.list(api.path(PLURAL))
        assert found["kind"] == "PodVolumeBackupList"
        assert found["apiVersion"] == "velero.io/v1"
        assert found["items"][0]["kind"] == "PodVolumeBackup"
        version = found["items"][0]["metadata"]["resourceVersion"]
        assert int(found["metadata"]["resourceVersion"]) >= int(version)

    def test_is_of_one_namespace_or_of_all(self, api: ApiServer) -> None:
        add_backup(api, "mine")
        assert names(api.list(api.path(PLURAL))["items"]) == ["mine"]
        everywhere = api.list("/apis/velero.io/v1/podvolumebackups")["items"]
        assert (api.namespace, "mine") in [
            (item["metadata"]["namespace"], item["metadata"]["name"]) for item in everywhere
        ]

    def test_comes_in_pages_that_stay_consistent(self, api: ApiServer) -> None:
        for name in ("a", "b", "c", "d"):
            add_backup(api, name)
        first = api.list(api.path(PLURAL), limit="2")
        assert names(first["items"]) == ["a", "b"]
        assert first["metadata"]["remainingItemCount"] == 2
        add_backup(api, "bb")
        api.delete(api.path(PLURAL, "d"))
        token = first["metadata"]["continue"]
        rest = api.list(api.path(PLURAL), limit="2", **{"continue": token})
        assert names(rest["items"]) == ["c", "d"]
        assert not rest["metadata"].get("continue")
        assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    def test_is_narrowed_by_labels(self, api: ApiServer) -> None:
        add_backup(api, "a", labels={"tier": "gold", "velero.io/pvc-uid": "1"})
        add_backup(api, "b", labels={"tier": "iron"})
        add_backup(api, "c")
        for selector, expected in [
            ("tier=gold", ["a"]),
            ("tier==gold", ["a"]),
            ("tier!=gold", ["b", "c"]),
            ("tier in (gold, iron)", ["a", "b"]),
            ("tier notin (gold)", ["b", "c"]),
            ("tier", ["a", "b"]),
            ("!tier", ["c"]),
            ("tier=gold,velero.io/pvc-uid=1", ["a"]),
            ("tier,tier!=gold", ["b"]),
        ]:
            found = api.list(api.path(PLURAL), labelSelector=selector)["items"]
            assert names(found) == expected, selector

    def test_is_narrowed_by_name_and_namespace(self, api: ApiServer) -> None:
        add_backup(api, "a")
        add_backup(api, "b")
        found = api.list(api.path(PLURAL), fieldSelector="metadata.name=b")["items"]
        assert names(found) == ["b"]
        where = f"metadata.namespace={api.namespace},metadata.name!=b"
        found = api.list("/apis/velero.io/v1/podvolumebackups", fieldSelector=where)["items"]
        assert names(found) == ["a"]

    def test_cannot_be_narrowed_by_a_field_that_velero_does_not_offer(self, api: ApiServer) -> None:
        answer = api.request("GET", f"{api.path(PLURAL)}?fieldSelector=spec.node%3Dn1")
        assert answer.json == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": "field label not supported: spec.node",
            "reason": "BadRequest",
            "code": 400,
        }

    def test_refuses_selectors_that_make_no_sense(self, api: ApiServer) -> None:
        assert refusal_message(api, "fieldSelector=abc") == (
            400,
            "invalid selector: 'abc'; can't understand 'abc'",
        )
        assert refusal_message(api, "labelSelector=a%3D%3D%3Db")[0] == 400
        assert refusal_message(api, "fieldSelector=spec.x%3D1", "configmaps") == (
            400,
            '"spec.x" is not a known field selector: only "metadata.name", "metadata.namespace"',
        )
        assert refusal_message(api, "fieldSelector=spec.x%3D1", "pods") == (
            400,
            "field label not supported: spec.x",
        )

    def test_refuses_numbers_that_are_none(self, api: ApiServer) -> None:
        assert refusal_message(api, "limit=abc")[0] == 400
        assert refusal_message(api, "continue=abc")[0] == 400
        assert refusal_message(api, "resourceVersion=abc") == (
            500,
            (
                'resourceVersion: Invalid value: "abc": '
                'strconv.ParseUint: parsing "abc": invalid syntax'
            ),
        )

    def test_of_the_future_is_too_large(self, api: ApiServer) -> None:
        answer = api.request("GET", f"{api.path(PLURAL)}?resourceVersion=99999999999")
        assert answer.status == 504
        assert answer.headers["Retry-After"] == "1"
        body = answer.json
        assert body["message"].startswith(
            "Timeout: Too large resource version: 99999999999, current: "
        )
        del body["message"]
        assert body == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "reason": "Timeout",
            "details": {
                "causes": [
                    {
                        "reason": "ResourceVersionTooLarge",
                        "message": "Too large resource version",
                    }
                ],
                "retryAfterSeconds": 1,
            },
            "code": 504,
        }


class TestWatch:
    def test_begins_with_what_there_is(self, api: ApiServer) -> None:
        add_backup(api, "old")
        with api.watch(api.path(PLURAL)) as watch:
            assert watch.status == 200
            assert told(watch.events(1)) == [("ADDED", "old")]
            add_backup(api, "new")
            assert told(watch.events(1)) == [("ADDED", "new")]

    def test_goes_on_from_the_version_of_a_list(self, api: ApiServer) -> None:
        add_backup(api, "old")
        version = api.list(api.path(PLURAL))["metadata"]["resourceVersion"]
        add_backup(api, "new")
        changed = api.patch(api.path(PLURAL, "old"), {"status": {"phase": "InProgress"}})
        api.delete(api.path(PLURAL, "new"))
        with api.watch(api.path(PLURAL), resourceVersion=version) as watch:
            events = watch.events(3)
        assert told(events) == [("ADDED", "new"), ("MODIFIED", "old"), ("DELETED", "new")]
        assert events[1]["object"] == changed
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
        assert versions == sorted(set(versions))

    def test_ends_in_time_and_cleanly(self, api: ApiServer) -> None:
        add_backup(api, "one")
        with api.watch(api.path(PLURAL), timeoutSeconds="1") as watch:
            assert told(watch.rest()) == [("ADDED", "one")]

    def test_tells_of_a_deletion_in_two_steps(self, api: ApiServer) -> None:
        add_backup(api, finalizers=["velero.io/pod-volume-finalizer"])
        version = api.list(api.path(PLURAL))["metadata"]["resourceVersion"]
        with api.watch(api.path(PLURAL), resourceVersion=version) as watch:
            api.delete(api.path(PLURAL, "gold"))
            marked = watch.events(1)[0]
            api.patch(api.path(PLURAL, "gold"), {"metadata": {"finalizers": None}})
            gone = watch.events(1)[0]
        assert (marked["type"], gone["type"]) == ("MODIFIED", "DELETED")
        assert "deletionTimestamp" in marked["object"]["metadata"]
        assert int(gone["object"]["metadata"]["resourceVersion"]) > int(
            marked["object"]["metadata"]["resourceVersion"]
        )

    def test_says_nothing_of_a_change_that_is_none(self, api: ApiServer) -> None:
        version = add_backup(api)["metadata"]["resourceVersion"]
        with api.watch(api.path(PLURAL), resourceVersion=version) as watch:
            api.patch(api.path(PLURAL, "gold"), {"spec": {"node": "n1"}})
            api.patch(api.path(PLURAL, "gold"), {"spec": {"node": "n2"}})
            assert watch.events(1)[0]["object"]["spec"]["node"] == "n2"

    def test_tells_who_comes_into_a_selection_and_who_leaves(self, api: ApiServer) -> None:
        add_backup(api, "one")
        version = api.list(api.path(PLURAL))["metadata"]["resourceVersion"]
        query = {"labelSelector": "go=yes", "resourceVersion": version}
        with api.watch(api.path(PLURAL), **query) as watch:
            path = api.path(PLURAL, "one")
            api.patch(path, {"metadata": {"labels": {"go": "yes"}}})
            api.patch(path, {"spec": {"node": "n2"}})
            left = api.patch(path, {"metadata": {"labels": {"go": None}}})
            events = watch.events(3)
        assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
        last = events[2]["object"]["metadata"]
        assert last["resourceVersion"] == left["metadata"]["resourceVersion"]

    def test_can_be_of_one_object(self, api: ApiServer) -> None:
        add_backup(api, "one")
        add_backup(api, "two")
        query = {"fieldSelector": "metadata.name=two", "timeoutSeconds": "1"}
        with api.watch(api.path(PLURAL), **query) as watch:
            assert told(watch.rest()) == [("ADDED", "two")]

    def test_stays_within_its_namespace(self, api: ApiServer) -> None:
        other = f"{api.namespace}-other"
        api.create("/api/v1/namespaces", {"metadata": {"name": other}})
        version = api.list(api.path(PLURAL))["metadata"]["resourceVersion"]
        with api.watch(api.path(PLURAL), resourceVersion=version) as watch:
            api.create(api.path(PLURAL, namespace=other), backup("theirs"))
            add_backup(api, "mine")
            assert told(watch.events(1)) == [("ADDED", "mine")]

    def test_from_a_version_that_is_forgotten_expires_inside_the_stream(
        self, api: ApiServer
    ) -> None:
        add_backup(api)
        if isinstance(api, StandinServer):
            api.faults.compact()
        with api.watch(api.path(PLURAL), resourceVersion="1", timeoutSeconds="5") as watch:
            assert watch.status == 200
            (event,) = watch.rest()
        assert event["type"] == "ERROR"
        assert event["object"]["code"] == 410
        assert event["object"]["reason"] == "Expired"
        assert event["object"]["message"].startswith("too old resource version: 1 (")

    def test_from_the_future_is_silent(self, api: ApiServer) -> None:
        query = {"resourceVersion": "99999999999", "timeoutSeconds": "1"}
        with api.watch(api.path(PLURAL), **query) as watch:
            assert watch.status == 200
            add_backup(api)
            assert watch.rest() == []

    def test_from_a_version_that_is_no_number_is_an_internal_error(self, api: ApiServer) -> None:
        assert refusal_message(api, "watch=1&resourceVersion=abc")[0] == 500
