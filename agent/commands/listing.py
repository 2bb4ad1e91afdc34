"""snapshots and ls: what is in a repository."""

import json

import click

from agent.access import Access, json_option, repository_options, stoppable
from agent.commands.exits import DONE
from agent.entry import Kind
from agent.terminal import entry_line, name_text, snapshot_facts, snapshot_table


@click.command()
@repository_options
@json_option
def snapshots(access: Access, as_json: bool) -> int:
    """List the snapshots, oldest first; --json gives the fields that restic gives."""
    with stoppable() as cancel, access.repository(cancel) as repository:
        found = repository.snapshots(cancel)
    if as_json:
        click.echo(json.dumps([snapshot_facts(snapshot) for snapshot in found]))
    else:
        snapshot_table(found)
    return DONE


@click.command()
@click.argument("snapshot")
@repository_options
@click.option("-l", "--long", "long", is_flag=True, help="Show mode, owner, size and time.")
def ls(access: Access, snapshot: str, long: bool) -> int:
    """List the files of SNAPSHOT (an id, the beginning of one, or `latest`)."""
    with stoppable() as cancel, access.repository(cancel) as repository:
        wanted = repository.snapshot(snapshot, cancel)
        reader = repository.reading(cancel)
        stack = [(b"", wanted.tree)]
        while stack:
            path, tree = stack.pop()
            cancel.check()
            below = []
            for entry in reader.load_tree(tree):
                name = path + b"/" + entry.name
                click.echo(entry_line(name, entry) if long else name_text(name))
                if entry.kind is Kind.DIRECTORY and entry.subtree is not None:
                    below.append((name, entry.subtree))
            stack += reversed(below)
    return DONE
