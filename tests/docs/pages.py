"""The pages that people read, and the commands in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
PAGES = sorted([PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")])

FIRST_WORDS = ("export", "podlift", "restic", "kubectl", "make", "velero", "helm")
"""What an indented block of commands begins with; all others show output."""

_VARIABLE = re.compile(r"^[A-Z_]+=\S+ +")


class Command(NamedTuple):
    """One line of a block of commands, and where it stands."""

    page: str
    line: int
    text: str

    @property
    def word(self) -> str:
        """Return the program that it runs, whatever is set for it."""
        return _VARIABLE.sub("", self.text).split()[0]


def commands(page: Path) -> list[Command]:
    """Return every command of a page, in order."""
    return [command for block in _blocks(page) for command in block]


def _blocks(page: Path) -> Iterator[list[Command]]:
    block: list[Command] = []
    for number, line in enumerate([*page.read_text().splitlines(), ""], 1):
        if line.startswith("    ") and (block or line[4] != " "):
            block.append(Command(page.name, number, line.strip()))
        elif block:
            if block[0].word in FIRST_WORDS:
                yield block
            block = []
