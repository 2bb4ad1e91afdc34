import base64
import json
from pathlib import Path

import pytest

from agent.cluster import secrets
from agent.cluster.objects import KeyReference
from agent.cluster.secrets import PrivateFiles, repository_password, secret_value
from agent.errors import ApiError, ClusterError
from tests.support.apiservers import StandinServer


class One:
    """Answers every GET the same way."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer

    async def get(self, path: str, query: object = None) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def secret(value: bytes, key: str = "repository-password") -> One:
    data = {key: base64.b64encode(value).decode()}
    return One(json.dumps({"data": data}).encode())


async def test_white_space_around_the_password_is_dropped() -> None:
    assert await repository_password(secret(b"\n se cret \r\n"), "velero") == "se cret"


@pytest.mark.parametrize(
    ("api", "words"),
    [
        (One(ApiError("no", status=404)), "velero-repo-credentials.*does not exist"),
        (One(b"{}"), "has no value under 'repository-password'"),
        (secret(b"x", "other"), "has no value under 'repository-password'"),
        (secret(b" \n"), "is blank"),
        (secret(b"\xff"), "not UTF-8"),
        (One(b'{"data":{"repository-password":"hunter2!"}}'), "not shaped as expected"),
    ],
)
async def test_a_password_that_cannot_be_had_says_why_and_tells_nothing(
    api: One, words: str
) -> None:
    with pytest.raises(ClusterError, match=words) as refused:
        await repository_password(api, "velero")
    assert "hunter2" not in str(refused.value)


async def test_the_password_that_everybody_knows_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    secrets._warn_of_default.cache_clear()
    for value in (b"own", b"static-passw0rd\n", b"static-passw0rd"):
        assert await repository_password(secret(value), "velero") == value.decode().strip()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "velero/velero-repo-credentials" in said
    assert "static" not in said


async def test_other_refusals_are_passed_on() -> None:
    with pytest.raises(ApiError) as refused:
        await secret_value(
            One(ApiError("no", status=403)), "velero", KeyReference("s", "k"), "for this"
        )
    assert refused.value.status == 403


async def test_a_private_file_is_written_once_and_rotation_makes_another(tmp_path: Path) -> None:
    files = PrivateFiles(tmp_path / "private")
    first = await files.write(b"one", ".credentials")
    again = await files.write(b"one", ".credentials")
    other = await files.write(b"two", ".credentials")
    assert first == again
    assert first != other
    look(first, b"one")
    look(other, b"two")


async def test_what_is_kept_by_name_is_replaced_whole(tmp_path: Path) -> None:
    files = PrivateFiles(tmp_path / "private")
    first = await files.keep("cloud/file", b"one", ".credentials")
    with first.open("rb") as open_before:
        assert await files.keep("cloud/file", b"two", ".credentials") == first
        assert open_before.read() == b"one"
    look(first, b"two")
    assert await files.keep("other/file", b"two", ".credentials") != first


def look(file: Path, content: bytes) -> None:
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(file.parent.glob("*.credentials")) == sorted(file.parent.iterdir())


async def test_a_certificate_is_added_to_the_systems(
    tmp_path: Path, standin: StandinServer
) -> None:
    pem = read(standin.ca)
    bundle = await PrivateFiles(tmp_path / "private").ca_bundle(pem)
    assert pem.strip() in read(bundle)
    assert len(read(bundle)) > len(pem)


def read(file: Path) -> bytes:
    return file.read_bytes()


async def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="not PEM"):
        await PrivateFiles(tmp_path / "private").ca_bundle(b"nonsense")
