"""check: whether a repository is what it says, and what to do if it is not."""

import json
from typing import Any

import click

from agent.access import Access, json_option, no_lock_option, repository_options, stoppable
from agent.commands.exits import DONE, FAILED
from agent.errors import UsageError
from agent.monitor import Monitor
from agent.repository.check import check as check_repository
from agent.repository.finding import Advice, Finding
from agent.repository.subset import parse_subset
from agent.terminal import path_facts, plain_text, progress


@click.command()
@repository_options
@click.option("--read-data", is_flag=True, help="Also read and verify every byte of every pack.")
@click.option(
    "--read-data-subset",
    default="",
    metavar="5%|1G|N/M",
    help="Read some packs: a share or a size of them at random, or the Nth of M equal parts.",
)
@json_option
@no_lock_option
def check(access: Access, *, as_json: bool, **options: Any) -> int:
    """Verify that everything the snapshots need is there and intact.

    Prints a line for each finding, then the places of snapshots that are touched, then what to do.
    Damage ends with exit code 1; hints cost nothing but space, and end with 0. Nothing is changed.

    \b
    podlift check --repo REPO
    podlift check --repo REPO --read-data-subset 5%
    podlift check --repo REPO --read-data-subset 3/7   # on the third of seven days
    """
    words = options["read_data_subset"]
    if options["read_data"] and words:
        raise UsageError("--read-data reads everything; leave out --read-data-subset")
    subset = parse_subset(words) if words else None
    report = Report(as_json, _scope(options["read_data"], words))
    monitor = Monitor()
    with (
        stoppable() as cancel,
        access.reading(cancel, no_lock=options["no_lock"]) as repository,
        progress(monitor, "check"),
    ):
        for finding in check_repository(
            repository,
            read_data=options["read_data"],
            subset=subset,
            monitor=monitor,
            cancel=cancel,
        ):
            report.tell(finding)
        place = repository.place
    report.conclude(place)
    return FAILED if report.damage else DONE


def _scope(read_data: bool, subset: str) -> str:
    if read_data:
        return "structure and every byte"
    if subset:
        return f"structure and {subset} of the packs"
    return "structure (--read-data reads it all)"


class Report:
    """Tells findings as they come, remembers what they add up to, and concludes."""

    def __init__(self, as_json: bool, scope: str) -> None:
        self._as_json = as_json
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
            click.echo(json.dumps(_facts(finding)))
        else:
            weight = "damage" if finding.damage else "hint"
            click.echo(plain_text(f"{weight}: {finding.message}"))

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
            click.echo(json.dumps(summary))
            return
        click.echo(plain_text(self._verdict(place)))
        if advice:
            click.echo("what to do:")
        for number, item in enumerate(advice, 1):
            click.echo(f"  {number}. {item}")

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
