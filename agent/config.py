"""The agent's settings, and the only reader of the environment.

The command line wins over the environment, the environment over the default; what neither
gives and nothing can replace is a ``UsageError`` that names both ways. The result is a frozen
value: no other module looks at ``os.environ`` or at the options again.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from agent.errors import UsageError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a kubelet mounts a pod's token and CA (the Kubernetes service account contract)."""

FORMATS = frozenset({"restic", "kopia"})
"""The uploader types that a PodVolumeBackup may name (velero.md section 1.1)."""

_DIGITS = 18
"""More have no meaning, and Python refuses to read thousands of them."""

T = TypeVar("T")

OtherTypes = Literal["fail", "ignore"]

Restores = Literal["serve", "ignore"]

Compression = Literal["fastest", "default", "better"]
"""How much time compressing may take; the repository knows what that means."""

VerifyStored = Literal["none", "sample", "all"]
"""Which of the packs that were stored are read back before anything relies on them."""

LogFormat = Literal["text", "json"]
"""What the agent's log is written for: people, or machines."""

CACHE_MIB = 2048
"""What a cache may take: the indexes of 20 M blobs, each once by itself and once merged."""


@dataclass(frozen=True, slots=True)
class CacheDir:
    """A directory for caches, and what all that is in it may take."""

    root: Path
    limit_mib: int = CACHE_MIB


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """How to reach the API server: a kubeconfig, or else the service of the own cluster."""

    kubeconfig: Path | None = None
    service_host: str = ""
    service_port: str = ""
    service_account: Path = SERVICE_ACCOUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """MiB a second for all work of a process together; None is no limit."""

    upload: int | None = None
    download: int | None = None
    read: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Everything that ``podlift agent`` can be told.

    ``uploader_types`` are the types taken; ``restic`` includes the empty type. Who ignores ``restores``
    asks for no PodVolumeRestore and for no list of pods, and needs no right to. ``concurrency``
    is the number of volumes at once, where the ConfigMap ``node_agent_configmap`` says nothing of
    it. ``upload_workers`` is the number of packs in flight, for all volumes together but one each
    at least. ``deadline_seconds`` is how long one volume may take.
    ``grace_seconds`` is the time from SIGTERM to the end.
    ``startup_seconds`` is how long an API server may be out of reach at the start.
    ``credentials_file`` serves locations without a credential of their own.
    """

    node_name: str
    namespace: str = "velero"
    pod_name: str = ""
    pod_uid: str = ""
    access: ClusterAccess = field(default_factory=ClusterAccess)
    host_pods: Path = Path("/host_pods")
    cache_dir: Path = Path("/cache")
    cache_mib: int = CACHE_MIB
    metrics_address: tuple[str, int] = ("0.0.0.0", 8085)  # noqa: S104  (scraped from outside)
    uploader_types: frozenset[str] = frozenset({"restic"})
    other_uploader_types: OtherTypes = "fail"
    restores: Restores = "serve"
    concurrency: int = 1
    node_agent_configmap: str = "node-agent-config"
    upload_workers: int = 4
    limits: Limits = field(default_factory=Limits)
    compression: Compression = "default"
    verify_stored: VerifyStored = "sample"
    deadline_seconds: float = 48 * 3600.0
    grace_seconds: float = 25.0
    startup_seconds: float = 60.0
    credentials_file: Path | None = None
    log_format: LogFormat = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """What a command needs that acts on a location of the cluster once, without being an agent.

    ``cache_dir`` None means no cache.
    """

    namespace: str = "velero"
    access: ClusterAccess = field(default_factory=ClusterAccess)
    cache_dir: Path | None = None
    cache_mib: int = CACHE_MIB
    credentials_file: Path | None = None


ENVIRONMENT = {
    "node_name": "NODE_NAME",
    "namespace": "VELERO_NAMESPACE",
    "pod_name": "POD_NAME",
    "pod_uid": "POD_UID",
    "kubeconfig": "KUBECONFIG",
    "host_pods": "PODLIFT_HOST_PODS",
    "cache_dir": "PODLIFT_CACHE_DIR",
    "cache_mib": "PODLIFT_CACHE_MIB",
    "metrics_address": "PODLIFT_METRICS_ADDRESS",
    "uploader_types": "PODLIFT_UPLOADER_TYPES",
    "other_uploader_types": "PODLIFT_OTHER_UPLOADER_TYPES",
    "restores": "PODLIFT_RESTORES",
    "concurrency": "PODLIFT_CONCURRENCY",
    "node_agent_configmap": "PODLIFT_NODE_AGENT_CONFIGMAP",
    "upload_workers": "PODLIFT_UPLOAD_WORKERS",
    "limit_upload": "PODLIFT_LIMIT_UPLOAD",
    "limit_download": "PODLIFT_LIMIT_DOWNLOAD",
    "limit_read": "PODLIFT_LIMIT_READ",
    "compression": "PODLIFT_COMPRESSION",
    "verify_stored": "PODLIFT_VERIFY_STORED",
    "deadline_seconds": "PODLIFT_DEADLINE_SECONDS",
    "grace_seconds": "PODLIFT_GRACE_SECONDS",
    "startup_seconds": "PODLIFT_STARTUP_SECONDS",
    "credentials_file": "AWS_SHARED_CREDENTIALS_FILE",
    "log_format": "PODLIFT_LOG_FORMAT",
}
"""Each option's name (as in the command line, with underscores) and its variable."""


