"""Locks: who may work beside whom, and when a lock is no longer worth its name."""

import threading
from collections.abc import Iterator

import pytest

from agent.cancel import NEVER, CancelToken
from agent.errors import Canceled, LockLost, MalformedData, RepositoryLocked, Unreachable
from agent.monitor import Monitor
from agent.repository import locking
from agent.repository.lockfile import Lock, encode_lock
from agent.repository.locking import HeldLock, SystemClock
from agent.repository.objects import Folder, Objects
from agent.repository.repository import Repository
from agent.repository.snapshot import Snapshot
from agent.repository.times import utc
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.memory import MemoryStorage
from tests.repository.clocks import HandClock, SteppingClock
from tests.repository.making import keys, store_chunk

MINUTES = 60.0


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage("the place")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


class Held:
    """Locks that a test took, given back at its end."""

    def __init__(self, repository: Repository, clock: HandClock) -> None:
        self.repository = repository
        self.clock = clock
        self.taken: list[HeldLock] = []

    def __call__(self, *, exclusive: bool = False, objects: Objects | None = None) -> HeldLock:
        lock = HeldLock(objects or self.repository.objects, exclusive, self.clock)
        lock.acquire(NEVER)
        self.taken.append(lock)
        return lock


@pytest.fixture
def hold(repository: Repository, clock: HandClock) -> Iterator[Held]:
    held = Held(repository, clock)
    yield held
    for lock in held.taken:
        lock.release()


def foreign(repository: Repository, clock: HandClock, *, exclusive: bool) -> str:
    """Write somebody else's lock; return its name."""
    lock = Lock(time_ns=clock.now_ns(), exclusive=exclusive, hostname="other", username="u", pid=7)
    return repository.objects.save(Folder.LOCKS, encode_lock(lock, utc))


def faulty(repository: Repository, *faults: Fault) -> Objects:
    return Objects(Faulty(repository.objects.storage, *faults), repository.objects.key)


def test_a_lock_is_there_while_it_is_held_and_gone_after(
    storage: MemoryStorage, repository: Repository
) -> None:
    with repository.locked(exclusive=False):
        assert len(keys(storage, "locks")) == 1
    assert keys(storage, "locks") == []


def test_shared_locks_stand_together(storage: MemoryStorage, hold: Held) -> None:
    hold()
    hold()
    assert len(keys(storage, "locks")) == 2


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (True, True)])
def test_an_exclusive_lock_stands_alone(
    storage: MemoryStorage, hold: Held, first: bool, second: bool
) -> None:
    hold(exclusive=first)
    with pytest.raises(RepositoryLocked, match=r"the place is locked: .* lock of .*pid"):
        hold(exclusive=second)
    assert len(keys(storage, "locks")) == 1


@pytest.fixture
def rival(repository: Repository, clock: HandClock) -> list[str]:
    """Return the name of a lock that somebody else writes while ours settles."""
    names: list[str] = []
    clock.meanwhile = lambda: names.append(foreign(repository, clock, exclusive=True))
    return names


def test_of_two_that_write_at_the_same_moment_neither_goes_on(
    storage: MemoryStorage, repository: Repository, clock: HandClock, rival: list[str]
) -> None:
    lock = HeldLock(repository.objects, exclusive=True, clock=clock)
    with pytest.raises(RepositoryLocked, match="other"):
        lock.acquire(NEVER)
    assert clock.pauses == [locking.SETTLE_SECONDS]
    assert keys(storage, "locks") == [f"locks/{rival[0]}"]


def test_a_lock_that_was_begun_settles_before_the_first_write(
    storage: MemoryStorage, repository: Repository, clock: HandClock, rival: list[str]
) -> None:
    lock = HeldLock(repository.objects, exclusive=False, clock=clock)
    lock.begin(NEVER)
    assert not clock.pauses
    for _ in range(2):  # any other thread that relies on it gets the same
        with pytest.raises(RepositoryLocked, match="other"):
            lock.check()
    assert clock.pauses == [locking.SETTLE_SECONDS]
    lock.release()
    assert keys(storage, "locks") == [f"locks/{rival[0]}"]


def test_a_stop_while_a_lock_settles_stops_every_thread_that_relies_on_it(
    storage: MemoryStorage, repository: Repository
) -> None:
    lock, stop = HeldLock(repository.objects, exclusive=False), CancelToken()
    lock.begin(stop)
    stop.cancel("no more")
    for _ in range(2):
        with pytest.raises(Canceled):
            lock.check()
    lock.release()
    assert keys(storage, "locks") == []


def test_a_lock_that_was_begun_long_ago_settles_without_waiting(
    repository: Repository, clock: HandClock
) -> None:
    lock = HeldLock(repository.objects, exclusive=False, clock=clock)
    lock.begin(NEVER)
    clock.seconds += 1
    lock.check()
    lock.check()
    lock.release()
    assert clock.pauses == [0.0]


