"""What goes wrong between agent and API server, on the stand-in, which can be made to fail."""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from agent.cluster import patches, paths
from agent.cluster.client import Kube, Patience
from agent.cluster.credentials import KubeconfigCredentials
from agent.cluster.order import OrderKind, parse
from agent.cluster.watch import Pace, Watcher
from agent.demo.apiserver.faults import Cut
from agent.errors import ApiError
from tests.cluster.scene import (
    NODE,
    Ledger,
    backups_of,
    connection,
    create_pvb,
    desk,
    ending,
    owner,
    read_pvb,
    until,
)
from tests.support.apiservers import StandinServer


def noting(log: list[float]) -> Patience:
    async def sleep(seconds: float) -> None:
        log.append(seconds)

    return Patience(sleep=sleep, chance=lambda low, high: high)


def pace(log: list[float], **changes: float) -> Pace:
    async def sleep(seconds: float) -> None:
        log.append(seconds)
        await asyncio.sleep(0)

    plain = Pace(sleep=sleep, chance=lambda low, high: high)
    return dataclasses.replace(plain, **changes)


class TestRetries:
    async def test_throttling_in_plain_text_is_waited_out_for_every_verb(
        self, standin: StandinServer
    ) -> None:
        log: list[float] = []
        standin.faults.throttle(1, retry_after_seconds=7, method="GET")
        standin.faults.throttle(1, retry_after_seconds=3, method="PATCH")
        seen = parse(OrderKind.BACKUP, json.dumps(create_pvb(standin)).encode())
        async with connection(standin, noting(log)) as kube:
            table = desk(kube, standin, owner(), subresource=False)
            assert await table.read(seen)
            assert await table.claim(seen)
        assert log == [7.0, 3.0]

    async def test_a_broken_server_is_asked_again_only_for_reads(
        self, standin: StandinServer
    ) -> None:
        log: list[float] = []
        name = create_pvb(standin)["metadata"]["name"]
        path = paths.velero(standin.namespace, OrderKind.BACKUP.plural, name)
        async with connection(standin, noting(log)) as kube:
            standin.faults.html_error(502, 2, method="GET")
            standin.faults.reset(2, method="GET")  # the first hits a kept connection: aiohttp's own
            assert parse(OrderKind.BACKUP, await kube.get(path)).name == name
            assert log == [0.4, 0.8, 1.6]
            standin.faults.html_error(502, method="PATCH")
            with pytest.raises(ApiError) as refused:
                await kube.patch(path, {"metadata": {"labels": {"a": "b"}}})
            assert refused.value.status == 502
            standin.faults.reset(1, method="PATCH")
            with pytest.raises(ApiError) as lost:
                await kube.patch(path, {"metadata": {"labels": {"a": "b"}}})
            assert lost.value.status == 0
            assert lost.value.sent
        assert log == [0.4, 0.8, 1.6]

    async def test_patience_ends(self, standin: StandinServer) -> None:
        log: list[float] = []
        standin.faults.throttle(50, retry_after_seconds=1)
        async with connection(standin, noting(log)) as kube:
            with pytest.raises(ApiError) as refused:
                await kube.get(paths.VELERO)
        assert refused.value.status == 429
        assert refused.value.retry_after_seconds == 1.0
        assert len(log) == 4

    async def test_a_list_whose_page_expires_starts_again(
        self, standin: StandinServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agent.cluster.client.PAGE", 2)
        for number in range(3):
            create_pvb(standin, f"p-{number}")

        class Compacting(Kube):
            compacted = False

            async def get(self, path, query=None):  # type: ignore[no-untyped-def]
                if "continue" in (query or {}) and not self.compacted:
                    self.compacted = True
                    standin.faults.compact()
                    create_pvb(standin, "p-late")
                return await super().get(path, query)

        kube = await Compacting.connect(KubeconfigCredentials(Path(standin.kubeconfig)))
        try:
            page = await kube.list(paths.velero(standin.namespace, OrderKind.BACKUP.plural))
        finally:
            await kube.close()
        names = sorted(parse(OrderKind.BACKUP, item).name for item in page.items)
        assert names == ["p-0", "p-1", "p-2", "p-late"]
        assert kube.compacted

    async def test_a_forbidden_request_names_the_right(self, standin: StandinServer) -> None:
        standin.faults.deny("get", "secrets")
        async with connection(standin) as kube:
            path = paths.core(standin.namespace, "secrets", "s")
            with pytest.raises(ApiError, match=r"forbids GET .*RBAC"):
                await kube.get(path)

    async def test_a_token_that_is_refused_says_so(self, standin: StandinServer) -> None:
        async with connection(standin) as kube:
            standin.faults.rotate_tokens("another")
            with pytest.raises(ApiError, match=r"does not accept our credentials \(401\)"):
                await kube.get(paths.VELERO)


@pytest.mark.parametrize("subresource", [False, True])
class TestLostReplies:
    async def test_a_claim_whose_reply_was_lost_is_recognised_as_ours(
        self, standin: StandinServer, subresource: bool
    ) -> None:
        standin.apply_velero_crds(status_subresource=subresource)
        seen = parse(OrderKind.BACKUP, json.dumps(create_pvb(standin)).encode())
        standin.faults.lose_reply(path="/status" if subresource else "")
        async with connection(standin) as kube:
            won = await desk(kube, standin, owner(), subresource=subresource).claim(seen)
        assert won is not None
        assert won.phase == "InProgress"
        writes = [seen for seen in standin.requests if seen.method == "PATCH"]
        assert len(writes) == (2 if subresource else 1)

    async def test_a_claim_that_never_arrived_is_not_ours(
        self, standin: StandinServer, subresource: bool
    ) -> None:
        standin.apply_velero_crds(status_subresource=subresource)
        seen = parse(OrderKind.BACKUP, json.dumps(create_pvb(standin)).encode())
        standin.faults.reset(method="PATCH", path="/status" if subresource else "")
        async with connection(standin) as kube:
            assert await desk(kube, standin, owner(), subresource=subresource).claim(seen) is None
        assert "status" not in read_pvb(standin, seen.name)

    async def test_a_final_state_survives_lost_replies_and_outages(
        self, standin: StandinServer, subresource: bool
    ) -> None:
        standin.apply_velero_crds(status_subresource=subresource)
        seen = parse(OrderKind.BACKUP, json.dumps(create_pvb(standin)).encode())
        async with connection(standin) as kube:
            table = desk(kube, standin, owner(), subresource=subresource)
            claimed = await table.claim(seen)
            assert claimed is not None
            standin.faults.html_error(500, 2, method="PATCH")
            standin.faults.reset(1, method="PATCH")
            standin.faults.lose_reply()
            end = patches.completed("cd" * 32, "/p", 5, 5)
            assert await table.finish(claimed, end, ending())
        assert read_pvb(standin, seen.name)["status"]["snapshotID"] == "cd" * 32

    async def test_a_final_state_is_left_to_the_next_agent_when_the_grace_time_is_over(
        self, standin: StandinServer, subresource: bool
    ) -> None:
        standin.apply_velero_crds(status_subresource=subresource)
        seen = parse(OrderKind.BACKUP, json.dumps(create_pvb(standin)).encode())
        async with connection(standin) as kube:
            table = desk(kube, standin, owner(), subresource=subresource)
            claimed = await table.claim(seen)
            assert claimed is not None
            standin.faults.html_error(500, 99, method="PATCH")
            over = ending(0.0, asked=True)
            assert await table.finish(claimed, patches.failed("x"), over) is None
        assert read_pvb(standin, seen.name)["status"]["phase"] == "InProgress"


class TestWatchFaults:
    async def test_throttling_of_a_watch_is_waited_out(self, standin: StandinServer) -> None:
        log: list[float] = []
        async with connection(standin) as kube:
            watcher = watcher_on(kube, standin, Ledger(), pace(log, healthy_seconds=0.0))
            watcher._version, watcher._relist_at = "1", float("inf")
            standin.faults.throttle(1, retry_after_seconds=9, path=OrderKind.BACKUP.plural)
            assert await watcher.iterate() == 9.0
        assert watcher.counts.ends == {"http 429": 1}

    async def test_a_half_open_watch_is_left_quietly_and_resumed(
        self, standin: StandinServer
    ) -> None:
        log: list[float] = []
        ledger = Ledger()
        async with connection(standin) as kube, asyncio.TaskGroup() as tasks:
            quick = pace(log, idle_seconds=0.2, healthy_seconds=0.1)
            watcher = watcher_on(kube, standin, ledger, quick)
            running = tasks.create_task(watcher.run())
            await until(lambda: ledger.lists, "the list")
            await asyncio.to_thread(standin.faults.freeze_watches)
            create_pvb(standin, "while-frozen")
            await until(lambda: watcher.counts.ends.get("idle", 0) >= 2, "the idle end")
            await asyncio.to_thread(standin.faults.freeze_watches, frozen=False)
            await until(lambda: ("changed", "while-frozen") in ledger.events, "the object")
            running.cancel()
        assert len(ledger.lists) == 1
        assert not log

    @pytest.mark.parametrize("how", list(Cut))
    async def test_a_watch_that_is_cut_loses_no_event(
        self, standin: StandinServer, how: Cut
    ) -> None:
        log: list[float] = []
        ledger = Ledger()
        async with connection(standin) as kube, asyncio.TaskGroup() as tasks:
            watcher = watcher_on(kube, standin, ledger, pace(log))
            running = tasks.create_task(watcher.run())
            await until(lambda: ledger.lists and standin.standin.open_watches, "the watch")
            await asyncio.to_thread(standin.faults.cut_watches, how)
            create_pvb(standin, "later")
            await until(lambda: ("changed", "later") in ledger.events, "the object")
            running.cancel()
        assert len(ledger.lists) == 1
        assert set(watcher.counts.ends) == {"eof" if how is Cut.END else "broken"}

    async def test_bookmarks_move_the_version_on(self, standin: StandinServer) -> None:
        ledger = Ledger()
        async with connection(standin) as kube, asyncio.TaskGroup() as tasks:
            watcher = watcher_on(kube, standin, ledger, pace([]))
            running = tasks.create_task(watcher.run())
            await until(lambda: standin.standin.open_watches, "the watch")
            before = watcher._version
            create_pvb(standin, "moves-it", node=NODE)
            await until(lambda: ledger.events, "the event")
            await asyncio.to_thread(standin.faults.bookmark)
            await until(lambda: watcher.counts.events >= 2, "the bookmark")
            assert watcher._version != before
            assert ledger.events == [("changed", "moves-it")]
            running.cancel()

    async def test_a_version_from_the_future_is_cured_by_the_periodic_list(
        self, standin: StandinServer
    ) -> None:
        ledger = Ledger()
        past = standin.faults.snapshot()
        for number in range(5):
            create_pvb(standin, f"gone-{number}")
        async with connection(standin) as kube, asyncio.TaskGroup() as tasks:
            quick = pace([], idle_seconds=0.2, healthy_seconds=0.1, relist_seconds=(0.5, 0.5))
            watcher = watcher_on(kube, standin, ledger, quick)
            running = tasks.create_task(watcher.run())
            await until(lambda: ledger.lists, "the list")
            await asyncio.to_thread(standin.faults.restore, past)
            create_pvb(standin, "after-restore")
            await until(lambda: ["after-restore"] in ledger.lists, "the new list")
            running.cancel()

    async def test_the_server_filters_by_node_as_soon_as_it_can_and_no_longer_than_that(
        self, standin: StandinServer
    ) -> None:
        ledger = Ledger()
        create_pvb(standin, "ours")
        create_pvb(standin, "theirs", node="other")
        once = pace([], idle_seconds=0.05, relist_seconds=(0.0, 0.0), healthy_seconds=0.0)
        async with connection(standin) as kube:
            watcher = watcher_on(kube, standin, ledger, once)
            await watcher.iterate()
            assert (watcher.selectable, ledger.lists[-1]) == (False, ["ours", "theirs"])
            standin.standin.set_selectable(OrderKind.BACKUP.plural, "spec.node")
            await watcher.iterate()
            assert (watcher.selectable, ledger.lists[-1]) == (True, ["ours"])
            standin.standin.set_selectable(OrderKind.BACKUP.plural)
            await watcher.iterate()
            assert (watcher.selectable, ledger.lists[-1]) == (False, ["ours", "theirs"])


def watcher_on(kube: Kube, server: StandinServer, ledger: Ledger, times: Pace) -> Watcher:
    return Watcher(kube, backups_of(server), ledger, times)