def agent_settings(
    options: Mapping[str, str | None], environ: Mapping[str, str] | None = None
) -> AgentSettings:
    """Make the agent's settings from command line options (None: not given) and environment.

    Option names are the keys of ``ENVIRONMENT``. Raises ``UsageError``.
    """
    source = os.environ if environ is None else environ  # noqa: TID251  (this is that module)
    given = _given(options, source)
    defaults = AgentSettings(node_name=_node_name(given))
    return AgentSettings(
        node_name=defaults.node_name,
        namespace=given.get("namespace", defaults.namespace),
        pod_name=given.get("pod_name", ""),
        pod_uid=given.get("pod_uid", ""),
        access=_access(given, source),
        host_pods=Path(given.get("host_pods", defaults.host_pods)),
        cache_dir=Path(given.get("cache_dir", defaults.cache_dir)),
        cache_mib=_positive_int(given, "cache_mib", CACHE_MIB),
        metrics_address=_address(given, defaults.metrics_address),
        uploader_types=_types(given, defaults.uploader_types),
        other_uploader_types=_choice(
            given, "other_uploader_types", OtherTypes, defaults.other_uploader_types
        ),
        restores=_choice(given, "restores", Restores, defaults.restores),
        concurrency=_positive_int(given, "concurrency", defaults.concurrency),
        node_agent_configmap=given.get("node_agent_configmap", defaults.node_agent_configmap),
        upload_workers=_positive_int(given, "upload_workers", defaults.upload_workers),
        limits=_limits(given),
        compression=_choice(given, "compression", Compression, defaults.compression),
        verify_stored=_choice(given, "verify_stored", VerifyStored, defaults.verify_stored),
        deadline_seconds=_seconds(given, "deadline_seconds", defaults.deadline_seconds),
        grace_seconds=_seconds(given, "grace_seconds", defaults.grace_seconds),
        startup_seconds=_seconds(given, "startup_seconds", defaults.startup_seconds),
        credentials_file=_optional_path(given, "credentials_file"),
        log_format=_choice(given, "log_format", LogFormat, defaults.log_format),
    )


def cluster_settings(
    options: Mapping[str, str | None], environ: Mapping[str, str] | None = None
) -> ClusterSettings:
    """Make the settings of a one-shot command from the agent's options of the same names.

    Raises ``UsageError``.
    """
    source = os.environ if environ is None else environ  # noqa: TID251  (this is that module)
    given = _given(options, source)
    return ClusterSettings(
        namespace=given.get("namespace", ClusterSettings().namespace),
        access=_access_by_hand(_access(given, source), source),
        cache_dir=_optional_path(given, "cache_dir"),
        cache_mib=_positive_int(given, "cache_mib", CACHE_MIB),
        credentials_file=_optional_path(given, "credentials_file"),
    )


def _node_name(given: Mapping[str, str]) -> str:
    if "node_name" not in given:
        raise UsageError(
            "the node's name is missing: give --node-name, or set NODE_NAME from the downward "
            "API (spec.nodeName)"
        )
    return given["node_name"]


def _given(options: Mapping[str, str | None], source: Mapping[str, str]) -> dict[str, str]:
    """Return what was given, by option name: the command line wins over the environment."""
    unknown = sorted(set(options) - set(ENVIRONMENT))
    if unknown:
        raise UsageError(f"there is no option {', '.join(unknown)}")
    return {
        name: value
        for name, variable in ENVIRONMENT.items()
        if (value := options.get(name) or source.get(variable, "").strip())
    }


