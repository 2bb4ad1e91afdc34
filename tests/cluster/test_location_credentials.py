"""Where a location's credentials come from, each against a server that checks them.

Without a file it is botocore's chain: the environment, a web identity (IRSA), EKS pod identity, the
instance's profile. Each source is a real one on loopback, and whoever falls back on another is refused.
"""

import base64
import contextlib
import dataclasses
import datetime
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AccessDenied, CredentialsExpired
from tests.cluster.reaching import Reaching
from tests.support.s3servers import S3Server

ISSUER = "oidc.podlift.example"
POD_TOKEN = "the token of this pod"
METADATA_TOKEN = "one of IMDSv2"
ROLE = "podlift"


class Keys(http.server.ThreadingHTTPServer):
    """Hands keys out as EKS's agent and EC2's metadata service do; ``seen`` are the requests."""

    daemon_threads = True

    def __init__(self, access_key: str, secret_key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.access_key, self.secret_key = access_key, secret_key
        self.seconds = 3600
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def keys(self) -> dict[str, str]:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.seconds)
        return {
            "Code": "Success",
            "AccessKeyId": self.access_key,
            "SecretAccessKey": self.secret_key,
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Keys

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; ``Keys.seen`` is the log."""

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        pods = self.headers.get("Authorization") == POD_TOKEN
        machines = self.headers.get("X-aws-ec2-metadata-token") == METADATA_TOKEN
        below = "/latest/meta-data/iam/security-credentials/"
        if self.path == "/v1/credentials" and pods:
            self.answer(200, json.dumps(self.server.keys() | {"Token": None}))
        elif self.path == below and machines:
            self.answer(200, ROLE)
        elif self.path == below + ROLE and machines:
            self.answer(200, json.dumps(self.server.keys() | {"Token": ""}))
        else:
            self.answer(401, "")

    def do_PUT(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        known = self.path == "/latest/api/token"
        self.answer(200 if known else 404, METADATA_TOKEN if known else "")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def keys(checking_server: S3Server) -> Iterator[Keys]:
    with Keys(checking_server.access_key, checking_server.secret_key) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def reaching(
    checking_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reaching]:
    """Return who reaches the server, in a process that has no credentials whatsoever."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3 = checking_server
    made = Reaching(s3.endpoint_url, s3.ca, s3.make_bucket(), tmp_path)
    yield made
    made.close()


Source = Callable[[S3Server, Keys, Path, pytest.MonkeyPatch], None]


def environment(s3: S3Server, _: Keys, __: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)


def web_identity(s3: S3Server, _: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As EKS's webhook sets a pod up whose service account has a role (IRSA)."""
    token = folder / "web-identity-token"
    claims = {"iss": f"https://{ISSUER}", "sub": "system:serviceaccount:velero:podlift"}
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims, {}))
    token.write_text(".".join(base64.urlsafe_b64encode(p).decode().rstrip("=") for p in parts))
    monkeypatch.setenv("AWS_ROLE_ARN", role(s3))
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3.endpoint_url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(s3.ca))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def role(s3: S3Server) -> str:
    """Return the role that the service account may assume, with every right on buckets."""
    provider = f"arn:aws:iam::000000000000:oidc-provider/{ISSUER}"
    trust = {"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity"}
    rights = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    with contextlib.closing(owner(s3).client("iam")) as iam:
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_role(
                RoleName=ROLE,
                AssumeRolePolicyDocument=policy(trust | {"Principal": {"Federated": provider}}),
            )
        iam.put_role_policy(RoleName=ROLE, PolicyName="all", PolicyDocument=policy(rights))
        arn: str = iam.get_role(RoleName=ROLE)["Role"]["Arn"]
    return arn


def owner(s3: S3Server) -> S3Server:
    """Return the account that may change the others."""
    return dataclasses.replace(s3, access_key="test", secret_key="test")


def policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def pod_identity(_: S3Server, keys: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As EKS's agent sets a pod up."""
    token = folder / "pod-identity-token"
    token.write_text(POD_TOKEN)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{keys.url}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))


def instance_profile(_: S3Server, keys: Keys, __: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine that the pod runs on, by IMDSv2, which wants a token first."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", keys.url)


SOURCES: dict[str, Source] = {
    "environment": environment,
    "web identity": web_identity,
    "pod identity": pod_identity,
    "instance profile": instance_profile,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
async def test_a_location_without_a_file_takes_what_the_pod_has(
    source: Source,
    checking_server: S3Server,
    keys: Keys,
    reaching: Reaching,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(AccessDenied, match="no S3 credentials were found"):
        (await reaching.open()).get("x")
    source(checking_server, keys, reaching.folder, monkeypatch)
    storage = await reaching.open()
    storage.put("x", b"1")
    assert storage.get("x") == b"1"


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
async def test_a_file_comes_before_what_the_pod_has(
    source: Source,
    checking_server: S3Server,
    keys: Keys,
    reaching: Reaching,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A web identity above all, which botocore alone would prefer to a file."""
    s3 = checking_server
    source(s3, keys, reaching.folder, monkeypatch)
    weak = s3.credentials_file(s3.weak_access_key, s3.weak_secret_key)
    reaching.secrets["own"] = {"cloud": weak.read_bytes()}
    with pytest.raises(AccessDenied):
        (await reaching.open(credential={"name": "own", "key": "cloud"})).get("x")
    reaching.default_credentials = weak
    with pytest.raises(AccessDenied):
        (await reaching.open()).get("x")
    with pytest.raises(AccessDenied):
        (await reaching.open({"credentialsFile": str(weak)})).get("x")


async def test_a_file_may_name_a_role_that_its_keys_assume(
    checking_server: S3Server, reaching: Reaching, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = checking_server
    role_arn = assumable(s3)
    for name, value in (
        ("AWS_ENDPOINT_URL_STS", s3.endpoint_url),
        ("AWS_CA_BUNDLE", str(s3.ca)),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    text = s3.credentials_file().read_text().replace("[default]", "[keys]")
    text += f"[default]\nrole_arn = {role_arn}\nsource_profile = keys\n"
    reaching.secrets["own"] = {"cloud": text.encode()}
    storage = await reaching.open(credential={"name": "own", "key": "cloud"})
    storage.put("x", b"1")
    assert storage.get("x") == b"1"


def assumable(s3: S3Server) -> str:
    """Return a role that the strong user may assume, with every right on buckets."""
    anybody = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}
    rights = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    may = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}
    name = f"{ROLE}-of-keys"
    with contextlib.closing(owner(s3).client("iam")) as iam:
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy(anybody))
        iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=policy(rights))
        iam.put_user_policy(UserName="strong", PolicyName="assume", PolicyDocument=policy(may))
        arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    return arn


async def test_temporary_keys_are_renewed_before_they_end(
    checking_server: S3Server, keys: Keys, reaching: Reaching, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.seconds = 60  # nearer to its end than botocore likes
    pod_identity(checking_server, keys, reaching.folder, monkeypatch)
    storage = await reaching.open()
    storage.put("x", b"1")
    asked = len(keys.seen)
    keys.secret_key = "exchanged for a wrong one"
    with pytest.raises(CredentialsExpired):
        storage.get("x")
    assert set(keys.seen[asked:]) == {"GET /v1/credentials"}
