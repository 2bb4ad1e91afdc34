"""What holds for the project as a whole: its manifest, wheel, locked versions, commands, files."""

import ast
import contextlib
import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from shutil import which
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agent.cli import podlift
from agent.commands import checks, garbage
from agent.config import ENVIRONMENT, AgentSettings
from agent.repository.subset import parse_subset
from tests.support.apihandle import Json
from tests.support.manifests import of_kind, pod_of, read_manifest
from tests.support.requirements import missing

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(
    *command: str | Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in the project's folder as a newcomer would, not as make's child."""
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHON", "CC"}}
    env = {key: value for key, value in env.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, env={**env, **environment}
    )
    assert done.returncode == status, f"{done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def project_files() -> Iterator[Path]:
    """Yield every file that belongs to the project, wherever the checkout came from."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".git"]
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if not any(fnmatch.fnmatch(f, i) for i in ignored)]
        for name in files:
            if not any(fnmatch.fnmatch(name, i) for i in ignored):
                yield Path(folder, name)


def sources() -> list[Path]:
    return sorted(p for room in ("agent", "chunker") for p in (ROOT / room).rglob("*.py"))


@pytest.fixture(scope="module")
def documents() -> list[Json]:
    return read_manifest("daemonset.yaml")


@pytest.fixture(scope="module")
def pod(documents: list[Json]) -> Json:
    return pod_of(documents)


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


class TestManifest:
    """What Velero's server looks for (velero.md section 8), and no right more than is used."""

    def test_the_server_finds_the_daemonset_and_its_pods(self, documents: list[Json]) -> None:
        daemonset = of_kind(documents, "DaemonSet")
        labels = daemonset["spec"]["template"]["metadata"]["labels"]
        assert (daemonset["apiVersion"], daemonset["metadata"]["name"]) == ("apps/v1", "node-agent")
        assert labels.items() >= {
            ("component", "velero"),
            ("name", "node-agent"),
            ("role", "node-agent"),
        }
        assert daemonset["spec"]["selector"]["matchLabels"] == {"name": "node-agent"}

    def test_everything_of_it_lives_in_one_namespace_and_every_role_is_bound(
        self, documents: list[Json]
    ) -> None:
        nowhere = ("Cluster", "PriorityClass")
        scoped = [d["metadata"] for d in documents if not d["kind"].startswith(nowhere)]
        assert {metadata["namespace"] for metadata in scoped} == {"velero"}
        account = of_kind(documents, "ServiceAccount")["metadata"]["name"]
        bindings = [d for d in documents if d["kind"].endswith("Binding")]
        assert {s["name"] for binding in bindings for s in binding["subjects"]} == {account}
        bound = sorted((b["roleRef"]["kind"], b["roleRef"]["name"]) for b in bindings)
        roles = [(d["kind"], d["metadata"]["name"]) for d in documents if "rules" in d]
        assert bound == sorted(roles)

    def test_it_outlives_what_says_nothing_of_its_priority_and_nothing_of_the_systems(
        self, documents: list[Json], pod: Json
    ) -> None:
        priority = of_kind(documents, "PriorityClass")
        assert pod["priorityClassName"] == priority["metadata"]["name"]
        assert 0 < priority["value"] <= 1_000_000_000  # above are the system's own

    def test_the_agent_learns_where_it_runs(self, container: dict[str, Any]) -> None:
        fields = {
            variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"]
            for variable in container["env"]
            if "valueFrom" in variable
        }
        assert fields == {
            "NODE_NAME": "spec.nodeName",
            "VELERO_NAMESPACE": "metadata.namespace",
            "POD_NAME": "metadata.name",
            "POD_UID": "metadata.uid",
        }
        assert {variable["name"] for variable in container["env"]} <= set(ENVIRONMENT.values())

    def test_volumes_mounted_after_the_start_are_seen_and_can_be_restored(
        self, pod: dict[str, Any], container: dict[str, Any]
    ) -> None:
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounts.keys() == volumes.keys()
        assert mounts["host-pods"]["mountPath"] == "/host_pods"
        assert mounts["host-pods"]["mountPropagation"] == "HostToContainer"
        assert mounts["host-pods"]["readOnly"] is False
        writable = {name for name, mount in mounts.items() if not mount.get("readOnly")}
        assert writable == {"host-pods", "cache", "tmp"}
        assert volumes["host-pods"]["hostPath"]["path"] == "/var/lib/kubelet/pods"
        assert volumes["cloud-credentials"]["secret"]["optional"] is True

    def test_the_options_name_what_is_mounted_and_probed(self, container: dict[str, Any]) -> None:
        options = dict(argument.split("=", 1) for argument in container["args"][1:])
        paths = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["args"][0] == "agent"
        assert {options["--host-pods"], options["--cache-dir"]} <= paths
        (port,) = container["ports"]
        assert {option[2:].replace("-", "_") for option in options} <= ENVIRONMENT.keys()
        assert options["--metrics-address"].rpartition(":")[2] == str(port["containerPort"])
        probes = {key: value["httpGet"] for key, value in container.items() if "Probe" in key}
        assert {key: probe["path"] for key, probe in probes.items()} == {
            "startupProbe": "/healthz",
            "livenessProbe": "/healthz",
            "readinessProbe": "/readyz",
        }
        assert {probe["port"] for probe in probes.values()} == {port["name"]}

    def test_each_capability_says_what_it_is_for(self, container: dict[str, Any]) -> None:
        """velero.md 8.2; tests/e2e/test_capabilities.py shows what is missing without each."""
        capabilities = container["securityContext"]["capabilities"]
        given = ["DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID", "MKNOD", "SETFCAP"]
        assert capabilities == {"drop": ["ALL"], "add": given}
        lines = (ROOT / "deploy/daemonset.yaml").read_text().splitlines()
        for capability in given:
            (line,) = [line for line in lines if line.strip().startswith(f"- {capability} ")]
            assert " # " in line

    def test_it_runs_without_privileges_and_in_bounded_memory(
        self, pod: dict[str, Any], container: dict[str, Any]
    ) -> None:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["limits"]["memory"] == "512Mi"
        grace_seconds = AgentSettings(node_name="any").grace_seconds
        assert pod["terminationGracePeriodSeconds"] >= grace_seconds + 10

    def test_each_right_is_named_and_says_what_it_is_for(self, documents: list[Json]) -> None:
        rules = [rule for document in documents for rule in document.get("rules", ())]
        assert "*" not in {word for rule in rules for words in rule.values() for word in words}
        assert all("resourceNames" in rule for rule in rules if "secrets" in rule["resources"])
        lines = (ROOT / "deploy/daemonset.yaml").read_text().splitlines()
        verbs = [line for line in lines if re.match(r" {6}- [a-z]+(\s|$)", line)]
        assert len(verbs) == sum(len(rule["verbs"]) for rule in rules)
        assert [line for line in verbs if " # " not in line] == []


