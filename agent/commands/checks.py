"""check: whether a repository is what it says."""

import click

from agent.access import Access, no_lock_option, repository_options, stoppable
from agent.commands.exits import DONE, FAILED
from agent.repository.check import check as check_repository
from agent.terminal import plain_text


@click.command()
@repository_options
@click.option("--read-data", is_flag=True, help="Also read and verify every byte of every pack.")
@no_lock_option
def check(access: Access, read_data: bool, no_lock: bool) -> int:
    """Verify that everything the snapshots need is there and intact.

    Prints a line for each finding. Damage ends with exit code 1; hints cost nothing but space.
    """
    damage = hints = 0
    with stoppable() as cancel, access.reading(cancel, no_lock=no_lock) as repository:
        for finding in check_repository(repository, read_data=read_data, cancel=cancel):
            damage += finding.damage
            hints += not finding.damage
            click.echo(plain_text(f"{'damage' if finding.damage else 'hint'}: {finding.message}"))
        place = repository.place
    scope = "structure and every byte" if read_data else "structure (--read-data reads it all)"
    if damage:
        click.echo(f"{place} is DAMAGED: {damage} findings; checked: {scope}")
        return FAILED
    click.echo(f"{place} is in order; checked: {scope}" + (f"; {hints} hints" if hints else ""))
    return DONE
