"""restore: what brings something back out of a repository."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from agent.access import (
    Access,
    json_option,
    no_lock_option,
    repository_options,
    stoppable,
)
from agent.cancel import CancelToken
from agent.commands.exits import DONE, PARTIAL
from agent.errors import DamagedBlob, UsageError
from agent.monitor import Counters, Monitor
from agent.repository.repository import Reader
from agent.terminal import name_text, problem_lines, progress, size_text
from agent.transfer.restore import RestoreRequest
from agent.transfer.restore import restore as restore_tree
from agent.transfer.selection import Selection
from agent.transfer.survey import preview
from agent.transfer.survey import verify as verify_tree
from agent.volume.descriptors import raise_descriptor_limit

_PATTERN = (
    " repeatable. Matches at any depth, or from the snapshot's root if it begins with /; a last /"
    " means directories only; ** crosses directories."
)


@click.command()
@click.argument("snapshot")
@repository_options
@click.option(
    "--target",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to restore into; made if missing. What else is in there stays.",
)
@click.option(
    "--include",
    "include",
    multiple=True,
    metavar="GLOB",
    help=f"Restore only what matches, with all that is below;{_PATTERN}",
)
@click.option(
    "--exclude", "exclude", multiple=True, metavar="GLOB", help=f"Leave out what matches;{_PATTERN}"
)
@click.option(
    "--delete",
    is_flag=True,
    help="Remove from the target what the snapshot does not have (of what --include and --exclude"
    " let through). Look at it first with --dry-run.",
)
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Write nothing; list what would be made (+), written in part (M) or removed (-).",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Afterwards read every file back and compare it with the snapshot.",
)
@no_lock_option
@json_option
def restore(access: Access, snapshot: str, target: Path, **chosen: Any) -> int:
    """Restore SNAPSHOT (an id, the beginning of one, or `latest`) into a directory.

    Files that are right already are kept and not fetched, so an interrupted restore goes on where
    it was when it is started again; other files of the same names are replaced. Owners, devices
    and other people's attributes need root. Entries that cannot be restored in full are named, and
    the exit code is 3. Where the repository is damaged, everything else is restored first, and the
    exit code is 1.

    \b
    podlift restore latest --repo /srv/backup --target /srv/restored
    podlift restore 4bba301e --repo /srv/backup --target /srv/data --include /etc --delete -n
    """
    raise_descriptor_limit()
    if chosen["dry_run"] and chosen["verify"]:
        raise UsageError("--dry-run restores nothing that --verify could read; give one of them")
    selection = Selection(chosen["include"], chosen["exclude"])
    careful = chosen["delete"] or chosen["dry_run"]
    with (
        stoppable() as cancel,
        access.reading(cancel, no_lock=chosen["no_lock"], begun=not careful) as repository,
    ):
        wanted = repository.snapshot(snapshot, cancel)
        source = repository.reading(cancel)
        request = RestoreRequest(wanted.tree, target, selection, chosen["delete"], access.budgets)
        if chosen["dry_run"]:
            return _preview(source, request, cancel)
        monitor = Monitor()
        done = _restore(source, request, monitor, cancel, quiet=chosen["as_json"])
        if chosen["verify"]:
            _verify(source, request, monitor, cancel, quiet=chosen["as_json"])
    problems = monitor.counters.problems
    problem_lines(monitor.problems, problems)
    if chosen["as_json"]:
        click.echo(_json(wanted.id, done, problems))
    else:
        where = f"snapshot {wanted.id[:8]} to {target}"
        click.echo(_line(where, done, problems, verified=chosen["verify"]))
    return PARTIAL if problems else DONE


def _restore(
    source: Reader, request: RestoreRequest, monitor: Monitor, cancel: CancelToken, *, quiet: bool
) -> Counters:
    try:
        with progress(monitor, "restore", quiet=quiet):
            restore_tree(source, request, monitor, cancel)
    except DamagedBlob:
        problem_lines(monitor.problems, monitor.counters.problems)
        raise
    return monitor.counters


def _verify(
    source: Reader, request: RestoreRequest, monitor: Monitor, cancel: CancelToken, *, quiet: bool
) -> None:
    """Read everything back; what differs becomes a problem of the restore's monitor."""
    second = Monitor()
    with progress(second, "verify", quiet=quiet):
        verify_tree(source, request, second, cancel)
    for problem in second.problems:
        monitor.problem(problem)
    monitor.add(problems=second.counters.problems - len(second.problems))


def _preview(source: Reader, request: RestoreRequest, cancel: CancelToken) -> int:
    counts: Counter[str] = Counter()
    size = 0
    for action in preview(source, request, cancel):
        counts[action.sign] += 1
        size += action.size
        if action.sign != "=":
            click.echo(f"{action.sign} {name_text(action.path)}")
    click.echo(
        f"would make {counts['+']} entries, write {counts['M']} files in part, fetch"
        f" {size_text(size)}, keep {counts['=']} and remove {counts['-']}; nothing was written"
    )
    return DONE


def _line(where: str, done: Counters, problems: int, *, verified: bool) -> str:
    text = f"restored {done.files} files, {size_text(done.bytes_done)} of {where}"
    if done.files_unmodified:
        text += f"; {done.files_unmodified} of them were right already"
    if done.removed:
        text += f"; {done.removed} other entries were removed"
    if problems:
        return f"{text}; {problems} entries are not complete"
    return f"{text}; every file was read back and is right" if verified else text


def _json(snapshot_id: str, done: Counters, problems: int) -> str:
    report = {
        "snapshot_id": snapshot_id,
        "files": done.files,
        "files_kept": done.files_unmodified,
        "bytes": done.bytes_done,
        "bytes_fetched": done.bytes_read,
        "removed": done.removed,
        "errors": problems,
    }
    return json.dumps(report)
