"""scrypt with its blocks side by side: the same as OpenSSL's, or not used."""

import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.repository import scrypt
from agent.repository._romix import romix
from agent.repository.scrypt import MOST_BLOCKS, ScryptCost, derived, derived_slowly

SALT = b"s" * 64


@pytest.fixture(autouse=True)
def _afresh() -> None:
    scrypt._agrees.cache_clear()


@given(
    st.binary(max_size=80), st.binary(max_size=70), st.integers(1, 10), st.integers(1, 9), st.integers(1, 7)
)  # fmt: skip
@example(b"", b"", 4, 1, 1)  # the first of RFC 7914, section 12
@example(b"password", b"NaCl", 10, 8, 16)  # the second
def test_it_derives_what_openssl_derives(
    password: bytes, salt: bytes, doublings: int, r: int, p: int
) -> None:
    cost = ScryptCost(n=1 << doublings, r=r, p=p)
    assert scrypt._side_by_side(password, salt, cost) == derived_slowly(password, salt, cost)


def test_the_usual_cost_takes_several_blocks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    cost = ScryptCost(n=1 << 14, p=5)
    assert derived(b"pass", SALT, cost) == derived_slowly(b"pass", SALT, cost)
    monkeypatch.setattr(scrypt, "SIDE_BY_SIDE_BYTES", 1)
    assert derived(b"pass", SALT, cost) == derived_slowly(b"pass", SALT, cost)


def test_one_that_derives_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agent")
    monkeypatch.setattr(scrypt, "romix", lambda _block, _n: None)
    cost = ScryptCost(n=16, r=1, p=2)
    assert derived(b"pass", SALT, cost) == derived_slowly(b"pass", SALT, cost)
    assert "our own scrypt derives something else" in caplog.text


def test_very_many_blocks_are_left_to_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrypt, "_agrees", lambda: pytest.fail("it was to be used"))
    cost = ScryptCost(n=2, r=1, p=MOST_BLOCKS + 1)
    assert derived(b"pass", SALT, cost) == derived_slowly(b"pass", SALT, cost)


@pytest.mark.parametrize("size", [0, 64, 127, 129, 192])
def test_a_block_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no such block"):
        romix(bytearray(size), 2)


@pytest.mark.parametrize("n", [0, 1, 3, 12, (1 << 24) + 1, 1 << 25])
def test_a_number_of_steps_that_is_no_power_of_two_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="no such number"):
        romix(bytearray(128), n)


def test_what_takes_more_memory_than_there_is_is_an_error() -> None:
    with pytest.raises(MemoryError):
        romix(bytearray(128 << 16), 1 << 24)