def log_format(given: str | None, environ: Mapping[str, str] | None = None) -> LogFormat:
    """Return the form of a command's log, as ``--log-format`` or the environment has it."""
    source = os.environ if environ is None else environ  # noqa: TID251  (this is that module)
    default: LogFormat = "text"
    return _choice(_given({"log_format": given}, source), "log_format", LogFormat, default)


def repository_password(environ: Mapping[str, str] | None = None) -> str | None:
    """Return ``PODLIFT_PASSWORD``, else ``RESTIC_PASSWORD``, else None."""
    source = os.environ if environ is None else environ  # noqa: TID251  (this is that module)
    return source.get("PODLIFT_PASSWORD") or source.get("RESTIC_PASSWORD") or None


def default_cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return where a person's caches go: ``podlift`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    source = os.environ if environ is None else environ  # noqa: TID251  (this is that module)
    return Path(source.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podlift"


@contextlib.contextmanager
def isolated(**settings: str) -> Iterator[None]:
    """Drop what other work has set for AWS, proxies and podlift, for the length of a scope.

    For the demo: neither it nor what it starts may depend on the shell that it was started in.
    ``settings`` are set instead.
    """
    environ = os.environ  # noqa: TID251  (this is that module)
    before = dict(environ)
    for name in before:
        if name.startswith(("AWS_", "PODLIFT_", "RESTIC_")) or name.lower().endswith("_proxy"):
            del environ[name]
    environ.update(settings)
    try:
        yield
    finally:
        environ.clear()
        environ.update(before)


def environment() -> dict[str, str]:
    """Return this process's environment, for a program of ours that we start."""
    return dict(os.environ)  # noqa: TID251  (this is that module)


def _access(given: Mapping[str, str], source: Mapping[str, str]) -> ClusterAccess:
    return ClusterAccess(
        kubeconfig=_optional_path(given, "kubeconfig"),
        service_host=source.get("KUBERNETES_SERVICE_HOST", ""),
        service_port=source.get("KUBERNETES_SERVICE_PORT", ""),
    )


def _access_by_hand(access: ClusterAccess, source: Mapping[str, str]) -> ClusterAccess:
    """Return the access with kubectl's own file, where nothing says how and no pod is around us."""
    usual = Path(source.get("HOME") or "/nonexistent") / ".kube" / "config"
    if access.kubeconfig is None and not access.service_host and usual.is_file():
        return replace(access, kubeconfig=usual)
    return access


def _optional_path(given: Mapping[str, str], name: str) -> Path | None:
    return Path(given[name]) if name in given else None


def _said(name: str) -> str:
    return f"--{name.replace('_', '-')} (or {ENVIRONMENT[name]})"


def _address(given: Mapping[str, str], default: tuple[str, int]) -> tuple[str, int]:
    if "metrics_address" not in given:
        return default
    host, colon, port = given["metrics_address"].rpartition(":")
    if not colon or not _is_number(port) or int(port) > 65535:
        raise UsageError(f"{_said('metrics_address')} must be ADDR:PORT, for example :8085")
    return host.strip("[]") or default[0], int(port)


def _types(given: Mapping[str, str], default: frozenset[str]) -> frozenset[str]:
    if "uploader_types" not in given:
        return default
    types = frozenset(name.strip() for name in given["uploader_types"].split(",")) - {""}
    if not types or not types <= FORMATS:
        raise UsageError(
            f"{_said('uploader_types')} must be a comma list of {', '.join(sorted(FORMATS))}"
        )
    return types


def _choice(given: Mapping[str, str], name: str, choices: Any, default: T) -> T:
    """Return the one of ``choices``, a ``Literal`` that is the type ``T``, that was given."""
    text = given.get(name, default)
    words = get_args(choices)
    if text in words:
        return cast(T, text)
    listed = f"{', '.join(words[:-1])} or {words[-1]}"
    raise UsageError(f"{_said(name)} must be {listed}, not {text!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _positive_int(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not _is_number(text) or int(text) < 1:
        raise UsageError(f"{_said(name)} must be a number of at least 1, not {text!r}")
    return int(text)


def _limits(given: Mapping[str, str]) -> Limits:
    options = {what: f"limit_{what}" for what in ("upload", "download", "read")}
    limited = {what: option for what, option in options.items() if option in given}
    return Limits(**{what: _positive_int(given, option, 1) for what, option in limited.items()})


def _seconds(given: Mapping[str, str], name: str, default: float) -> float:
    try:
        seconds = float(given.get(name, default))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{_said(name)} must be a number of seconds above 0")
    return seconds
