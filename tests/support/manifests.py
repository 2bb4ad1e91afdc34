"""The manifests of ``deploy/``: as they lie there, and as somebody applies them."""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from agent.config import ENVIRONMENT
from tests.support.apihandle import Json

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMESPACE = "velero"


class Right(NamedTuple):
    """One thing that a rule allows, or that was asked for; ``name`` "" is every object."""

    group: str
    resource: str
    verb: str
    name: str = ""


def read_manifest(path: str) -> list[Json]:
    """Return the documents of a file of ``deploy/``."""
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def of_kind(documents: Iterable[Json], kind: str) -> Json:
    """Return the one document of a kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def moved(documents: Iterable[Json], namespace: str) -> list[Json]:
    """Return the documents for a Velero that lives in another namespace."""
    found = copy.deepcopy(list(documents))
    for document in found:
        for place in (document["metadata"], *document.get("subjects", ())):
            if place.get("namespace") == NAMESPACE:
                place["namespace"] = namespace
    return found


def granted(documents: Iterable[Json]) -> set[Right]:
    """Return every right that the roles among the documents give."""
    return {
        Right(group, resource, verb, name)
        for document in documents
        for rule in document.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def pod_of(documents: Iterable[Json]) -> Json:
    """Return the pod that the DaemonSet among the documents makes."""
    found: Json = of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]
    return found


def job_arguments(documents: Iterable[Json]) -> list[str]:
    """Return what the CronJob among the documents runs podlift with."""
    (container,) = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    return list(container["args"])


def capabilities(documents: Iterable[Json]) -> list[str]:
    """Return the capabilities that the DaemonSet's container keeps."""
    (container,) = pod_of(documents)["containers"]
    return list(container["securityContext"]["capabilities"]["add"])


def agent_options(documents: Iterable[Json]) -> list[str]:
    """Return as options what the DaemonSet's container is told by variables of ours."""
    (container,) = pod_of(documents)["containers"]
    told = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    return [
        f"--{option.replace('_', '-')}={told[name]}"
        for option, name in ENVIRONMENT.items()
        if name.startswith("PODLIFT_") and name in told
    ]


def confined(given: Iterable[str]) -> tuple[str, ...]:
    """Return a wrapper that leaves root these capabilities alone, for good, as a kubelet does.

    Who is not root has none to lose, and gets no wrapper.
    """
    if os.geteuid() != 0:
        return ()
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in given)])
    return ("setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", "--no-new-privs")
