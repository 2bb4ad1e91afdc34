"""The page of the agent's options, made from what the agent itself says of them.

``python -m tests.docs.configuration`` writes it (``make docs``); a test compares it.
"""

import re

import click

from agent.commands.services import agent
from agent.config import ENVIRONMENT
from tests.docs.pages import PROJECT

PAGE = PROJECT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration of the agent

For whoever sets podlift up. Made by `make docs` from what `podlift agent --help` says: change it there.

An option can be given in the DaemonSet's `args`, or by the environment; `args` win. Durations are seconds,
sizes MiB. What is wrong ends the agent at once, with a message that names the option. What belongs to a
location stands in the BackupStorageLocation (locations.md), what belongs to a volume in
annotations (annotations.md).

| option | variable | default | what it does |
|---|---|---|---|
"""

_BRACKETS = re.compile(r" ?\[([^\]]*)\]$")


def render() -> str:
    """Return the page."""
    return INTRODUCTION + "".join(
        _row(option) for option in agent.params if isinstance(option, click.Option)
    )


def _row(option: click.Option) -> str:
    text = " ".join((option.help or "").split())
    told = _BRACKETS.search(text)
    pieces = [piece.strip() for piece in told[1].split(";")] if told else []
    defaults = [piece for piece in pieces if not re.fullmatch(r"[A-Z_]+", piece)]
    assert option.name is not None
    variable = ENVIRONMENT[option.name]
    default = f"`{defaults[0]}`" if defaults else ""
    said = _BRACKETS.sub("", text).replace("|", "\\|")
    return f"| `{option.opts[0]}` | `{variable}` | {default} | {said} |\n"


if __name__ == "__main__":
    PAGE.write_text(render())
