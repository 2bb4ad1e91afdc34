"""A location as the agent reaches it: from the objects of a cluster in memory to an open storage."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.cluster import location
from agent.cluster.client import Query
from agent.cluster.location import Location
from agent.cluster.places import Places
from agent.cluster.secrets import PrivateFiles
from agent.errors import ApiError
from agent.storage.s3 import S3Storage
from agent.storage.settings import S3Settings


class Cluster:
    """Answers for one location, called default, and for Secrets."""

    def __init__(self, location: Mapping[str, Any]) -> None:
        self.location = location
        self.secrets: dict[str, dict[str, bytes]] = {}

    async def get(self, path: str, query: Query | None = None) -> bytes:
        kind, name = path.split("/")[-2:]
        if kind == "backupstoragelocations":
            return json.dumps(self.location).encode()
        if name not in self.secrets:
            raise ApiError(f"no {name}", status=404)
        data = {key: base64.b64encode(value) for key, value in self.secrets[name].items()}
        return json.dumps({"data": {key: value.decode() for key, value in data.items()}}).encode()


class Reaching:
    """Reaches locations in one bucket of one server, each with a prefix of its own."""

    def __init__(self, endpoint_url: str, ca: Path, bucket: str, folder: Path) -> None:
        self.endpoint_url, self.bucket, self.folder = endpoint_url, bucket, folder
        self.authorities = ca.read_bytes()
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.default_credentials: Path | None = None
        self.opened: list[S3Storage] = []

    def body(self, config: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
        """Return a location that can be reached, but for what the arguments change; None removes."""
        base = {"s3Url": self.endpoint_url, "s3ForcePathStyle": "true", "region": "us-east-1"}
        pem = base64.b64encode(self.authorities).decode()
        storage = {"bucket": self.bucket, "prefix": "velero", "caCert": pem}
        storage |= spec.pop("objectStorage", {})
        status = spec.pop("status", {})
        merged = {key: value for key, value in (base | dict(config or {})).items() if value != "-"}
        kept = {key: value for key, value in storage.items() if value is not None}
        body = {"provider": "aws", "config": merged, "objectStorage": kept, **spec}
        return {"spec": body, "status": status}

    async def settings(self, config: Mapping[str, str] | None = None, **spec: Any) -> S3Settings:
        """Return what the agent makes of a location for a repository in it."""
        place, settings = await self.place(config, **spec)
        assert place.bucket == settings.bucket
        return settings

    async def place(
        self, config: Mapping[str, str] | None = None, **spec: Any
    ) -> tuple[Location, S3Settings]:
        """Return a location, and the settings of a repository in it."""
        cluster = Cluster(self.body(config, **spec))
        cluster.secrets = self.secrets
        files = PrivateFiles(self.folder / "private")
        places = Places(cluster, "velero", self.default_credentials, files)
        place = await places.location("default")
        fetched = await places.fetch(place)
        prefix = location.repository_prefix(place, "", "app")
        return place, location.s3_settings(place, prefix, fetched, 2)

    async def open(self, config: Mapping[str, str] | None = None, **spec: Any) -> S3Storage:
        """Open the storage of a repository in a location."""
        storage = S3Storage(await self.settings(config, **spec))
        self.opened.append(storage)
        return storage

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()
