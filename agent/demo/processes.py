"""The demo's own processes: started in a folder, waited for, and always ended."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agent.errors import PodliftError

START_SECONDS = 60.0
END_SECONDS = 30.0


class DemoError(PodliftError):
    """A part of the demo did not start or did not do what it should."""


@contextlib.contextmanager
def running(
    name: str, arguments: list[str], folder: Path, environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python arguments`` with its output in ``folder/name.log`` for the length of a scope."""
    with (folder / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *arguments],  # a log in the order in which it was said
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it end; a second Ctrl-C shortens the wait, not the end."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()


def wait_until(
    ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    """Wait for a part to be ready; raise ``DemoError`` with the end of its log if it is not."""
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise DemoError(f"{what} did not start; its log says: {last_line(log)}")
        time.sleep(0.05)


def last_line(log: Path) -> str:
    """Return the end of a log that says most: its last line that is not empty."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "nothing"


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Tell whether something accepts connections on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
