"""What goes wrong on request, as a client sees it."""

import asyncio
import datetime
import json
import socket
import ssl
import threading
from http.client import HTTPException

import pytest
from kubernetes.aio import client, config

from agent.demo.apiserver import Cut, Limits
from agent.demo.apiserver.resource import Resource
from agent.demo.apiserver.tables import table
from tests.apiserver.samples import add_backup, backup
from tests.support.apiservers import StandinServer

PLURAL = "podvolumebackups"
GONE = (HTTPException, OSError)


class TestRequests:
    def test_are_throttled_in_plain_text(self, standin: StandinServer) -> None:
        standin.faults.throttle(2, retry_after_seconds=3, method="GET", path=PLURAL)
        assert standin.request("GET", "/version").status == 200
        for _ in range(2):
            answer = standin.request("GET", standin.path(PLURAL))
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "3"
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert answer.body == b"Too many requests, please try again later.\n"
        assert standin.request("GET", standin.path(PLURAL)).status == 200

    def test_meet_a_storage_that_is_not_ready(self, standin: StandinServer) -> None:
        standin.faults.initializing()
        answer = standin.request("GET", standin.path(PLURAL))
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert answer.json["message"] == "storage is (re)initializing"
        assert answer.json["reason"] == "TooManyRequests"

    @pytest.mark.parametrize("status", [500, 503])
    def test_meet_a_load_balancers_page(self, standin: StandinServer, status: int) -> None:
        standin.faults.html_error(status)
        answer = standin.request("GET", standin.path(PLURAL))
        assert answer.status == status
        assert answer.headers["Content-Type"] == "text/html"
        assert answer.body.startswith(b"<html>")

    def test_lose_their_reply_after_the_write(self, standin: StandinServer) -> None:
        add_backup(standin)
        standin.faults.lose_reply(method="PATCH", path="gold")
        with pytest.raises(GONE):
            standin.patch(standin.path(PLURAL, "gold"), {"status": {"phase": "InProgress"}})
        assert standin.get(standin.path(PLURAL, "gold"))["status"] == {"phase": "InProgress"}
        assert [seen.status for seen in standin.requests if seen.method == "PATCH"] == [0]

    def test_are_reset_before_anything_is_done(self, standin: StandinServer) -> None:
        standin.faults.reset(method="POST")
        with pytest.raises(GONE):
            add_backup(standin)
        assert standin.list(standin.path(PLURAL))["items"] == []

    def test_wait_for_their_reply_until_it_is_released(self, standin: StandinServer) -> None:
        fault = standin.faults.hold(method="POST", path=PLURAL)
        made: list[str] = []
        asking = threading.Thread(
            target=lambda: made.append(add_backup(standin)["metadata"]["name"])
        )
        asking.start()
        assert fault.taken.wait(10)
        assert standin.get(standin.path(PLURAL, "gold"))["kind"] == "PodVolumeBackup"
        assert made == []
        fault.released.set()
        asking.join(10)
        assert made == ["gold"]

    def test_are_forbidden_when_the_right_is_taken(self, standin: StandinServer) -> None:
        add_backup(standin)
        standin.faults.deny("patch", PLURAL)
        standin.faults.deny("watch", PLURAL)
        answer = standin.request(
            "PATCH",
            standin.path(PLURAL, "gold"),
            {},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert (answer.status, answer.json["reason"]) == (403, "Forbidden")
        assert answer.json["message"] == (
            'podvolumebackups.velero.io "gold" is forbidden: User "agent" cannot patch resource '
            '"podvolumebackups" in API group "velero.io" in the namespace "velero-1"'
        )
        assert standin.request("GET", f"{standin.path(PLURAL)}?watch=1").status == 403
        assert standin.request("GET", standin.path(PLURAL)).status == 200
        standin.faults.clear()
        assert standin.patch(standin.path(PLURAL, "gold"), {})["kind"] == "PodVolumeBackup"

    def test_need_the_token_of_today(self, standin: StandinServer) -> None:
        standin.faults.rotate_tokens("new")
        assert standin.request("GET", standin.path(PLURAL)).status == 401
        headers = {"Authorization": "Bearer new"}
        assert standin.request("GET", standin.path(PLURAL), headers=headers).status == 200

    def test_are_logged_with_their_bodies(self, standin: StandinServer) -> None:
        standin.request(
            "GET", f"{standin.path(PLURAL)}?limit=5", headers={"User-Agent": "podlift/1"}
        )
        add_backup(standin)
        listed, created = standin.requests[-2:]
        assert (listed.method, listed.query, listed.status) == ("GET", {"limit": "5"}, 200)
        assert listed.user_agent == "podlift/1"
        assert (created.method, created.status) == ("POST", 201)
        assert json.loads(created.body) == backup()


class TestWatches:
    @pytest.mark.parametrize("how", [Cut.RESET, Cut.TRUNCATE])
    def test_end_in_the_middle_of_a_line(self, standin: StandinServer, how: Cut) -> None:
        with standin.watch(standin.path(PLURAL), allowWatchBookmarks="true") as watch:
            standin.faults.cut_watches(how)
            if how is Cut.RESET:
                with pytest.raises(GONE):
                    watch.raw_rest()
            else:
                rest = watch.raw_rest()
                assert rest
                assert not rest.endswith(b"\n")
        assert standin.standin.open_watches == 0

    def test_end_cleanly(self, standin: StandinServer) -> None:
        with standin.watch(standin.path(PLURAL)) as watch:
            standin.faults.cut_watches()
            assert watch.rest() == []

    def test_fall_silent_and_wake(self, standin: StandinServer) -> None:
        with standin.watch(standin.path(PLURAL), timeout_seconds=0.3) as watch:
            standin.faults.freeze_watches()
            add_backup(standin)
            with pytest.raises(TimeoutError):
                watch.event()
        with standin.watch(standin.path(PLURAL)) as watch:
            standin.faults.freeze_watches(frozen=False)
            assert watch.events(1)[0]["object"]["metadata"]["name"] == "gold"

    def test_stay_silent_beyond_their_time(self, standin: StandinServer) -> None:
        standin.faults.freeze_watches()
        query = {"timeoutSeconds": "0"}
        where = standin.path(PLURAL)
        with (
            standin.watch(where, timeout_seconds=0.3, **query) as watch,
            pytest.raises(TimeoutError),
        ):
            watch.event()
        standin.faults.freeze_watches(frozen=False)

    def test_that_are_slow_are_ended(self, standin: StandinServer) -> None:
        standin.standin.limit_watches(Limits(queue_events=3))
        with standin.watch(standin.path(PLURAL)) as watch:
            standin.faults.freeze_watches()
            for number in range(4):
                add_backup(standin, f"b{number}")
            standin.faults.freeze_watches(frozen=False)
            assert watch.rest() == []

    def test_get_bookmarks_when_something_moved(self, standin: StandinServer) -> None:
        standin.standin.limit_watches(Limits(bookmark_seconds=0.02))
        version = standin.list(standin.path(PLURAL))["metadata"]["resourceVersion"]
        query = {"resourceVersion": version, "allowWatchBookmarks": "true"}
        with standin.watch(standin.path(PLURAL), **query) as watch:
            moved = standin.create(standin.path("configmaps"), {"metadata": {"name": "c"}})
            (bookmark,) = watch.events(1)
        assert bookmark["type"] == "BOOKMARK"
        assert bookmark["object"]["kind"] == "PodVolumeBackup"
        assert (
            bookmark["object"]["metadata"]["resourceVersion"]
            == (moved["metadata"]["resourceVersion"])
        )

    def test_get_a_last_bookmark_before_their_time_is_over(self, standin: StandinServer) -> None:
        query = {"resourceVersion": "1", "allowWatchBookmarks": "1", "timeoutSeconds": "0"}
        with standin.watch(standin.path(PLURAL), **query) as watch:
            (bookmark,) = watch.rest()
        assert bookmark["type"] == "BOOKMARK"

    def test_get_no_bookmarks_unasked(self, standin: StandinServer) -> None:
        with standin.watch(standin.path(PLURAL)) as watch:
            standin.faults.bookmark()
            standin.faults.cut_watches()
            assert watch.rest() == []


class TestHistory:
    def test_that_is_compacted_expires_watches_and_pages(self, standin: StandinServer) -> None:
        for name in ("a", "b", "c"):
            add_backup(standin, name)
        first = standin.list(standin.path(PLURAL), limit="1")
        version = first["metadata"]["resourceVersion"]
        add_backup(standin, "d")
        standin.faults.compact()
        with standin.watch(standin.path(PLURAL), resourceVersion=version) as watch:
            assert watch.status == 200
            (event,) = watch.rest()
        assert event == {
            "type": "ERROR",
            "object": {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Failure",
                "message": f"too old resource version: {version} ({int(version) + 1})",
                "reason": "Expired",
                "code": 410,
            },
        }
        token = first["metadata"]["continue"]
        answer = standin.request("GET", f"{standin.path(PLURAL)}?continue={token}")
        assert answer.status == 410
        body = answer.json
        again = body["metadata"].pop("continue")
        assert body == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": "The provided continue parameter is too old to display a consistent list "
            "result. You can start a new list without the continue parameter, or use the continue "
            "token in this response to retrieve the remainder of the results. Continuing with the "
            "provided token results in an inconsistent list - objects that were created, "
            "modified, or deleted between the time the first chunk was returned and now may show "
            "up in the list.",
            "reason": "Expired",
            "code": 410,
        }
        rest = standin.list(standin.path(PLURAL), **{"continue": again})["items"]
        assert [item["metadata"]["name"] for item in rest] == ["b", "c", "d"]

    def test_can_go_back_and_leave_a_watch_in_the_future(self, standin: StandinServer) -> None:
        add_backup(standin, "before")
        saved = standin.faults.snapshot()
        version = add_backup(standin, "after")["metadata"]["resourceVersion"]
        with standin.watch(standin.path(PLURAL), resourceVersion=version) as watch:
            standin.faults.restore(saved)
            assert watch.rest() == []
        items = standin.list(standin.path(PLURAL))["items"]
        assert [item["metadata"]["name"] for item in items] == ["before"]
        query = {"resourceVersion": str(int(version) + 100), "timeoutSeconds": "0"}
        with standin.watch(standin.path(PLURAL), **query) as watch:
            assert watch.rest() == []
        assert int(add_backup(standin, "new")["metadata"]["resourceVersion"]) <= int(version)


