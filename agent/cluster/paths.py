"""Paths of the API server, built from names that were checked first.

Names come out of objects that other people write. One that is no Kubernetes name (``..``, a
slash, an empty one) would turn a request for one object into a request for another, so it
never becomes part of a path.
"""

import re

from agent.errors import ClusterError

VELERO = "/apis/velero.io/v1"
PODS = "/api/v1/pods"
CSI_DRIVERS = "/apis/storage.k8s.io/v1/csidrivers"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123 subdomain


def checked(name: str, what: str) -> str:
    """Return ``name`` if it is a Kubernetes object name; raises ``ClusterError``."""
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"{what} {name[:80]!r} is not a Kubernetes name: correct the object that says so"
        )
    return name


def velero(namespace: str, plural: str, name: str = "", subresource: str = "") -> str:
    """Return the path of Velero's objects of one kind, or of one of them."""
    path = f"{VELERO}/namespaces/{checked(namespace, 'namespace')}/{plural}"
    return _below(path, name, subresource)


def core(namespace: str, plural: str, name: str = "") -> str:
    """Return the path of namespaced core objects of one kind, or of one of them."""
    return _below(f"/api/v1/namespaces/{checked(namespace, 'namespace')}/{plural}", name, "")


def persistent_volume(name: str) -> str:
    """Return the path of a PersistentVolume."""
    return _below("/api/v1/persistentvolumes", name, "")


def node(name: str) -> str:
    """Return the path of a Node."""
    return _below("/api/v1/nodes", name, "")


def _below(path: str, name: str, subresource: str) -> str:
    if name:
        path += f"/{checked(name, path.rsplit('/', 1)[-1])}"
    return f"{path}/{subresource}" if subresource else path
