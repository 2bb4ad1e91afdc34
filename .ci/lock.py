"""Pin every dependency, with hashes: ``make lock`` writes the three constraints files.

One set of versions goes everywhere. ``constraints.txt`` is what ``make test`` and CI install;
``constraints-image.txt`` is its runtime part, for the container image; ``constraints-build.txt``
is its build part, for the image's first stage. All are for Python 3.11, and no file names an
index: pip asks the one that the machine is set up for.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(".ci")
COMPILE = [
    "--quiet",
    "--generate-hashes",
    "--allow-unsafe",  # setuptools: it builds the kernel, so it is pinned as well
    "--no-strip-extras",  # pip holds a pin without its extra to be another requirement
    "--no-config",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-emit-trusted-host",
    "--no-emit-options",
]


def declared(root: Path = ROOT) -> dict[str, list[str]]:
    """Return what pyproject.toml asks for, by part: runtime, build, and each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    own = f"{project['project']['name']}["
    return {
        "runtime": project["project"]["dependencies"],
        "build": project["build-system"]["requires"],
        **{
            extra: [line for line in lines if not line.startswith(own)]
            for extra, lines in extras.items()
        },
    }


def compile_into(target: Path, sources: dict[str, list[str]], scratch: Path, upgrade: bool) -> None:
    """Resolve ``sources`` into ``target``; what is pinned already stays unless ``upgrade``."""
    names = []
    for part, lines in sources.items():
        (scratch / f"{part}.in").write_text("\n".join(lines) + "\n")
        names.append(f"{part}.in")
    output = scratch / target.name
    if target.exists() and not upgrade:
        output.write_text(target.read_text())
    pip_compile = str(Path(sys.executable).with_name("pip-compile"))
    done = subprocess.run(  # noqa: S603 - our own tool, our own arguments
        [pip_compile, *COMPILE, "--output-file", target.name, *names],
        cwd=scratch,
        check=False,
        env={**os.environ, "CUSTOM_COMPILE_COMMAND": "make lock"},  # noqa: TID251 - passed on
    )
    if done.returncode != 0:
        hint = "" if upgrade else "; if old pins are in the way: make lock ARGS=--upgrade"
        sys.exit(f"{target.name} was left as it was: pip-compile found no set of versions{hint}")
    target.write_text(output.read_text())


def main() -> None:
    """Write the three files; ``--upgrade`` takes the newest versions that pyproject.toml allows."""
    if sys.version_info[:2] != (3, 11):
        sys.exit("the constraints are for Python 3.11: make lock PYTHON=python3.11")
    upgrade = "--upgrade" in sys.argv[1:]
    parts = declared()
    with tempfile.TemporaryDirectory(prefix="podlift-lock-") as folder:
        scratch = Path(folder)
        everything = ROOT / HERE / "constraints.txt"
        compile_into(everything, parts, scratch, upgrade)
        pinned = ["-c constraints.txt"]
        for target, part in (
            ("constraints-image.txt", "runtime"),
            ("constraints-build.txt", "build"),
        ):
            compile_into(ROOT / HERE / target, {part: parts[part] + pinned}, scratch, upgrade)
    print("wrote .ci/constraints*.txt: review the diff, then run make test")  # noqa: T201


if __name__ == "__main__":
    main()
