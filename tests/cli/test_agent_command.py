"""``podlift agent`` that cannot start: each reason has its own words and exit code."""

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support.apiservers import StandinServer


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Return a kubeconfig of a server that does not run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "kubeconfig"
    path.write_text(
        "{apiVersion: v1, kind: Config, current-context: it,"
        f" clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}],"
        " contexts: [{name: it, context: {cluster: c, user: u}}],"
        " users: [{name: u, user: {token: t}}]}"
    )
    return path


@pytest.fixture
def common(tmp_path: Path) -> tuple[str, ...]:
    return ("agent", "--node-name", "n", "--cache-dir", str(tmp_path / "cache"))


def test_without_the_nodes_name_it_ends_with_2(podlift: Run) -> None:
    done = podlift("agent")
    assert done.code == 2
    assert "the node's name is missing: give --node-name, or set NODE_NAME" in done.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--metrics-address", "nowhere"),
        ("--uploader-types", "tar"),
        ("--other-uploader-types", "maybe"),
        ("--concurrency", "0"),
        ("--grace-seconds", "soon"),
    ],
)
def test_an_option_that_cannot_be_ends_with_2(
    podlift: Run, common: tuple[str, ...], option: str, value: str
) -> None:
    done = podlift(*common, option, value)
    assert done.code == 2
    assert option in done.err


def test_without_a_way_to_the_api_server_it_says_which_there_are(
    podlift: Run, common: tuple[str, ...]
) -> None:
    done = podlift(*common)
    assert done.code == 1
    assert "give --kubeconfig, or set KUBECONFIG, or run in a pod" in done.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist or is not a file"),
        ("{not: [yaml", "cannot be used"),
        ("[]", "cannot be used"),
        ("", "cannot be used"),
        ("{apiVersion: v1, kind: Config, current-context: gone, contexts: []}", "gone"),
    ],
    ids=["missing", "no YAML", "no mapping", "empty", "no such context"],
)
def test_a_kubeconfig_that_cannot_be_used_is_named(
    podlift: Run, common: tuple[str, ...], tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    done = podlift(*common, "--kubeconfig", path)
    assert done.code == 1
    assert f"kubeconfig {path}" in done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_an_api_server_that_does_not_answer_is_named(
    podlift: Run, common: tuple[str, ...], kubeconfig: Path
) -> None:
    done = podlift(*common, "--kubeconfig", kubeconfig, "--startup-seconds", "0.01")
    assert done.code == 1
    assert "cannot be reached" in done.err
    assert "127.0.0.1" in done.err


def test_metrics_on_an_address_in_use_end_with_2(
    podlift: Run, common: tuple[str, ...], standin: StandinServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        done = podlift(*common, "--kubeconfig", standin.kubeconfig, "--metrics-address", address)
    assert done.code == 2
    assert address in done.err
    assert "choose another --metrics-address" in done.err


def test_a_cache_directory_that_cannot_be_made_ends_with_2(podlift: Run, kubeconfig: Path) -> None:
    below = kubeconfig / "cache"
    done = podlift("agent", "--node-name", "n", "--kubeconfig", kubeconfig, "--cache-dir", below)
    assert done.code == 2
    assert f"the cache directory {below} cannot be made" in done.err
    assert "--cache-dir" in done.err
