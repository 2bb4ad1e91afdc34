"""The image without an engine: the Dockerfile's own steps, in a virtual environment, off the network.

The packages are downloaded once, by their locked hashes, and kept between sessions. Then what the last
stage of the Dockerfile runs is run as it stands there: without an index, without any network, and
with nothing on the PATH that compiles.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requirements import missing

PROJECT = Path(__file__).parents[2]
LOCKED = PROJECT / ".ci" / "constraints-image.txt"
TOOLS = ("sh", "rm", "chmod")
"""What the steps call beside Python."""


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return our wheel, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for room in ("agent", "chunker"):
        leave = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(PROJECT / room, source / room, ignore=leave)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    pip = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir"]
    subprocess.run([*pip, str(source / "out"), str(source)], check=True, timeout=110)
    (built,) = (source / "out").iterdir()
    return built


def _downloaded(config: pytest.Config, fallback: Path) -> Path:
    """Return a folder with everything that is locked for the image."""
    kept = config.pluginmanager.has_plugin("cacheprovider")
    cache = config.cache.mkdir("image") if kept else fallback
    folder = cache / hashlib.sha256(LOCKED.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        part = cache / f"downloading-{os.getpid()}"
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        pip = [sys.executable, "-m", "pip", "download", *options, "-r", str(LOCKED)]
        done = subprocess.run(
            [*pip, "--dest", str(part)], capture_output=True, text=True, timeout=110
        )
        if done.returncode != 0:
            missing(f"the image's packages ({done.stderr[-300:]})", "pip's way to a package index")
        with contextlib.suppress(OSError):  # another worker was quicker
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder


def last_steps() -> str:
    """Return what the last stage of the Dockerfile runs, as one line."""
    last = (PROJECT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    (run,) = re.findall(r"^RUN ((?:.*\\\n)*.*)$", last, re.MULTILINE)
    return str(run).replace("\\\n", "")


@pytest.fixture(scope="session")
def image(
    built_wheel: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Path:
    """Return an environment that is what the image has in /usr/local."""
    if sys.version_info[:2] != (3, 11):
        missing("Python 3.11 (which the image's packages are locked for)", "make test with it")
    folder = tmp_path_factory.mktemp("image")
    packages = _downloaded(pytestconfig, folder)
    (folder / "wheels").mkdir()
    shutil.copy(built_wheel, folder / "wheels")
    shutil.copy(LOCKED, folder / "constraints.txt")
    base = f"{sys.base_prefix}/bin/python3.11"
    subprocess.run([base, "-m", "venv", str(folder / "local")], check=True, timeout=100)
    tools = folder / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    path = f"{folder}/local/bin:{tools}"
    assert {shutil.which(compiler, path=path) for compiler in ("cc", "gcc", "clang", "make")} == {
        None
    }
    script = last_steps().replace("/tmp/", f"{folder}/").replace("/usr/local", f"{folder}/local")
    offline = (shutil.which("unshare") or "unshare", "--net") if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*offline, str(tools / "sh"), "-ec", script],
        env={
            "PATH": path,
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(packages),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return folder / "local"
