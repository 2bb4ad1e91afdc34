"""snapshots, ls, diff and stats: what is in a repository."""

import dataclasses
import json
import os
from typing import Any

import click

from agent.access import (
    Access,
    json_option,
    no_lock_option,
    repository_options,
    stoppable,
)
from agent.commands.exits import DONE
from agent.commands.facts import difference_facts, entry_facts, path_facts, snapshot_facts
from agent.commands.tables import difference_lines, entry_line, snapshot_table, stats_lines
from agent.repository.choice import Choice
from agent.repository.difference import Difference
from agent.repository.paths import find, walk
from agent.repository.stats import measure
from agent.terminal import name_text


@click.command()
@repository_options
@click.option("--host", "hosts", multiple=True, help="Only snapshots of this host; repeatable.")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG[,TAG…]",
    help="Only snapshots with all of these tags; repeated, any of them will do.",
)
@click.option("--path", "paths", multiple=True, help="Only snapshots of this path; repeatable.")
@click.option(
    "--latest",
    "newest",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the newest N of each host and paths.",
)
@json_option
def snapshots(access: Access, as_json: bool, **filters: Any) -> int:
    """List the snapshots, oldest first; --json gives the fields that restic gives.

    \b
    podlift snapshots --repo /srv/repository --tag ns=shop,pvc=db --latest 1
    """
    with stoppable() as cancel, access.repository(cancel) as repository:
        found = Choice(**filters).of(repository.snapshots(cancel))
    if as_json:
        click.echo(json.dumps([snapshot_facts(snapshot) for snapshot in found]))
    else:
        snapshot_table(found)
    return DONE


@click.command()
@click.argument("snapshot")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@repository_options
@click.option("-l", "--long", "long", is_flag=True, help="Show mode, owner, size and time.")
@click.option(
    "--recursive/--no-recursive",
    default=None,
    help="Go into directories. [only if no PATH is given]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def ls(
    access: Access,
    snapshot: str,
    paths: tuple[str, ...],
    recursive: bool | None,
    **form: bool,
) -> int:
    """List what SNAPSHOT (an id, the beginning of one, or `latest`) holds.

    Without PATH everything; with PATHs what is in them, and with --recursive all that is below.
    A name that is not UTF-8 is shown with escapes; in JSON its bytes are in `path_base64`.

    \b
    podlift ls latest /var/lib --long --repo /srv/repository
    """
    deep = not paths if recursive is None else recursive
    with stoppable() as cancel, access.repository(cancel) as repository:
        tree = repository.snapshot(snapshot, cancel).tree
        load_tree = repository.reading(cancel).load_tree
        places = [find(load_tree, tree, os.fsencode(path)) for path in paths or ("/",)]
        for place in places:
            for path, entry in walk(load_tree, place, recursive=deep, cancel=cancel):
                if form["as_json"]:
                    click.echo(json.dumps(entry_facts(path, entry)))
                else:
                    click.echo(entry_line(path, entry) if form["long"] else name_text(path))
    return DONE


@click.command()
@click.argument("before")
@click.argument("after")
@repository_options
@click.option("--metadata", is_flag=True, help="Also what changed in mode, owner, time or such.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@no_lock_option
def diff(
    access: Access, before: str, after: str, metadata: bool, as_json: bool, no_lock: bool
) -> int:
    """Show what changed from the snapshot BEFORE to the snapshot AFTER.

    \b
    +  added     M  content (or target) changed     U  only metadata changed (--metadata)
    -  removed   T  became another kind of entry

    The bytes of the summary are file content before deduplication. Directories that are the same
    in both are not read.

    \b
    podlift diff 4ba7 latest --repo /srv/repository
    """
    with stoppable() as cancel, access.reading(cancel, no_lock=no_lock) as repository:
        one, two = repository.snapshot(before, cancel), repository.snapshot(after, cancel)
        reader = repository.reading(cancel)
        found = Difference(reader.load_tree, reader.chunk_size, cancel)
        for mark, path in found.walk(one.tree, two.tree, metadata=metadata):
            if as_json:
                change = {"message_type": "change", **path_facts(path), "modifier": mark.value}
                click.echo(json.dumps(change))
            else:
                click.echo(f"{mark.value}    {name_text(path)}")
    if as_json:
        click.echo(json.dumps(difference_facts(found, one, two)))
    else:
        difference_lines(found)
    return DONE


@click.command()
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT]...")
@repository_options
@json_option
@no_lock_option
def stats(access: Access, snapshots: tuple[str, ...], as_json: bool, no_lock: bool) -> int:
    """Measure SNAPSHOTs (all if none is named): what they restore to, and what they take.

    Restore size counts each snapshot in full, a file with several names once. Unique content is
    what is left of it when equal chunks are counted once; raw data is what their blobs take in
    the repository, compressed, with the directories.

    \b
    podlift stats latest --repo /srv/repository
    """
    with stoppable() as cancel, access.reading(cancel, no_lock=no_lock) as repository:
        if snapshots:
            named = [repository.snapshot(wanted, cancel) for wanted in snapshots]
            chosen = list({snapshot.id: snapshot for snapshot in named}.values())
        else:
            chosen = repository.snapshots(cancel)
        found = measure(repository, chosen, cancel)
    if as_json:
        ratios = {
            "compression_ratio": found.compression_ratio,
            "dedup_ratio": found.dedup_ratio,
        }
        click.echo(json.dumps({**dataclasses.asdict(found), **ratios}))
    else:
        stats_lines(found)
    return DONE
