"""Opening and creating repositories.

A repository is made config first: the config names the winner when several nodes make the same
repository at the same moment, and only the winner writes a key. (A key beside somebody else's
config would make restic try it first and call the repository damaged.)
"""

import hashlib
import logging
import secrets
import socket
import time

from agent.cancel import NEVER, CancelToken
from agent.config import CacheDir
from agent.errors import (
    KeysMissing,
    MalformedData,
    NoRepository,
    ObjectMissing,
    RepositoryError,
    RepositoryExists,
    UsageError,
    WrongPassword,
)
from agent.repository.crypto import ENCRYPT_SIZE, IV_SIZE, MAC_PART_SIZE, Key
from agent.repository.keyfile import SALT_SIZE, Origin, decode_key, encode_key, open_key
from agent.repository.locking import username
from agent.repository.objects import (
    CONFIG_KEY,
    Folder,
    Objects,
    file_key,
    fresh_iv,
    names,
    read_config,
    read_key,
)
from agent.repository.parameters import VERSION, RepositoryConfig, decode_config, encode_config
from agent.repository.repository import Repository
from agent.repository.scrypt import ScryptCost
from agent.repository.times import format_time
from agent.repository.zone import local_zone
from agent.storage.contract import Storage
from chunker import generate_polynomial

MAX_KEYS = 20
"""restic gives up after as many keys (restic-format.md section 2.2)."""

ABANDONED_SECONDS = 16 * 60.0
"""A maker's key is written, or was given up, before: its last request ends within 15 minutes."""

ABANDONED_LOOK_SECONDS = 10.0

_KEY_WAIT_SECONDS = (0.5, 1.0, 2.0, 4.0)

log = logging.getLogger(__name__)


def open_repository(
    storage: Storage, password: str, *, cache: CacheDir | None = None, cancel: CancelToken = NEVER
) -> Repository:
    """Open what is there.

    Raises ``NoRepository``, ``WrongPassword``, ``UnsupportedFormat``, ``MalformedData`` for a
    damaged config, and the storage's own errors.
    """
    try:
        sealed_config = read_config(storage, cancel)
    except ObjectMissing:
        raise NoRepository(
            f"there is no repository at {storage.place}; `podlift init` makes one"
        ) from None
    key = _master_key(storage, password, cancel)
    try:
        json = key.unseal(sealed_config, "the repository's config")
    except MalformedData as error:
        raise MalformedData(error.what, f"{error.reason}; restore it from a copy") from None
    return Repository(Objects(storage, key), decode_config(json), cache)


def _master_key(storage: Storage, password: str, cancel: CancelToken) -> Key:
    found = list(names(storage, Folder.KEYS, cancel))
    for seconds in _KEY_WAIT_SECONDS:
        if found:
            break
        cancel.pause(seconds)  # somebody may just be making this repository
        found = list(names(storage, Folder.KEYS, cancel))
    if not found:
        raise KeysMissing(
            f"{storage.place} has a config but no keys: making it was interrupted, or its keys"
            " were deleted. If it never held a backup, delete its `config` and start again"
        )
    return _first_that_opens(storage, found, password, cancel)


def _first_that_opens(
    storage: Storage, found: list[str], password: str, cancel: CancelToken
) -> Key:
    damaged: list[MalformedData] = []
    refused = 0
    for name in found[:MAX_KEYS]:
        try:
            stored = read_key(storage, name, cancel)
            if hashlib.sha256(stored).hexdigest() != name:
                raise MalformedData(f"the key file keys/{name}", "it does not match its name")
            return open_key(decode_key(stored, name), password, name)
        except ObjectMissing:
            continue  # removed since it was listed
        except WrongPassword:
            refused += 1
        except MalformedData as error:
            damaged.append(error)
            log.warning("%s", error)
    if damaged and not refused:
        raise damaged[0]
    raise WrongPassword(
        f"the password opens none of the {refused} keys of {storage.place}; check the"
        " password file, PODLIFT_PASSWORD or the Secret velero-repo-credentials"
        + (f" ({len(damaged)} more are damaged)" if damaged else "")
    )


