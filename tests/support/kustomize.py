"""Kustomizations of ``deploy/``, rendered by every kustomize that is here: they must agree.

``kustomize`` itself is one (``.ci/kustomize`` builds it), the older one within kubectl another.
"""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.support.apihandle import Json
from tests.support.manifests import DEPLOY
from tests.support.requirements import missing

BARE: Json = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
"""A kustomization of nothing but what ``written`` adds."""

HOW = "PATH=$PATH:$(dirname $(.ci/kustomize FOLDER)), or install kubectl 1.27 or newer"


@functools.cache
def renderers() -> list[list[str]]:
    """Return the commands that render a folder."""
    found = [["kustomize", "build"]] if shutil.which("kustomize") else []
    if shutil.which("kubectl"):
        asked = ["kubectl", "version", "--client"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout
        found += [["kubectl", "kustomize"]] if "Kustomize Version: v5." in said else []
    return found


def render(folder: Path) -> list[Json]:
    """Return the documents of a kustomization."""
    if not renderers():
        missing("kustomize", HOW)
    results = []
    for command in renderers():
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        results.append(list(yaml.safe_load_all(done.stdout)))
    assert all(result == results[0] for result in results)
    return results[0]


def written(kustomization: Json, folder: Path, *components: str) -> Path:
    """Write a kustomization of ``deploy/`` with some of its components, and return its folder."""
    deploy = os.path.relpath(DEPLOY, folder.resolve())
    parts = {
        "resources": [deploy],
        "components": [f"{deploy}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | parts))
    return folder
