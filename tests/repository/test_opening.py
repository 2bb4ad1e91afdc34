"""Opening and creating: one repository at one place, and a clear word for each way to fail."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import (
    MalformedData,
    NoRepository,
    ObjectTooLarge,
    RepositoryError,
    RepositoryExists,
    Unreachable,
    UnsupportedFormat,
    UsageError,
    WrongPassword,
)
from agent.repository import opening
from agent.repository.keyfile import decode_key
from agent.repository.objects import fresh_iv
from agent.repository.opening import create_repository, open_or_create, open_repository
from agent.repository.parameters import RepositoryConfig, encode_config
from agent.repository.scrypt import ScryptCost
from agent.storage.contract import WHATEVER_BYTES
from agent.storage.faults import Fault, Faulty, failing
from agent.storage.local import LocalStorage
from agent.storage.memory import MemoryStorage
from tests.repository.making import (
    CHEAP,
    PASSWORD,
    content,
    fill,
    keys,
    new_repository,
    store_chunks,
)


@pytest.fixture(autouse=True)
def _no_waiting_for_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_KEY_WAIT_SECONDS", (0.0, 0.0))


@pytest.fixture
def storage() -> MemoryStorage:
    filled = MemoryStorage()
    fill(filled)
    return filled


def reseal_config(storage: MemoryStorage, config: RepositoryConfig) -> None:
    key = open_repository(storage, PASSWORD).objects.key
    storage.put("config", bytes(key.seal(fresh_iv(), encode_config(config))))


def test_a_new_repository_opens_and_is_empty(tmp_path: Path) -> None:
    storage = LocalStorage.create(tmp_path / "repo")
    create_repository(storage, PASSWORD, cost=CHEAP)
    repository = open_repository(storage, PASSWORD)
    assert repository.snapshots() == []
    assert repository.config.version == 2
    assert repository.place == str(tmp_path / "repo")


def test_a_real_key_costs_what_restics_does() -> None:
    storage = MemoryStorage()
    create_repository(storage, PASSWORD)
    (key,) = keys(storage, "keys")
    stored = decode_key(storage.get(key), key)
    assert (stored.n, stored.r) == (32768, 8)
    assert stored.p >= 1


def test_no_repository_is_said_with_what_makes_one() -> None:
    with pytest.raises(NoRepository, match="podlift init"):
        open_repository(MemoryStorage(), PASSWORD)


def test_a_wrong_password_is_said(storage: MemoryStorage) -> None:
    with pytest.raises(WrongPassword, match="none of the 1 keys"):
        open_repository(storage, "wrong")


def test_an_empty_password_is_refused() -> None:
    with pytest.raises(UsageError, match="empty password"):
        create_repository(MemoryStorage(), "", cost=CHEAP)


def test_a_second_creation_changes_nothing(storage: MemoryStorage) -> None:
    before = content(storage)
    with pytest.raises(RepositoryExists):
        create_repository(storage, "another", cost=CHEAP)
    assert content(storage) == before


@pytest.mark.parametrize("folder", ["keys", "snapshots", "index"])
def test_remains_without_a_config_are_left_alone(storage: MemoryStorage, folder: str) -> None:
    remains = MemoryStorage()
    remains.put(f"{folder}/{'a' * 64}", b"precious")
    with pytest.raises(RepositoryExists, match=f"files in {folder}/"):
        create_repository(remains, PASSWORD, cost=CHEAP)
    assert list(content(remains)) == [f"{folder}/{'a' * 64}"]


def test_a_config_without_keys_is_explained(storage: MemoryStorage) -> None:
    for key in keys(storage, "keys"):
        storage.delete(key)
    with pytest.raises(NoRepository, match="config but no keys"):
        open_repository(storage, PASSWORD)


@pytest.fixture
def half_made(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """Return a repository whose maker died before its key was written."""
    for key in keys(storage, "keys"):
        storage.delete(key)
    monkeypatch.setattr(opening, "ABANDONED_SECONDS", 0.2)
    monkeypatch.setattr(opening, "ABANDONED_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(opening, "_KEY_WAIT_SECONDS", ())
    monkeypatch.setattr(opening, "ScryptCost", lambda: CHEAP)
    return storage


def test_a_repository_that_nobody_finished_is_made_anew_after_a_while(
    half_made: MemoryStorage,
) -> None:
    before = half_made.get("config")
    began = time.monotonic()
    assert open_or_create(half_made, PASSWORD).snapshots() == []
    assert time.monotonic() - began >= 0.2
    assert half_made.get("config") != before
    assert len(keys(half_made, "keys")) == 1


def test_a_key_that_comes_late_is_honoured(half_made: MemoryStorage) -> None:
    whole = MemoryStorage()
    create_repository(whole, PASSWORD, cost=CHEAP)
    half_made.put("config", whole.get("config"))
    (key,) = keys(whole, "keys")
    arrives = Fault("list", lambda: half_made.put(key, whole.get(key)), key="keys/", nth=3)
    opened = open_or_create(Faulty(half_made, arrives), PASSWORD)
    assert half_made.get("config") == whole.get("config")
    assert opened.config.id == open_repository(whole, PASSWORD).config.id


@pytest.mark.parametrize("folder", ["data/aa", "snapshots", "index"])
def test_a_repository_that_lost_its_keys_is_never_made_anew(
    half_made: MemoryStorage, folder: str
) -> None:
    half_made.put(f"{folder}/{'a' * 64}", b"precious")
    before = content(half_made)
    with pytest.raises(RepositoryError, match=f"files in {folder.partition('/')[0]}/"):
        open_or_create(half_made, PASSWORD)
    assert content(half_made) == before


def test_the_key_of_a_repository_in_the_making_is_waited_for(
    storage: MemoryStorage,
) -> None:
    (key,) = keys(storage, "keys")
    body = storage.get(key)
    storage.delete(key)
    arrives = Fault("list", lambda: storage.put(key, body), key="keys/", nth=2)
    assert open_repository(Faulty(storage, arrives), PASSWORD).snapshots() == []


@pytest.mark.parametrize("version", [1, 3])
def test_other_versions_are_refused(storage: MemoryStorage, version: int) -> None:
    polynomial = open_repository(storage, PASSWORD).config.chunker_polynomial
    reseal_config(storage, RepositoryConfig(version, "a" * 64, polynomial))
    with pytest.raises(UnsupportedFormat, match=f"version {version}"):
        open_repository(storage, PASSWORD)


def test_a_reducible_polynomial_is_refused(storage: MemoryStorage) -> None:
    reseal_config(storage, RepositoryConfig(2, "a" * 64, "2267609e04675a"))
    with pytest.raises(UnsupportedFormat, match="not irreducible"):
        open_repository(storage, PASSWORD)


@pytest.mark.parametrize("damage", [b"", b"short", bytes(155)])
def test_a_damaged_config_is_said_with_its_remedy(storage: MemoryStorage, damage: bytes) -> None:
    storage.put("config", damage)
    with pytest.raises(MalformedData, match=r"config is damaged.*restore it from a copy"):
        open_repository(storage, PASSWORD)


@pytest.mark.parametrize("name", ["0" * 64, "f" * 64])
def test_a_junk_key_does_not_hide_a_good_one(
    storage: MemoryStorage, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage.put(f"keys/{name}", b"junk")
    assert open_repository(storage, PASSWORD).config.version == 2
    with pytest.raises(WrongPassword, match="1 more are damaged"):
        open_repository(storage, "wrong")
    assert "does not match its name" in caplog.text


def test_nothing_but_junk_keys_is_damage(storage: MemoryStorage) -> None:
    for key in keys(storage, "keys"):
        storage.delete(key)
    storage.put(f"keys/{'0' * 64}", b"junk")
    with pytest.raises(MalformedData, match="key file"):
        open_repository(storage, PASSWORD)


def test_a_key_that_vanishes_after_the_listing_is_passed_over(storage: MemoryStorage) -> None:
    with_another = MemoryStorage()
    gone = f"keys/{'0' * 64}"
    with_another.put(gone, b"x")
    for key, body in content(storage).items():
        with_another.put(key, body)
    faulty = Faulty(with_another, Fault("get", lambda: with_another.delete(gone), key=gone))
    assert open_repository(faulty, PASSWORD).config.version == 2


def test_two_creators_at_the_same_moment_make_one_repository() -> None:
    storage = MemoryStorage()
    both_looked = threading.Barrier(2)
    faulty = Faulty(storage, Fault("put_new", both_looked.wait, key="config", times=2))
    outcomes: list[str] = []

    def make() -> None:
        try:
            create_repository(faulty, PASSWORD, cost=CHEAP)
            outcomes.append("made")
        except RepositoryExists:
            outcomes.append("exists")

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["exists", "made"]
    assert len(keys(storage, "keys")) == 1
    assert open_repository(storage, PASSWORD).snapshots() == []


def test_open_or_create_makes_once_and_opens_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "ScryptCost", lambda: ScryptCost(2, 1, 1))
    storage = MemoryStorage()
    first = open_or_create(storage, PASSWORD)
    second = open_or_create(storage, PASSWORD)
    assert first.config == second.config
    assert len(keys(storage, "keys")) == 1


def test_the_loser_of_a_race_opens_what_the_winner_made(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "ScryptCost", lambda: ScryptCost(2, 1, 1))
    empty = MemoryStorage()

    def win() -> None:
        for key, body in content(storage).items():
            empty.put(key, body)

    repository = open_or_create(Faulty(empty, Fault("put_new", win, key="config")), PASSWORD)
    assert repository.config == open_repository(storage, PASSWORD).config


def test_a_failing_storage_is_not_taken_for_a_missing_repository(storage: MemoryStorage) -> None:
    faulty = Faulty(storage, Fault("get", failing(Unreachable("down")), key="config"))
    with pytest.raises(Unreachable):
        open_or_create(faulty, PASSWORD)


def test_a_snapshot_is_named_by_a_unique_beginning_or_as_latest() -> None:
    repository = new_repository()
    with pytest.raises(UsageError, match="no snapshots yet"):
        repository.snapshot("latest")
    _, first = store_chunks(repository, [])
    assert repository.snapshot("latest").id == first
    assert repository.snapshot(first[:10]).id == first
    for wanted in ("", "zz"):
        with pytest.raises(UsageError, match="podlift snapshots"):
            repository.snapshot(wanted)


@pytest.mark.parametrize("folder", ["config", "keys", "snapshots", "index"])
def test_a_file_of_a_huge_size_is_refused_by_its_size(folder: str) -> None:
    class Huge(MemoryStorage):
        """Says of its files in one folder that they are larger than this machine's memory."""

        def get(self, key: str, *, most_bytes: int = WHATEVER_BYTES, **how: Any) -> bytes:
            if key.startswith(folder):
                assert most_bytes <= 129 << 20
                raise ObjectTooLarge(key, self.place, 1 << 40, most_bytes)
            return super().get(key, **how)

    filled = Huge()
    fill(filled)

    def use() -> None:
        store_chunks(open_repository(filled, PASSWORD), [b"chunk"])
        open_repository(filled, PASSWORD).reading()
        open_repository(filled, PASSWORD).snapshot("latest")

    with pytest.raises(MalformedData, match=f"{folder}.* has {1 << 40} bytes, and may have"):
        use()
