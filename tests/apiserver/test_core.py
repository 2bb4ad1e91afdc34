"""Core resources: the few rules that an agent, its tests and the demo run into."""

import base64

import pytest

from tests.apiserver.samples import event, pod
from tests.support.apihandle import ApiServer, Json


def causes(server: ApiServer, plural: str, obj: Json) -> dict[str, str]:
    """Return what is wrong with an object, by field."""
    answer = server.request("POST", server.path(plural), obj)
    assert answer.status == 422, answer.body
    return {cause["field"]: cause["message"] for cause in answer.json["details"]["causes"]}


class TestSecrets:
    def test_encode_plain_strings(self, api_server: ApiServer) -> None:
        secret = {"metadata": {"name": "s"}, "stringData": {"password": "p"}}
        api_server.create(api_server.path("secrets"), secret)
        found = api_server.get(api_server.path("secrets", "s"))
        assert found["data"] == {"password": base64.b64encode(b"p").decode()}
        assert "stringData" not in found
        assert (found["kind"], found["apiVersion"], found["type"]) == ("Secret", "v1", "Opaque")

    def test_refuse_what_is_not_base64(self, api_server: ApiServer) -> None:
        secret = {"metadata": {"name": "s"}, "data": {"password": "%%%"}}
        answer = api_server.request("POST", api_server.path("secrets"), secret)
        assert (answer.status, answer.json["reason"]) == (400, "BadRequest")
        assert "illegal base64 data" in answer.json["message"]

    def test_can_be_replaced_without_a_version(self, api_server: ApiServer) -> None:
        api_server.create(api_server.path("secrets"), {"metadata": {"name": "s"}})
        new = {"metadata": {"name": "s"}, "stringData": {"a": "b"}}
        answer = api_server.request("PUT", api_server.path("secrets", "s"), new)
        assert (answer.status, answer.json["data"]) == (200, {"a": "Yg=="})


class TestPods:
    def test_start_pending_whatever_status_they_come_with(self, api_server: ApiServer) -> None:
        obj = pod() | {"status": {"phase": "Running"}}
        made = api_server.create(api_server.path("pods"), obj)
        assert made["status"]["phase"] == "Pending"

    def test_have_a_status_of_their_own(self, api_server: ApiServer) -> None:
        api_server.create(api_server.path("pods"), pod())
        path = api_server.path("pods", "web")
        assert api_server.patch(path, {"status": {"phase": "Running"}})["status"]["phase"] == (
            "Pending"
        )
        done = api_server.patch_status(path, {"phase": "Running"})
        assert done["status"]["phase"] == "Running"
        assert api_server.get(path)["status"]["phase"] == "Running"

    def test_are_selected_by_node_and_phase(self, api_server: ApiServer) -> None:
        for name, node in (("a", "n1"), ("b", "n1"), ("c", "n2")):
            api_server.create(api_server.path("pods"), pod(name, node))
        api_server.patch_status(api_server.path("pods", "b"), {"phase": "Running"})

        def found(selector: str) -> list[str]:
            items = api_server.list(api_server.path("pods"), fieldSelector=selector)["items"]
            return [item["metadata"]["name"] for item in items]

        assert found("spec.nodeName=n1") == ["a", "b"]
        assert found("spec.nodeName=n1,status.phase=Running") == ["b"]
        assert found("spec.nodeName!=n1") == ["c"]

    def test_of_a_node_are_watched_in_all_namespaces(self, api_server: ApiServer) -> None:
        """As the agent watches them: list and watch across namespaces, filtered by the server."""
        every = "/api/v1/pods"
        node = f"n-{api_server.namespace}"
        selector = {"fieldSelector": f"spec.nodeName={node}"}
        waiting = pod("waits", node)
        waiting["spec"]["initContainers"] = [{"name": "restore-wait", "image": "none"}]
        api_server.create(api_server.path("pods"), pod("other", "elsewhere"))
        found = api_server.list(every, **selector)
        assert found["items"] == []
        version = found["metadata"]["resourceVersion"]
        status = {"name": "restore-wait", "image": "none", "imageID": "", "ready": False}
        running = {**status, "restartCount": 0, "state": {"running": {}}}
        with api_server.watch(every, resourceVersion=version, **selector) as watch:
            path = f"{api_server.path('pods')}/waits"
            api_server.create(api_server.path("pods"), waiting)
            api_server.patch_status(path, {"initContainerStatuses": [running]})
            api_server.delete(f"{path}?gracePeriodSeconds=0")
            events = watch.events(3)
            while events[-1]["type"] == "MODIFIED":  # one of the two counts down the grace first
                events += watch.events(1)
        assert [event["type"] for event in events[:2]] == ["ADDED", "MODIFIED"]
        assert events[-1]["type"] == "DELETED"
        (seen,) = events[1]["object"]["status"]["initContainerStatuses"]
        assert "running" in seen["state"]
        assert events[1]["object"]["spec"]["initContainers"][0]["name"] == "restore-wait"

    def test_need_a_container(self, api_server: ApiServer) -> None:
        obj = {"metadata": {"name": "empty"}, "spec": {}}
        assert causes(api_server, "pods", obj) == {"spec.containers": "Required value"}

    def test_that_run_stay_until_their_kubelet_lets_go(self, api_server: ApiServer) -> None:
        api_server.create(api_server.path("pods"), pod())
        marked = api_server.delete(api_server.path("pods", "web"))
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
        assert "deletionTimestamp" in api_server.get(api_server.path("pods", "web"))["metadata"]
        api_server.delete(api_server.path("pods", "web") + "?gracePeriodSeconds=0")
        assert api_server.request("GET", api_server.path("pods", "web")).status == 404

    def test_take_strategic_patches(self, api_server: ApiServer) -> None:
        api_server.create(api_server.path("pods"), pod())
        answer = api_server.request(
            "PATCH",
            api_server.path("pods", "web"),
            {"metadata": {"labels": {"a": "b"}}},
            headers={"Content-Type": "application/strategic-merge-patch+json"},
        )
        assert answer.json["metadata"]["labels"] == {"a": "b"}


