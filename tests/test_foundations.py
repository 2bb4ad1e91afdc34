"""The words that every room shares: entries, counters, the stop request, errors."""

import threading
import time

import msgspec
import pytest

from agent import errors
from agent.cancel import NEVER, CancelToken, patience
from agent.entry import Entry, Kind
from agent.errors import (
    MESSAGE_CHARACTERS,
    Canceled,
    MalformedData,
    PodliftError,
    SourceError,
    UsageError,
)
from agent.monitor import KEPT_PROBLEMS, Monitor

FILE = Entry(
    name=b"f", kind=Kind.FILE, permissions=0o644, uid=0, gid=0, mtime_ns=1, ctime_ns=2,
    inode=3, device=4, size=5, content=(bytes(32),),
)  # fmt: skip


class TestEntries:
    def test_a_file_is_unchanged_if_nothing_that_tells_differs(self) -> None:
        fresh = msgspec.structs.replace(FILE, content=None, permissions=0o600, uid=9, device=7)
        assert fresh.unchanged_since(FILE)

    @pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode"])
    def test_one_difference_is_enough_to_read_again(self, field: str) -> None:
        fresh = msgspec.structs.replace(FILE, **{field: getattr(FILE, field) + 1})
        assert not fresh.unchanged_since(FILE)

    def test_only_files_with_content_are_taken_from(self) -> None:
        assert not FILE.unchanged_since(msgspec.structs.replace(FILE, content=None))
        directory = msgspec.structs.replace(FILE, kind=Kind.DIRECTORY)
        assert not directory.unchanged_since(FILE)
        assert not FILE.unchanged_since(directory)


class TestMonitor:
    def test_counts_from_many_threads_add_up(self) -> None:
        monitor = Monitor()

        def work() -> None:
            for _ in range(500):
                monitor.add(files_new=1, bytes_done=3)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (monitor.counters.files, monitor.counters.bytes_done) == (4000, 12000)

    def test_a_reading_does_not_change_afterwards(self) -> None:
        monitor = Monitor()
        before = monitor.counters
        monitor.add(files_changed=1, files_unmodified=2)
        assert (before.files, monitor.counters.files) == (0, 3)

    def test_an_unknown_counter_is_a_bug(self) -> None:
        with pytest.raises(AttributeError):
            Monitor().add(bytes_eaten=1)

    def test_all_problems_are_counted_and_the_first_are_named(self) -> None:
        monitor = Monitor()
        for number in range(KEPT_PROBLEMS + 5):
            monitor.problem(SourceError(b"%d" % number, "bad"))
        assert monitor.counters.problems == KEPT_PROBLEMS + 5
        assert [p.path for p in monitor.problems] == [b"%d" % n for n in range(KEPT_PROBLEMS)]

    def test_the_total_is_final_when_the_walk_is_over(self) -> None:
        monitor = Monitor()
        assert not monitor.walked
        monitor.walk_finished()
        assert monitor.walked


class TestCancel:
    def test_the_first_reason_is_kept(self) -> None:
        token = CancelToken()
        token.check()
        assert (token.canceled, token.reason) == (False, "")
        token.cancel("first")
        token.cancel("second")
        assert (token.canceled, token.reason) == (True, "first")
        with pytest.raises(Canceled, match="first"):
            token.check()

    def test_a_pause_ends_with_the_stop(self) -> None:
        token = CancelToken()
        token.pause(0)
        timer = threading.Timer(0.01, token.cancel, ["now"])
        timer.start()
        began = time.monotonic()
        with pytest.raises(Canceled, match="now"):
            token.pause(60)
        assert time.monotonic() - began < 30
        timer.join()

    def test_what_waits_in_a_system_call_is_ended_by_an_act(self) -> None:
        token, acts = CancelToken(), []
        with token.acting(lambda: acts.append("over")):
            pass
        with token.acting(lambda: acts.append("now")):
            token.cancel("first")
            assert acts == ["now"]
        with token.acting(lambda: acts.append("late")):
            assert acts == ["now", "late"]

    def test_patience_ends_by_itself(self) -> None:
        with patience(60) as token:
            assert not token.canceled
        with patience(0.01) as token, pytest.raises(Canceled, match=r"no answer for 0\.01 s"):
            token.pause(60)

    def test_never_is_never(self) -> None:
        with pytest.raises(AssertionError, match="NEVER"):
            NEVER.cancel("no")
        NEVER.check()


class TestErrors:
    def test_all_of_them_are_drawn_in_the_tree(self) -> None:
        drawn = errors.__doc__ or ""
        kinds = [
            value
            for value in vars(errors).values()
            if isinstance(value, type) and issubclass(value, PodliftError)
        ]
        assert len(kinds) > 20
        assert [kind.__name__ for kind in kinds if kind.__name__ not in drawn] == []

    def test_a_path_that_is_not_utf_8_is_still_one_line(self) -> None:
        assert str(SourceError(b"a\xff", "bad")) == "a\\xff: bad"
        assert str(SourceError(b"", "bad")) == ".: bad"

    def test_what_was_quoted_does_not_push_the_advice_out(self) -> None:
        told = str(UsageError(f"{'x' * 100_000!r} is no size; write it as 500M"))
        assert len(told) == MESSAGE_CHARACTERS
        assert told.startswith("'xxx")
        assert told.endswith("x' is no size; write it as 500M")

    def test_bytes_of_a_command_line_that_are_not_utf_8_can_be_told(self) -> None:
        told = str(UsageError("--tag \udcff=… is given twice"))
        assert told == "--tag \\udcff=… is given twice"

    def test_what_others_wrote_stays_within_its_line(self) -> None:
        assert str(UsageError("it holds a Pod\n\x1b[31mall is well")) == (
            "it holds a Pod\\n\\x1b[31mall is well"
        )

    def test_damage_names_the_thing_and_the_place(self) -> None:
        error = MalformedData("index/x", "it ends early")
        assert str(error) == "index/x is damaged: it ends early"
        assert (error.what, error.reason) == ("index/x", "it ends early")
