"""restore: what brings something back out of a repository."""

from pathlib import Path

import click

from agent.access import Access, no_lock_option, repository_options, stoppable
from agent.commands.exits import DONE, PARTIAL
from agent.monitor import Monitor
from agent.terminal import problem_lines, progress, size_text
from agent.transfer.restore import restore as restore_tree
from agent.volume.descriptors import raise_descriptor_limit


@click.command()
@click.argument("snapshot")
@repository_options
@click.option(
    "--target",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to restore into; made if missing. What else is in there stays.",
)
@no_lock_option
def restore(access: Access, snapshot: str, target: Path, no_lock: bool) -> int:
    """Restore SNAPSHOT (an id, the beginning of one, or `latest`) into a directory.

    Owners, devices and other people's attributes need root. Entries that cannot be restored in
    full are named, and the exit code is 3.
    """
    raise_descriptor_limit()
    monitor = Monitor()
    with stoppable() as cancel, access.reading(cancel, no_lock=no_lock) as repository:
        wanted = repository.snapshot(snapshot, cancel)
        with progress(monitor, "restore"):
            restore_tree(repository.reading(cancel), wanted.tree, target, monitor, cancel)
    now = monitor.counters
    problem_lines(monitor.problems, now.problems)
    click.echo(
        f"restored {now.files} files, {size_text(now.bytes_done)} of snapshot {wanted.id[:8]}"
        f" to {target}" + (f"; {now.problems} entries are not complete" if now.problems else "")
    )
    return PARTIAL if now.problems else DONE
