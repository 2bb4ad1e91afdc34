"""deploy/ as a base and its components, rendered as docs/deploy.md says, judged by the API server.

Whatever they change, Velero's server must find the agent, nothing may be left behind in another
namespace, and each set grants no more than it is for.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.apihandle import ApiRefused, Json
from tests.support.apiservers import KubeApiServer
from tests.support.kustomize import BARE, render, written
from tests.support.manifests import (
    DEPLOY,
    capabilities,
    granted,
    job_arguments,
    of_kind,
    pod_of,
    read_manifest,
)

BACKUP_ONLY, BESIDE, OPENSHIFT = "backup-only", "beside-velero", "openshift"
GC, SCRUB = "gc", "scrub"
JOBS = {GC, SCRUB}
SETS = [
    (),
    (BACKUP_ONLY,),
    (BESIDE,),
    (OPENSHIFT,),
    (OPENSHIFT, BACKUP_ONLY),
    (GC, SCRUB),
    (GC, BESIDE, SCRUB, BACKUP_ONLY, OPENSHIFT),
]
READING = ["DAC_READ_SEARCH"]
IMAGE = "registry.example.com/podlift:0.1.0"

SCC_FIELDS = {
    "allowHostDirVolumePlugin", "allowHostIPC", "allowHostNetwork", "allowHostPID",
    "allowHostPorts", "allowPrivilegeEscalation", "allowPrivilegedContainer", "allowedCapabilities",
    "defaultAddCapabilities", "fsGroup", "readOnlyRootFilesystem", "requiredDropCapabilities",
    "runAsUser", "seLinuxContext", "seccompProfiles", "supplementalGroups", "volumes",
}  # fmt: skip
"""Of security.openshift.io/v1, as far as we use it; no OpenShift is here to say so itself."""


def of_docs(namespace: str) -> Json:
    """Return the kustomization that docs/deploy.md shows, for another namespace."""
    text = (DEPLOY.parent / "docs/deploy.md").read_text()
    (block,) = re.findall(
        r"^```yaml\n(# SITE/kustomization.yaml\n.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    shown: Json = yaml.safe_load(block)
    assert shown["resources"] == ["../podlift/deploy"]
    return {**shown, "namespace": namespace}


@pytest.fixture(scope="module", params=SETS, ids=lambda names: "+".join(names) or "base")
def components(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture(scope="module")
def rendered(components: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> list[Json]:
    folder = tmp_path_factory.mktemp("site")
    return render(written(of_docs("backups"), folder, *components))


@pytest.fixture
def openshift(kube_apiserver: KubeApiServer) -> Iterator[KubeApiServer]:
    """Return the real API server, which takes SecurityContextConstraints of any content."""
    kind, plural = "SecurityContextConstraints", "securitycontextconstraints"
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        },
    }
    names = {"kind": kind, "plural": plural, "singular": plural}
    group = "security.openshift.io"
    spec = {"group": group, "scope": "Cluster", "names": names, "versions": [version]}
    where = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    made = kube_apiserver.create(where, {"metadata": {"name": f"{plural}.{group}"}, "spec": spec})
    kube_apiserver.served(kube_apiserver.path(plural))
    yield kube_apiserver
    kube_apiserver.delete(f"{where}/{made['metadata']['name']}")


class TestEverySet:
    def test_the_api_server_accepts_it(
        self, openshift: KubeApiServer, components: tuple[str, ...], tmp_path: Path
    ) -> None:
        for document in render(written(of_docs(openshift.namespace), tmp_path, *components)):
            assert openshift.apply(document)["metadata"].get("namespace") in (
                None,
                openshift.namespace,
            )

    def test_velero_finds_its_pods_in_its_namespace(self, rendered: list[Json]) -> None:
        daemonset = of_kind(rendered, "DaemonSet")
        labels = daemonset["spec"]["template"]["metadata"]["labels"]
        wanted = {"component": "velero", "name": "node-agent", "role": "node-agent"}
        assert labels.items() >= wanted.items()
        assert labels.items() >= daemonset["spec"]["selector"]["matchLabels"].items()
        places = [place for d in rendered for place in (d["metadata"], *d.get("subjects", ()))]
        assert {place["namespace"] for place in places if "namespace" in place} == {"backups"}
        assert "velero" not in {place.get("name") for place in places}

    def test_it_has_the_image_and_the_types_that_were_asked_for(self, rendered: list[Json]) -> None:
        (container,) = pod_of(rendered)["containers"]
        assert container["image"] == IMAGE
        assert container["args"][-1] == "--uploader-types=restic,kopia"

    def test_every_account_and_role_of_a_binding_is_there(self, rendered: list[Json]) -> None:
        there = {(d["kind"], d["metadata"]["name"]) for d in rendered}
        for binding in (d for d in rendered if "roleRef" in d):
            assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in there
            assert {(s["kind"], s["name"]) for s in binding["subjects"]} <= there
        assert ("ServiceAccount", pod_of(rendered)["serviceAccountName"]) in there
        assert ("PriorityClass", pod_of(rendered)["priorityClassName"]) in there

    def test_it_grants_what_it_is_for(
        self, rendered: list[Json], components: tuple[str, ...]
    ) -> None:
        base = read_manifest("daemonset.yaml")
        rights = {right for right in granted(rendered) if right.group != "security.openshift.io"}
        (container,) = pod_of(rendered)["containers"]
        (host_pods,) = [m for m in container["volumeMounts"] if m["name"] == "host-pods"]
        assert host_pods["mountPropagation"] == "HostToContainer"
        ignored = {"name": "PODLIFT_RESTORES", "value": "ignore"} in container["env"]
        if BACKUP_ONLY in components:
            lost = granted(base) - rights
            assert rights < granted(base)
            assert {right.resource.partition("/")[0] for right in lost} == {
                "podvolumerestores",
                "pods",
            }
            assert "podvolumerestores" not in str(rights)
            assert capabilities(rendered) == READING
            assert (host_pods["readOnly"], ignored) == (True, True)
        else:
            assert rights == granted(base)
            assert capabilities(rendered) == capabilities(base)
            assert (host_pods["readOnly"], ignored) == (False, False)

    def test_its_daemonset_has_the_name_that_velero_asks_for_unless_velero_keeps_its_own(
        self, rendered: list[Json], components: tuple[str, ...]
    ) -> None:
        name = of_kind(rendered, "DaemonSet")["metadata"]["name"]
        assert name == ("podlift" if BESIDE in components else "node-agent")


def test_each_job_has_the_image_that_was_asked_for_and_logs_as_the_agents_do(
    rendered: list[Json], components: tuple[str, ...]
) -> None:
    jobs = {d["metadata"]["name"]: d for d in rendered if d["kind"] == "CronJob"}
    assert jobs.keys() == {f"podlift-{name}" for name in JOBS.intersection(components)}
    there = {(d["kind"], d["metadata"]["name"]) for d in rendered}
    for name, job in jobs.items():
        assert "--log-format=json" in job_arguments([job])
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in there
        assert [container["image"] for container in pod["containers"]] == [IMAGE]
        assert pod["securityContext"]["runAsNonRoot"] is True
        # OpenShift gives it a user of the namespace's own range, and refuses any other.
        assert ("runAsUser" in pod["securityContext"]) is (OPENSHIFT not in components), name


def test_the_base_is_the_manifest(tmp_path: Path) -> None:
    found = render(written(BARE, tmp_path))
    by_name = {(d["kind"], d["metadata"]["name"]): d for d in found}
    documents = read_manifest("daemonset.yaml")
    assert len(found) == len(by_name) == len(documents)
    assert by_name == {(d["kind"], d["metadata"]["name"]): d for d in documents}


def test_beside_velero_no_node_is_both_agents(
    kube_apiserver: KubeApiServer, tmp_path: Path
) -> None:
    """Both DaemonSets exist; one wants the label that the other shuns, and selects by more."""
    kube_apiserver.apply(velero_daemonset(kube_apiserver.namespace))
    path = kube_apiserver.path("daemonsets", "node-agent")
    patch = yaml.safe_load((DEPLOY / "components/beside-velero/velero.yaml").read_text())
    kind = {"Content-Type": "application/strategic-merge-patch+json"}
    assert kube_apiserver.request("PATCH", path, patch, headers=kind).status == 200
    documents = render(written(of_docs(kube_apiserver.namespace), tmp_path, BESIDE))
    for document in documents:
        kube_apiserver.apply(document)

    theirs = kube_apiserver.get(path)["spec"]
    ours = kube_apiserver.get(kube_apiserver.path("daemonsets", "podlift"))["spec"]
    affinity = theirs["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (label,) = ours["template"]["spec"]["nodeSelector"]
    assert {"key": label, "operator": "DoesNotExist"} in term["matchExpressions"]
    their_labels = theirs["template"]["metadata"]["labels"]
    assert not their_labels.items() >= ours["selector"]["matchLabels"].items()


def velero_daemonset(namespace: str) -> Json:
    """Return what of Velero's own DaemonSet matters here."""
    labels = {"component": "velero", "name": "node-agent", "role": "node-agent"}
    pod = {"containers": [{"name": "node-agent", "image": "velero"}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "node-agent", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"name": "node-agent"}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def test_on_openshift_the_account_may_be_what_the_daemonset_asks_for(tmp_path: Path) -> None:
    rendered = render(written(of_docs("backups"), tmp_path, OPENSHIFT))
    scc, pod = of_kind(rendered, "SecurityContextConstraints"), pod_of(rendered)
    context = pod["containers"][0]["securityContext"]
    assert scc.keys() - {"apiVersion", "kind", "metadata"} == SCC_FIELDS
    assert scc["allowedCapabilities"] == [*READING, *context["capabilities"]["add"]]
    assert scc["requiredDropCapabilities"] == context["capabilities"]["drop"]
    assert context["readOnlyRootFilesystem"] is scc["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    mounted = {key for volume in pod["volumes"] for key in volume if key != "name"}
    assert mounted | {"projected"} == set(scc["volumes"])  # projected: the account's token
    allowed = [on for on, value in scc.items() if on.startswith("allow") and value is True]
    assert allowed == ["allowHostDirVolumePlugin"]
    (use,) = [right for right in granted(rendered) if right.verb == "use"]
    assert (use.resource, use.name) == ("securitycontextconstraints", scc["metadata"]["name"])


def test_a_field_that_a_component_misspells_is_refused(
    kube_apiserver: KubeApiServer, tmp_path: Path
) -> None:
    wrong = "- {op: add, path: /spec/template/spec/nodeselector, value: {a: b}}"
    shown = of_docs(kube_apiserver.namespace)
    shown["patches"].append({"target": {"kind": "DaemonSet"}, "patch": wrong})
    daemonset = of_kind(render(written(shown, tmp_path)), "DaemonSet")
    with pytest.raises(ApiRefused, match="nodeselector"):
        kube_apiserver.apply(daemonset)
