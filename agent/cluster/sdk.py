"""The kubernetes library, as far as it is used; the one import of it.

Whoever imports anything of the package gets all of it: its ``__init__`` takes in the client for
threads, informers, leader election and what they need. An agent that waits for work would hold
9 MiB of that for ever and start 0.2 s later (``benchmarks/bench_agent.py``). So the two outer
packages are made without running them, and the modules that are wanted find them as they are.
"""

import importlib.util
import sys

_UNUSED = ("kubernetes", "kubernetes.aio")


def _make_without_running(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"the package {name} is not installed")
    sys.modules[name] = importlib.util.module_from_spec(spec)


for _name in _UNUSED:
    if _name not in sys.modules:
        _make_without_running(_name)

from kubernetes.aio.client import rest  # noqa: E402
from kubernetes.aio.client.api_client import ApiClient  # noqa: E402
from kubernetes.aio.client.configuration import Configuration  # noqa: E402
from kubernetes.aio.config import ConfigException, load_kube_config  # noqa: E402

__all__ = ["ApiClient", "ConfigException", "Configuration", "load_kube_config", "rest"]