class Job:
    """A manifest of a CronJob."""

    def __init__(self, name: str) -> None:
        self.text = (ROOT / f"deploy/components/{name}/{name}.yaml").read_text()
        self.documents = {one["kind"]: one for one in yaml.safe_load_all(self.text)}
        template = self.documents["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
        self.pod: dict[str, Any] = template["spec"]
        (self.container,) = self.pod["containers"]

    @property
    def rules(self) -> list[dict[str, Any]]:
        return list(self.documents["Role"]["rules"])


@pytest.fixture(scope="module", params=["gc", "scrub"])
def job(request: pytest.FixtureRequest) -> Job:
    return Job(request.param)


class TestJobManifests:
    """Jobs of nobody, with no right more than looking takes."""

    def test_it_runs_weekly_and_never_twice_at_a_time(self, job: Job) -> None:
        spec = job.documents["CronJob"]["spec"]
        assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", spec["schedule"])
        assert spec["concurrencyPolicy"] == "Forbid"
        assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
        assert job.pod["restartPolicy"] == "Never"

    def test_everything_of_it_belongs_together_in_one_namespace(self, job: Job) -> None:
        documents = job.documents
        assert documents.keys() == {"ServiceAccount", "Role", "RoleBinding", "CronJob"}
        assert {d["metadata"]["namespace"] for d in documents.values()} == {"velero"}
        account = documents["ServiceAccount"]["metadata"]["name"]
        binding = documents["RoleBinding"]
        assert [s["name"] for s in binding["subjects"]] == [account]
        assert binding["roleRef"]["name"] == documents["Role"]["metadata"]["name"]
        assert job.pod["serviceAccountName"] == account

    def test_the_command_knows_what_is_mounted(self, job: Job) -> None:
        assert {v["name"] for v in job.container["env"]} <= set(ENVIRONMENT.values())
        mounts = {mount["name"]: mount for mount in job.container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in job.pod["volumes"]}
        assert f"--cache-dir={mounts['cache']['mountPath']}" in job.container["args"]
        assert mounts["tmp"]["mountPath"] == "/tmp"

    def test_it_is_nobody_and_can_write_nothing_but_its_cache(self, job: Job) -> None:
        assert job.pod["securityContext"]["runAsNonRoot"] is True
        assert job.pod["securityContext"]["runAsUser"] > 0
        assert job.pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        context = job.container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert job.container["resources"]["limits"]["memory"]
        assert not any("hostPath" in volume for volume in job.pod["volumes"])

    def test_it_may_only_read_and_each_right_says_what_it_is_for(self, job: Job) -> None:
        rights = {(name, verb) for r in job.rules for name in r["resources"] for verb in r["verbs"]}
        listed = {("podvolumebackups", "list")} if "gc" in job.container["args"] else set()
        assert rights == {("backupstoragelocations", "get"), ("secrets", "get")} | listed
        assert all("resourceNames" in rule for rule in job.rules if "secrets" in rule["resources"])
        verbs = [line for line in job.text.splitlines() if re.match(r" {6}- (get|list)\s", line)]
        assert len(verbs) == len(rights)
        assert [line for line in verbs if " # " not in line] == []


def parsed(command: click.Command, arguments: list[str]) -> click.Context:
    """Read arguments as the program does: a command keeps the help option of its first context."""
    whole = click.Context(podlift, **podlift.context_settings)
    return command.make_context(command.name, arguments, parent=whole)


def test_the_garbage_job_only_looks_until_a_mark_is_taken_away() -> None:
    job = Job("gc")
    command, *arguments = job.container["args"]
    assert command == garbage.gc.name
    assert "# - --apply" in [line.strip() for line in job.text.splitlines()]
    for more in ([], ["--apply"]):
        with parsed(garbage.gc, [*arguments, *more]) as context:
            assert context.params["apply"] == bool(more)
            assert context.params["grace_seconds"] == 72 * 3600


def test_the_scrub_reads_the_part_whose_turn_it_is_and_waits_for_others() -> None:
    command, *arguments = Job("scrub").container["args"]
    assert command == checks.check.name
    with parsed(checks.check, arguments) as context:
        assert context.params["location"] == "default"
        assert context.params["lock_wait_seconds"] == 3600
        assert parse_subset(context.params["read_data_subset"]).part is not None


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> zipfile.Path:
    return zipfile.Path(built_wheel)


KERNELS = {
    "chunker/_scan.abi3.so",
    "agent/volume/_create.abi3.so",
    "agent/volume/_look.abi3.so",
    "agent/repository/_blobs.abi3.so",
    "agent/repository/_romix.abi3.so",
    "agent/repository/_table.abi3.so",
    "agent/storage/_crc.abi3.so",
}


class TestWheel:
    """One wheel serves every Python from 3.11 on, and carries all of the packages but no C."""

    def test_the_kernel_is_in_it_for_every_python_from_3_11_on(self, wheel: zipfile.Path) -> None:
        assert re.search(r"-cp311-abi3-linux_\w+\.whl$", str(wheel.root.filename))
        for kernel in KERNELS:
            assert wheel.joinpath(kernel).is_file()

    def test_it_carries_every_file_of_the_packages_and_no_c(self, wheel: zipfile.Path) -> None:
        names = {name for name in wheel.root.namelist() if not name.endswith("/")}
        wanted = {
            str(path.relative_to(ROOT))
            for path in project_files()
            if path.relative_to(ROOT).parts[0] in {"agent", "chunker"}
            and path.suffix not in {".c", ".h"}
        }
        assert wanted - names == set()
        carried = {name for name in names if ".dist-info/" not in name}
        assert carried - wanted == KERNELS

    def test_it_brings_the_command(self, wheel: zipfile.Path) -> None:
        (entry,) = [n for n in wheel.root.namelist() if n.endswith("entry_points.txt")]
        assert "podlift = agent.cli:main" in wheel.root.read(entry).decode()


def test_every_package_is_listed_in_pyproject() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in sources()
        if path.name == "__init__.py"
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


PIN = r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+) \\\n +--hash=sha256:"