class TestServer:
    def test_restarts_on_its_port_with_its_objects(self, standin: StandinServer) -> None:
        made = add_backup(standin)
        with standin.watch(standin.path(PLURAL)) as watch:
            watch.events(1)
            standin.restart()
            with pytest.raises(GONE):
                watch.raw_rest()
        assert standin.get(standin.path(PLURAL, "gold")) == made

    def test_refuses_connections_while_it_is_stopped(self, standin: StandinServer) -> None:
        standin.stop()
        with pytest.raises(ConnectionRefusedError):
            standin.request("GET", "/version")
        standin.faults.compact()
        standin.restart()
        assert standin.request("GET", "/version").status == 200

    def test_survives_clients_that_hang_up(self, standin: StandinServer) -> None:
        host, port = standin.url.removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=str(standin.ca))
        raw = socket.create_connection((host, int(port)))
        with context.wrap_socket(raw, server_hostname=host) as tls:
            path = f"{standin.path(PLURAL)}?watch=1"
            tls.sendall(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {standin.token}"
                "\r\n\r\n".encode()
            )
            assert tls.recv(1024).startswith(b"HTTP/1.1 200")
        for number in range(20):
            add_backup(standin, f"b{number}")
        assert len(standin.list(standin.path(PLURAL))["items"]) == 20

    def test_offers_selectable_fields_when_told_to(self, standin: StandinServer) -> None:
        standin.standin.set_selectable(PLURAL, "spec.node")
        add_backup(standin, "here")
        elsewhere = backup("elsewhere")
        elsewhere["spec"]["node"] = "n2"
        standin.create(standin.path(PLURAL), elsewhere)
        found = standin.list(standin.path(PLURAL), fieldSelector="spec.node=n1")["items"]
        assert [item["metadata"]["name"] for item in found] == ["here"]

    def test_keeps_empty_strings(self, standin: StandinServer) -> None:
        odd = backup()
        odd["spec"] |= {"repoIdentifier": "", "uploaderType": ""}
        made = standin.create(standin.path(PLURAL), odd)
        assert (made["spec"]["repoIdentifier"], made["spec"]["uploaderType"]) == ("", "")

    def test_does_not_speak_protobuf(self, standin: StandinServer) -> None:
        headers = {"Content-Type": "application/vnd.kubernetes.protobuf"}
        answer = standin.request("POST", standin.path("secrets"), b"k8s", headers=headers)
        assert (answer.status, answer.json["reason"]) == (415, "UnsupportedMediaType")

    def test_takes_a_namespace_and_all_in_it_away(self, standin: StandinServer) -> None:
        add_backup(standin)
        standin.delete(f"/api/v1/namespaces/{standin.namespace}")
        assert standin.list("/apis/velero.io/v1/podvolumebackups")["items"] == []

    def test_refuses_unknown_fields_when_asked_to_be_strict(self, standin: StandinServer) -> None:
        odd = backup()
        odd["spec"]["surprise"] = 1
        path = f"{standin.path(PLURAL)}?fieldValidation=Strict"
        answer = standin.request("POST", path, odd)
        assert answer.status == 400
        assert 'unknown field "spec.surprise"' in answer.json["message"]

    async def test_serves_the_official_client(self, standin: StandinServer) -> None:
        add_backup(standin)
        settings = client.Configuration()
        await config.load_kube_config(str(standin.kubeconfig), client_configuration=settings)
        async with client.ApiClient(settings) as api, asyncio.timeout(10):
            objects = client.CustomObjectsApi(api)
            where = ("velero.io", "v1", standin.namespace, PLURAL)
            found = await objects.list_namespaced_custom_object(*where)
            assert [item["metadata"]["name"] for item in found["items"]] == ["gold"]
            with pytest.raises(client.ApiException) as refused:
                await objects.get_namespaced_custom_object(*where, "nope")
        assert refused.value.status == 404


class TestTables:
    """What a person sees through kubectl; no agent asks for it."""

    @pytest.mark.parametrize(
        ("seconds", "shown"),
        [(-5, "0s"), (100, "100s"), (120, "2m"), (10000, "166m"), (10800, "3h"), (172800, "2d")],
    )
    def test_show_an_age_as_kubectl_does(self, seconds: int, shown: str) -> None:
        now = datetime.datetime.now(datetime.UTC)
        created = (now - datetime.timedelta(seconds=seconds)).isoformat()
        item = {"kind": "Secret", "metadata": {"name": "s", "creationTimestamp": created}}
        resource = Resource("", "v1", "secrets", "Secret")
        assert table(resource, item)["rows"][0]["cells"] == ["s", shown]

    def test_come_for_lists_and_watches(self, standin: StandinServer) -> None:
        add_backup(standin)
        accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
        found = standin.request("GET", standin.path(PLURAL), headers=accept).json
        assert found["kind"] == "Table"
        assert found["rows"][0]["object"]["metadata"]["name"] == "gold"
        where = f"{standin.path(PLURAL)}?watch=1&timeoutSeconds=0"
        event = standin.request("GET", where, headers=accept).json
        assert (event["type"], event["object"]["kind"]) == ("ADDED", "Table")
