"""docs/repository.md says what lies in a bucket, and what its rules do to it: both are looked at."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PROJECT
from tests.repository.making import PASSWORD
from tests.support.s3servers import S3Server

PAGE = PROJECT / "docs" / "repository.md"
ROOT = "velero/one/restic/shop"
ROW = re.compile(r"^\| `((?:config|[a-z]+/).*?)` \|", re.MULTILINE)

Podlift = Callable[..., str]


def patterns() -> dict[str, re.Pattern[str]]:
    """Return what the page calls objects, each with the names that it means."""
    named: list[str] = ROW.findall(PAGE.read_text())
    digits = {"XX": "[0-9a-f]{2}", "ID": "[0-9a-f]{64}"}
    return {
        name: re.compile(re.sub("XX|ID", lambda found: digits[found[0]], name)) for name in named
    }


@pytest.fixture(params=["plain", "locked"])
def bucket(request: pytest.FixtureRequest, s3_server: S3Server) -> str:
    """Return a bucket, one time with a default retention that nobody may shorten."""
    if request.param == "plain":
        return s3_server.make_bucket()
    s3, name = s3_server.kept_client, f"locked-{os.urandom(6).hex()}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    retention = {"Mode": "COMPLIANCE", "Days": 1}
    rule = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}}
    s3.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=rule)
    return name


@pytest.fixture
def podlift(s3_server: S3Server, bucket: str, tmp_path: Path) -> Podlift:
    """Return a function that runs podlift on the bucket's repository."""
    environment = {
        **s3_server.environment(),
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PODLIFT_PASSWORD": PASSWORD,
    }
    where = ["--repo", s3_server.repository(bucket, ROOT), "--cacert", str(s3_server.ca)]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agent", *arguments, *where],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def found_in(s3: Any, bucket: str) -> dict[str, int]:
    """Return name and size of every current object of the repository."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    objects = [found for page in pages for found in page.get("Contents", ())]
    assert all(found["Key"].startswith(f"{ROOT}/") for found in objects)
    return {found["Key"].removeprefix(f"{ROOT}/"): found["Size"] for found in objects}


def test_the_page_names_every_object_and_a_deletion_can_be_undone_by_versions(
    s3_server: S3Server, bucket: str, podlift: Podlift, tmp_path: Path
) -> None:
    s3 = s3_server.kept_client
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "large").write_bytes(os.urandom(20 << 20))
    podlift("init")
    podlift("backup", str(volume))
    stored = found_in(s3, bucket)
    names = patterns()
    for name in stored:
        assert [each for each, meant in names.items() if meant.fullmatch(name)], name
    there = {each for each, meant in names.items() if any(map(meant.fullmatch, stored))}
    assert set(names) - there == {"locks/ID"}  # nobody is at work
    assert stored["config"] == 155
    assert max(stored.values()) < 24 << 20

    (snapshot,) = re.findall(r"^[0-9a-f]{8}", podlift("snapshots"), re.MULTILINE)
    podlift("forget", snapshot, "--prune")
    left = found_in(s3, bucket)
    assert left.keys() < stored.keys()
    if not bucket.startswith("locked"):
        return
    markers = s3.list_object_versions(Bucket=bucket)["DeleteMarkers"]
    assert any("/locks/" in marker["Key"] for marker in markers)
    for marker in markers:
        if "/locks/" not in marker["Key"]:
            s3.delete_object(Bucket=bucket, Key=marker["Key"], VersionId=marker["VersionId"])
    assert found_in(s3, bucket) == stored
    assert "is in order" in podlift("check", "--read-data")
    podlift("restore", "latest", "--target", str(tmp_path / "restored"))
    assert (tmp_path / "restored/large").read_bytes() == (volume / "large").read_bytes()
