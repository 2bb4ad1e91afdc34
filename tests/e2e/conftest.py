"""Scenes: over the stand-in and the real kube-apiserver, and in front of S3 that misbehaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import Scene
from tests.support.apihandle import ApiServer
from tests.support.apiservers import StandinServer
from tests.support.faultproxy import FaultProxy
from tests.support.s3servers import S3Server


@pytest.fixture
def new_scene(api_server: ApiServer, s3_server: S3Server, tmp_path: Path) -> Scene:
    """Return a scene on each API server, with Velero's definitions of v1.16.2 and no repository."""
    api_server.apply_velero_crds()
    return Scene(api_server, s3_server, tmp_path / "scene")


@pytest.fixture
def scene(new_scene: Scene) -> Scene:
    """Return the same with a repository."""
    return new_scene.with_repository()


@pytest.fixture
def new_standin_scene(standin: StandinServer, s3_server: S3Server, tmp_path: Path) -> Scene:
    """Return a scene on the stand-in alone, without a repository."""
    standin.apply_velero_crds()
    return Scene(standin, s3_server, tmp_path / "scene")


@pytest.fixture
def standin_scene(new_standin_scene: Scene) -> Scene:
    """Return the same with a repository."""
    return new_standin_scene.with_repository()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server) as proxy:
        yield proxy
