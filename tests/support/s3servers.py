"""S3 servers for tests: real HTTP over TLS on loopback, each in a process of its own.

``s3_server`` is ministack, which from 1.5 on checks credentials, rights and checksums;
``moto_server`` is the second implementation, which checks none of them.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from agent.demo.authority import make_certificates
from agent.storage.settings import S3Settings
from tests.support.ports import free_port
from tests.support.requirements import missing

START_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A running server and an account with every right on it.

    ``weak_access_key`` belongs to somebody without any right; "" where nobody checks.
    """

    endpoint_url: str
    ca: Path
    home: Path
    access_key: str = "test"
    secret_key: str = "test"
    weak_access_key: str = ""
    weak_secret_key: str = ""

    @property
    def checks(self) -> bool:
        """Tell whether the server checks credentials, rights and checksums."""
        return bool(self.weak_access_key)

    @property
    def host(self) -> str:
        return self.endpoint_url.removeprefix("https://")

    def client(self, service: str = "s3") -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            verify=str(self.ca),
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    @functools.cached_property
    def kept_client(self) -> Any:
        """A client for what tests arrange and look at, which nobody closes."""
        return self.client()

    def make_bucket(self) -> str:
        """Make a bucket of a new name and return the name."""
        bucket = f"bucket-{secrets.token_hex(6)}"
        self.kept_client.create_bucket(Bucket=bucket)
        return bucket

    def credentials_file(self, access_key: str = "", secret_key: str = "") -> Path:
        """Write a credentials file, by default of the account with every right."""
        path = self.home / f"credentials-{secrets.token_hex(6)}"
        write_credentials(path, access_key or self.access_key, secret_key or self.secret_key)
        return path

    def settings(self, prefix: str = "", *, bucket: str = "", **overrides: Any) -> S3Settings:
        """Return settings that work; without ``bucket``, a new one is made."""
        settings = S3Settings(
            bucket=bucket or self.make_bucket(),
            prefix=prefix,
            endpoint_url=self.endpoint_url,
            verify=str(self.ca),
            credentials_file=str(self.credentials_file()),
        )
        return dataclasses.replace(settings, **overrides)

    def environment(self) -> dict[str, str]:
        """Return what restic and other programs need to log in; they also need ``ca``."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def repository(self, bucket: str, prefix: str = "") -> str:
        """Return the repository string of a prefix."""
        return f"s3:{self.endpoint_url}/{bucket}" + (f"/{prefix}" if prefix else "")


def write_credentials(path: Path, access_key: str, secret_key: str) -> None:
    path.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    )


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], port: int) -> Iterator[None]:
    """Run a server until the block ends; its output goes to a file in its home."""
    home = Path(environment["HOME"])
    full = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | environment
    with (home / "server.log").open("wb") as log, contextlib.ExitStack() as starting:
        starting.enter_context(_one_start_at_a_time())
        process = subprocess.Popen(command, env=full, stdout=log, stderr=log, cwd=home)
        try:
            _wait_for(process, port, home / "server.log")
            starting.close()
            yield
        finally:
            process.kill()  # asked politely, ministack takes 30 s over open TLS connections
            process.wait()


@contextlib.contextmanager
def _one_start_at_a_time() -> Iterator[None]:
    """Keep other workers from starting a server within the scope.

    As root, ministack takes port 443 beside its own if it is free. Of two that find it free at the same
    moment one ends.
    """
    with (Path(tempfile.gettempdir()) / "podlift-server-start.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    pytest.fail(f"{process.args!r} did not start:\n{log.read_text(errors='replace')}")


@contextlib.contextmanager
def ministack(home: Path) -> Iterator[S3Server]:
    """Run ministack in ``home`` for a scope, with credentials checked if it can."""
    made = make_certificates(home / "certificates")
    port = free_port()
    environment = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3,iam,sts",
        "AUTH": "true",
        "LOG_LEVEL": "ERROR",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(home / "data"),
        "USE_SSL": "1",
        "MINISTACK_SSL_CERT": str(made.certificate),
        "MINISTACK_SSL_KEY": str(made.key),
    }
    with _running([sys.executable, "-m", "ministack"], environment, port):
        server = S3Server(f"https://127.0.0.1:{port}", made.ca, home)
        yield _with_accounts(server)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start ministack."""
    with ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture
def checking_server(s3_server: S3Server) -> S3Server:
    """Return the server if it checks credentials, rights and checksums."""
    if not s3_server.checks:
        missing("a ministack that checks", "pip install 'ministack>=1.5.33'")
    return s3_server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start moto's server."""
    home = tmp_path_factory.mktemp("moto")
    made = make_certificates(home / "certificates")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    command += ["-c", str(made.certificate), "-k", str(made.key)]
    with _running(command, {"HOME": str(home), "TMPDIR": str(home)}, port):
        yield S3Server(f"https://127.0.0.1:{port}", made.ca, home)


def _with_accounts(server: S3Server) -> S3Server:
    everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    with contextlib.closing(server.client("iam")) as iam:
        keys = {}
        for name in ("strong", "weak"):
            iam.create_user(UserName=name)
            keys[name] = iam.create_access_key(UserName=name)["AccessKey"]
        iam.put_user_policy(UserName="strong", PolicyName="all", PolicyDocument=policy)
    accounts = dataclasses.replace(
        server,
        access_key=keys["strong"]["AccessKeyId"],
        secret_key=keys["strong"]["SecretAccessKey"],
    )
    if not _checks_credentials(server):
        return accounts
    return dataclasses.replace(
        accounts,
        weak_access_key=keys["weak"]["AccessKeyId"],
        weak_secret_key=keys["weak"]["SecretAccessKey"],
    )


def _checks_credentials(server: S3Server) -> bool:
    url = f"{server.endpoint_url}/_ministack/health"
    context = ssl.create_default_context(cafile=str(server.ca))
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        return bool(json.load(answer).get("auth") == "enabled")
