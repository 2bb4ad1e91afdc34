"""Who we are to the API server: a kubeconfig, or the pod's own service account.

Tokens rotate. The one guarded rule: the last token that could be read stays in use when a
read fails, and a 401 leads to one fresh read. (The library reads a kubeconfig's ``tokenFile``
and exec plugin once, and lets a line end in a token reach the header; kubernetes.md section 1.)
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import aiofiles
from yaml import YAMLError  # type: ignore[import-untyped,unused-ignore]

from agent.cluster.sdk import ConfigException, Configuration, load_kube_config
from agent.config import ClusterAccess
from agent.errors import ClusterError

TOKEN_SECONDS = 60.0
"""A projected token is read again this often (the kubelet replaces it at 80 % of its life)."""


class Credentials(Protocol):
    """A source of configuration that can renew its token."""

    @property
    def origin(self) -> str:
        """Return what an operator would call the source."""

    async def configure(self) -> Configuration:
        """Make the configuration; raises ``ClusterError``."""

    async def renew(self, configuration: Configuration) -> None:
        """Read the token again after a 401; keeps the old one if that fails."""


def credentials(access: ClusterAccess) -> Credentials:
    """Choose the kubeconfig if there is one, else the service account; raises ``ClusterError``."""
    if access.kubeconfig is not None:
        return KubeconfigCredentials(access.kubeconfig)
    if access.service_host and access.service_port:
        return ServiceAccount(access)
    raise ClusterError(
        "there is no way to the API server: give --kubeconfig, or set KUBECONFIG, or run in "
        "a pod whose service account token is mounted (KUBERNETES_SERVICE_HOST is not set here)"
    )


class KubeconfigCredentials:
    """A kubeconfig file; read again as a whole after a 401, which renews every kind of token."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def origin(self) -> str:
        """Return the file's name."""
        return f"kubeconfig {self._path}"

    async def configure(self) -> Configuration:
        """Load the current context; raises ``ClusterError``."""
        if not self._path.is_file():
            raise ClusterError(f"kubeconfig {self._path} does not exist or is not a file")
        configuration = Configuration()
        configuration.host = ""
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(self._path),
                client_configuration=configuration,
                persist_config=False,
            )
        except (ConfigException, YAMLError, OSError, LookupError) as error:
            raise self._unusable(str(error)) from error
        except (AttributeError, TypeError, ValueError) as error:
            # The library trips over a file of another shape in these ways.
            raise self._unusable(f"it does not have a kubeconfig's shape ({error})") from error
        if not configuration.host:
            raise self._unusable("the cluster of its current context has no server")
        _clean(configuration)
        return configuration

    async def renew(self, configuration: Configuration) -> None:
        """Load the file again and take over its token."""
        try:
            fresh = await self.configure()
        except ClusterError:
            return
        configuration.api_key.update(fresh.api_key)

    def _unusable(self, why: str) -> ClusterError:
        why = " ".join(why.split())
        return ClusterError(
            f"kubeconfig {self._path} cannot be used: {why}; "
            f"try it with: kubectl --kubeconfig {self._path} get nodes"
        )


class ServiceAccount:
    """The token and CA that the kubelet mounts into the pod."""

    def __init__(self, access: ClusterAccess, clock: Callable[[], float] = time.monotonic) -> None:
        host = access.service_host
        self._server = f"https://{f'[{host}]' if ':' in host else host}:{access.service_port}"
        self._token_file = access.service_account / "token"
        self._ca_file = access.service_account / "ca.crt"
        self._clock = clock
        self._read_at = 0.0

    @property
    def origin(self) -> str:
        """Return where the service account is mounted."""
        return f"the service account in {self._token_file.parent}"

    async def configure(self) -> Configuration:
        """Read the token for the first time; raises ``ClusterError``."""
        configuration = Configuration()
        configuration.host = self._server
        configuration.ssl_ca_cert = str(self._ca_file)
        if not await self._read(configuration):
            raise ClusterError(
                f"{self._token_file} is missing or empty: the pod needs its service account's "
                "token (automountServiceAccountToken)"
            )
        configuration.refresh_api_key_hook = self._refresh  # type: ignore[assignment]
        return configuration

    async def renew(self, configuration: Configuration) -> None:
        """Read the token again now."""
        await self._read(configuration)

    async def _refresh(self, configuration: Configuration) -> None:
        if self._clock() - self._read_at >= TOKEN_SECONDS:
            await self._read(configuration)

    async def _read(self, configuration: Configuration) -> bool:
        try:
            async with aiofiles.open(self._token_file, encoding="ascii") as file:
                token = (await file.read()).strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        if not token or not token.isprintable():
            return False
        self._read_at = self._clock()
        configuration.api_key["BearerToken"] = f"Bearer {token}"
        return True


def _clean(configuration: Configuration) -> None:
    for name, value in configuration.api_key.items():
        configuration.api_key[name] = value.strip()
