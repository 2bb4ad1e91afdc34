"""forget, prune and unlock: what becomes of old snapshots, of what only they needed, of old locks."""

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from agent.access import (
    Access,
    Alone,
    alone,
    dry_run_option,
    json_option,
    lock_wait_option,
    repository_options,
    stoppable,
)
from agent.cancel import CancelToken
from agent.commands.exits import DONE
from agent.commands.facts import snapshot_facts
from agent.commands.tables import prune_lines, verdict_table
from agent.errors import MalformedData, UsageError
from agent.monitor import Monitor
from agent.repository.forget import find_named, refuse_to_empty, remove_named
from agent.repository.prune import PrunePlan, plan_prune, run_prune
from agent.repository.pruneplan import PruneOptions, parse_size, parse_tolerance
from agent.repository.repository import Repository
from agent.repository.retention import (
    PERIODS,
    UNLIMITED,
    Filter,
    Group,
    Policy,
    Verdict,
    decide,
    group,
    parse_duration,
    tag_sets,
)
from agent.repository.snapshot import Snapshot
from agent.repository.unlock import unlock as unlock_repository
from agent.terminal import plain_text, progress

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

Groups = dict[Group, list[Verdict]]


def _prune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    max_unused = click.option(
        "--max-unused",
        default="5%",
        metavar="LIMIT",
        help="How much waste may stay: a share of the repository (5%), a size (500M), or"
        " `unlimited`, which copies nothing to save space. [5%]",
    )
    max_repack = click.option(
        "--max-repack-size",
        metavar="SIZE",
        help="Copy at most this much (units of 1024: K, M, G, T). [no limit]",
    )
    return max_unused(max_repack(command))


def _policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    tags = click.option(
        "--keep-tag", multiple=True, metavar="TAG[,TAG]", help="Keep those with all these tags."
    )
    command = tags(command)
    for period in reversed(PERIODS):
        if period != "last":
            command = click.option(
                f"--keep-within-{period}",
                metavar="DURATION",
                help=f"The {period} ones that are no older than this.",
            )(command)
    within = click.option(
        "--keep-within",
        metavar="DURATION",
        help="Keep what is no older than this, counted from the newest: 1y5m7d2h.",
    )
    command = within(command)
    for period in reversed(PERIODS):
        what = "newest snapshots" if period == "last" else f"newest {period} ones"
        command = click.option(
            f"--keep-{period}", metavar="N", help=f"Keep the N {what}; `unlimited` keeps all."
        )(command)
    return command


@click.command()
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT]…")
@repository_options
@_policy_options
@click.option(
    "--group-by",
    default="host,paths",
    metavar="NAMES",
    help="The policy is applied to each group of snapshots with the same host, paths and/or tags;"
    " '' makes one group of all. [host,paths]",
)
@click.option("--host", "hosts", multiple=True, help="Look at this host's only; repeatable.")
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG[,TAG]", help="Only at those with all these tags."
)
@click.option("--path", "paths", multiple=True, help="Only at those with this path; repeatable.")
@click.option(
    "--unsafe-allow-remove-all",
    is_flag=True,
    help="Allow that no snapshot of a group is left.",
)
@click.option("--prune", "then_prune", is_flag=True, help="Run prune afterwards.")
@_prune_options
@dry_run_option
@lock_wait_option
@json_option
def forget(access: Access, snapshots: Sequence[str], **options: Any) -> int:
    """Remove snapshots, by id or by a policy.

    SNAPSHOT is an id, the beginning of one, or `latest`. Without any, a policy decides: a
    snapshot is kept if one of the --keep rules says so, by the hours and days of the clock that
    made it. The space comes back with prune. A group never loses its last snapshot to a policy,
    unless --unsafe-allow-remove-all says so. --json prints one line of JSON, in the fields of
    restic, and with --prune a second one.

    \b
    podlift forget --repo REPO --keep-daily 7 --keep-weekly 5 --keep-yearly 3 --dry-run
    podlift forget --repo REPO --keep-within 30d --host web-1 --prune
    podlift forget --repo REPO 1f4083e3
    """
    then = _read_prune_options(options)
    choose = _by_id(snapshots, options) if snapshots else _by_policy(options)
    dry_run, as_json = options["dry_run"], options["as_json"]
    with alone(access, options["lock_wait_seconds"]) as held:
        repository, lock, cancel = held
        removed, report = choose(repository, cancel, as_json)
        click.echo(report)
        if not dry_run:
            remove_named(repository, lock, removed, cancel)
        if not as_json:
            click.echo(f"{'would remove' if dry_run else 'removed'} {len(removed)} snapshots")
        if options["then_prune"]:
            if dry_run:
                then = msgspec.structs.replace(then, ignored=frozenset(removed))
            _prune(held, then, dry_run=dry_run, as_json=as_json)
    return DONE


