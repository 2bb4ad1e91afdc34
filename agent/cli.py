"""The command line: the list of commands, and how each of them ends.

Every command ends in one of these, and scripts may rely on it: 0 done, 1 failed, 2 usage, 3 done
but some files could not be read, 10 no repository, 11 locked, 12 wrong password, 130 interrupted.
"""

import difflib
import importlib
import logging
import signal
import sys
from collections.abc import Sequence

import click

from agent import __version__
from agent.allocator import collect_rarely, limit_arenas
from agent.commands.exits import FAILED, INTERRUPTED, exit_code
from agent.errors import PodliftError
from agent.terminal import (
    drop_output,
    escape_missing_letters,
    is_output_error,
    plain_text,
    say_more,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # restic unlock sends it to the holder of a lock
    limit_arenas()
    collect_rarely()
    escape_missing_letters()
    try:
        code = int(podlift.main(args=arguments, prog_name="podlift", standalone_mode=False) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PodliftError as error:
        click.echo(f"podlift: {plain_text(str(error))}", err=True)
        return exit_code(error)
    except BrokenPipeError:
        drop_output()
        return FAILED
    except OSError as error:
        if not is_output_error(error):
            raise
        drop_output()
        click.echo(f"podlift: the output cannot be written: {error.strerror or error}", err=True)
        return FAILED


COMMANDS = {
    "agent": "services",
    "backup": "backups",
    "check": "checks",
    "demo": "services",
    "diff": "listing",
    "dump": "dumps",
    "forget": "retention",
    "gc": "garbage",
    "init": "backups",
    "ls": "listing",
    "prune": "retention",
    "repair": "repairs",
    "restore": "restores",
    "snapshots": "listing",
    "stats": "listing",
    "status": "status",
    "unlock": "retention",
}
"""Each command, and the module of ``agent.commands`` that has it."""


_WHOLE = 1000
"""Characters of a command's first sentence: all of them, since the list wraps it."""


class Commands(click.Group):
    """A group that imports a command when it is asked for: start-up is felt each time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command, or None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"agent.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is meant; of a misspelt one say what it may have been."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], COMMANDS)
            if near:
                ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does, as a whole sentence."""
        rows = [
            (name, command.get_short_help_str(_WHOLE))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def podlift(verbose: bool) -> None:
    """Back up directories and Kubernetes volumes into restic repositories.

    In a cluster, `podlift agent` runs on every node and takes the place of Velero's node-agent.
    By hand, the other commands work on the same repositories. `podlift demo` shows all of it on
    this machine.

    REPO is a directory, or s3:https://HOST[:PORT]/BUCKET[/PREFIX] as restic writes it; S3
    credentials come from the usual AWS variables, files and roles. The password comes from
    --password-file, PODLIFT_PASSWORD or RESTIC_PASSWORD.

    \b
    Exit codes: 0 done, 1 failed, 2 usage, 3 done but some files could not be read,
    10 no repository, 11 locked, 12 wrong password, 130 interrupted.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    say_more(logging.INFO if verbose else logging.WARNING)
