"""What runs of one process share: rates in bytes a second, and shares of memory and connections."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.budget import Budgets, Rate, Rates
from agent.cancel import CancelToken
from agent.errors import Canceled
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.storage.contract import read_range
from agent.storage.local import LocalStorage
from agent.storage.memory import MemoryStorage
from agent.storage.s3 import S3Storage
from agent.storage.s3body import Guard
from agent.transfer.job import Request, run_backup
from agent.transfer.restore import RestoreRequest, restore
from tests.repository.making import PASSWORD, fill
from tests.support.s3servers import S3Server

MIB = 1 << 20


class Virtual(CancelToken):
    """Time that passes only while somebody pauses, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 50.0
        self.paused = 0.0
        self._mutex = threading.Lock()

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.check()
        with self._mutex:
            self.now += seconds
            self.paused += seconds

    def rate(self, bytes_per_second: int) -> Rate:
        return Rate(bytes_per_second, self.clock)


class TestRates:
    def test_what_was_moved_is_paid_for_by_who_comes_next(self) -> None:
        time = Virtual()
        rate = time.rate(100)
        assert rate.take(1000, time) == 0
        assert rate.take(50, time) == 10
        assert rate.take(1, time) == 0.5
        assert time.paused == 10.5

    def test_a_rest_is_not_saved_up(self) -> None:
        time = Virtual()
        rate = time.rate(100)
        rate.take(100, time)
        time.now += 3600
        assert rate.take(300, time) == 0
        assert rate.take(300, time) == 3

    def test_no_limit_never_waits(self) -> None:
        time = Virtual()
        rate = Rate(None, time.clock)
        assert [rate.take(1 << 40, time) for _ in range(3)] == [0, 0, 0]
        assert not rate.limited
        assert time.rate(1).limited

    def test_a_stop_ends_the_wait(self) -> None:
        cancel = CancelToken()
        rate = Rate(1)
        rate.take(3600, cancel)
        threading.Timer(0.05, cancel.cancel, ["enough"]).start()
        with pytest.raises(Canceled, match="enough"):
            rate.take(1, cancel)

    def test_many_threads_together_keep_to_it(self) -> None:
        time, takes = Virtual(), 8 * 50
        rate = time.rate(1000)
        threads = [
            threading.Thread(target=lambda: [rate.take(100, time) for _ in range(50)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rate.take(0, time) >= 0
        assert time.now - 50.0 >= (takes - 1) * 0.1


class TestShares:
    def test_each_of_several_runs_has_its_part_and_the_last_one_all(self) -> None:
        budgets = Budgets()
        share = budgets.share_of(100)
        with budgets.at_work():
            assert share() == 100
            with budgets.at_work(), budgets.at_work():
                assert share() == 33
            assert share() == 100
        assert share() == 100

    def test_a_share_is_never_nothing(self) -> None:
        budgets = Budgets()
        with budgets.at_work(), budgets.at_work():
            assert budgets.share_of(1)() == 1


class TestStorages:
    @pytest.fixture(params=["local", "ministack"])
    def limited(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> tuple[LocalStorage | S3Storage, Virtual]:
        time = Virtual()
        rates = Rates(upload=time.rate(MIB), download=time.rate(2 * MIB))
        if request.param == "local":
            return LocalStorage.create(tmp_path / "r", rates), time
        server: S3Server = request.getfixturevalue("s3_server")
        settings = server.settings("limits", bucket=server.make_bucket())
        return S3Storage(settings, rates), time

    def test_both_directions_keep_to_their_own_limit(
        self, limited: tuple[LocalStorage | S3Storage, Virtual]
    ) -> None:
        storage, time = limited
        content = bytes(5 * MIB)
        storage.put("data/ab", content, cancel=time)
        storage.put("data/cd", b"x", cancel=time)
        assert 5 <= time.paused < 5.1
        assert storage.get("data/ab", cancel=time) == content
        assert read_range(storage, "data/ab", 1, 10, cancel=time) == content[:10]
        assert 5 + 2.5 <= time.paused < 5.1 + 2.6
        storage.close()

    def test_waiting_for_ones_turn_does_not_spend_the_time_of_an_attempt(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        time = Virtual()
        monkeypatch.setattr("agent.storage.s3body.time", SimpleNamespace(monotonic=time.clock))
        guard = Guard(time, 60, time.rate(10))
        guard.move(6000)
        time.now += 59
        guard.move(10)
        assert time.paused == 541  # what was left of 600
        time.now += 2
        with pytest.raises(TimeoutError):
            guard.move(10)


class TestTransfers:
    def test_a_backup_and_a_restore_keep_to_the_limit_of_reading_and_give_back_their_share(
        self, tmp_path: Path
    ) -> None:
        volume = tmp_path / "v"
        volume.mkdir()
        for number in range(100):
            (volume / f"small-{number}").write_bytes(b"%d" % number * 1000)
        (volume / "large").write_bytes(bytes(range(256)) * 4096 * 4)
        size = sum(each.stat().st_size for each in volume.iterdir())
        storage, time = MemoryStorage(), Virtual()
        fill(storage)
        budgets = Budgets(Rates(reading=time.rate(1 << 16)))
        repository = open_repository(storage, PASSWORD)
        request = Request(
            str(volume), ("/v",), "h", {}, lambda *_: None, budgets=budgets
        )  # fmt: skip
        result = run_backup(repository, request, Monitor(), time)
        largest = 9 * MIB  # of what is taken at once; the last one waits for nobody
        assert time.paused >= (size - largest) / (1 << 16)
        assert budgets.share_of(10)() == 10
        snapshot = repository.snapshot(result.snapshot_id, time)
        back = RestoreRequest(snapshot.tree, tmp_path / "back", budgets=budgets)
        restore(repository.reading(time), back, Monitor(), time)
        assert (tmp_path / "back/large").read_bytes() == (volume / "large").read_bytes()
        with budgets.at_work():
            assert budgets.share_of(10)() == 10