Choose = Callable[[Repository, CancelToken, bool], tuple[list[str], str]]
"""Returns the ids of the snapshots that go, and what to print of the choice (as JSON, or not)."""


def _by_id(wanted: Sequence[str], options: dict[str, Any]) -> Choose:
    if not _policy(options).empty or not _filter(options).empty:
        raise UsageError("name snapshots, or give rules and filters; not both")

    def choose(repository: Repository, cancel: CancelToken, as_json: bool) -> tuple[list[str], str]:
        found = find_named(repository, wanted, cancel)
        if as_json:
            return found, json.dumps([{"remove": found}])
        return found, "\n".join(f"remove  {id[:8]}" for id in found)

    return choose


def _by_policy(options: dict[str, Any]) -> Choose:
    policy, wanted = _policy(options), _filter(options)
    allow_all = options["unsafe_allow_remove_all"]
    if policy.empty and (not allow_all or wanted.empty):
        raise UsageError(
            "say what to keep (--keep-daily 7, for example), or name the snapshots to remove;"
            " --unsafe-allow-remove-all with a --host, --tag or --path removes all that match"
        )
    by = [name for name in options["group_by"].split(",") if name]
    group((), by)

    def choose(repository: Repository, cancel: CancelToken, as_json: bool) -> tuple[list[str], str]:
        groups = _decided(_readable(repository, cancel), policy, wanted, by)
        if not allow_all:
            refuse_to_empty(groups)
        removed = [v.snapshot.id for members in groups.values() for v in members if not v.keep]
        if as_json:
            return removed, json.dumps([_group_facts(*item) for item in groups.items()])
        tables = [
            f"{plain_text(key.describe())}\n{verdict_table(members)}"
            for key, members in groups.items()
        ]
        return removed, "\n".join(tables) or "no snapshot matches"

    return choose


def _readable(repository: Repository, cancel: CancelToken) -> list[Snapshot]:
    refused: list[MalformedData] = []
    found = repository.snapshots(cancel, refused, fresh=True)
    for error in refused:
        click.echo(f"podlift: left alone: {plain_text(str(error))}; forget it by its id", err=True)
    return found


def _decided(
    snapshots: Sequence[Snapshot], policy: Policy, wanted: Filter, by: Sequence[str]
) -> Groups:
    now_ns = time.time_ns()
    admitted = [snapshot for snapshot in snapshots if wanted.admits(snapshot)]
    return {key: decide(members, policy, now_ns) for key, members in group(admitted, by).items()}


def _policy(options: dict[str, Any]) -> Policy:
    counts = {period: _count(options[f"keep_{period}"], period) for period in PERIODS}
    within = options["keep_within"]
    spans = {
        period: parse_duration(text)
        for period in PERIODS[1:]
        if (text := options[f"keep_within_{period}"])
    }
    return Policy(
        {period: count for period, count in counts.items() if count},
        parse_duration(within) if within else None,
        spans,
        tag_sets(options["keep_tag"]),
    )


