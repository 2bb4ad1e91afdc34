"""Key files: the master key, sealed by a key that scrypt derives from the password.

A key file is the only file of a repository that is plain JSON (restic-format.md section 5).
Pure: salt, IV, time and names come from the caller.
"""

import functools
from typing import Annotated

import msgspec

from agent.errors import MalformedData, WrongPassword
from agent.repository.crypto import Key
from agent.repository.node import read_json
from agent.repository.scrypt import ScryptCost, derived, derived_slowly

SALT_SIZE = 64


_MAX_MEMORY = 160 << 20
"""A key file must not make us allocate more; restic's own take 32 MiB, and never more than 60."""

_MAX_WORK = 1 << 26
"""Nor work for minutes: N * r * p, of which a core does some 5 million a second."""

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _MacParts(msgspec.Struct, frozen=True):
    k: bytes
    r: bytes


class _MasterKey(msgspec.Struct, frozen=True):
    mac: _MacParts
    encrypt: bytes


class KeyFile(msgspec.Struct, frozen=True):
    """A key file as stored; bytes are base64 in its JSON."""

    created: str = ""
    username: str = ""
    hostname: str = ""
    kdf: str = ""
    n: Annotated[int, msgspec.Meta(ge=2)] = msgspec.field(name="N", default=2)
    r: _Positive = 1
    p: _Positive = 1
    salt: bytes = b""
    data: bytes = b""


_key_file = msgspec.json.Decoder(KeyFile)
_master_key = msgspec.json.Decoder(_MasterKey)


_REMEMBERED = 16
"""Repositories, about, that an agent opens again without the half second that scrypt is made to take.

The keys stay in the memory of a process that may ask for the password at any time.
"""


@functools.lru_cache(_REMEMBERED)
def _user_key(password: str, salt: bytes, cost: ScryptCost) -> Key:
    return _key_of(derived(_encoded(password), salt, cost))


def _encoded(password: str) -> bytes:
    """Return the environment's bytes, which is what restic takes."""
    return password.encode(errors="surrogateescape")


def _key_of(derived: bytes) -> Key:
    return Key(derived[:32], derived[32:48], derived[48:])


class Origin(msgspec.Struct, frozen=True):
    """Who made a key and when; ``created`` is an RFC 3339 time."""

    created: str
    username: str
    hostname: str


def encode_key(
    password: str, master: Key, origin: Origin, entropy: bytes, cost: ScryptCost
) -> bytes:
    """Return the key file's bytes; ``entropy`` is 64 bytes of salt and 16 of IV."""
    salt, iv = entropy[:SALT_SIZE], entropy[SALT_SIZE:]
    inner = _MasterKey(_MacParts(master.mac_k, master.mac_r), master.encrypt)
    user_key = _key_of(derived_slowly(_encoded(password), salt, cost))
    sealed = user_key.seal(iv, msgspec.json.encode(inner))
    return msgspec.json.encode(
        KeyFile(
            created=origin.created,
            username=origin.username,
            hostname=origin.hostname,
            kdf="scrypt",
            n=cost.n,
            r=cost.r,
            p=cost.p,
            salt=salt,
            data=bytes(sealed),
        )
    )


def decode_key(stored: bytes, name: str) -> KeyFile:
    """Parse a key file; raise ``MalformedData`` where restic would refuse it."""
    what = f"the key file keys/{name}"
    key = read_json(_key_file, stored, what)
    if key.kdf != "scrypt":
        raise MalformedData(what, f"it uses {key.kdf!r}; only scrypt is known")
    if len(key.salt) != SALT_SIZE:
        raise MalformedData(what, f"its salt has {len(key.salt)} bytes, not {SALT_SIZE}")
    if key.n & (key.n - 1):
        raise MalformedData(what, f"scrypt's N is {key.n}, not a power of two")
    if ScryptCost(key.n, key.r, key.p).memory_bytes() > _MAX_MEMORY:
        raise MalformedData(what, f"scrypt's N={key.n}, r={key.r} need more than 160 MiB")
    if key.n * key.r * key.p > _MAX_WORK:
        raise MalformedData(what, f"scrypt's N={key.n}, r={key.r}, p={key.p} would take minutes")
    return key


def open_key(key: KeyFile, password: str, name: str) -> Key:
    """Return the master key; raise ``WrongPassword`` if this key does not open with it."""
    what = f"the key file keys/{name}"
    try:
        user_key = _user_key(password, key.salt, ScryptCost(key.n, key.r, key.p))
    except ValueError as error:  # parameters that scrypt itself refuses
        raise MalformedData(what, str(error)) from None
    try:
        inner = user_key.unseal(key.data, what)
    except MalformedData:
        raise WrongPassword(f"{what} does not open with this password") from None
    master = read_json(_master_key, inner, what)
    return Key(master.encrypt, master.mac.k, master.mac.r)
