"""gc: the snapshots of backups that Velero has deleted are forgotten, and their space is freed."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from agent.access import (
    cluster_options,
    credentials_file_option,
    duration,
    json_option,
    lock_wait_option,
    open_location,
    person_cache_dir,
    stoppable,
)
from agent.cancel import CancelToken
from agent.commands.exits import DONE, exit_code
from agent.commands.gcreport import Report
from agent.commands.telling import Voice, log_format_option, told
from agent.config import CacheDir, cluster_settings
from agent.errors import PodliftError, RepositoryError
from agent.repository.opening import open_repository
from agent.transfer.sweep import ReadNeeds, SweepOptions, Swept, sweep

if TYPE_CHECKING:
    from agent.cluster.estate import Estate, Reach

WORKERS = 4
VELERO_HOURS = 4
"""How long Velero waits for the volumes of a backup by default (velero.md section 2.3)."""

_SHORT = (
    f"--grace is shorter than the {VELERO_HOURS} h that Velero gives a backup: what other clusters"
    " are backing up into this location now is not protected"
)


@click.command()
@click.option("--location", required=True, help="The BackupStorageLocation whose garbage goes.")
@click.option("--apply", is_flag=True, help="Act. Without it, only say what would be done.")
@click.option(
    "--grace",
    "grace_seconds",
    callback=duration,
    default="72h",
    metavar="TIME",
    help="Leave alone what ended less than this ago. Longer than the longest backup of any cluster"
    " that writes into the location. [72h]",
)
@cluster_options
@credentials_file_option
@click.option("--cache-dir", help="Where to keep copies of indexes. [~/.cache/podlift]")
@click.option("--cache-mib", help="What all of them together may take. [2048]")
@lock_wait_option
@click.option(
    "--empty-location",
    is_flag=True,
    help="Go on although the location holds no backup at all: the last one was really deleted.",
)
@click.option(
    "--without-volumes",
    multiple=True,
    metavar="BACKUP",
    help="This backup has no list of volumes and backed none up; repeatable.",
)
@click.option(
    "--outside",
    is_flag=True,
    help="Also sweep repositories that backups name outside of the location's prefix (a"
    " resticRepoPrefix). Only if no other location keeps anything there.",
)
@json_option
@log_format_option
def gc(**options: Any) -> int:
    """Forget the snapshots of deleted backups, and free their space.

    Velero does not tell its movers that a backup was deleted, so its snapshots stay. This command
    finds them: a snapshot is garbage if it was made for Velero, no backup in the location's
    bucket and no PodVolumeBackup in the cluster needs it, and it is older than the grace period.
    Each repository is locked for as long as it is swept. Snapshots made by hand stay.

    Without --apply nothing is changed. If anything about the backups cannot be read, nothing is
    changed either, and the exit code is 1; if that happens between two repositories, the first
    has been swept and the second has not. A run may be killed at any moment.

    \b
    podlift gc --location default            # look
    podlift gc --location default --apply    # act
    """
    return told(options["log_format"], options["location"], functools.partial(_gc, options))


def _gc(options: Mapping[str, Any], voice: Voice) -> int:
    from agent.cluster import estate  # the Kubernetes client costs 35 MiB and 0.3 s
    from agent.cluster.private import private_folder

    names = ("namespace", "kubeconfig", "cache_dir", "cache_mib", "credentials_file")
    settings = cluster_settings({name: options[name] for name in names})
    if options["grace_seconds"] < VELERO_HOURS * 3600:
        voice.say(_SHORT, logging.WARNING, aside=True)
    with contextlib.ExitStack() as scope:
        cancel = scope.enter_context(stoppable())
        reach = estate.reach(settings, options["location"], scope.enter_context(private_folder()))
        bucket = open_location(reach.settings(reach.place.prefix, WORKERS))
        scope.enter_context(contextlib.closing(bucket))
        objects = functools.partial(estate.list_volume_backups, settings)
        found = estate.Estate(reach.place, bucket, objects, options["without_volumes"])
        report = Report(
            options["location"],
            bucket.place,
            apply=options["apply"],
            as_json=options["as_json"],
            voice=voice,
        )
        root = settings.cache_dir or person_cache_dir()
        cache = CacheDir(root, settings.cache_mib) if root is not None else None
        return _sweep_all(_Sweeper(reach, cache, found.needs, cancel), found, report, options)


@dataclasses.dataclass(frozen=True)
class _Sweeper:
    """Sweeps one repository after the other."""

    reach: "Reach"
    cache: CacheDir | None
    read_needs: ReadNeeds
    cancel: CancelToken

    def sweep(self, prefix: str, options: SweepOptions) -> Swept:
        with contextlib.closing(open_location(self.reach.settings(prefix, WORKERS))) as storage:
            repository = open_repository(
                storage, self.reach.password, cache=self.cache, cancel=self.cancel
            )
            return sweep(repository, prefix, self.read_needs, options, self.cancel)


def _sweep_all(
    sweeper: _Sweeper, found: "Estate", report: Report, options: Mapping[str, Any]
) -> int:
    """Sweep every repository; what is wrong with one does not keep the others from it."""
    code = DONE
    how = SweepOptions(
        apply=options["apply"],
        grace_seconds=options["grace_seconds"],
        lock_wait_seconds=options["lock_wait_seconds"],
        empty_location=options["empty_location"],
    )
    try:
        needs = found.needs(sweeper.cancel)  # refuses before any repository is touched
        own, elsewhere = found.repositories(sweeper.cancel), found.elsewhere()
        wanted, left = (own + elsewhere, []) if options["outside"] else (own, elsewhere)
        report.needs(needs, found.unfinished, left + found.out_of_reach())
        for prefix in wanted:
            place = str(sweeper.reach.settings(prefix, WORKERS).address)
            try:
                report.swept(place, sweeper.sweep(prefix, how))
            except RepositoryError as error:
                report.failed(place, error)
                code = code or exit_code(error)
    except PodliftError as error:
        report.end(error)
        raise
    report.end()
    return code