def _count(text: str | None, period: str) -> int:
    if text in ("unlimited", "-1"):
        return UNLIMITED
    if text is not None and _NUMBER.fullmatch(text) is None:
        raise UsageError(f"--keep-{period} {text!r} is no number; write 7, or `unlimited`")
    return int(text or 0)


def _filter(options: dict[str, Any]) -> Filter:
    return Filter(tuple(options["hosts"]), tag_sets(options["tags"]), tuple(options["paths"]))


def _group_facts(key: Group, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return a group in the fields of `restic forget --json`."""
    kept = [verdict for verdict in verdicts if verdict.keep]
    return {
        "tags": list(key.tags),
        "host": key.host,
        "paths": list(key.paths),
        "keep": [snapshot_facts(v.snapshot) for v in kept],
        "remove": [snapshot_facts(v.snapshot) for v in verdicts if not v.keep],
        "reasons": [
            {"snapshot": snapshot_facts(v.snapshot), "matches": list(v.reasons)} for v in kept
        ],
    }


def _read_prune_options(options: dict[str, Any]) -> PruneOptions:
    size = options["max_repack_size"]
    return PruneOptions(
        parse_tolerance(options["max_unused"]), None if size is None else parse_size(size)
    )


@click.command()
@repository_options
@_prune_options
@dry_run_option
@lock_wait_option
@json_option
def prune(access: Access, **options: Any) -> int:
    """Remove what no snapshot needs any more.

    Needs the repository for itself: backups wait or fail meanwhile, and a backup that runs makes
    prune fail. If anything that a snapshot needs cannot be read, nothing is changed. It may be
    killed at any moment; the next prune goes on.

    \b
    podlift prune --repo REPO --dry-run
    podlift prune --repo REPO --max-unused 10% --max-repack-size 20G
    """
    wanted = _read_prune_options(options)
    with alone(access, options["lock_wait_seconds"]) as held:
        _prune(held, wanted, dry_run=options["dry_run"], as_json=options["as_json"])
    return DONE


def _prune(held: Alone, wanted: PruneOptions, *, dry_run: bool, as_json: bool) -> None:
    repository, lock, cancel = held
    monitor = Monitor()
    with progress(monitor, "prune", quiet=as_json):
        plan = plan_prune(repository, wanted, monitor, cancel)
    if not as_json:
        told = [*prune_lines(plan.figures)]
        click.echo("\n".join(told[-1:] if plan.empty else told))  # a column of zeros tells nothing
    if not dry_run:
        with progress(monitor, "prune", quiet=as_json):
            run_prune(repository, lock, plan, monitor, cancel)
    click.echo(_outcome_json(plan) if as_json else _outcome(plan, repository.place, dry_run))


def _outcome_json(plan: PrunePlan) -> str:
    return json.dumps(msgspec.structs.asdict(plan.figures))


def _outcome(plan: PrunePlan, place: str, dry_run: bool) -> str:
    if plan.empty:
        return f"{place} has nothing to prune"
    if dry_run:
        return "nothing was changed: --dry-run"
    return f"pruned {place}"


@click.command()
@repository_options
@click.option(
    "--remove-all", is_flag=True, help="Remove every lock, also of those who may be at work."
)
def unlock(access: Access, remove_all: bool) -> int:
    """Remove locks that were left behind by processes that are gone.

    That is a lock older than 30 minutes, or of this host and a process that does not exist any
    more. The others stay, and are named: who holds one may be writing.

    \b
    podlift unlock --repo REPO
    """
    removed = left = 0
    with stoppable() as cancel, access.repository(cancel) as repository:
        for judged in unlock_repository(repository, cancel, remove_all=remove_all):
            removed += judged.removed
            left += not judged.removed
            verb = "removed" if judged.removed else "left"
            click.echo(plain_text(f"{verb} {judged.name[:8]}: {judged.reason}"))
        place = repository.place
    click.echo(f"{place}: {removed} locks removed, {left} left" if removed + left else "no locks")
    return DONE