class TestConstraints:
    """One set of locked versions, checked by hashes, that says nothing about where it came from."""

    EXTRAS = PROJECT["project"]["optional-dependencies"]
    PARTS = (
        ("constraints.txt", [line for lines in EXTRAS.values() for line in lines]),
        ("constraints.txt", PROJECT["project"]["dependencies"]),
        ("constraints-image.txt", PROJECT["project"]["dependencies"]),
        ("constraints-build.txt", PROJECT["build-system"]["requires"]),
    )

    @pytest.mark.parametrize("name", sorted({name for name, _ in PARTS}))
    def test_an_extra_that_a_package_asks_for_is_locked_with_it(self, name: str) -> None:
        text = (ROOT / ".ci" / name).read_text()
        locked = dict(re.findall(r"^([\w.-]+)\[([\w,-]+)\]==", text, re.MULTILINE))
        for package in self.pins(name):
            with contextlib.suppress(PackageNotFoundError):
                for wanted in map(Requirement, requires(package) or ()):
                    if wanted.extras and (wanted.marker is None or wanted.marker.evaluate()):
                        extras = locked.get(canonicalize_name(wanted.name), "").split(",")
                        assert wanted.extras <= set(extras), f"{package} wants {wanted}: make lock"

    @staticmethod
    def pins(name: str) -> dict[str, str]:
        """Return version by package; every package must have a hash."""
        text = (ROOT / ".ci" / name).read_text()
        pins = dict(re.findall(PIN, text, re.MULTILINE))
        starts = [line for line in text.splitlines() if line and line[0] not in " #"]
        assert len(pins) == len(starts) > 0
        return pins

    @pytest.mark.parametrize(("name", "wanted"), PARTS)
    def test_every_dependency_is_locked_to_a_version_that_pyproject_allows(
        self, name: str, wanted: list[str]
    ) -> None:
        pins = self.pins(name)
        for requirement in map(Requirement, wanted):
            if requirement.name == PROJECT["project"]["name"]:
                continue
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin, f"{requirement} is not locked: run make lock"
            assert requirement.specifier.contains(pin), f"{pin} is locked, wanted: {requirement}"

    @pytest.mark.parametrize("name", ["constraints-image.txt", "constraints-build.txt"])
    def test_the_image_takes_the_versions_that_the_tests_ran_with(self, name: str) -> None:
        assert self.pins(name).items() <= self.pins("constraints.txt").items()


