"""repair: what can be saved of a damaged repository."""

from collections.abc import Sequence
from typing import Any

import click

from agent.access import Access, alone, dry_run_option, lock_wait_option, repository_options
from agent.commands.exits import DONE
from agent.errors import UsageError
from agent.monitor import Monitor
from agent.repository.repair import (
    damaged_packs,
    find_packs,
    plan_index_repair,
    plan_pack_repair,
    run_index_repair,
    run_pack_repair,
)
from agent.terminal import progress


@click.group()
def repair() -> None:
    """Mend a damaged repository: its index, then its packs.

    `podlift check` says what is damaged. Restore what you can first, and keep a copy of the
    repository if there is room for one.
    """


@repair.command()
@repository_options
@dry_run_option
@lock_wait_option
def index(access: Access, **options: Any) -> int:
    """Make the index say what the packs hold.

    Names packs again that no index names, reads the header of those that are described wrongly,
    and names no more what is missing, so that the next backup stores it again.

    \b
    podlift repair index --repo REPO --dry-run
    """
    with alone(access, options["lock_wait_seconds"]) as (repository, lock, cancel):
        plan = plan_index_repair(repository, cancel)
        for name in plan.damaged_files:
            click.echo(f"index file {name} is damaged and goes")
        for pack, blobs in plan.found:
            click.echo(f"pack {pack.hex()} is named anew, with {len(blobs)} blobs")
        for pack in plan.missing:
            click.echo(f"pack {pack.hex()} is missing and named no more")
        for pack in plan.unreadable:
            click.echo(f"pack {pack.hex()} has no readable header: podlift repair packs saves it")
        if not options["dry_run"]:
            run_index_repair(repository, lock, plan, cancel)
        verb = "needs repair" if options["dry_run"] else "was repaired"
        click.echo(f"the index of {repository.place} {verb if plan.needed else 'is in order'}")
    return DONE


@repair.command()
@click.argument("packs", nargs=-1, metavar="[PACK]…")
@repository_options
@click.option("--all", "every", is_flag=True, help="Read all packs, and repair the damaged ones.")
@dry_run_option
@lock_wait_option
def packs(access: Access, packs: Sequence[str], *, every: bool, **options: Any) -> int:
    """Save what is intact in damaged packs, and remove them.

    PACK is the id of a pack, or the beginning of one; `podlift check --read-data` names those
    that are damaged. What is lost is counted; `podlift check` then names the files that need it,
    and a new backup stores again what still exists.

    \b
    podlift repair packs --repo REPO 89254b89
    podlift repair packs --repo REPO --all --dry-run
    """
    if bool(packs) is every:
        raise UsageError("name packs, or say --all to find the damaged ones")
    monitor = Monitor()
    with alone(access, options["lock_wait_seconds"]) as (repository, lock, cancel):
        with progress(monitor, "repair"):
            found = (
                list(damaged_packs(repository, monitor, cancel))
                if every
                else find_packs(repository, packs, cancel)
            )
            salvages = plan_pack_repair(repository, found, cancel)
        for salvage in salvages:
            saved, lost = len(salvage.intact), len(salvage.lost)
            click.echo(f"pack {salvage.pack.hex()}: {saved} blobs are intact, {lost} are not")
        if salvages and not options["dry_run"]:
            run_pack_repair(repository, lock, salvages, Monitor(), cancel)
        verb = "would be replaced" if options["dry_run"] else "replaced"
        click.echo(f"{len(salvages)} packs {verb}")
    return DONE
