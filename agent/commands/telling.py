"""How a command that runs as a job tells what it does: lines for people, or the log of a cluster.

As JSON, everything that people would read becomes a line of the log as the agent's are: with its level,
and with the location that the job is about. Only what ``--json`` prints stays on stdout.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable

import click

from agent.commands.exits import exit_code
from agent.config import LogFormat, log_format
from agent.errors import PodliftError
from agent.logs import working_on, write_log_as
from agent.terminal import plain_text

LOG = logging.getLogger(__name__)
LOG.setLevel(logging.INFO)  # what a job says is what it was run for, however quiet the rest is

log_format_option = click.option(
    "--log-format",
    help="Lines for people (text), or JSON as the agent's log, all on stderr. [PODLIFT_LOG_FORMAT;"
    " text]",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Voice:
    """Says things in one of the two forms."""

    form: LogFormat = "text"

    def say(self, text: str, level: int = logging.INFO, *, aside: bool = False) -> None:
        """Say one line; what is said ``aside`` does not stand in the way of a result on stdout."""
        if self.form == "json":
            LOG.log(level, "%s", text.strip())
        else:
            click.echo(plain_text(text), err=aside)

    @property
    def beside(self) -> Callable[[str], None] | None:
        """Return what progress is said by, or None where people watch it."""
        return self.say if self.form == "json" else None


def told(given: str | None, location: str | None, run: Callable[[Voice], int]) -> int:
    """Run a command with its voice, and return its exit code; its last words are in the same form."""
    voice = Voice(log_format(given))
    if voice.form == "text":
        return run(voice)
    write_log_as(voice.form)
    with contextlib.ExitStack() as scope:
        if location:
            scope.enter_context(working_on("BackupStorageLocation", location))
        try:
            return run(voice)
        except PodliftError as error:
            LOG.critical("%s", error)
            return exit_code(error)
