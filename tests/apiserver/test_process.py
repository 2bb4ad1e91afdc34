"""The stand-in as a process of its own, and kubectl as its client."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.apiserver import Standin
from agent.demo.apiserver.__main__ import main
from agent.errors import ClusterError
from tests.support.apiservers import StandinServer
from tests.support.kubectl import Kubectl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "agent.demo.apiserver", "--dir", str(tmp_path / "api")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_says_when_it_is_ready_and_ends_on_sigterm(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    kubeconfig = tmp_path / "api" / "kubeconfig"
    assert line.startswith("ready: https://127.0.0.1:")
    assert line.rstrip().endswith(str(kubeconfig))
    assert kubeconfig.exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stdout.read() == ""


def test_says_what_to_do_about_a_port_that_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--dir", str(tmp_path), "--port", str(port)]) == 1
        with pytest.raises(ClusterError, match="give it another one"):
            Standin(tmp_path, port).start()
    assert "give another --port" in capsys.readouterr().err


BACKUP = """
apiVersion: velero.io/v1
kind: PodVolumeBackup
metadata: {name: one}
spec: {node: n1, pod: {name: p}, volume: %s, backupStorageLocation: default, repoIdentifier: ""}
"""


def test_kubectl_applies_gets_and_watches(standin: StandinServer, tmp_path: Path) -> None:
    kubectl = Kubectl(standin, tmp_path)
    assert "created" in kubectl.run("apply", "-f", "-", text=BACKUP % "data")
    assert "configured" in kubectl.run("apply", "-f", "-", text=BACKUP % "data2")
    assert "unchanged" in kubectl.run("apply", "-f", "-", text=BACKUP % "data2")
    volume = kubectl.run("get", "podvolumebackup", "one", "-o", "jsonpath={.spec.volume}")
    assert volume == "data2"
    output = "jsonpath={.status.phase}{'\\n'}"
    with kubectl.start("get", "podvolumebackup", "one", "-w", "-o", output) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "\n"
        kubectl.run(
            "patch", "podvolumebackup", "one", "--type=merge", "-p", '{"status":{"phase":"Failed"}}'
        )
        assert watching.stdout.readline() == "Failed\n"
        watching.terminate()
    headings, row = kubectl.run("get", "podvolumebackups").splitlines()
    assert headings.split()[:2] == ["NAME", "STATUS"]
    assert row.split()[:2] == ["one", "Failed"]
    assert "deleted" in kubectl.run("delete", "podvolumebackup", "one")
