"""The real restic binaries that judge our repositories.

Every ``restic`` on the PATH judges, and every one named in ``PODLIFT_RESTIC_BINARIES`` (paths
joined by ``:``); ``.ci/run`` names Debian's and the newest that the registries give.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.requirements import missing

HOW = "apt-get install restic, or name binaries in PODLIFT_RESTIC_BINARIES"


class Restic:
    """One restic binary, called with an environment of its own."""

    def __init__(self, binary: str, home: Path) -> None:
        self.binary = binary
        self.home = home

    @property
    def version(self) -> str:
        out = subprocess.run([self.binary, "version"], capture_output=True, text=True, check=True)
        return out.stdout.split()[1]

    def run(
        self,
        repo: str,
        *args: str,
        password: str = "secret",
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        full = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "RESTIC_REPOSITORY": repo,
            "RESTIC_PASSWORD": password,
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
            **({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}),
            **(env or {}),
        }
        done = subprocess.run(
            [self.binary, *args], capture_output=True, text=True, cwd=cwd, env=full, timeout=110
        )
        if check and done.returncode != 0:
            pytest.fail(
                f"restic {' '.join(args)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done


def binaries() -> list[str]:
    named = [b for b in os.environ.get("PODLIFT_RESTIC_BINARIES", "").split(":") if b]
    found = shutil.which("restic")
    return list(dict.fromkeys([*([found] if found else []), *named]))


def judges(home: Path) -> list[Restic]:
    """Return every binary that is here, each with a home below ``home`` to keep its cache in."""
    found = binaries()
    if not found:
        missing("the restic binary (it judges our repositories)", HOW)
    homes = [home / str(number) for number in range(len(found))]
    for each in homes:
        each.mkdir(parents=True)
    return [Restic(binary, each) for binary, each in zip(found, homes, strict=True)]


@pytest.fixture
def restics(tmp_path: Path) -> list[Restic]:
    """Return every restic binary that is here, to judge one after the other what is made once."""
    return judges(tmp_path / "restic-homes")


@pytest.fixture(params=binaries() or [None], ids=lambda b: Path(b).name if b else "none")
def restic(request: pytest.FixtureRequest, tmp_path: Path) -> Restic:
    """Yield each restic binary that is here."""
    if request.param is None:
        missing("the restic binary (it judges our repositories)", HOW)
    home = tmp_path / "restic-home"
    home.mkdir()
    return Restic(request.param, home)
