"""The pictures of a terminal in docs/, drawn from real runs: of ``make demo``, and of ``podlift status`` beside it.

``python -m tests.docs.picture`` runs the demo and writes what it says as docs/demo.svg; then it runs a larger
one, looks at its cluster while its agent is at work, and writes what a terminal would show as docs/status.svg.
"""

import fcntl
import html
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.docs.pages import PROJECT

STATUS, DEMO = PROJECT / "docs" / "status.svg", PROJECT / "docs" / "demo.svg"
COLUMNS, LINES = 132, 12
TEXT = re.compile(r"<text[^>]*>(.*?)</text>")
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
PODLIFT = [sys.executable, "-m", "agent"]


def on_a_terminal(command: list[str]) -> str:
    """Run a command as if on a terminal, and return what it draws, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT, env=environment
    ) as process:
        os.close(theirs)
        text = b"".join(_pieces(ours))
        os.close(ours)
    return text.decode().replace("\r\n", "\n") if process.returncode == 0 else ""


def _pieces(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            return
        if not piece:
            return
        yield piece


def best_look(demo: "subprocess.Popen[bytes]", folder: Path) -> str:
    """Look at the demo's cluster until it ends; return the look that shows one ended and one at work."""
    best = ""
    while demo.poll() is None:
        for kubeconfig in folder.glob("*/apiserver/kubeconfig"):
            seen = on_a_terminal([*PODLIFT, "status", "--kubeconfig", str(kubeconfig)])
            if "InProgress" in seen and seen.count("Completed") >= best.count("Completed"):
                best = seen
    return best


def draw(picture: Path, command: str, text: str) -> None:
    """Write what a command has said as a picture that is as wide as its longest line."""
    shown = Text.from_ansi(f"$ {command}\n{text.rstrip()}")
    shown.highlight_regex("Verdict: GOOD|0 differences|Completed", "bold green")
    width = max(line.cell_len for line in shown.split())
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True)
        console.print(shown)
        drawn = console.export_svg(title=command, unique_id=picture.stem)
    drawn = drawn.replace("<svg ", '<svg xml:space="preserve" ', 1)  # or some drop what is indented
    picture.write_text(FONTS.sub("", drawn))  # the reader's own will do: nothing is fetched


def words_of(picture: Path) -> str:
    """Return what a picture shows, a piece of a line each line."""
    return html.unescape("\n".join(TEXT.findall(picture.read_text()))).replace("\xa0", " ")


def demo() -> str:
    """Run the demo as it is by itself, and return what it says."""
    bare = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    command = [*PODLIFT, "demo"]
    return subprocess.run(command, env=bare, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    draw(DEMO, "make demo", demo())
    with tempfile.TemporaryDirectory() as made:
        place = os.environ | {"TMPDIR": made}
        arguments = ["demo", "--megabytes", "1500"]
        with subprocess.Popen(
            [*PODLIFT, *arguments], env=place, stdout=subprocess.DEVNULL
        ) as running:
            found = best_look(running, Path(made))
    draw(STATUS, "podlift status", found)
