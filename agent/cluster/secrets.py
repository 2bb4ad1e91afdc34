"""Secrets, and the private files that boto3 wants some of them in.

Values never reach a message or a log. A certificate's file is named by the digest of its content, so
what is open never changes. Credentials are named by the Secret that they come from: a running
client that finds them expired looks there for newer ones.
"""

import asyncio
import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import Protocol

import aiofiles
import aiofiles.os

from agent.cluster import paths
from agent.cluster.client import Query, decode
from agent.cluster.objects import KeyReference, Secret
from agent.errors import ApiError, ClusterError, UsageError
from agent.storage.settings import trust_also

PASSWORD = KeyReference("velero-repo-credentials", "repository-password")
"""Where Velero keeps the password of all repositories (velero.md section 5.3)."""

DEFAULT_PASSWORD = "static-passw0rd"  # noqa: S105 (everybody knows it)
"""What Velero's server sets where nobody has set a password before (velero.md section 5.3)."""

LOG = logging.getLogger(__name__)


class Getter(Protocol):
    """What reading a Secret needs of the API server."""

    async def get(self, path: str, query: Query | None = None) -> bytes:
        """Return an object."""


async def secret_value(api: Getter, namespace: str, reference: KeyReference, use: str) -> bytes:
    """Return one value; ``use`` says what for. Raises ``ClusterError``."""
    name = f"Secret {namespace}/{reference.name}"
    path = paths.core(namespace, "secrets", paths.checked(reference.name, "Secret"))
    try:
        body = await api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        raise ClusterError(f"{name}, {use}, does not exist: create it") from error
    value = (decode(body, Secret, name).data or {}).get(reference.key)
    if not value:
        raise ClusterError(f"{name}, {use}, has no value under {reference.key!r}: add it")
    return value


async def repository_password(api: Getter, namespace: str) -> str:
    """Return the password of the repositories, without white space around it."""
    use = "the password of the repositories"
    value = await secret_value(api, namespace, PASSWORD, use)
    try:
        password = value.decode().strip()
    except UnicodeDecodeError:
        raise ClusterError(f"Secret {namespace}/{PASSWORD.name} is not UTF-8 text") from None
    if not password:
        raise ClusterError(f"Secret {namespace}/{PASSWORD.name}, {use}, is blank: set it")
    if password == DEFAULT_PASSWORD:
        _warn_of_default(f"{namespace}/{PASSWORD.name}")
    return password


@functools.cache
def _warn_of_default(secret: str) -> None:
    """Say it once a process."""
    LOG.warning(
        "the password in Secret %s is the one that Velero sets everywhere, so whoever may read the"
        " bucket can read every backup in it: docs/security.md says how to change it",
        secret,
    )


class PrivateFiles:
    """A directory of mode 0700 with files of mode 0600."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def write(self, content: bytes, suffix: str) -> Path:
        """Store ``content`` and return its file; the same content gives the same file.

        Raises ``ClusterError`` if there is no room, or no right to write.
        """
        try:
            return await self._write(content, suffix)
        except OSError as error:
            raise self._unusable(error) from error

    async def _write(self, content: bytes, suffix: str) -> Path:
        path = self._path(content, suffix)
        if not await aiofiles.os.path.exists(path):
            await self._replace(path, content)
        return path

    async def keep(self, name: str, content: bytes, suffix: str) -> Path:
        """Store ``content`` as what is called ``name``, whole and in place of what was there.

        Raises as ``write``.
        """
        path = self._path(name.encode(), suffix)
        try:
            await self._replace(path, content)
        except OSError as error:
            raise self._unusable(error) from error
        return path

    def _path(self, named_by: bytes, suffix: str) -> Path:
        return self._directory / f"{hashlib.sha256(named_by).hexdigest()[:32]}{suffix}"

    async def _replace(self, path: Path, content: bytes) -> None:
        await aiofiles.os.makedirs(self._directory, mode=0o700, exist_ok=True)
        fresh = path.with_suffix(f".{os.urandom(8).hex()}")
        async with aiofiles.open(fresh, "wb", opener=_private) as file:
            await file.write(content)
        await aiofiles.os.replace(fresh, path)

    async def ca_bundle(self, pem: bytes) -> Path:
        """Store the system's certificate authorities together with ``pem``.

        Raises ``ClusterError`` when ``pem`` holds no certificate, and as ``write``.
        """
        own = await self.write(pem, ".pem")
        try:
            return await asyncio.to_thread(trust_also, pem, own.with_suffix(".bundle"))
        except UsageError as error:
            raise ClusterError(str(error)) from error
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ClusterError:
        return ClusterError(
            f"credentials cannot be kept in {self._directory}: {error.strerror}; give the agent a "
            "writable /tmp with some space"
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)