def test_a_backup_beside_a_lock_of_the_same_moment_writes_nothing(
    storage: MemoryStorage, repository: Repository, clock: HandClock
) -> None:

    def write(lock: HeldLock) -> None:
        with repository.writing(lock, Monitor(), NEVER) as writer:
            store_chunk(writer, b"content")
            writer.finish(Snapshot(time_ns=0, tree=bytes(32)))

    with repository.locked(exclusive=False, begun=True) as lock:
        foreign(repository, clock, exclusive=True)
        with pytest.raises((RepositoryLocked, LockLost)):
            write(lock)
    for folder in ("data", "index", "snapshots"):
        assert keys(storage, folder) == []


def test_waiting_for_a_lock_ends_when_it_is_given_back(
    storage: MemoryStorage, repository: Repository, clock: HandClock
) -> None:
    name = foreign(repository, clock, exclusive=True)

    def give_back() -> None:
        if sum(clock.pauses) > 30:
            storage.delete(f"locks/{name}")

    clock.meanwhile = give_back
    lock = HeldLock(repository.objects, exclusive=False, clock=clock)
    lock.acquire_within(100, NEVER)
    lock.release()
    assert clock.pauses == [5, 10, 20, locking.SETTLE_SECONDS]


def test_waiting_for_a_lock_ends_in_time(repository: Repository, clock: HandClock) -> None:
    foreign(repository, clock, exclusive=True)
    lock = HeldLock(repository.objects, exclusive=False, clock=clock)
    with pytest.raises(RepositoryLocked):
        lock.acquire_within(12, NEVER)
    assert sum(clock.pauses) == 12


def test_a_lock_of_an_hour_ago_still_counts_and_is_called_abandoned(
    repository: Repository, clock: HandClock, hold: Held
) -> None:
    foreign(repository, clock, exclusive=True)
    clock.seconds += 3600
    with pytest.raises(RepositoryLocked, match="60 min old, probably left behind"):
        hold()


class TestLeftBehind:
    """Who waits removes what nobody holds any more, and only that."""

    def waited(
        self, repository: Repository, clock: HandClock, *, exclusive: bool = False
    ) -> float | None:
        """Wait for 40 minutes at most; return after how many the lock was ours."""
        began = clock.seconds
        lock = HeldLock(repository.objects, exclusive, clock)
        try:
            lock.acquire_within(40 * MINUTES, NEVER)
        except RepositoryLocked:
            return None
        lock.release()
        return (clock.seconds - began) / MINUTES

    @pytest.mark.parametrize("exclusive", [False, True])
    def test_a_lock_that_looks_old_is_watched_until_its_holder_would_have_stopped(
        self, repository: Repository, clock: HandClock, storage: MemoryStorage, exclusive: bool
    ) -> None:
        foreign(repository, clock, exclusive=not exclusive)
        clock.seconds += 31 * MINUTES
        minutes = self.waited(repository, clock, exclusive=exclusive)
        assert minutes is not None
        assert 22.5 <= minutes < 24
        assert keys(storage, "locks") == []

    @pytest.mark.parametrize("ahead", [0, 24 * 60 * MINUTES])
    def test_a_lock_that_does_not_look_old_is_watched_for_half_an_hour(
        self, repository: Repository, clock: HandClock, ahead: float
    ) -> None:
        clock.seconds += ahead
        foreign(repository, clock, exclusive=True)
        clock.seconds -= ahead
        minutes = self.waited(repository, clock)
        assert minutes is not None
        assert 30 <= minutes <= 31.5

    def test_a_lock_that_is_refreshed_stays_however_wrong_its_clock(
        self, repository: Repository, clock: HandClock, storage: MemoryStorage
    ) -> None:
        """Its holder's clock is an hour behind, so it looks old whenever it is refreshed."""

        def refresh() -> None:
            if refreshed_at[-1] + 5 * MINUTES <= clock.seconds:
                old = keys(storage, "locks")
                clock.seconds -= 60 * MINUTES
                foreign(repository, clock, exclusive=True)
                clock.seconds += 60 * MINUTES
                refreshed_at.append(clock.seconds)
                for key in old:
                    storage.delete(key)

        refreshed_at = [0.0]
        refresh()
        clock.meanwhile = refresh
        assert self.waited(repository, clock) is None
        assert len(refreshed_at) > 7
        assert len(keys(storage, "locks")) == 1

    def test_locks_that_do_not_forbid_ours_are_let_alone(
        self, repository: Repository, clock: HandClock, storage: MemoryStorage
    ) -> None:
        shared = foreign(repository, clock, exclusive=False)
        clock.seconds += 31 * MINUTES
        foreign(repository, clock, exclusive=True)
        assert self.waited(repository, clock) is not None
        assert keys(storage, "locks") == [f"locks/{shared}"]

    def test_of_two_the_one_that_lives_is_still_waited_for(
        self, repository: Repository, clock: HandClock, storage: MemoryStorage
    ) -> None:
        foreign(repository, clock, exclusive=True)
        clock.seconds += 31 * MINUTES
        names = [foreign(repository, clock, exclusive=True)]

        def refresh() -> None:
            names.append(foreign(repository, clock, exclusive=True))
            storage.delete(f"locks/{names[-2]}")

        clock.meanwhile = refresh
        assert self.waited(repository, clock) is None
        assert keys(storage, "locks") == [f"locks/{names[-1]}"]

    def test_the_time_that_looking_takes_is_no_time_of_watching(
        self, repository: Repository, clock: HandClock, storage: MemoryStorage
    ) -> None:
        """Twice the storage takes ten minutes to give the lock that was listed."""
        name = foreign(repository, clock, exclusive=True)
        clock.seconds += 31 * MINUTES

        def stall() -> None:
            clock.seconds += 10 * MINUTES

        objects = faulty(repository, Fault("get", stall, key=f"locks/{name}", times=2))
        lock = HeldLock(objects, exclusive=False, clock=clock)
        with pytest.raises(RepositoryLocked):
            lock.acquire_within(30 * MINUTES, NEVER)
        assert keys(storage, "locks") == [f"locks/{name}"]

    def test_one_look_removes_nothing(
        self, repository: Repository, clock: HandClock, storage: MemoryStorage
    ) -> None:
        name = foreign(repository, clock, exclusive=True)
        clock.seconds += 24 * 60 * MINUTES
        with pytest.raises(RepositoryLocked):
            HeldLock(repository.objects, False, clock).acquire_within(0, NEVER)
        assert keys(storage, "locks") == [f"locks/{name}"]

    def test_the_holder_whose_lock_was_removed_writes_nothing_more(
        self, repository: Repository, clock: HandClock, hold: Held
    ) -> None:
        held = hold(exclusive=True)
        assert self.waited(repository, clock) is not None
        with pytest.raises(LockLost):
            held.check()


