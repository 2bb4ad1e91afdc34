"""check: whether a repository is what it says, or every one of a location, and what to do if not."""

import contextlib
import dataclasses
import functools
import json
import logging
from typing import TYPE_CHECKING, Any

import click

from agent.access import (
    Access,
    cluster_options,
    credentials_file_option,
    json_option,
    lock_wait_option,
    no_lock_option,
    open_location,
    repository_options,
    stoppable,
)
from agent.cancel import CancelToken
from agent.commands.exits import DONE, FAILED, exit_code
from agent.commands.facts import path_facts
from agent.commands.telling import Voice, log_format_option, told
from agent.config import cluster_settings
from agent.errors import NoRepository, RepositoryError, StorageError, UsageError
from agent.monitor import Monitor
from agent.repository.check import check as check_repository
from agent.repository.finding import Advice, Finding
from agent.repository.opening import open_repository
from agent.repository.repository import LOADERS, Repository
from agent.repository.subset import TURNS, Subset, parse_subset
from agent.storage.contract import Storage
from agent.storage.settings import S3Settings
from agent.terminal import progress

if TYPE_CHECKING:
    from agent.cluster.estate import Reach


@click.command()
@functools.partial(repository_options, required=False)
@click.option(
    "--location",
    metavar="NAME",
    help="Instead of --repo: every repository of this BackupStorageLocation.",
)
@cluster_options
@credentials_file_option
@click.option("--read-data", is_flag=True, help="Also read and verify every byte of every pack.")
@click.option(
    "--read-data-subset",
    default="",
    metavar="5%|1G|N/M|week/M|day/M",
    help="Read some packs: a share or a size of them at random, or the Nth of M equal parts; week/M"
    " and day/M: the part whose turn it is, so that M runs read everything.",
)
@lock_wait_option
@json_option
@no_lock_option
@log_format_option
def check(access: Access, **options: Any) -> int:
    """Verify that everything the snapshots need is there and intact.

    Prints a line for each finding, then the places of snapshots that are touched, then what to do.
    Damage ends with exit code 1; hints cost nothing but space, and end with 0. Nothing is changed.
    Of a location every repository is checked, whatever is wrong with the others; without damage,
    the exit code is that of the first one that could not be checked. A location that is read-only
    is checked without locks.

    \b
    podlift check --repo REPO
    podlift check --repo REPO --read-data-subset 5%
    podlift check --repo REPO --read-data-subset 3/7   # on the third of seven days
    podlift check --location default --read-data-subset week/8
    """
    return told(
        options["log_format"], options["location"], functools.partial(_check, access, options)
    )


def _check(access: Access, options: dict[str, Any], voice: Voice) -> int:
    words = options["read_data_subset"]
    if options["read_data"] and words:
        raise UsageError("--read-data reads everything; leave out --read-data-subset")
    if access.named == bool(options["location"]):
        raise UsageError("name one repository with --repo, or all of a location with --location")
    if options["location"] and access.described:
        raise UsageError(
            "--location brings password, authorities and key: leave out --password-file, --cacert"
            " and --customer-key"
        )
    subset = parse_subset(words) if words else None
    examination = Examination(
        options["read_data"], subset, words, options["as_json"], bool(options["location"]), voice
    )
    with stoppable() as cancel:
        if examination.located:
            return _check_location(access, options, examination, cancel)
        no_lock, wait = options["no_lock"], options["lock_wait_seconds"]
        with access.reading(cancel, no_lock=no_lock, lock_wait_seconds=wait) as repository:
            return examination.of(repository, cancel)


@dataclasses.dataclass(frozen=True)
class Examination:
    """How repositories are examined; ``located`` if there are several, so that each is named.

    ``words`` is how the subset was asked for.
    """

    read_data: bool
    subset: Subset | None
    words: str
    as_json: bool
    located: bool
    voice: Voice

    @property
    def scope(self) -> str:
        """Say what is read; of a part whose turn it is, also which one that is."""
        if self.read_data:
            return "structure and every byte"
        if self.subset is None:
            return "structure (--read-data reads it all)"
        turn = self.words.startswith(TURNS) and self.subset.part
        return f"structure and {self.words}{f' (part {turn[0]})' if turn else ''} of the packs"

    def of(self, repository: Repository, cancel: CancelToken) -> int:
        """Check a repository, say what is found, and return the exit code."""
        place = repository.place if self.located else ""
        report = Report(self.as_json, self.scope, place, self.voice)
        monitor = Monitor()
        with progress(monitor, "check", say=self.voice.beside):
            for finding in check_repository(
                repository,
                read_data=self.read_data,
                subset=self.subset,
                monitor=monitor,
                cancel=cancel,
            ):
                report.tell(finding)
        report.conclude(repository.place)
        return FAILED if report.damage else DONE


