"""Run pytest and say in plain words what its result means.

``verdict.py [pytest's arguments]`` runs the whole suite with its coverage floor on all cores if
there are no arguments, and what they name in one process otherwise. After pytest's own report it lists every part that was
left out, one line each with how to get it, and ends with one verdict. The exit status is
pytest's, except that with ``PODLIFT_REQUIRE_ALL=1`` a skipped test fails the run, however it
came to be skipped.
"""

import collections
import contextlib
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

FLOOR = ["--cov", "--cov-report=term"]
WORKERS = 2 * len(os.sched_getaffinity(0))  # agents and servers wait for half of their time
PARALLEL = [f"--numprocesses={WORKERS}", "--dist=worksteal"]
"""Each worker gets a run of neighbours, so that few start a server or a fixture twice; one that has
finished takes over half of what another has left."""
MEANINGS = {
    2: "the run was interrupted",
    3: "pytest itself failed",
    4: "pytest was called wrongly",
    5: "no test was found",
}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder of this run's own, and remove it with whatever is in it.

    In the shared one pytest removes what earlier runs left, and fails where that is nested deeper
    than Python recurses, as hostile volumes are. Others may pass through it: some of what tests
    start runs as another user.
    """
    folder = Path(tempfile.mkdtemp(prefix="podlift-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", folder], check=False)  # noqa: S603, S607 - our own folder


def read(report: Path) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Return how many tests passed, failed and were skipped, and the reasons of the skips."""
    outcomes: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it just now
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes["failed"] += 1
        elif skipped is None or skipped.get("type") == "pytest.xfail":
            outcomes["passed"] += 1
        else:
            outcomes["skipped"] += 1
            reasons[skipped.get("message", "no reason given")] += 1
    return outcomes, reasons


def verdict(status: int, outcomes: collections.Counter[str], require_all: bool) -> tuple[int, str]:
    """Return the exit status and the last line."""
    passed, failed, skipped = (outcomes[key] for key in ("passed", "failed", "skipped"))
    if failed:
        return status or 1, f"NOT GOOD: {failed} tests failed, {passed} passed (see above)."
    if status == 1:
        why = "the coverage is below its floor, or pytest itself failed"
        return 1, f"NOT GOOD: {passed} tests passed, but {why} (see above)."
    if status:
        return status, f"NOT GOOD: {MEANINGS.get(status, f'pytest ended with {status}')}."
    if skipped and require_all:
        return 1, f"NOT GOOD: {skipped} tests were left out, and here nothing may be."
    if skipped:
        return 0, f"GOOD, as far as this machine can tell: {passed} passed, {skipped} left out."
    return 0, f"GOOD: all {passed} tests passed and none was left out."


def main() -> int:
    """Run pytest, then print what was left out and the verdict."""
    arguments = sys.argv[1:]
    with scratch() as folder:
        report = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", "-rfE", f"--junitxml={report}"]
        environment = os.environ | {"TMPDIR": str(folder)}  # noqa: TID251 - outside the agent
        status = subprocess.run(  # noqa: S603 - pytest, with the developer's own arguments
            [*command, *(arguments or FLOOR + PARALLEL)], check=False, env=environment
        ).returncode
        outcomes, reasons = read(report) if report.exists() else (collections.Counter(),) * 2
    for reason, count in sorted(reasons.items()):
        print(f"- {reason} ({count} tests)")  # noqa: T201 - printing is what this script is for
    require_all = os.environ.get("PODLIFT_REQUIRE_ALL") == "1"  # noqa: TID251 - outside the agent
    status, line = verdict(status, outcomes, require_all)
    print(f"\nVerdict: {line}", flush=True)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
