"""The parts of a transfer by themselves: parent choice, hard links, pools, ids that are awaited."""

import contextvars
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import pytest

from agent.cancel import CancelToken, Run
from agent.entry import Entry, Kind
from agent.errors import Canceled
from agent.repository.snapshot import CHECKPOINT_TAG, Snapshot
from agent.transfer.hardlinks import HardLinks
from agent.transfer.parent import by_paths, by_tags, by_wish, tagged
from agent.transfer.pieces import Ids
from agent.transfer.pool import Pool


def snapshot(
    time_ns: int, *tags: str, host: str = "h", paths: tuple[str, ...] = ("/v",)
) -> Snapshot:
    return Snapshot(time_ns=time_ns, tree=bytes(32), tags=tags, hostname=host, paths=paths)


class TestParent:
    def test_the_newest_of_the_same_host_and_paths_is_taken(self) -> None:
        old, new = snapshot(1), snapshot(5)
        others = [snapshot(9, host="other"), snapshot(9, paths=("/w",)), snapshot(99)]
        assert by_paths([old, new, *others], "h", ["/v"], now_ns=10) is new

    def test_more_paths_than_asked_for_will_do(self) -> None:
        wide = snapshot(1, paths=("/v", "/w"))
        assert by_paths([wide], "h", ["/v"], 10) is wide
        assert by_paths([wide], "h", ["/v", "/x"], 10) is None

    def test_the_same_claim_and_volume_win_over_the_same_pod(self) -> None:
        tags = {"pvc-uid": "1", "volume": "data", "ns": "n", "pod": "p"}
        same = snapshot(1, *tagged(tags))
        claim_only = snapshot(2, "pvc-uid=1", "volume=renamed")
        pod_only = snapshot(3, "ns=n", "pod=p", "volume=data")
        every = [same, claim_only, pod_only]
        assert by_tags(every, tags, 10) is same
        assert by_tags(every[1:], tags, 10) is claim_only
        assert by_tags(every[2:], tags, 10) is pod_only
        assert by_tags([snapshot(4, "ns=other")], tags, 10) is None

    def test_a_wish_is_for_none_for_one_or_for_whatever_suits(self) -> None:
        tags = {"pvc-uid": "1", "volume": "data", "backup": "nightly"}
        first, last = (
            msgspec.structs.replace(snapshot(n, "pvc-uid=1"), id=f"{n}" * 64) for n in (1, 2)
        )
        every = [first, last]

        def chosen(wish: str, snapshots: list[Snapshot]) -> Snapshot | None:
            usual = lambda found, now_ns: by_tags(found, tags, now_ns)  # noqa: E731
            return by_wish(wish, tags)(snapshots, 10, usual)

        for wish in ("", "auto"):
            assert chosen(wish, every) is last
        assert chosen("none", every) is None
        assert chosen(first.id, every) is first
        assert chosen(first.id[:8], every) is first
        assert chosen("ab" * 32, every) is last  # it is not there
        for left in (
            snapshot(3, *tagged(tags), CHECKPOINT_TAG),
            snapshot(3, "pvc-uid=1", CHECKPOINT_TAG),
        ):
            mine = "backup=nightly" in left.tags
            assert chosen("none", [*every, left]) is (left if mine else None)
            assert chosen(first.id, [*every, left]) is (left if mine else first)

    def test_without_tags_there_is_no_parent(self) -> None:
        assert by_tags([snapshot(1)], {}, 10) is None
        assert by_tags([snapshot(1, "pvc-uid=")], {"pvc-uid": ""}, 10) is None

    def test_tags_are_stored_in_order_of_their_keys(self) -> None:
        assert tagged({"b": "2", "a": "1"}) == ("a=1", "b=2")


def file(inode: int, content: bytes, links: int = 2) -> Entry:
    return Entry(
        name=b"f", kind=Kind.FILE, permissions=0o644, uid=0, gid=0, mtime_ns=0, ctime_ns=0,
        inode=inode, device=1, links=links, content=(content,),
    )  # fmt: skip


