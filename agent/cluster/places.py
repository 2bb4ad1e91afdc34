"""Places: a location by its name, and what has to be fetched to reach it.

A thin shell over ``location``: fetch the BackupStorageLocation and the Secrets that it names, and
put their values where boto3 looks for them. A customer's key is never written to a file. Whoever needs a repository of a location, for one
volume or for all of them, comes by here.
"""

import asyncio
import logging
from pathlib import Path

from agent.cluster import location, objects, paths
from agent.cluster.client import T, decode
from agent.cluster.location import Fetched, Location
from agent.cluster.secrets import Getter, PrivateFiles, secret_value
from agent.errors import ApiError, ClusterError, UsageError
from agent.storage.keeping import KEY_BYTES, customer_key_in

LOG = logging.getLogger(__name__)


async def read_object(api: Getter, path: str, into: type[T], what: str) -> T:
    """Return one object; raises ``ClusterError`` that says so if it does not exist."""
    try:
        body = await api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        raise ClusterError(f"{what} does not exist (any more)") from error
    return decode(body, into, what)


class Places:
    """Finds locations of one Velero namespace.

    ``default_credentials`` serves locations without a credential of their own, if it exists.
    """

    def __init__(
        self, api: Getter, namespace: str, default_credentials: Path | None, files: PrivateFiles
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._credentials = default_credentials
        self._files = files
        self._said: set[tuple[str, str]] = set()

    async def location(self, name: str) -> Location:
        """Return a location; raises ``ClusterError`` for one that cannot be served."""
        place = await self._read(name)
        for remark in place.remarks:
            if (name, remark) not in self._said:
                self._said.add((name, remark))
                LOG.warning("%s %s", self._words(name), remark)
        return place

    async def refresh(self, name: str) -> None:
        """Fetch a location's credentials again, to where those who use it look for newer ones.

        Raises ``ClusterError``.
        """
        await self.fetch(await self._read(name))

    def _words(self, name: str) -> str:
        return f"BackupStorageLocation {self._namespace}/{name}"

    async def _read(self, name: str) -> Location:
        checked = paths.checked(name, "BackupStorageLocation")
        path = paths.velero(self._namespace, "backupstoragelocations", checked)
        found = await read_object(self._api, path, objects.BackupStorageLocation, self._words(name))
        return location.read_location(name, found)

    async def fetch(self, place: Location) -> Fetched:
        """Return what reaching the location takes; raises ``ClusterError`` for a bad Secret."""
        return Fetched(
            credentials=await self._fetch_credentials(place),
            ca_bundle=await self._fetch_authorities(place),
            customer_key=await self._fetch_customer_key(place),
        )

    async def _fetch_credentials(self, place: Location) -> Path | None:
        if place.credential is None:
            return place.credentials_file or self._default_credentials()
        value = await self._secret(place, place.credential, "the credentials")
        secret = f"{place.credential.name}/{place.credential.key}"
        return await self._files.keep(secret, value, ".credentials")

    async def _fetch_authorities(self, place: Location) -> Path | None:
        pem = place.ca_pem
        if place.ca_secret is not None and place.ca_secret.name:
            pem = await self._secret(place, place.ca_secret, "the CA certificate")
        return await self._files.ca_bundle(pem) if pem.strip() else None

    async def _fetch_customer_key(self, place: Location) -> bytes:
        source = place.customer_key
        if source is None:
            return b""
        if isinstance(source, Path):
            return await self._read_customer_key(place, source)
        value = await self._secret(place, source, "the customer key")
        if len(value) != KEY_BYTES:
            raise ClusterError(
                f"Secret {self._namespace}/{source.name}, key {source.key!r}, the"
                f" customer key of BackupStorageLocation {place.name}, must hold {KEY_BYTES} bytes,"
                " without a line end, and not base64 of them"
            )
        return value

    async def _read_customer_key(self, place: Location, file: Path) -> bytes:
        try:
            return await asyncio.to_thread(customer_key_in, file)
        except UsageError as error:
            raise ClusterError(
                f"customerKeyEncryptionFile of BackupStorageLocation {place.name}: {error}; mount it"
                " at this path into podlift's pods as well, or name its Secret in"
                " customerKeyEncryptionSecret"
            ) from error

    async def _secret(self, place: Location, reference: objects.KeyReference, what: str) -> bytes:
        use = f"{what} of BackupStorageLocation {place.name}"
        return await secret_value(self._api, self._namespace, reference, use)

    def _default_credentials(self) -> Path | None:
        """Return the mounted credentials file; clusters with web identity have none."""
        file = self._credentials
        return file if file is not None and file.is_file() else None