def test_locks_without_content_and_locks_that_vanish_are_ignored(
    storage: MemoryStorage, repository: Repository, clock: HandClock
) -> None:
    storage.put(f"locks/{'0' * 64}", b"")
    gone = foreign(repository, clock, exclusive=True)
    vanish = Fault("get", lambda: storage.delete(f"locks/{gone}"), key=f"locks/{gone}")
    lock = HeldLock(faulty(repository, vanish), exclusive=True, clock=clock)
    lock.acquire(NEVER)
    lock.release()
    assert keys(storage, "locks") == [f"locks/{'0' * 64}"]


def test_a_damaged_lock_is_read_again_and_then_reported(
    storage: MemoryStorage, repository: Repository, clock: HandClock
) -> None:
    storage.put(f"locks/{'0' * 64}", b"half")
    lock = HeldLock(repository.objects, exclusive=False, clock=clock)
    with pytest.raises(MalformedData, match="locks/000"):
        lock.acquire(NEVER)
    assert clock.pauses == [5, 10, 20]


def test_a_refresh_replaces_the_lock_by_a_younger_one(
    storage: MemoryStorage, hold: Held, clock: HandClock
) -> None:
    lock = hold()
    before = keys(storage, "locks")
    clock.seconds += 22 * MINUTES
    lock.refresh()
    after = keys(storage, "locks")
    assert len(after) == 1
    assert after != before
    clock.seconds += 22 * MINUTES
    lock.check()


def test_a_lock_that_somebody_removed_is_lost(
    storage: MemoryStorage, hold: Held, clock: HandClock
) -> None:
    lock = hold()
    storage.delete(keys(storage, "locks")[0])
    with pytest.raises(LockLost, match="somebody removed it"):
        lock.refresh()
    with pytest.raises(LockLost):
        lock.check()
    assert keys(storage, "locks") == []


def test_a_lock_not_refreshed_for_22_and_a_half_minutes_is_lost_for_good(
    hold: Held, clock: HandClock
) -> None:
    lock = hold()
    clock.seconds += locking.LOST_AFTER_SECONDS - locking.SETTLE_SECONDS
    lock.check()
    clock.seconds += 1
    with pytest.raises(LockLost, match=r"22\.5 minutes.*nothing more is written"):
        lock.check()
    with pytest.raises(LockLost):
        lock.refresh()


def test_a_lock_is_as_old_as_the_beginning_of_its_write(
    repository: Repository, hold: Held, clock: HandClock
) -> None:
    def slow() -> None:
        clock.seconds += 20 * MINUTES

    lock = hold(objects=faulty(repository, Fault("put", slow, key="locks/*", nth=2)))
    clock.seconds += 5 * MINUTES
    lock.refresh()
    lock.check()
    clock.seconds += 3 * MINUTES
    with pytest.raises(LockLost):
        lock.check()


