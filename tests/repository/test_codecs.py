"""Sealing, keys, unpacked files, configs and locks: there and back, and nothing worse.

Frozen bytes are restic's own (``frozen/restic-repository.json``): what it wrote must read the
same for ever, and what it would write we write to the byte, or it would stop reading us.
"""

import base64
import hashlib
import json
import random
import time
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MalformedData, RepositoryError, UnsupportedFormat, WrongPassword
from agent.repository import writer, zone
from agent.repository.crypto import OVERHEAD, Key
from agent.repository.keyfile import Origin, decode_key, encode_key, open_key
from agent.repository.lockfile import Lock, conflicting, decode_lock, encode_lock
from agent.repository.objects import Folder, Objects, names
from agent.repository.opening import open_repository
from agent.repository.parameters import RepositoryConfig, decode_config, encode_config
from agent.repository.scrypt import ScryptCost
from agent.repository.times import utc
from agent.repository.unpacked import inflate, unwrap, wrap
from agent.repository.zone import local_zone
from tests.repository.making import (
    CHEAP,
    FROZEN_PASSWORD,
    PASSWORD,
    frozen_repository,
    new_repository,
    store_chunks,
)
from tests.repository.mutation import mutated

KEY = Key(bytes(range(32)), bytes(range(1, 17)), bytes(range(2, 18)))
IV = bytes(range(1, 17))
POLYNOMIAL = "2267609e04675b"  # of restic-format.md section 6


class TestSealing:
    def test_the_bytes_are_those_of_the_format(self) -> None:
        # Frozen when restic read what this key's kind sealed; it reads nothing else, so never move.
        assert KEY.seal(IV, b"podlift").hex() == (
            "0102030405060708090a0b0c0d0e0f10" + GOLDEN_CIPHERTEXT + GOLDEN_MAC
        )

    @given(st.binary(max_size=5000))
    def test_everything_comes_back(self, plain: bytes) -> None:
        sealed = KEY.seal(IV, plain)
        assert len(sealed) == len(plain) + OVERHEAD
        assert KEY.unseal(sealed, "it") == plain

    @given(st.binary(max_size=100), st.integers(0), st.integers(0, 7))
    def test_one_flipped_bit_is_noticed(self, plain: bytes, place: int, bit: int) -> None:
        sealed = KEY.seal(IV, plain)
        sealed[place % len(sealed)] ^= 1 << bit
        with pytest.raises(MalformedData, match="the thing is damaged"):
            KEY.unseal(sealed, "the thing")

    @given(st.binary(max_size=64))
    def test_foreign_bytes_are_refused(self, junk: bytes) -> None:
        with pytest.raises(MalformedData):
            KEY.unseal(junk, "junk")

    def test_another_key_does_not_open(self) -> None:
        with pytest.raises(MalformedData):
            Key(KEY.encrypt, KEY.mac_k, bytes(15) + b"\1").unseal(KEY.seal(IV, b"x"), "it")

    @pytest.mark.parametrize("iv", [bytes(16), b"short"])
    def test_an_unfit_iv_is_a_bug_of_the_caller(self, iv: bytes) -> None:
        with pytest.raises(ValueError, match="16 bytes"):
            KEY.seal(iv, b"x")

    @pytest.mark.parametrize(
        "parts",
        [(bytes(32), b"k" * 16, b"r" * 16), (b"e" * 32, bytes(16), b"r" * 16), (b"e", b"k", b"r")],
    )
    def test_a_weak_or_short_key_is_refused(self, parts: tuple[bytes, bytes, bytes]) -> None:
        with pytest.raises(MalformedData):
            Key(*parts)

    def test_a_key_does_not_show_its_secrets(self) -> None:
        assert repr(KEY) == "Key(<secret>)"


GOLDEN_CIPHERTEXT = "e6e142abe2b61c"
GOLDEN_MAC = "7da23074205aff23656d071632de4478"


def key_file(**changes: Any) -> bytes:
    fields = json.loads(encode_key(PASSWORD, KEY, Origin("", "u", "h"), b"s" * 80, CHEAP))
    return json.dumps(fields | changes).encode()