class TestCommands:
    """Set-up that cannot work says what to install; a verdict says what a result is worth."""

    def test_help_lists_every_target(self) -> None:
        if which("make") is None:
            missing("make", "apt-get install make")
        shown = set(re.findall(r"^  make (\w+)", run("make", "help").stdout, re.MULTILINE))
        makefile = (ROOT / "Makefile").read_text()
        rules = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
        (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
        assert shown == rules == set(phony.split())
        assert {"demo", "test", "lint", "bench", "image"} <= shown

    def test_set_up_takes_the_python_that_was_asked_for(self) -> None:
        shown = run(".ci/find-python", PYTHON=sys.executable).stdout.strip()
        assert Path(shown).samefile(sys.executable)

    @pytest.mark.parametrize(
        ("answer", "advice"),
        [
            ("*version_info*'<'*) exit 1 ;;", "needs Python 3.11 or newer"),
            ("*ensurepip*) exit 1 ;;", "apt-get install python3-venv"),
            ("*include*) echo /nowhere ;;", "apt-get install python3-dev"),
            ("*CC*) echo no-such-compiler ;;", "apt-get install gcc libc6-dev"),
            ("*CC*) echo false ;;", "does not compile a file that includes Python.h"),
        ],
        ids=["too-old", "no-venv", "no-headers", "no-compiler", "no-libc-headers"],
    )
    def test_set_up_says_what_to_install(self, answer: str, advice: str, tmp_path: Path) -> None:
        python = tmp_path / "python3"
        python.write_text(
            f'#!/bin/sh\ncase "$2" in\n{answer}\n*sys.executable*) echo "$0" ;;\n'
            f'*) exec "{sys.executable}" "$@" ;;\nesac\n'
        )
        python.chmod(0o755)
        refused = run(".ci/find-python", status=1, PYTHON=str(python))
        assert advice in refused.stderr
        assert refused.stdout == ""

    @pytest.mark.parametrize(
        ("body", "require_all", "status", "verdict"),
        [
            ("pass", "0", 0, "GOOD: all 1 tests passed and none was left out."),
            ("assert False", "0", 1, "NOT GOOD: 1 tests failed, 0 passed (see above)."),
            ("pytest.skip('left out: a')", "0", 0, "GOOD, as far as this machine can tell: 0 "),
            ("pytest.skip('left out: a')", "1", 1, "NOT GOOD: 1 tests were left out, and here"),
            ("return 1\nthis is no Python", "0", 2, "NOT GOOD"),
        ],
        ids=["passes", "fails", "skips", "skips-where-nothing-may-be", "does-not-compile"],
    )
    def test_the_verdict_follows_from_the_tests(
        self, body: str, require_all: str, status: int, verdict: str, tmp_path: Path
    ) -> None:
        (tmp_path / "test_one.py").write_text(f"import pytest\n\ndef test_one():\n    {body}\n")
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        done = run(
            sys.executable,
            ".ci/verdict.py",
            f"--rootdir={tmp_path}",
            "-c",
            tmp_path / "pytest.ini",
            tmp_path,
            status=status,
            PODLIFT_REQUIRE_ALL=require_all,
        )
        last = done.stdout.splitlines()[-1]
        assert last.startswith(f"Verdict: {verdict}")
        assert ("- left out: a (1 tests)" in done.stdout) == ("skip" in body)

    @pytest.mark.parametrize(
        "script",
        ["run", "newest-restic", "prometheus", "kustomize", "setup", "find-python", "image"],
    )
    def test_scripts_are_executable_and_well_formed(self, script: str) -> None:
        path = ROOT / ".ci" / script
        assert os.access(path, os.X_OK)
        run("bash" if "bash" in path.read_text().splitlines()[0] else "sh", "-n", path)


class TestImage:
    """The image is made of files that are there and that reach the builder."""

    def test_what_is_copied_exists_and_is_not_ignored(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text()
        copies = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
        names = [name.rstrip("/") for line in copies for name in line.split()]
        allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
        assert sorted(names) == sorted(allowed)
        assert [name for name in names if not (ROOT / name).exists()] == []

    def test_its_entry_point_is_the_agent(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text()
        assert 'ENTRYPOINT ["podlift"]\nCMD ["agent"]' in dockerfile
        assert "podlift" in PROJECT["project"]["scripts"]


def test_no_file_names_a_path_of_a_machine_or_a_registry_host() -> None:
    foreign = re.compile(
        rb"(?<![\w.-])/(?:work|root|home|Users)/\w|[.]pyenv\b"
        rb"|\b(?:pypi|pythonhosted|npmjs|crates|debian|golang)\.(?:org|io)\b(?=[/:\s\"'])"
        rb"|\b(?:docker|ghcr|quay|gcr)\.io\b|\bregistry\.(?!example\.)[a-z0-9-]+\.(?:io|org|com)\b"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in project_files()
        for match in [foreign.search(path.read_bytes())]
        if match
    ]
    assert found == []


def test_modules_and_functions_stay_within_their_sizes() -> None:
    """design.md, "Rooms": modules under 400 lines, functions under 40, at most 5 parameters.

    The parameters of a click command are its options: nobody writes that call.
    """
    too_big = []
    for path in sources():
        text = path.read_text()
        where = path.relative_to(ROOT)
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            too_big.append(f"{where} does not open with what it is")
        if len(text.splitlines()) >= 400:
            too_big.append(f"{where} has {len(text.splitlines())} lines")
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            parameters = [a.arg for a in given if a.arg not in {"self", "cls"}]
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines >= 40:
                too_big.append(f"{where}: {node.name} has {lines} lines")
            command = any(".command(" in ast.unparse(each) for each in node.decorator_list)
            if len(parameters) > 5 and not command:
                too_big.append(f"{where}: {node.name} has {len(parameters)} parameters")
    assert too_big == []
