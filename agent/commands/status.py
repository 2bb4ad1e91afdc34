"""status: what is backed up and restored in the cluster now, for whoever waits for it."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.access import cluster_options, duration, json_option, stoppable
from agent.commands.exits import DONE
from agent.config import cluster_settings

if TYPE_CHECKING:
    from agent.cluster.order import Order
    from agent.cluster.transfer import Transfer

EVERY_SECONDS = 1.0
"""Between two frames, or two looks for changes."""


@click.command()
@click.option("--node", default="", help="Only what the agent of this node works on.")
@click.option(
    "--since",
    "since_seconds",
    callback=duration,
    default="1h",
    metavar="TIME",
    help="Show also what ended within this time. [1h]",
)
@click.option(
    "--watch", "-w", is_flag=True, help="Go on until you end it (Ctrl-C), with the rates of late."
)
@cluster_options
@json_option
def status(**options: Any) -> int:
    """Show the backups and restores of pod volumes: where they are, how fast, how long still.

    Read from Velero's PodVolumeBackups and PodVolumeRestores, so it takes the rights to list and
    watch them, and works from anywhere with a kubeconfig. What runs comes first, then what waits,
    then what has ended. Without --watch a rate is the average since the start.

    On a terminal --watch draws one table; elsewhere it prints a line for each change, and with
    --json a line of JSON.

    \b
    podlift status
    podlift status --node worker-3 --watch
    """
    from agent.cluster import following  # the Kubernetes client costs 35 MiB and 0.3 s
    from agent.commands import statusview

    names = ("namespace", "kubeconfig")
    settings = cluster_settings({name: options[name] for name in names})
    transfers = _selection(options["node"], options["since_seconds"])
    if not options["watch"]:
        found = transfers(following.list_orders(settings))
        (statusview.print_json if options["as_json"] else statusview.print_table)(found)
        return DONE
    with stoppable() as cancel:
        if sys.stdout.isatty() and not options["as_json"]:
            with statusview.Screen() as screen:
                following.follow_orders(
                    settings, lambda orders: screen.show(transfers(orders)), cancel, EVERY_SECONDS
                )
        else:
            changes = statusview.Changes(options["as_json"])
            following.follow_orders(
                settings, lambda orders: changes.show(transfers(orders)), cancel, EVERY_SECONDS
            )
    return DONE


def _selection(node: str, since_seconds: float) -> Callable[[Sequence["Order"]], list["Transfer"]]:
    """Return what makes transfers of those orders that were asked for."""
    from agent.cluster import transfer

    seen = transfer.Transfers()

    def select(orders: Sequence["Order"]) -> list["Transfer"]:
        now = time.time()
        wanted = transfer.recent(transfer.of_node(orders, node), now, since_seconds)
        return seen.seen(wanted, now)

    return select