class TestKeyFiles:
    def test_restics_own_opens_with_its_password(self) -> None:
        storage = frozen_repository()
        (name,) = names(storage, Folder.KEYS)
        key = decode_key(storage.get(f"keys/{name}"), name)
        assert (key.n, key.r, key.username) == (32768, 8, "root")
        assert open_key(key, FROZEN_PASSWORD, name).encrypt != KEY.encrypt

    def test_fields_come_in_restics_order(self) -> None:
        stored = encode_key(PASSWORD, KEY, Origin("now", "u", "h"), b"s" * 80, CHEAP)
        assert list(json.loads(stored)) == [
            *("created", "username", "hostname", "kdf", "N", "r", "p", "salt", "data"),
        ]

    @settings(max_examples=20)
    @given(st.text(min_size=1), st.sampled_from([2, 4, 16]), st.integers(1, 4), st.integers(1, 3))
    def test_a_key_opens_with_its_password_only(
        self, password: str, n: int, r: int, p: int
    ) -> None:
        stored = encode_key(password, KEY, Origin("", "u", "h"), b"s" * 80, ScryptCost(n, r, p))
        key = decode_key(stored, "k")
        assert open_key(key, password, "k").encrypt == KEY.encrypt
        with pytest.raises(WrongPassword, match="keys/k"):
            open_key(key, password + "x", "k")

    def test_a_key_that_was_opened_once_costs_no_scrypt_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[bytes] = []
        scrypt = hashlib.scrypt

        def counted(password: bytes, **how: Any) -> bytes:
            asked.append(password)
            return scrypt(password, **how)

        monkeypatch.setattr(hashlib, "scrypt", counted)
        stored = encode_key("once and again", KEY, Origin("", "u", "h"), b"s" * 80, CHEAP)
        for _ in range(3):
            opened = open_key(decode_key(stored, "k"), "once and again", "k")
            assert opened.encrypt == KEY.encrypt
        assert asked == [b"once and again"]
        other = encode_key("once and again", KEY, Origin("", "u", "h"), b"t" * 80, CHEAP)
        open_key(decode_key(other, "k"), "once and again", "k")
        assert len(asked) == 2

    def test_a_password_of_the_environment_need_not_be_utf_8(self) -> None:
        raw = b"pass\xffword"
        stored = encode_key(
            raw.decode("utf-8", "surrogateescape"), KEY, Origin("", "u", "h"), b"s" * 80, CHEAP
        )
        assert open_key(decode_key(stored, "k"), "pass\udcffword", "k").mac_k == KEY.mac_k

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"kdf": "argon2"}, "only scrypt"),
            ({"salt": "AAAA"}, "salt has 3 bytes"),
            ({"N": 3}, "not a power of two"),
            ({"N": 1}, "N"),
            ({"N": 1 << 18, "r": 8}, "160 MiB"),
            ({"N": 32768, "r": 8, "p": 1000}, "minutes"),
            ({"data": "!"}, "data"),
            ({"N": None}, "N"),
        ],
    )
    def test_what_restic_would_refuse_is_refused(self, changes: dict[str, Any], fault: str) -> None:
        with pytest.raises(MalformedData, match=fault):
            decode_key(key_file(**changes), "k")

    def test_parameters_that_scrypt_refuses_are_damage(self) -> None:
        key = decode_key(key_file(N=65536, r=1, p=65), "k")
        with pytest.raises(MalformedData, match="keys/k"):
            open_key(key, PASSWORD, "k")

    def test_a_key_that_seals_no_master_key_is_damage(self) -> None:
        derived = decode_key(key_file(), "k")
        for inner in (b"{}", b"\xff", b'{"mac":{"k":"AA==","r":"AA=="},"encrypt":"AA=="}'):
            sealed = _user_key().seal(IV, inner)
            key = decode_key(key_file(data=_base64(bytes(sealed))), "k")
            assert key.salt == derived.salt
            with pytest.raises(MalformedData):
                open_key(key, PASSWORD, "k")

    @settings(max_examples=60)
    @given(st.integers(0), st.binary(max_size=4), st.integers(0, 4))
    def test_mutated_bytes_raise_only_our_errors(
        self, place: int, inserted: bytes, removed: int
    ) -> None:
        data = mutated(key_file(), place, inserted, removed)
        try:
            key = open_key(decode_key(data, "k"), PASSWORD, "k")
        except (MalformedData, WrongPassword):
            return
        assert key.encrypt == KEY.encrypt