def test_what_makes_packs_count_needs_a_young_lock(
    storage: MemoryStorage, hold: Held, clock: HandClock
) -> None:
    lock = hold()
    before = keys(storage, "locks")
    lock.prove()
    assert keys(storage, "locks") == before
    clock.seconds += 8 * MINUTES
    lock.prove()
    assert keys(storage, "locks") != before


def test_after_the_lock_is_lost_nothing_is_written(
    storage: MemoryStorage, repository: Repository, hold: Held, clock: HandClock
) -> None:
    lock = hold()

    def write() -> None:
        with repository.writing(lock, Monitor(), NEVER) as writer:
            store_chunk(writer, b"content")
            clock.seconds += 23 * MINUTES
            writer.finish(Snapshot(time_ns=0, tree=bytes(32)))

    with pytest.raises(LockLost):
        write()
    for folder in ("data", "index", "snapshots"):
        assert keys(storage, folder) == []


def test_a_storage_that_fails_for_a_while_costs_no_lock(
    storage: MemoryStorage, repository: Repository
) -> None:
    clock = SteppingClock(rounds=4)
    down = Fault("put", failing(Unreachable("down")), key="locks/*", nth=2, times=2)
    lock = HeldLock(faulty(repository, down), exclusive=False, clock=clock)
    lock.acquire(NEVER)
    assert clock.done.wait(10)
    lock.check()
    lock.release()
    assert clock.waits == [300, 30, 30, 300]
    assert keys(storage, "locks") == []


def test_the_refresher_ends_when_the_lock_is_lost(
    storage: MemoryStorage, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SteppingClock(rounds=100)
    down = Fault("put", failing(Unreachable("down")), key="locks/*", nth=2, times=1000)
    lock = HeldLock(faulty(repository, down), exclusive=False, clock=clock)
    lock.acquire(NEVER)
    assert lock._thread is not None
    lock._thread.join(10)
    assert not lock._thread.is_alive()
    with pytest.raises(LockLost):
        lock.check()
    lock.release()
    assert keys(storage, "locks") == []
    assert "nothing more is written" in caplog.text


@pytest.mark.parametrize("nth", [1, 2])
def test_a_lock_whose_reply_was_lost_is_not_left_behind(
    storage: MemoryStorage, repository: Repository, clock: HandClock, nth: int
) -> None:
    lost = Fault("put", failing(Unreachable("lost")), key="locks/*", nth=nth, after=True)
    lock = HeldLock(faulty(repository, lost), exclusive=False, clock=clock)
    if nth == 1:
        with pytest.raises(Unreachable):
            lock.acquire(NEVER)
    else:
        lock.acquire(NEVER)
        with pytest.raises(Unreachable):
            lock.refresh()
        assert len(keys(storage, "locks")) == 2
        lock.release()
    assert keys(storage, "locks") == []


def test_a_lock_that_cannot_be_removed_is_reported_and_nothing_else(
    repository: Repository, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    down = Fault("delete", failing(Unreachable("down")))
    lock = HeldLock(faulty(repository, down), exclusive=False, clock=clock)
    lock.acquire(NEVER)
    lock.release()
    assert "a lock stays behind in the place: down" in caplog.text


def test_giving_back_does_not_wait_for_ever(
    repository: Repository,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(MemoryStorage):
        def delete(self, key: str, *, cancel: CancelToken = NEVER) -> None:
            cancel.pause(60)

    stuck = Stuck()
    for key, body in ((k, repository.objects.storage.get(k)) for k in ("config",)):
        stuck.put(key, body)
    monkeypatch.setattr(locking, "REMOVE_SECONDS", 0.05)
    lock = HeldLock(Objects(stuck, repository.objects.key), exclusive=False, clock=clock)
    lock.acquire(NEVER)
    lock.release()
    assert "no answer for" in caplog.text


def test_cancel_while_settling_takes_the_lock_back(
    storage: MemoryStorage, repository: Repository, clock: HandClock
) -> None:
    token = CancelToken()
    stop = Fault("put", lambda: token.cancel("enough"), key="locks/*", after=True)
    lock = HeldLock(faulty(repository, stop), exclusive=False, clock=clock)
    with pytest.raises(Canceled, match="enough"):
        lock.acquire(token)
    assert keys(storage, "locks") == []


def test_the_machines_clock_waits_and_pauses_as_told() -> None:
    clock = SystemClock()
    event = threading.Event()
    assert clock.wait(event, 0) is False
    event.set()
    assert clock.wait(event, 60) is True
    clock.pause(NEVER, 0)
    assert clock.now_ns() > 10**18
    assert clock.running_seconds() <= clock.running_seconds()