class TestHardLinks:
    def test_the_same_content_keeps_its_identity(self) -> None:
        links = HardLinks()
        assert links.settle(file(1, b"a")) == links.settle(file(1, b"a")) == file(1, b"a")

    @pytest.mark.parametrize("later_links", [1, 2])
    def test_an_inode_that_was_reused_loses_its_identity(self, later_links: int) -> None:
        links = HardLinks()
        links.settle(file(1, b"a"))
        settled = links.settle(file(1, b"b", later_links))
        assert (settled.links, settled.inode) == (1, 0)
        assert settled.content == (b"b",)
        assert links.settle(file(2, b"b")) == file(2, b"b")

    def test_a_file_made_during_the_run_may_have_the_inode_of_one_gone_before(self) -> None:
        links = HardLinks(began_ns=100)
        links.settle(file(1, b"the one before", links=1))
        settled = links.settle(msgspec.structs.replace(file(1, b"new"), ctime_ns=100))
        assert (settled.links, settled.inode, settled.content) == (1, 0, (b"new",))
        old = msgspec.structs.replace(file(2, b"old"), ctime_ns=99)
        assert links.settle(old) == old
        linked_again = msgspec.structs.replace(old, ctime_ns=500)
        assert links.settle(linked_again) == linked_again

    def test_files_with_one_link_are_not_remembered(self) -> None:
        links = HardLinks()
        links.settle(file(1, b"a", links=1))
        assert links.settle(file(1, b"b", links=1)) == file(1, b"b", links=1)
        assert links._contents == {}


class TestPool:
    def test_no_more_than_the_budget_is_held(self) -> None:
        run = Run(CancelToken())
        pool = Pool(run, "t", 4, lambda: 10)
        held = []
        for _ in range(50):
            pool.submit(3, lambda: held.append(pool._held))
        pool.wait_idle()
        pool.close()
        assert len(held) == 50
        assert max(held) <= 9

    def test_a_budget_that_shrinks_counts_at_once_and_stops_nobody(self) -> None:
        budget = 10
        pool = Pool(Run(CancelToken()), "t", 4, lambda: budget)
        go_on, held = threading.Event(), []
        for _ in range(3):
            pool.submit(3, go_on.wait)
        budget = 4
        threading.Timer(0.05, go_on.set).start()
        for _ in range(20):
            pool.submit(3, lambda: held.append(pool._held))
        pool.submit(9, lambda: held.append(pool._held))  # more than there is by now
        pool.wait_idle()
        pool.close()
        assert len(held) == 21
        assert max(held) <= 4

    def test_what_is_heavier_than_the_budget_goes_alone(self) -> None:
        pool = Pool(Run(CancelToken()), "t", 2, lambda: 10)
        assert pool.submit(1000, lambda: 1).result() == 1
        pool.wait_idle()
        pool.close()

    def test_a_thread_with_nothing_to_do_takes_what_is_heavy_too(self) -> None:
        pool = Pool(Run(CancelToken()), "t", 2, lambda: 10, at_least=lambda: 2)
        ends, held = (threading.Event(), threading.Event()), []
        for weight, end in zip((9, 8), ends, strict=True):
            pool.submit(weight, end.wait, 20)
        queued = threading.Thread(target=pool.submit, args=(3, lambda: held.append(pool._held)))
        queued.start()
        queued.join(0.05)
        assert (queued.is_alive(), pool._held) == (True, 17)
        ends[0].set()
        queued.join()
        pool.submit(0, ends[1].set)
        pool.wait_idle()
        pool.close()
        assert held == [8 + 3]

    def test_what_weighs_nothing_is_waited_for_as_well(self) -> None:
        pool = Pool(Run(CancelToken()), "t", 1, lambda: 10)
        done: list[int] = []
        for number in range(3):
            pool.submit(0, lambda n=number: (time.sleep(0.05), done.append(n)))
        pool.wait_idle()
        assert done == [0, 1, 2]
        pool.close()

    def test_the_first_failure_ends_everything(self) -> None:
        run = Run(CancelToken())
        pool = Pool(run, "t", 1, lambda: 10)

        def fail() -> None:
            raise ValueError("first")

        failed = pool.submit(10, fail)
        assert isinstance(failed.exception(), ValueError)
        with pytest.raises(ValueError, match="first"):
            pool.wait_idle()
        with pytest.raises(ValueError, match="first"):
            pool.submit(10, lambda: None)
        run.fail(ValueError("second"))
        with pytest.raises(ValueError, match="first"):
            run.check()
        pool.close()

    def test_who_waits_for_room_hears_of_the_stop(self) -> None:
        token = CancelToken()
        pool = Pool(Run(token), "t", 1, lambda: 1)
        blocked = threading.Event()
        pool.submit(1, blocked.wait)
        token.cancel("enough")
        with pytest.raises(Canceled):
            pool.submit(1, lambda: None)
        blocked.set()
        pool.close()

    def test_dropped_work_frees_its_room(self) -> None:
        pool = Pool(Run(CancelToken()), "t", 1, lambda: 10)
        blocked = threading.Event()
        pool.submit(5, blocked.wait)
        waiting = pool.submit(5, lambda: None)
        blocked_soon = threading.Timer(0, blocked.set)
        blocked_soon.start()
        pool.close()
        blocked_soon.join()
        assert waiting.done()
        assert pool._held == 0