def create_repository(
    storage: Storage,
    password: str,
    *,
    cost: ScryptCost | None = None,
    cancel: CancelToken = NEVER,
) -> None:
    """Make a repository; raise ``RepositoryExists`` if one is there, whoever was first."""
    if not password:
        raise UsageError("an empty password protects nothing; give the repository a real one")
    _refuse_existing(storage, cancel)
    key = Key(*(secrets.token_bytes(n) for n in (ENCRYPT_SIZE, MAC_PART_SIZE, MAC_PART_SIZE)))
    config = RepositoryConfig(
        VERSION, secrets.token_hex(32), f"{generate_polynomial(secrets.token_bytes):x}"
    )
    sealed = bytes(key.seal(fresh_iv(), encode_config(config)))
    stored = encode_key(
        password,
        key,
        Origin(format_time(time.time_ns(), local_zone), username(), socket.gethostname()),
        secrets.token_bytes(SALT_SIZE + IV_SIZE),
        cost or ScryptCost(),
    )
    digest = hashlib.sha256(stored)
    key_file = file_key(Folder.KEYS, digest.hexdigest())
    if not storage.put_new(CONFIG_KEY, sealed, cancel=cancel):
        raise _exists(storage)
    storage.put(key_file, stored, sha256=digest.digest())  # a config without it is of no use


def _refuse_existing(storage: Storage, cancel: CancelToken) -> None:
    try:
        storage.size(CONFIG_KEY, cancel=cancel)
    except ObjectMissing:
        pass
    else:
        raise _exists(storage)
    for folder in (Folder.KEYS, Folder.SNAPSHOTS, Folder.INDEX):
        if next(names(storage, folder, cancel), None) is not None:
            raise RepositoryExists(
                f"{storage.place} has no config but files in {folder}/: the remains of a"
                " repository. Nothing was changed; restore its config, or choose another prefix"
            )


def _exists(storage: Storage) -> RepositoryExists:
    return RepositoryExists(
        f"there is a repository at {storage.place} already; nothing was changed"
    )


def open_or_create(
    storage: Storage, password: str, *, cache: CacheDir | None = None, cancel: CancelToken = NEVER
) -> Repository:
    """Open a repository, and make it first if nothing is there, or what somebody left half-made."""
    try:
        return _open_when_made(storage, password, cache, cancel)
    except NoRepository:
        try:
            create_repository(storage, password, cancel=cancel)
            log.info("made a new repository at %s", storage.place)
        except RepositoryExists as error:
            log.info("%s", error)
    return open_repository(storage, password, cache=cache, cancel=cancel)


def _open_when_made(
    storage: Storage, password: str, cache: CacheDir | None, cancel: CancelToken
) -> Repository:
    """Open a repository; one without keys is waited for, then removed if nothing is in it.

    Its maker may be dead, and nobody but the maker can finish it. Whoever lives has written the key, or
    given up, before ``ABANDONED_SECONDS`` are over.
    """
    config = b""
    until = time.monotonic() + ABANDONED_SECONDS
    while True:
        try:
            return open_repository(storage, password, cache=cache, cancel=cancel)
        except KeysMissing as error:
            seen = read_config(storage, cancel)
            if seen != config:  # somebody else makes it now
                config, until = seen, time.monotonic() + ABANDONED_SECONDS
            if time.monotonic() < until:
                log.warning("waiting for whoever makes it: %s", error)
                cancel.pause(min(ABANDONED_LOOK_SECONDS, ABANDONED_SECONDS))
            else:
                _remove_half_made(storage, config, cancel)


def _remove_half_made(storage: Storage, config: bytes, cancel: CancelToken) -> None:
    """Remove a config without keys, unless anything else is there; others may be about the same."""
    for folder in (Folder.KEYS, Folder.DATA, Folder.SNAPSHOTS, Folder.INDEX):
        if next(names(storage, folder, cancel), None) is not None:
            raise RepositoryError(
                f"{storage.place} has a config that no key opens, and files in {folder}/: its keys"
                " were deleted. Nothing was changed; restore them from a copy"
            )
    longest = min(ABANDONED_LOOK_SECONDS, ABANDONED_SECONDS)
    cancel.pause(secrets.SystemRandom().uniform(0.0, longest))
    if read_config(storage, cancel) == config:
        log.warning("%s was left half-made and holds nothing; it is made anew", storage.place)
        storage.delete(CONFIG_KEY, cancel=cancel)
