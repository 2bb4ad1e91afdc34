from pathlib import Path

import pytest

from agent.config import (
    ENVIRONMENT,
    AgentSettings,
    Limits,
    agent_settings,
    cluster_settings,
    repository_password,
)
from agent.errors import UsageError

NODE = {"NODE_NAME": "n1"}


def test_a_node_name_is_all_that_is_needed() -> None:
    settings = agent_settings({}, NODE)
    assert settings == AgentSettings(node_name="n1")
    assert settings.access.kubeconfig is None


def test_a_missing_node_name_says_how_to_give_it() -> None:
    with pytest.raises(UsageError, match=r"--node-name.*NODE_NAME"):
        agent_settings({}, {"NODE_NAME": " "})


def test_options_win_over_the_environment() -> None:
    environ = NODE | {"VELERO_NAMESPACE": "from-environment", "POD_UID": "u"}
    settings = agent_settings({"namespace": "from-option", "pod_uid": None}, environ)
    assert settings.namespace == "from-option"
    assert settings.pod_uid == "u"


def test_every_setting_can_come_from_the_environment() -> None:
    environ = {
        "NODE_NAME": "n",
        "VELERO_NAMESPACE": "v",
        "POD_NAME": "p",
        "POD_UID": "u",
        "KUBECONFIG": "/k",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "PODLIFT_HOST_PODS": "/pods",
        "PODLIFT_CACHE_DIR": "/c",
        "PODLIFT_CACHE_MIB": "300",
        "PODLIFT_LOG_FORMAT": "json",
        "PODLIFT_METRICS_ADDRESS": "[::1]:99",
        "PODLIFT_UPLOADER_TYPES": "restic, kopia",
        "PODLIFT_OTHER_UPLOADER_TYPES": "ignore",
        "PODLIFT_CONCURRENCY": "3",
        "PODLIFT_UPLOAD_WORKERS": "5",
        "PODLIFT_COMPRESSION": "better",
        "PODLIFT_VERIFY_STORED": "all",
        "PODLIFT_DEADLINE_SECONDS": "77",
        "PODLIFT_RESTORES": "ignore",
        "PODLIFT_GRACE_SECONDS": "9.5",
        "PODLIFT_LIMIT_UPLOAD": "10",
        "PODLIFT_LIMIT_DOWNLOAD": "20",
        "PODLIFT_LIMIT_READ": "30",
        "PODLIFT_STARTUP_SECONDS": "1",
        "PODLIFT_NODE_AGENT_CONFIGMAP": "mine",
        "AWS_SHARED_CREDENTIALS_FILE": "/credentials/cloud",
    }
    settings = agent_settings({}, environ)
    assert settings.cache_mib == 300
    assert settings.access.kubeconfig == Path("/k")
    assert settings.access.service_host == "10.0.0.1"
    assert settings.host_pods == Path("/pods")
    assert settings.metrics_address == ("::1", 99)
    assert settings.uploader_types == {"restic", "kopia"}
    assert settings.other_uploader_types == "ignore"
    assert settings.restores == "ignore"
    assert settings.compression == "better"
    assert settings.verify_stored == "all"
    assert settings.log_format == "json"
    assert (settings.concurrency, settings.upload_workers) == (3, 5)
    assert settings.node_agent_configmap == "mine"
    assert settings.limits == Limits(upload=10, download=20, read=30)
    assert settings.deadline_seconds == 77
    assert (settings.grace_seconds, settings.startup_seconds) == (9.5, 1.0)
    assert settings.credentials_file == Path("/credentials/cloud")
    assert set(ENVIRONMENT.values()) <= set(environ)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics_address", "8085"),
        ("metrics_address", ":port"),
        ("metrics_address", ":70000"),
        ("metrics_address", f":{'9' * 5000}"),
        ("uploader_types", "tar"),
        ("uploader_types", ","),
        ("other_uploader_types", "perhaps"),
        ("restores", "no"),
        ("concurrency", "0"),
        ("concurrency", "many"),
        ("concurrency", "9" * 5000),
        ("upload_workers", "-1"),
        ("limit_upload", "0"),
        ("limit_read", "fast"),
        ("compression", "best"),
        ("verify_stored", "some"),
        ("log_format", "yaml"),
        ("grace_seconds", "0"),
        ("grace_seconds", "soon"),
        ("startup_seconds", "inf"),
    ],
)
def test_a_wrong_value_names_option_and_variable(name: str, value: str) -> None:
    with pytest.raises(UsageError) as refused:
        agent_settings({name: value}, NODE)
    assert f"--{name.replace('_', '-')}" in str(refused.value)
    assert ENVIRONMENT[name] in str(refused.value)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no option colour"):
        agent_settings({"colour": "blue"}, NODE)


def test_an_address_without_host_means_every_interface() -> None:
    assert agent_settings({"metrics_address": ":8085"}, NODE).metrics_address[1] == 8085


def test_the_password_of_restic_is_honoured_after_our_own() -> None:
    both = {"PODLIFT_PASSWORD": "a", "RESTIC_PASSWORD": "b"}
    assert repository_password(both) == "a"
    assert repository_password({"RESTIC_PASSWORD": "b"}) == "b"
    assert repository_password({}) is None


def test_a_command_on_a_location_needs_no_node_and_reads_the_agent_s_variables() -> None:
    environ = {
        "VELERO_NAMESPACE": "backups",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "AWS_SHARED_CREDENTIALS_FILE": "/credentials/cloud",
    }
    found = cluster_settings({"namespace": None, "cache_dir": "/cache"}, environ)
    assert found.namespace == "backups"
    assert found.access.service_host == "10.0.0.1"
    assert found.credentials_file == Path("/credentials/cloud")
    assert found.cache_dir == Path("/cache")
    assert cluster_settings({"namespace": "other"}, environ).namespace == "other"
    assert cluster_settings({}, {}).cache_dir is None


def test_by_hand_the_file_that_kubectl_reads_is_read_too_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    usual = tmp_path / ".kube" / "config"
    usual.parent.mkdir()
    home = {"HOME": str(tmp_path)}
    assert cluster_settings({}, home).access.kubeconfig is None
    usual.touch()
    assert cluster_settings({}, home).access.kubeconfig == usual
    assert cluster_settings({"kubeconfig": "a"}, home).access.kubeconfig == Path("a")
    in_pod = home | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert cluster_settings({}, in_pod).access.kubeconfig is None
    assert agent_settings({"node_name": "n"}, home).access.kubeconfig is None


def test_a_command_on_a_location_takes_no_option_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="there is no option colour"):
        cluster_settings({"colour": "red"}, {})