def _user_key() -> Key:
    derived = hashlib.scrypt(PASSWORD.encode(), salt=b"s" * 64, n=2, r=1, p=1, dklen=64)
    return Key(derived[:32], derived[32:48], derived[48:])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class TestUnpackedFiles:
    @given(st.binary(max_size=3000))
    def test_payloads_come_back(self, json: bytes) -> None:
        assert unwrap(wrap(json), 1 << 20, "it") == json

    def test_plain_json_is_accepted(self) -> None:
        assert unwrap(b"[1]", 3, "it") == b"[1]"
        assert unwrap(b'{"a":1}', 9, "it") == b'{"a":1}'

    def test_frames_may_follow_one_another_and_lack_their_size(self) -> None:
        stream = zstandard.ZstdCompressor(write_content_size=False)
        frames = stream.compress(b"first,") + zstandard.compress(b"second", 19)
        assert unwrap(b"\x02" + frames, 100, "it") == b"first,second"

    @pytest.mark.parametrize("payload", [b"", b"\x01{}", b"\x00", b"\x02nonsense"])
    def test_other_payloads_are_refused(self, payload: bytes) -> None:
        with pytest.raises(MalformedData, match="the file is damaged"):
            unwrap(payload, 100, "the file")

    def test_a_bomb_ends_at_its_limit(self) -> None:
        bomb = zstandard.compress(bytes(64 << 20))
        with pytest.raises(MalformedData, match="more than 1000 bytes"):
            inflate(bomb, 1000, "the bomb")

    def test_what_is_larger_than_its_kind_ever_is_is_refused(self) -> None:
        json = b"[%s]" % (b" " * 1000)
        for payload in (json, wrap(json)):
            assert unwrap(payload, len(json), "it") == json
            with pytest.raises(MalformedData, match="more than 1001 bytes"):
                unwrap(payload, len(json) - 1, "it")

    def test_large_payloads_come_back_whole(self) -> None:
        large = random.Random(1).randbytes(5 << 20) * 2
        assert inflate(zstandard.compress(large), len(large), "it") == large


class TestConfigs:
    def test_restics_own_is_written_the_same(self) -> None:
        storage = frozen_repository()
        repository = open_repository(storage, FROZEN_PASSWORD)
        json = repository.objects.key.unseal(storage.get("config"), "config")
        assert encode_config(decode_config(json)) == json

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"version": 1}, "migrate upgrade_repo_v2"),
            ({"version": 3}, "version 3"),
            ({"chunker_polynomial": "2267609e04675a"}, "irreducible"),
            ({"chunker_polynomial": "7"}, "degree"),
            ({"chunker_polynomial": "-2267609e04675b"}, "hexadecimal"),
            ({"chunker_polynomial": "0x2267609e04675b"}, "hexadecimal"),
            ({"chunker_polynomial": ""}, "hexadecimal"),
        ],
    )
    def test_a_repository_that_we_cannot_serve_is_refused(
        self, changes: dict[str, Any], fault: str
    ) -> None:
        fields = {"version": 2, "id": "a" * 64, "chunker_polynomial": POLYNOMIAL} | changes
        with pytest.raises(UnsupportedFormat, match=fault):
            decode_config(json.dumps(fields).encode())

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"\xff", b'{"version":2,"id":"../x","chunker_polynomial":"7"}']
    )
    def test_a_config_that_is_none_is_refused(self, data: bytes) -> None:
        with pytest.raises(MalformedData, match="config is damaged"):
            decode_config(data)

    @given(st.integers(0), st.binary(max_size=4), st.integers(0, 4))
    def test_mutated_bytes_raise_only_our_errors(
        self, place: int, inserted: bytes, removed: int
    ) -> None:
        data = encode_config(RepositoryConfig(2, "a" * 64, POLYNOMIAL))
        try:
            config = decode_config(mutated(data, place, inserted, removed))
        except (MalformedData, UnsupportedFormat):
            return
        assert config.version == 2


def a_lock(**changes: Any) -> Lock:
    fields: dict[str, Any] = {
        "time_ns": 10**18, "exclusive": False, "hostname": "h", "username": "u", "pid": 1,
    }  # fmt: skip
    return Lock(**(fields | changes))


