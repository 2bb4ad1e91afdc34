"""The log of a whole agent as JSON: every line can be read, names its object, and holds no secret."""

import base64
import json
import secrets
import urllib.parse
from pathlib import Path
from typing import Any

from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import PASSWORD, Scene
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer
from tests.support.faultproxy import Fault, FaultProxy, Kind, reply
from tests.support.s3servers import S3Server

TOKEN = "a-session-token-" + secrets.token_hex(16)
WRONG = "a-wrong-secret-key-" + secrets.token_hex(16)


def change_secret(server: ApiServer, name: str, key: str, value: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode()}
    server.patch(server.path("secrets", name), {"data": data})


def written_as(secret: str) -> set[str]:
    """Return the forms in which a secret might show."""
    return {secret, base64.b64encode(secret.encode()).decode(), urllib.parse.quote(secret)}


def test_every_line_is_json_names_its_object_and_holds_no_secret(
    standin: StandinServer, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    standin.apply_velero_crds()
    scene = Scene(standin, s3_server, tmp_path / "scene", proxy).with_repository()
    good = f"[default]\naws_access_key_id={s3_server.access_key}\naws_secret_access_key="
    scene.secret("bad", "cloud", f"{good}{WRONG}\naws_session_token={TOKEN}\n")
    scene.location("denied", secret="bad")
    volume = scene.volume().fill(a=secrets.token_bytes(1 << 20))
    proxy.add(reply(503, "SlowDown"), "PUT", "/data/", times=2)
    proxy.add(Fault(Kind.RESET, 100), "PUT", "/data/")
    with scene.agent("--log-format", "json") as agent:
        name = scene.backup(volume)
        snapshot = scene.completed(name, agent)["snapshotID"]
        failing = scene.backup(volume, repoIdentifier="", backupStorageLocation="denied")
        assert scene.ended(failing, agent)["phase"] == "Failed"
        change_secret(standin, "velero-repo-credentials", "repository-password", WRONG)
        locked_out = scene.backup(volume)
        assert scene.ended(locked_out, agent)["phase"] == "Failed"
        change_secret(standin, "velero-repo-credentials", "repository-password", PASSWORD)
        restored = ask(scene, waiting_pod(scene), snapshot)
        scene.completed(restored, agent)
        assert agent.end() == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in agent.log_text.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
    retries = [line for line in lines if line["logger"] == "agent.storage.retry"]
    assert len(retries) >= 3  # they are told by threads of threads, which know no object
    assert {line["name"] for line in retries} == {name, failing}
    told = {line["name"]: line["kind"] for line in lines if "name" in line}
    assert told == {
        **dict.fromkeys((name, failing, locked_out), "PodVolumeBackup"),
        restored: "PodVolumeRestore",
    }
    hidden = [PASSWORD, WRONG, TOKEN]
    hidden += [s3_server.secret_key] if len(s3_server.secret_key) > 8 else []
    shown = [form for secret in hidden for form in written_as(secret) if form in agent.log_text]
    assert shown == []


def test_an_agent_that_cannot_start_says_so_in_a_line_of_json(
    standin_scene: Scene, tmp_path: Path
) -> None:
    with standin_scene.agent("--log-format", "json", "--kubeconfig", str(tmp_path / "x")) as agent:
        assert agent.process.wait(60) == 1
    (line,) = map(json.loads, agent.log_text.splitlines())
    assert (line["level"], line["logger"]) == ("critical", "agent.commands.services")
    assert "does not exist" in line["message"]
