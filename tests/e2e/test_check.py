"""Check of a location, over the real parts: every repository of it, whatever is wrong with others."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository.opening import create_repository, open_repository
from agent.storage.opening import open_s3
from agent.transfer.job import Request, run_backup
from tests.e2e.scene import CHEAP, PASSWORD, Scene
from tests.e2e.velero import PREFIX
from tests.support.apiservers import StandinServer
from tests.support.faultproxy import FaultProxy, reply
from tests.support.s3servers import S3Server

ROOT = Path(__file__).parents[2]
FOREVER = 1 << 30


def check(scene: Scene, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "agent", "check", "--location", "default"),
        *("--kubeconfig", str(scene.server.kubeconfig), "--namespace", scene.server.namespace),
        *("--cache-dir", str(scene.directory / "check-cache"), *options),
    ]
    home = {"HOME": str(scene.directory), "TMPDIR": str(scene.directory)}
    env = {"PATH": os.environ["PATH"], **home}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=110)


def make(scene: Scene, name: str, password: str = PASSWORD) -> str:
    """Store a repository with one backup in the location, and return its prefix."""
    prefix, volume = f"{PREFIX}/restic/{name}", scene.directory / name
    volume.mkdir()
    (volume / "file").write_bytes(os.urandom(100_000))
    with contextlib.closing(open_s3(scene.settings(prefix))) as storage:
        create_repository(storage, password, cost=CHEAP)
        repository = open_repository(storage, password)
        request = Request(
            path=str(volume),
            reported_paths=(str(volume),),
            host="velero",
            tags={},
            choose_parent=lambda _snapshots, _now_ns: None,
        )
        run_backup(repository, request, Monitor(), NEVER)
    return prefix


def flip(scene: Scene, prefix: str) -> None:
    """Change one bit in the middle of a repository's largest pack."""
    with contextlib.closing(scene.s3.client()) as client:
        packs = [
            (client.head_object(Bucket=scene.bucket, Key=key)["ContentLength"], key)
            for key in scene.objects(f"{prefix}/data/")
        ]
        size, key = max(packs)
        body = bytearray(client.get_object(Bucket=scene.bucket, Key=key)["Body"].read())
        body[size // 2] ^= 1
        client.put_object(Bucket=scene.bucket, Key=key, Body=bytes(body))


def test_one_that_is_broken_does_not_spare_the_others(new_standin_scene: Scene) -> None:
    scene = new_standin_scene
    make(scene, "a-foreign", "a password of somebody else")
    damaged, last = make(scene, "b-damaged"), make(scene, "c-last")
    before = scene.objects()
    done = check(scene, "--read-data-subset", "week/1")
    assert done.returncode == 12, done
    assert f"{PREFIX}/restic/a-foreign was not checked: the password opens none" in done.stderr
    verdicts = done.stdout.splitlines()
    assert [place in line for place, line in zip((damaged, last), verdicts, strict=True)] == [
        True
    ] * 2
    assert all(
        "is in order; checked: structure and week/1 (part 1) of the packs" in line
        for line in verdicts
    )
    assert scene.objects() == before

    flip(scene, damaged)
    done = check(scene, "--read-data-subset", "week/1", "--json")
    assert done.returncode == 1, done
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line["repository"].startswith("s3:https://") for line in lines)
    ended = {
        line["repository"].rpartition("/")[2]: line
        for line in lines
        if line["message_type"] != "finding"
    }
    assert ended["a-foreign"]["message_type"] == "error"
    assert [ended[name]["damaged"] for name in ("b-damaged", "c-last")] == [True, False]
    assert "does not match its name" in "".join(line.get("message", "") for line in lines)


def test_a_read_only_location_is_checked_without_a_lock(
    standin: StandinServer, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    standin.apply_velero_crds()
    scene = Scene(standin, s3_server, tmp_path / "scene", proxy)
    prefix = make(scene, "one")
    proxy.add(reply(403, "AccessDenied"), "PUT", "/", times=FOREVER)
    refused = check(scene)
    assert refused.returncode == 1
    assert f"{prefix} was not checked" in refused.stderr

    path = standin.path("backupstoragelocations", "default")
    standin.patch(path, {"spec": {"accessMode": "ReadOnly"}})
    done = check(scene, "--read-data")
    assert done.returncode == 0, done
    assert f"{prefix} is in order" in done.stdout


def test_a_location_without_a_repository_was_not_checked(new_standin_scene: Scene) -> None:
    done = check(new_standin_scene)
    assert done.returncode == 10
    assert "holds no repository (yet)" in done.stderr
