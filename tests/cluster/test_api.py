"""Client, claim and watch over the stand-in and over the real kube-apiserver."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.cluster import patches, paths
from agent.cluster.client import Kube
from agent.cluster.order import Order, OrderKind, parse
from agent.cluster.status import discover
from agent.cluster.watch import Pace, Watcher
from agent.errors import ApiError, ClusterError
from tests.cluster.scene import (
    Ledger,
    backups_of,
    connection,
    create_pvb,
    desk,
    ending,
    owner,
    pvb_object,
    read_pvb,
    until,
)
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer

QUICK = Pace(chance=lambda low, high: min(high, 5.0) if low else min(high, 0.02))

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture(params=[False, True], ids=["main", "status"], scope="module")
def with_status(request: pytest.FixtureRequest) -> bool:
    """Return each value for all tests in a row: the real server takes seconds to change over."""
    return bool(request.param)


@pytest.fixture
def subresource(with_status: bool, api_server: ApiServer) -> bool:
    api_server.apply_velero_crds(status_subresource=with_status)
    return with_status


@contextlib.asynccontextmanager
async def watching(kube: Kube, server: ApiServer, pace: Pace) -> AsyncIterator[tuple[Any, Ledger]]:
    ledger = Ledger()
    watcher = Watcher(kube, backups_of(server), ledger, pace)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.run())
        try:
            yield watcher, ledger
        finally:
            running.cancel()


class TestClaim:
    async def test_discovery_tells_whether_status_is_a_subresource(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        async with connection(api_server) as kube:
            assert await discover(kube) == (frozenset(OrderKind) if subresource else frozenset())

    async def test_a_claim_writes_owner_phase_and_start_together(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        name = create_pvb(api_server)["metadata"]["name"]
        async with connection(api_server) as kube:
            table = desk(kube, api_server, owner(), subresource=subresource)
            seen = await table.read(Order(name=name))
            assert seen is not None
            won = await table.claim(seen)
        assert won is not None
        assert owner().same(won.owner)
        stored = read_pvb(api_server, name)
        assert stored["status"]["phase"] == "InProgress"
        assert stored["status"]["startTimestamp"].endswith("Z")
        assert "podlift.io/owner" in stored["metadata"]["annotations"]

    async def test_an_object_that_changed_since_it_was_seen_is_not_claimed(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        seen = create_pvb(api_server)
        name = seen["metadata"]["name"]
        path = api_server.path(OrderKind.BACKUP.plural, name)
        api_server.patch(path, {"metadata": {"labels": {"changed": "yes"}}})
        async with connection(api_server) as kube:
            table = desk(kube, api_server, owner(), subresource=subresource)
            stale = seen_as(seen)
            assert await table.claim(stale) is None
            assert not await table.settle(stale, patches.failed("no"))
        assert "status" not in read_pvb(api_server, name)

    async def test_a_deleted_and_a_recreated_object_are_lost(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        seen = create_pvb(api_server, "again")
        api_server.delete(api_server.path(OrderKind.BACKUP.plural, "again"))
        async with connection(api_server) as kube:
            table = desk(kube, api_server, owner(), subresource=subresource)
            assert await table.claim(seen_as(seen)) is None
            create_pvb(api_server, "again")
            assert await table.claim(seen_as(seen)) is None
            assert not await table.finish(seen_as(seen), patches.failed("x"), ending())
            assert await table.progress(seen_as(seen), 1, 1) is None
        assert "status" not in read_pvb(api_server, "again")

    async def test_between_the_halves_of_a_claim_only_the_last_mark_wins(
        self, api_server: ApiServer
    ) -> None:
        api_server.apply_velero_crds(status_subresource=True)
        seen = seen_as(create_pvb(api_server))
        path = paths.velero(api_server.namespace, OrderKind.BACKUP.plural, seen.name)
        async with connection(api_server) as kube:
            first = parse(
                OrderKind.BACKUP, await kube.patch(path, patches.owner(seen, owner(1), NOW))
            )
            second = desk(kube, api_server, owner(2), subresource=True)
            assert await second.claim(first) is not None
            with pytest.raises(ApiError) as refused:
                await kube.patch(f"{path}/status", patches.start(first, NOW))
        assert refused.value.status == 409

    async def test_progress_and_the_final_state_arrive_in_every_field(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        seen = seen_as(create_pvb(api_server))
        async with connection(api_server) as kube:
            table = desk(kube, api_server, owner(), subresource=subresource)
            claimed = await table.claim(seen)
            assert claimed is not None
            reported = await table.progress(claimed, 100, 40)
            assert reported is not None
            status = read_pvb(api_server, seen.name)["status"]
            assert status["progress"] == {"totalBytes": 100, "bytesDone": 40}
            end = patches.completed("ab" * 32, "/host_pods/x", 100, 10, "1 entry was left out: a")
            # Velero has written to the object meanwhile; that must neither fail nor be undone.
            path = api_server.path(OrderKind.BACKUP.plural, seen.name)
            api_server.patch(path, {"metadata": {"labels": {"velero": "was-here"}}})
            assert await table.finish(reported, end, ending())
            # Once more is harmless, and a late report changes nothing.
            assert await table.finish(reported, end, ending())
            late = await table.progress(reported, 100, 41)
            assert late is not None
            assert late.final
        stored = read_pvb(api_server, seen.name)
        completion = stored["status"].pop("completionTimestamp")
        assert completion >= stored["status"]["startTimestamp"]
        del stored["status"]["startTimestamp"]
        assert stored["status"] == {
            "phase": "Completed",
            "snapshotID": "ab" * 32,
            "path": "/host_pods/x",
            "message": "1 entry was left out: a",
            "progress": {"totalBytes": 100, "bytesDone": 100},
        }
        assert stored["metadata"]["labels"] == {"velero": "was-here"}

    async def test_a_final_state_is_not_written_over_somebody_elses(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        seen = seen_as(create_pvb(api_server))
        async with connection(api_server) as kube:
            table = desk(kube, api_server, owner(), subresource=subresource)
            claimed = await table.claim(seen)
            assert claimed is not None
            path = api_server.path(OrderKind.BACKUP.plural, seen.name)
            api_server.patch_status(path, {"phase": "Failed", "message": "by Velero"})
            end = patches.completed("ab" * 32, "/p", 1, 1)
            assert not await table.finish(claimed, end, ending())
        assert read_pvb(api_server, seen.name)["status"]["message"] == "by Velero"

    async def test_a_definition_that_changes_its_subresource_is_noticed(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        seen = seen_as(create_pvb(api_server))
        async with connection(api_server) as kube:
            table = desk(kube, api_server, owner(), subresource=not subresource)
            assert await table.settle(seen, patches.failed("refused"))
        assert read_pvb(api_server, seen.name)["status"]["message"] == "refused"

    async def test_two_agents_racing_for_a_hundred_objects_never_claim_one_twice(
        self, api_server: ApiServer, subresource: bool
    ) -> None:
        for number in range(100):
            create_pvb(api_server, f"race-{number:03}")
        all_listed = asyncio.Barrier(2)  # who lists later sees claims, and would take them over

        async def agent(number: int) -> set[str]:
            won: set[str] = set()
            async with connection(api_server) as kube:
                table = desk(kube, api_server, owner(number), subresource=subresource)
                page = await kube.list(paths.velero(api_server.namespace, OrderKind.BACKUP.plural))
                await all_listed.wait()
                for item in page.items:
                    claimed = await table.claim(parse(OrderKind.BACKUP, item))
                    if claimed is not None:
                        won.add(claimed.name)
            return won

        async with asyncio.TaskGroup() as tasks:
            agents = [tasks.create_task(agent(number)) for number in (1, 2)]
        first, second = (task.result() for task in agents)
        assert not first & second
        stored = api_server.list(api_server.path(OrderKind.BACKUP.plural))["items"]
        assert all(item["status"]["phase"] == "InProgress" for item in stored)
        for number, won in ((1, first), (2, second)):
            mark = f'"attempt":"try-{number}"'
            marked = {
                item["metadata"]["name"]
                for item in stored
                if mark in item["metadata"]["annotations"]["podlift.io/owner"]
            }
            assert marked == won


class TestWatch:
    async def test_objects_are_listed_then_followed(self, api_server: ApiServer) -> None:
        api_server.apply_velero_crds()
        create_pvb(api_server, "before")
        async with (
            connection(api_server) as kube,
            watching(kube, api_server, QUICK) as (watcher, ledger),
        ):
            await until(lambda: ledger.lists == [["before"]], "the list")
            create_pvb(api_server, "after")
            await until(lambda: ("changed", "after") in ledger.events, "the new object")
            api_server.delete(api_server.path(OrderKind.BACKUP.plural, "before"))
            await until(lambda: ("deleted", "before") in ledger.events, "the deletion")
            assert watcher.progress_at is not None

    async def test_without_a_selectable_field_everything_is_watched(
        self, api_server: ApiServer
    ) -> None:
        api_server.apply_velero_crds()
        create_pvb(api_server, "theirs", node="other-node")
        async with (
            connection(api_server) as kube,
            watching(kube, api_server, QUICK) as (watcher, ledger),
        ):
            await until(lambda: ledger.lists == [["theirs"]], "the list")
            assert watcher.selectable is False

    async def test_a_long_list_is_read_in_pages(
        self, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agent.cluster.client.PAGE", 3)
        api_server.apply_velero_crds()
        for number in range(8):
            create_pvb(api_server, f"page-{number}")
        async with connection(api_server) as kube:
            page = await kube.list(paths.velero(api_server.namespace, OrderKind.BACKUP.plural))
        assert sorted(parse(OrderKind.BACKUP, item).name for item in page.items) == [
            f"page-{n}" for n in range(8)
        ]
        assert page.resource_version

    async def test_a_restart_of_the_server_loses_nothing(self, api_server: ApiServer) -> None:
        api_server.apply_velero_crds()
        create_pvb(api_server, "before")
        async with (
            connection(api_server) as kube,
            watching(kube, api_server, QUICK) as (_, ledger),
        ):
            await until(lambda: ledger.lists, "the list")
            await asyncio.to_thread(api_server.restart)
            create_pvb(api_server, "after")

            def arrived() -> bool:
                listed = any("after" in names for names in ledger.lists)
                return listed or ("changed", "after") in ledger.events

            await until(arrived, "the object that was made after the restart")

    async def test_a_version_that_is_too_old_leads_to_a_new_list(
        self, api_server: ApiServer
    ) -> None:
        api_server.apply_velero_crds()
        create_pvb(api_server, "one")
        async with connection(api_server) as kube:
            source = Aged(kube)
            ledger = Ledger()
            if isinstance(api_server, StandinServer):
                api_server.faults.compact()
            watcher = Watcher(source, backups_of(api_server), ledger, QUICK)
            assert await watcher.iterate() >= 0
            assert watcher.counts.ends == {"expired": 1}
            short = dataclasses.replace(QUICK, server_seconds=(1.0, 1.0), chance=lambda a, b: b)
            watcher._pace = short
            await watcher.iterate()
        assert watcher.counts.lists == 2
        assert watcher.counts.ends == {"expired": 1, "eof": 1}


class Aged:
    """A source whose first list answers with a version from long ago."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._aged = False

    async def list(self, path: str, query: Any = None) -> Any:
        page = await self._kube.list(path, query)
        if self._aged:
            return page
        self._aged = True
        return dataclasses.replace(page, resource_version="1")

    def watch(self, path: str, query: Any, **seconds: float) -> AsyncIterator[bytes]:
        return self._kube.watch(path, query, **seconds)


class TestRequests:
    async def test_a_created_object_is_returned(self, api_server: ApiServer) -> None:
        api_server.apply_velero_crds()
        path = paths.velero(api_server.namespace, OrderKind.BACKUP.plural)
        async with connection(api_server) as kube:
            made = parse(OrderKind.BACKUP, await kube.create(path, pvb_object("made")))
            with pytest.raises(ApiError) as twice:
                await kube.create(path, pvb_object("made"))
        assert made.uid
        assert twice.value.status == 409

    async def test_a_missing_object_is_named(self, api_server: ApiServer) -> None:
        async with connection(api_server) as kube:
            path = paths.core(api_server.namespace, "pods", "nobody")
            with pytest.raises(ApiError, match='pods "nobody" not found') as missing:
                await kube.get(path)
        assert missing.value.status == 404

    async def test_velero_that_is_not_installed_is_said(self, standin: Any) -> None:
        async with connection(standin) as kube:
            standin.faults.html_error(404, path="/apis/velero.io/v1")
            with pytest.raises(ClusterError, match="install Velero"):
                await discover(kube)


def seen_as(obj: Any) -> Any:
    return parse(OrderKind.BACKUP, json.dumps(obj).encode())