class Told:
    """Who waits for the ids of a file."""

    def __init__(self) -> None:
        self.content: list[bytes] | None = None
        self.errors: list[BaseException] = []

    def finish(self, content: list[bytes]) -> None:
        self.content = content

    def refuse(self, content: list[bytes]) -> None:
        raise ValueError(content)


class TestIds:
    def test_they_are_told_in_order_by_whoever_stores_the_last(self) -> None:
        stored = [Future[Sequence[bytes]]() for _ in range(3)]
        ids, told = Ids(), Told()
        for future in stored:
            ids.append(future, 2)
        ids.when_stored(told.finish, told.errors.append)
        stored[2].set_result([b"e", b"f"])
        stored[0].set_result([b"a", b"b"])
        assert told.content is None
        stored[1].set_result([b"c", b"d"])
        assert (told.content, told.errors) == ([b"a", b"b", b"c", b"d", b"e", b"f"], [])

    def test_those_of_a_hole_and_those_stored_already_are_told_at_once(self) -> None:
        ids, told = Ids(), Told()
        ids.append([b"zeros"], 3)
        stored = Future[Sequence[bytes]]()
        stored.set_result([b"a"])
        ids.append(stored, 1)
        ids.when_stored(told.finish, told.errors.append)
        assert told.content == [b"zeros", b"zeros", b"zeros", b"a"]
        assert ids.count == 4

    def test_whoever_is_told_knows_what_the_reader_worked_for(self) -> None:
        works_for = contextvars.ContextVar("works_for", default="nobody")
        stored = Future[Sequence[bytes]]()
        ids, seen = Ids(), list[object]()
        ids.append(stored, 1)
        token = works_for.set("one")
        ids.when_stored(lambda _: seen.append(works_for.get()), seen.append)
        works_for.reset(token)
        stored.set_result([b"a"])
        assert seen == ["one"]

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_nobody_is_told_of_a_file_whose_chunk_is_not_stored(
        self, order: tuple[int, int]
    ) -> None:
        stored = [Future[Sequence[bytes]]() for _ in range(2)]
        ids, told = Ids(), Told()
        for future in stored:
            ids.append(future, 1)
        ids.when_stored(told.finish, told.errors.append)
        end = {0: lambda: stored[0].set_exception(ValueError("x")), 1: stored[1].cancel}
        for which in order:
            end[which]()
        assert (told.content, told.errors) == (None, [])

    def test_what_goes_wrong_with_the_file_is_told_to_its_run(self) -> None:
        stored = Future[Sequence[bytes]]()
        ids, told = Ids(), Told()
        ids.append(stored, 1)
        ids.when_stored(told.refuse, told.errors.append)
        stored.set_result([b"a"])
        assert [error.args for error in told.errors] == [([b"a"],)]