class TestLockFiles:
    def test_restics_own_is_written_the_same(self) -> None:
        storage = frozen_repository()
        objects = open_repository(storage, FROZEN_PASSWORD).objects
        (name,) = names(storage, Folder.LOCKS)
        json = objects.load(Folder.LOCKS, name)
        lock = decode_lock(json, "it")
        assert not lock.exclusive
        assert encode_lock(lock, utc) == json

    @given(
        st.integers(-(10**18), 4 * 10**18), st.booleans(), st.text(), st.integers(0, (1 << 32) - 1)
    )
    def test_locks_come_back(self, time_ns: int, exclusive: bool, host: str, uid: int) -> None:
        lock = a_lock(time_ns=time_ns, exclusive=exclusive, hostname=host, uid=uid, gid=uid)
        assert decode_lock(encode_lock(lock, utc), "it") == lock

    @given(st.integers(0), st.binary(max_size=4), st.integers(0, 4))
    def test_mutated_bytes_raise_only_our_error(
        self, place: int, inserted: bytes, removed: int
    ) -> None:
        data = encode_lock(a_lock(), utc)
        try:
            lock = decode_lock(mutated(data, place, inserted, removed), "locks/x")
        except MalformedData:
            return
        assert isinstance(lock, Lock)

    @pytest.mark.parametrize("json", [b"", b"{}", b"\xff", b'{"time":"now","exclusive":false}'])
    def test_damage_is_called_by_the_locks_name(self, json: bytes) -> None:
        with pytest.raises(MalformedData, match=r"^locks/x is damaged"):
            decode_lock(json, "locks/x")

    def test_only_shared_locks_stand_together(self) -> None:
        shared, exclusive = a_lock(), a_lock(exclusive=True)
        assert conflicting({"a": shared}, exclusive=False) == {}
        assert conflicting({"a": shared}, exclusive=True) == {"a": shared}
        assert conflicting({"a": exclusive}, exclusive=False) == {"a": exclusive}
        assert conflicting({}, exclusive=True) == {}

    def test_a_lock_says_whose_it_is_and_when_it_looks_abandoned(self) -> None:
        now = 10**18 + 31 * 60 * 10**9
        assert a_lock().describe(now) == (
            "shared lock of h (pid 1), 31 min old, probably left behind"
        )
        assert "left behind" not in a_lock().describe(10**18 + 29 * 60 * 10**9)


class TestObjects:
    def test_a_file_under_another_name_is_not_believed(self) -> None:
        storage = frozen_repository()
        objects = open_repository(storage, FROZEN_PASSWORD).objects
        (name,) = names(storage, Folder.SNAPSHOTS)
        storage.put(f"snapshots/{'0' * 64}", storage.get(f"snapshots/{name}"))
        with pytest.raises(MalformedData, match="does not match its name"):
            objects.load(Folder.SNAPSHOTS, "0" * 64)

    def test_names_that_are_no_ids_or_lie_elsewhere_are_ignored(self) -> None:
        storage = frozen_repository()
        before = list(names(storage, Folder.KEYS))
        for key in ("keys/README", f"keys/copy/{'a' * 64}", f"keys/{'a' * 64}-tmp-1x", "keys/ABC"):
            if "-tmp-" not in key:
                storage.put(key, b"junk")
        assert list(names(storage, Folder.KEYS)) == before

    def test_sealing_twice_gives_two_files(self) -> None:
        objects = Objects(frozen_repository(), KEY)
        assert objects.seal(b"{}").name != objects.seal(b"{}").name


def test_the_local_zone_is_the_one_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    zone._offset_of_minute.cache_clear()
    try:
        spring_1990 = 638_940_660  # 1990-04-01 03:31 UTC: 00:01 there, one minute off the quarter
        assert [local_zone(spring_1990 + s) for s in (-61, -1, 0)] == [-12600, -12600, -9000]
        assert local_zone(-(10**12)) < 0
        assert local_zone(10**30) == 0
    finally:
        monkeypatch.undo()
        time.tzset()
        zone._offset_of_minute.cache_clear()


def test_a_blob_larger_than_a_pack_may_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_BLOB_BYTES", 100)
    with pytest.raises(RepositoryError, match="does not fit into a pack"):
        store_chunks(new_repository(), [bytes(101)])