@dataclasses.dataclass(frozen=True)
class _Location:
    """A location whose repositories are checked one after the other."""

    reach: "Reach"
    access: Access
    options: dict[str, Any]
    cancel: CancelToken

    def check(self, examination: Examination) -> int:
        """Check every repository; one that cannot be checked does not spare the others."""
        codes = []
        for prefix in self._prefixes():
            settings = self.reach.settings(prefix, LOADERS)
            try:
                codes.append(self._check_one(settings, examination))
            except (RepositoryError, StorageError) as error:
                self._not_checked(str(settings.address), error, examination.voice)
                codes.append(exit_code(error))
        return FAILED if FAILED in codes else next(filter(None, codes), DONE)

    def _prefixes(self) -> list[str]:
        from agent.cluster import estate

        settings = self.reach.settings(self.reach.place.prefix, 1)
        with contextlib.closing(self._open(settings)) as bucket:
            found = estate.repositories(self.reach.place, bucket, self.cancel)
            if not found:
                raise NoRepository(f"{bucket.place} holds no repository (yet)")
            return found

    def _check_one(self, settings: S3Settings, examination: Examination) -> int:
        with contextlib.ExitStack() as scope:
            storage = scope.enter_context(contextlib.closing(self._open(settings)))
            cache, cancel = self.access.cache, self.cancel
            repository = open_repository(storage, self.reach.password, cache=cache, cancel=cancel)
            if not self.options["no_lock"] and not self.reach.place.read_only:
                wait = self.options["lock_wait_seconds"]
                lock = repository.locked(exclusive=False, wait_seconds=wait, cancel=cancel)
                scope.enter_context(lock)
            return examination.of(repository, cancel)

    def _open(self, settings: S3Settings) -> Storage:
        return open_location(settings, self.access.budgets.rates)

    def _not_checked(self, place: str, error: RepositoryError | StorageError, voice: Voice) -> None:
        if self.options["as_json"]:
            facts = {"message_type": "error", "message": str(error), "repository": place}
            click.echo(json.dumps(facts))
        voice.say(f"{place} was not checked: {error}", logging.ERROR, aside=True)


def _check_location(
    access: Access, options: dict[str, Any], examination: Examination, cancel: CancelToken
) -> int:
    from agent.cluster import estate  # the Kubernetes client costs 35 MiB and 0.3 s
    from agent.cluster.private import private_folder

    names = ("namespace", "kubeconfig", "credentials_file")
    settings = cluster_settings({name: options[name] for name in names})
    with private_folder() as private:
        reach = estate.reach(settings, options["location"], private, writing=False)
        return _Location(reach, access, options, cancel).check(examination)


class Report:
    """Tells findings as they come, remembers what they add up to, and concludes."""

    def __init__(self, as_json: bool, scope: str, place: str, voice: Voice) -> None:
        """Tell of one repository; ``place`` names it in each line for scripts, if it is not ""."""
        self._as_json = as_json
        self._voice = voice
        self._place = {"repository": place} if place else {}
        self._scope = scope
        self.damage = self.hints = self.places = 0
        self._snapshots: set[str] = set()
        self._advice: set[Advice] = set()

    def tell(self, finding: Finding) -> None:
        """Print one finding."""
        self.damage += finding.damage
        self.hints += not finding.damage
        self._advice.update(finding.advice)
        if finding.touched is not None:
            self.places += finding.touched.places
            self._snapshots.add(finding.touched.snapshot)
        if self._as_json:
            click.echo(json.dumps(_facts(finding) | self._place))
        else:
            weight = "damage" if finding.damage else "hint"
            level = logging.ERROR if finding.damage else logging.WARNING
            self._voice.say(f"{weight}: {finding.message}", level)

    def conclude(self, place: str) -> None:
        """Print the verdict and the advice."""
        advice = [item for item in Advice if item in self._advice]
        if self._as_json:
            summary = {
                "message_type": "summary",
                "damaged": bool(self.damage),
                "damage": self.damage,
                "hints": self.hints,
                "places_touched": self.places,
                "snapshots_touched": sorted(self._snapshots),
                "checked": self._scope,
                "advice": [item.value for item in advice],
            }
            click.echo(json.dumps(summary | self._place))
            return
        self._voice.say(self._verdict(place), logging.ERROR if self.damage else logging.INFO)
        if advice:
            self._voice.say("what to do:")
        for number, item in enumerate(advice, 1):
            self._voice.say(f"  {number}. {item}")

    def _verdict(self, place: str) -> str:
        hints = f"; {self.hints} hints" if self.hints else ""
        if not self.damage:
            return f"{place} is in order; checked: {self._scope}{hints}"
        touched = "no snapshot is touched"
        if self.places:
            count = len(self._snapshots)
            places = f"{self.places} place{'s' if self.places > 1 else ''}"
            touched = f"{places} in {count} snapshot{'s' if count > 1 else ''} touched"
        return (
            f"{place} is DAMAGED: {self.damage} findings; {touched}; checked: {self._scope}{hints}"
        )


def _facts(finding: Finding) -> dict[str, Any]:
    """Return a finding for scripts."""
    facts: dict[str, Any] = {
        "message_type": "finding",
        "damage": finding.damage,
        "message": finding.message,
        "advice": [item.value for item in finding.advice],
    }
    if finding.touched is not None:
        facts["snapshot_id"] = finding.touched.snapshot
        facts["places"] = finding.touched.places
        if finding.touched.path is not None:
            facts |= path_facts(finding.touched.path or b"/")
    return facts
