"""Where repositories are stored in a benchmark, and what arrived there.

``local`` is a directory. ``sink`` is an S3 server that throws packs away (sink.py): the client's
own cost, of a full backup only, since nothing can be read again (nor is any pack read back, as it
usually would be: `--verify-stored none`). ``server`` is moto, which keeps everything: the whole, of which much is moto's own time. Both servers run in processes of their own.
"""

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
from sides import Place
from workspace import environment

from agent.demo.processes import free_port, listening, running, wait_until

KEYS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
}
STATES = {
    "local": ("full", "unchanged", "changed"),
    "sink": ("full",),
    "server": ("full", "unchanged", "changed"),
}
"""What can be measured on which storage."""


class Local:
    """Directories below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, name: str) -> Place:
        """Return where a new repository goes."""
        home = self._folder / f"{name}-home"
        home.mkdir(parents=True)
        return Place(str(self._folder / name), {}, home)

    def stored(self, name: str) -> int:
        """Return the bytes in all files of the repository."""
        return sum(p.stat().st_size for p in (self._folder / name).rglob("*") if p.is_file())

    def requests(self) -> int | None:
        """Return None: a directory is not asked by requests."""
        return None


class Served:
    """Prefixes of a bucket on an S3 server of ours."""

    def __init__(self, folder: Path, port: int, log: Path | None) -> None:
        self._folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def place(self, name: str) -> Place:
        """Return where a new repository goes."""
        home = self._folder / f"{name}-home"
        home.mkdir(parents=True)
        return Place(f"s3:{self.url}/bench/{name}", KEYS, home, keeps=self._log is not None)

    def stored(self, name: str) -> int:
        """Return the bytes in all objects of the repository, as the server lists them."""
        with contextlib.closing(self._client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket="bench", Prefix=f"{name}/"
            )
            return sum(each["Size"] for page in pages for each in page.get("Contents", ()))

    def requests(self) -> int:
        """Return the number of requests until now: the sink's count, or the lines of moto's log."""
        if self._log is not None:
            with self._log.open("rb") as log:
                return sum(b"HTTP/1.1" in line for line in log)
        with urllib.request.urlopen(f"{self.url}/-/counts") as answer:
            return int(json.load(answer)["requests"])

    def create_bucket(self, name: str) -> None:
        """Make a bucket."""
        with contextlib.closing(self._client()) as client:
            client.create_bucket(Bucket=name)

    def _client(self):  # type: ignore[no-untyped-def]
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )


Storage = Local | Served


@contextlib.contextmanager
def storage(kind: str, folder: Path) -> Iterator[Storage]:
    """Run a storage of one kind for a scope; its files go to the new ``folder``."""
    folder.mkdir()
    if kind == "local":
        yield Local(folder)
        return
    port, name = free_port(), f"s3-{kind}"
    if kind == "sink":
        arguments = [str(Path(__file__).with_name("sink.py")), str(port)]
    else:
        arguments = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = folder / f"{name}.log"
    with running(name, arguments, folder, environment(**KEYS)) as process:
        wait_until(lambda: listening(port), name, process, log)
        served = Served(folder, port, None if kind == "sink" else log)
        if kind == "server":
            served.create_bucket("bench")
        yield served