class TestVolumes:
    def test_claims_need_access_modes_and_a_size(self, api_server: ApiServer) -> None:
        claim: Json = {"metadata": {"name": "data"}, "spec": {}}
        assert "spec.accessModes" in causes(api_server, "persistentvolumeclaims", claim)
        claim["spec"] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "volumeName": "pv-1",
        }
        made = api_server.create(api_server.path("persistentvolumeclaims"), claim)
        assert made["status"]["phase"] == "Pending"
        assert made["spec"]["volumeName"] == "pv-1"

    def test_volumes_need_a_source(self, api_server: ApiServer) -> None:
        name = f"pv-{api_server.namespace}"
        spec: Json = {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}
        volume: Json = {"metadata": {"name": name}, "spec": spec}
        found = causes(api_server, "persistentvolumes", volume)
        assert found == {"spec": "Required value: must specify a volume type"}
        spec["csi"] = {"driver": "csi.example", "volumeHandle": "h"}
        made = api_server.create(api_server.path("persistentvolumes"), volume)
        assert made["spec"]["csi"]["driver"] == "csi.example"
        assert made["status"]["phase"] == "Pending"

    def test_drivers_and_nodes_are_cluster_wide(self, api_server: ApiServer) -> None:
        name = f"driver.{api_server.namespace}"
        driver = {"metadata": {"name": name}, "spec": {"attachRequired": False}}
        made = api_server.create(api_server.path("csidrivers"), driver)
        assert made["spec"]["attachRequired"] is False
        node = {"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}
        assert "namespace" not in api_server.create(api_server.path("nodes"), node)["metadata"]


class TestEvents:
    def test_are_kept_as_the_agent_posts_them(self, api_server: ApiServer) -> None:
        about = {"kind": "Pod", "namespace": api_server.namespace, "name": "web"}
        made = api_server.create(api_server.path("events"), event(regarding=about))
        assert made["note"] == "hello"
        series = {"count": 2, "lastObservedTime": "2026-01-02T03:04:06.000006Z"}
        again = api_server.patch(api_server.path("events", "seen"), {"series": series})
        assert again["series"] == series

    @pytest.mark.parametrize(
        "field", ["eventTime", "action", "reason", "reportingController", "reportingInstance"]
    )
    def test_need_their_fields(self, api_server: ApiServer, field: str) -> None:
        found = causes(api_server, "events", event(**{field: None}))
        assert field in found

    def test_are_one_object_in_both_groups(self, api_server: ApiServer) -> None:
        folder = f"/api/v1/namespaces/{api_server.namespace}/events"
        about = {"kind": "Pod", "namespace": api_server.namespace, "name": "web", "uid": "u"}
        made = {
            "metadata": {"name": "old"}, "involvedObject": about, "reason": "Began", "message": "one",
            "type": "Normal", "source": {"component": "c", "host": "h"}, "reportingComponent": "c",
            "reportingInstance": "i", "firstTimestamp": "2026-01-02T03:04:05Z", "count": 1,
        }  # fmt: skip
        with api_server.watch(api_server.path("events"), resourceVersion="0") as watch:
            api_server.create(folder, made)
            api_server.patch(f"{folder}/old", {"message": "two", "count": 2})
            added, changed = watch.events(2)
        assert (added["type"], added["object"]["note"]) == ("ADDED", "one")
        assert (changed["type"], changed["object"]["deprecatedCount"]) == ("MODIFIED", 2)
        new = api_server.get(api_server.path("events", "old"))
        assert (new["regarding"]["name"], new["note"]) == ("web", "two")
        assert new["deprecatedSource"] == {"component": "c", "host": "h"}
        api_server.patch(api_server.path("events", "old"), {"metadata": {"labels": {"a": "b"}}})
        selector = "involvedObject.uid=u,involvedObject.kind=Pod,reason=Began"
        (found,) = api_server.list(folder, fieldSelector=selector)["items"]
        assert found["metadata"]["labels"] == {"a": "b"}
        assert api_server.list(folder, fieldSelector="involvedObject.uid=v")["items"] == []
        api_server.delete(api_server.path("events", "old"))
        assert api_server.request("GET", f"{folder}/old").status == 404

    @pytest.mark.parametrize("namespace", ["", "another"])
    def test_lie_where_what_they_are_about_does(
        self, api_server: ApiServer, namespace: str
    ) -> None:
        folder = f"/api/v1/namespaces/{api_server.namespace}/events"
        about = {"kind": "Pod", "name": "web", "namespace": namespace}
        made = {"metadata": {"name": "old"}, "involvedObject": about}
        answer = api_server.request("POST", folder, made)
        assert answer.status == 422
        assert answer.json["details"]["causes"] == [
            {
                "reason": "FieldValueInvalid",
                "message": f'Invalid value: "{namespace}": does not match event.namespace',
                "field": "involvedObject.namespace",
            }
        ]

    def test_need_a_qualified_name_for_their_controller(self, api_server: ApiServer) -> None:
        found = causes(api_server, "events", event(reportingController="not/quite/right"))
        assert list(found) == ["reportingController"]

    def test_are_normal_or_warnings(self, api_server: ApiServer) -> None:
        found = causes(api_server, "events", event(type="Odd"))
        assert found == {"type": 'Invalid value: "": has invalid value: Odd'}

    def test_must_say_the_namespace_of_what_they_are_about(self, api_server: ApiServer) -> None:
        found = causes(api_server, "events", event(regarding={"kind": "Pod", "name": "web"}))
        assert list(found) == ["involvedObject.namespace"]

    def test_have_short_notes(self, api_server: ApiServer) -> None:
        found = causes(api_server, "events", event(note="é" * 513))
        assert found == {"message": 'Invalid value: "": can have at most 1024 characters'}
        api_server.create(api_server.path("events"), event(note="é" * 512))

    @pytest.mark.parametrize("time", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.006Z"])
    def test_need_times_with_six_decimals(self, api_server: ApiServer, time: str) -> None:
        answer = api_server.request("POST", api_server.path("events"), event(eventTime=time))
        assert (answer.status, answer.json["reason"]) == (400, "BadRequest")


class TestLeases:
    def test_conflict_on_a_stale_version(self, api_server: ApiServer) -> None:
        lease = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}
        made = api_server.create(api_server.path("leases"), lease)
        made["spec"]["holderIdentity"] = "b"
        path = api_server.path("leases", "l")
        assert api_server.request("PUT", path, made).status == 200
        assert api_server.request("PUT", path, made).status == 409


class TestDiscovery:
    def test_names_the_velero_resources(self, api_server: ApiServer) -> None:
        api_server.apply_velero_crds()
        found = api_server.get("/apis/velero.io/v1")
        assert found["groupVersion"] == "velero.io/v1"
        by_name = {resource["name"]: resource for resource in found["resources"]}
        assert set(by_name) == {
            "podvolumebackups",
            "podvolumerestores",
            "backupstoragelocations",
            "backuprepositories",
            "backups",
        }
        assert by_name["podvolumebackups"]["kind"] == "PodVolumeBackup"
        assert by_name["podvolumebackups"]["namespaced"] is True
        assert {"list", "watch", "patch"} <= set(by_name["podvolumebackups"]["verbs"])
        assert by_name["backupstoragelocations"]["shortNames"] == ["bsl"]

    def test_names_the_groups(self, api_server: ApiServer) -> None:
        api_server.apply_velero_crds()
        assert api_server.get("/api")["versions"] == ["v1"]
        groups = {group["name"]: group for group in api_server.get("/apis")["groups"]}
        assert {"velero.io", "events.k8s.io", "coordination.k8s.io"} <= set(groups)
        assert groups["velero.io"]["preferredVersion"]["groupVersion"] == "velero.io/v1"
        assert api_server.get("/apis/velero.io")["kind"] == "APIGroup"

    def test_names_status_where_it_is_served(self, api_server: ApiServer) -> None:
        names = {resource["name"] for resource in api_server.get("/api/v1")["resources"]}
        assert {"pods", "pods/status", "secrets", "nodes/status"} <= names

    def test_names_the_version(self, api_server: ApiServer) -> None:
        version = api_server.get("/version")
        assert version["gitVersion"].startswith("v1.")
        assert {"major", "minor", "platform"} <= version.keys()
