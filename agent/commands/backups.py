"""init and backup: what puts something into a repository."""

import json
import os
import socket
from pathlib import Path
from typing import Any, get_args

import click

from agent.access import (
    Access,
    json_option,
    limit_read_option,
    lock_wait_option,
    repository_options,
    stoppable,
    tag_pairs,
)
from agent.cancel import CancelToken
from agent.commands.exits import DONE, PARTIAL
from agent.config import Compression, VerifyStored
from agent.monitor import Monitor
from agent.repository.opening import create_repository
from agent.repository.repository import Repository
from agent.terminal import problem_lines, progress, size_text
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import ChooseParent, by_paths
from agent.volume.descriptors import raise_descriptor_limit


@click.command()
@repository_options
def init(access: Access) -> int:
    """Make a new, empty repository (restic format 2)."""
    password = access.password()
    with stoppable() as cancel, access.storage(create=True) as storage:
        create_repository(storage, password, cancel=cancel)
        click.echo(f"made a repository at {storage.place}; keep its password, nothing replaces it")
    return DONE


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@repository_options
@click.option(
    "--tag", "tags", multiple=True, metavar="K=V", help="Tag of the snapshot; repeatable."
)
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="GLOB",
    help="Leave out what matches; repeatable. Matches at any depth, or from PATH if it begins with"
    " /; a last / means directories only; ** crosses directories.",
)
@click.option(
    "--host", default=socket.gethostname, help="Host name of the snapshot. [this machine's]"
)
@click.option(
    "--parent",
    default="auto",
    metavar="auto|none|ID",
    help="Earlier snapshot whose unchanged files need not be read. [auto: the newest of this host"
    " and PATH]",
)
@click.option(
    "--compression",
    type=click.Choice(get_args(Compression)),
    default="default",
    help="How much time compressing may take: better is three times as slow. [default]",
)
@click.option(
    "--verify-stored",
    type=click.Choice(get_args(VerifyStored)),
    default="sample",
    help="Which of the stored packs are read back and compared before anything relies on them: all"
    " doubles the traffic, a sample is one of 16. [sample]",
)
@limit_read_option
@lock_wait_option
@json_option
def backup(access: Access, path: Path, as_json: bool, **options: Any) -> int:
    """Back up the content of the directory PATH.

    The snapshot's root is PATH's content, as `restic backup .` in PATH makes it. Files that
    cannot be read are named and left out, and the exit code is 3. With --json, one object on
    stdout tells the result.

    \b
    podlift backup /srv/data --repo s3:https://s3.example.com/bucket/prefix --exclude '*.tmp'
    """
    raise_descriptor_limit()
    tags = tag_pairs(options["tags"])
    monitor = Monitor()
    with stoppable() as cancel, access.repository(cancel) as repository:
        host, reported = options["host"], os.fsencode(path.absolute()).decode("utf-8", "replace")
        request = Request(
            path=str(path),
            reported_paths=(reported,),
            host=host,
            tags=tags,
            choose_parent=_parent_choice(repository, options["parent"], (host, reported), cancel),
            excludes=options["excludes"],
            lock_wait_seconds=options["lock_wait_seconds"],
            compression=options["compression"],
            verify_stored=options["verify_stored"],
            budgets=access.budgets,
        )
        with progress(monitor, "backup", quiet=as_json):
            result = run_backup(repository, request, monitor, cancel)
    problem_lines(monitor.problems, result.counters.problems)
    click.echo(_json(result) if as_json else _line(result))
    return PARTIAL if result.counters.problems else DONE


def _parent_choice(
    repository: Repository, wanted: str, origin: tuple[str, str], cancel: CancelToken
) -> ChooseParent:
    """Return how the parent is found; ``origin`` is the host and the path of the new snapshot."""
    if wanted == "none":
        return lambda snapshots, now_ns: None
    if wanted == "auto":
        host, path = origin
        return lambda snapshots, now_ns: by_paths(snapshots, host, [path], now_ns)
    chosen = repository.snapshot(wanted, cancel)
    return lambda snapshots, now_ns: chosen


def _json(result: Result) -> str:
    """Return a backup's result for scripts, as one line of JSON."""
    now = result.counters
    report = {
        "snapshot_id": result.snapshot_id,
        "files": now.files,
        "bytes": now.bytes_done,
        "data_added": now.bytes_added,
        "data_added_packed": now.bytes_stored,
        "data_read_back": now.bytes_read_back,
        "errors": now.problems,
        "seconds": round(result.seconds, 3),
    }
    return json.dumps(report)


def _line(result: Result) -> str:
    """Return a backup's result for people."""
    now = result.counters
    return (
        f"snapshot {result.snapshot_id[:8]}: {now.files} files, {size_text(now.bytes_done)};"
        f" added {size_text(now.bytes_added)}, stored as {size_text(now.bytes_stored)},"
        f" in {result.seconds:.1f} s"
        + (f"; {now.problems} entries were left out" if now.problems else "")
    )
