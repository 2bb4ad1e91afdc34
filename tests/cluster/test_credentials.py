import shutil
from pathlib import Path

import pytest

from agent.cluster import paths
from agent.cluster.client import Kube
from agent.cluster.credentials import (
    TOKEN_SECONDS,
    KubeconfigCredentials,
    ServiceAccount,
    credentials,
)
from agent.config import ClusterAccess
from agent.errors import ApiError, ClusterError
from tests.cluster.scene import NO_TIME
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: "SERVER", certificate-authority: CA}}]
users: [{name: u, user: USER}]
contexts: [{name: c, context: {cluster: k, user: u}}]
"""


def kubeconfig(directory: Path, server: ApiServer, user: str, ca: str = "") -> Path:
    text = KUBECONFIG.replace("SERVER", server.url).replace("CA", ca or str(server.ca))
    file = directory / "kubeconfig"
    file.write_text(text.replace("USER", user))
    return file


def service_account(directory: Path, server: ApiServer) -> ClusterAccess:
    shutil.copy(server.ca, directory / "ca.crt")
    (directory / "token").write_text(f"{server.token}\n")
    host, port = server.url.removeprefix("https://").split(":")
    return ClusterAccess(service_host=host, service_port=port, service_account=directory)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("", "cannot be used"),
        ("a: [", "cannot be used"),
        ("just text", "cannot be used"),
        ("[1, 2]", "cannot be used"),
        ("current-context: c", "cannot be used"),
        ("current-context: c\nclusters: 5\ncontexts: 6\nusers: 7", "cannot be used"),
        (KUBECONFIG.replace("current-context: c", "current-context: other"), "cannot be used"),
        (KUBECONFIG.replace('server: "SERVER", ', ""), "cannot be used"),
    ],
)
async def test_a_bad_kubeconfig_is_named_with_what_is_wrong(
    tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ClusterError, match=words) as refused:
        await Kube.connect(KubeconfigCredentials(file))
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_certificates_that_cannot_be_loaded_are_told(
    tmp_path: Path, standin: StandinServer
) -> None:
    (tmp_path / "broken.crt").write_text("no certificate")
    file = kubeconfig(tmp_path, standin, "{token: t}", ca=str(tmp_path / "broken.crt"))
    with pytest.raises(ClusterError, match="certificates of kubeconfig"):
        await Kube.connect(KubeconfigCredentials(file))


async def test_an_untrusted_server_is_told_apart_from_one_out_of_reach(
    tmp_path: Path, standin: StandinServer
) -> None:
    file = kubeconfig(tmp_path, standin, "{token: t}")
    text = file.read_text().replace(f"certificate-authority: {standin.ca}", "x: y")
    file.write_text(text)
    kube = await Kube.connect(KubeconfigCredentials(file), NO_TIME)
    try:
        with pytest.raises(ApiError, match=r"is not trusted .* check the certificate-authority"):
            await kube.get(paths.VELERO)
        standin.stop()
        with pytest.raises(ApiError, match="cannot be reached"):
            await kube.get(paths.VELERO)
    finally:
        await kube.close()


async def test_a_token_file_of_a_kubeconfig_is_read_again_after_a_401(
    tmp_path: Path, standin: StandinServer
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{standin.token}\n")
    file = kubeconfig(tmp_path, standin, f"{{tokenFile: {token}}}")
    kube = await Kube.connect(KubeconfigCredentials(file), NO_TIME)
    try:
        assert await kube.get(paths.VELERO)
        standin.faults.rotate_tokens("rotated")
        token.write_text("rotated\n")
        assert await kube.get(paths.VELERO)
        standin.faults.rotate_tokens("once-more")
        file.unlink()
        with pytest.raises(ApiError, match="401"):
            await kube.get(paths.VELERO)
    finally:
        await kube.close()


async def test_a_service_account_works_on_both_servers(
    tmp_path: Path, api_server: ApiServer
) -> None:
    access = service_account(tmp_path, api_server)
    kube = await Kube.connect(credentials(access), NO_TIME)
    try:
        path = f"/api/v1/namespaces/{api_server.namespace}"
        assert api_server.namespace.encode() in await kube.get(path)
    finally:
        await kube.close()


async def test_a_service_account_token_is_read_again_after_a_minute_and_kept_if_that_fails(
    tmp_path: Path, standin: StandinServer
) -> None:
    now = 0.0
    access = service_account(tmp_path, standin)
    source = ServiceAccount(access, clock=lambda: now)
    configuration = await source.configure()
    (tmp_path / "token").write_text("second\n")
    assert await configuration.get_api_key_with_prefix("BearerToken") == "Bearer admin-token"
    now = TOKEN_SECONDS
    assert await configuration.get_api_key_with_prefix("BearerToken") == "Bearer second"
    for bad in ("", "two\nlines\n", "\u00e4"):
        now += TOKEN_SECONDS
        (tmp_path / "token").write_text(bad)
        assert await configuration.get_api_key_with_prefix("BearerToken") == "Bearer second"
    (tmp_path / "token").unlink()
    await source.renew(configuration)
    assert await configuration.get_api_key_with_prefix("BearerToken") == "Bearer second"


async def test_a_watch_whose_token_is_refused_renews_it(
    tmp_path: Path, standin: StandinServer
) -> None:
    kube = await Kube.connect(credentials(service_account(tmp_path, standin)), NO_TIME)
    path = paths.velero(standin.namespace, "podvolumebackups")
    try:
        standin.faults.rotate_tokens("fresh")
        (tmp_path / "token").write_text("fresh")
        lines = kube.watch(path, {}, server_seconds=1, idle_seconds=5)
        with pytest.raises(ApiError, match="401"):
            await anext(lines)
        assert await kube.get(path)
    finally:
        await kube.close()


async def test_a_pod_without_token_and_a_process_outside_are_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--kubeconfig"):
        credentials(ClusterAccess())
    access = ClusterAccess(service_host="::1", service_port="443", service_account=tmp_path)
    with pytest.raises(ClusterError, match="automountServiceAccountToken"):
        await Kube.connect(credentials(access))


async def test_a_missing_ca_of_a_service_account_is_told(
    tmp_path: Path, standin: StandinServer
) -> None:
    access = service_account(tmp_path, standin)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(ClusterError, match="certificates of the service account"):
        await Kube.connect(credentials(access))
