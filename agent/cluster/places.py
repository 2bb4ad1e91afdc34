"""Places: a location by its name, and the files that reaching it takes.

A thin shell over ``location``: fetch the BackupStorageLocation and the Secrets that it names, and
put their values where boto3 looks for them. Whoever needs a repository of a location, for one
volume or for all of them, comes by here.
"""

import logging
from pathlib import Path

from agent.cluster import location, objects, paths
from agent.cluster.client import T, decode
from agent.cluster.location import Files, Location
from agent.cluster.secrets import Getter, PrivateFiles, secret_value
from agent.errors import ApiError, ClusterError

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

    async def location(self, name: str) -> Location:
        """Return a location; raises ``ClusterError`` for one that cannot be served."""
        place = await self._read(name)
        if place.not_applied:
            LOG.warning(
                "%s sets %s, which podlift does not apply yet: the bucket's defaults are used",
                self._words(name),
                ", ".join(place.not_applied),
            )
        return place

    async def refresh(self, name: str) -> None:
        """Fetch a location's credentials again, to where those who use it look for newer ones.

        Raises ``ClusterError``.
        """
        await self.files(await self._read(name))

    def _words(self, name: str) -> str:
        return f"BackupStorageLocation {self._namespace}/{name}"

    async def _read(self, name: str) -> Location:
        checked = paths.checked(name, "BackupStorageLocation")
        path = paths.velero(self._namespace, "backupstoragelocations", checked)
        found = await read_object(self._api, path, objects.BackupStorageLocation, self._words(name))
        return location.read_location(name, found)

    async def files(self, place: Location) -> Files:
        """Return what reaching the location takes; raises ``ClusterError`` for a bad Secret."""
        use = f"of BackupStorageLocation {place.name}"
        credentials = place.credentials_file or self._default_credentials()
        if place.credential is not None:
            value = await secret_value(
                self._api, self._namespace, place.credential, f"the credentials {use}"
            )
            secret = f"{place.credential.name}/{place.credential.key}"
            credentials = await self._files.keep(secret, value, ".credentials")
        pem = place.ca_pem
        if place.ca_secret is not None and place.ca_secret.name:
            pem = await secret_value(
                self._api, self._namespace, place.ca_secret, f"the CA certificate {use}"
            )
        bundle = await self._files.ca_bundle(pem) if pem.strip() else None
        return Files(credentials=credentials, ca_bundle=bundle)

    def _default_credentials(self) -> Path | None:
        """Return the mounted credentials file; clusters with web identity have none."""
        file = self._credentials
        return file if file is not None and file.is_file() else None
