"""What a gc says: every verdict counted, all garbage named, each failure in its place.

Text comes a repository at a time, so that a run that is stopped has told what it did; JSON is one
object at the end, whatever the end was.
"""

import json
import logging
from collections.abc import Iterable
from typing import Any

import click

from agent.commands.facts import snapshot_facts
from agent.commands.telling import Voice
from agent.errors import PodliftError
from agent.needs import Needs
from agent.repository.pruneplan import Figures
from agent.terminal import size_text, time_text
from agent.transfer.garbage import Judged, Verdict, tags_of
from agent.transfer.sweep import Swept

NAMED = 200
"""How many snapshots of a verdict are named in text; JSON has them all."""

_WORDS = {
    Verdict.LIVING: "living",
    Verdict.GRACE: "protected by the grace period",
    Verdict.FOREIGN: "not made for Velero",
    Verdict.GARBAGE: "garbage",
}


class Report:
    """Collects what one run found, and says it."""

    def __init__(
        self, location: str, place: str, *, apply: bool, as_json: bool, voice: Voice
    ) -> None:
        self._voice = voice
        self._apply = apply
        self._as_json = as_json
        self._repositories: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {"location": location, "place": place, "applied": apply}
        self._garbage = self._freed = self._failed = 0

    def needs(self, needs: Needs, unfinished: Iterable[str], not_swept: Iterable[str]) -> None:
        """Say what the living set rests on."""
        facts: dict[str, Any] = {
            "backups": len(needs.backups),
            "named": len(needs.named),
            "pending": sorted(work.by for work in needs.pending),
            "unfinished": sorted(unfinished),
            "not_swept": sorted(not_swept),
        }
        self._facts |= facts
        self._say(
            f"location {self._facts['location']} ({self._facts['place']}): {facts['backups']}"
            f" backups, {facts['named']} snapshots named, {len(facts['pending'])} PodVolumeBackups"
            " under way"
        )
        for name in facts["unfinished"]:
            self._say(f"  backup {name} is not complete (still running, or failed)")
        for where in facts["not_swept"]:
            self._say(f"  named, but not swept: {where} lies outside of the location's own prefix")

    def swept(self, place: str, swept: Swept) -> None:
        """Say what a repository came to."""
        judgement, figures = swept.judgement, swept.figures
        counts = {str(verdict): len(judgement.of(verdict)) for verdict in Verdict}
        self._garbage += counts["garbage"]
        self._freed += figures.bytes_freed
        self._repositories.append(
            {
                "repository": place,
                "snapshots": counts,
                "grace": [_facts(judged) for judged in judgement.of(Verdict.GRACE)],
                "garbage": [_facts(judged) for judged in judgement.of(Verdict.GARBAGE)],
                "missing": [{"id": one.id, "named_by": one.by} for one in judgement.missing],
                "bytes_freed": figures.bytes_freed,
                "bytes_after": figures.bytes_total_after,
            }
        )
        said = ", ".join(f"{counts[str(verdict)]} {word}" for verdict, word in _WORDS.items())
        self._say(f"{place}: {len(judgement.judged)} snapshots: {said}")
        for verdict in (Verdict.GRACE, Verdict.GARBAGE):
            self._name(judgement.of(verdict))
        for one in judgement.missing[:NAMED]:
            self._say(
                f"  MISSING  {one.id[:8]}  {one.by} names it, the repository has none",
                logging.ERROR,
            )
        self._say(f"  {_freed(figures, self._apply)}")

    def failed(self, place: str, error: PodliftError) -> None:
        """Say why a repository was not swept, or not to the end."""
        self._failed += 1
        self._repositories.append({"repository": place, "error": str(error)})
        self._voice.say(f"{place}: not done: {error}", logging.ERROR, aside=True)

    def end(self, error: PodliftError | None = None) -> None:
        """Say the result; ``error`` is what stopped the run before its end."""
        facts = {"bytes_freed": self._freed, "garbage": self._garbage, "failed": self._failed}
        if self._as_json:
            whole = {**self._facts, **facts, "repositories": self._repositories}
            click.echo(json.dumps(whole if error is None else {**whole, "error": str(error)}))
            return
        if error is not None:
            return
        if not self._repositories:
            self._say("there is no repository in it, so there is nothing to do")
            return
        size = size_text(self._freed)
        if self._apply:
            self._say(f"done: {self._garbage} snapshots forgotten, {size} freed")
        else:
            self._say(
                f"dry run, nothing was changed: --apply forgets {self._garbage} snapshots and"
                f" frees {size}"
            )
        if self._failed:
            self._say(f"{self._failed} repositories were not done, see above")

    def _name(self, judged: list[Judged]) -> None:
        for one in judged[:NAMED]:
            snapshot = one.snapshot
            word = f"{one.verdict:<8}"
            tags = tags_of(snapshot)
            shown = " ".join(f"{key}={tags[key]}" for key in _SHOWN if key in tags)
            self._say(
                f"  {word} {snapshot.id[:8]}  {time_text(snapshot.time_ns)}  {shown}: {one.reason}"
            )
        if len(judged) > NAMED:
            self._say(f"  … and {len(judged) - NAMED} more (--json names all)")

    def _say(self, text: str, level: int = logging.INFO) -> None:
        if not self._as_json:
            self._voice.say(text, level)


_SHOWN = ("backup", "ns", "pod", "volume")


def _facts(judged: Judged) -> dict[str, Any]:
    return {**snapshot_facts(judged.snapshot), "reason": judged.reason}


def _freed(figures: Figures, apply: bool) -> str:
    size, after = size_text(figures.bytes_freed), size_text(figures.bytes_total_after)
    if not figures.bytes_freed:
        return f"nothing to free; the repository holds {after}"
    return (
        f"{'freed' if apply else 'would free'} {size}; {after} {'stay' if apply else 'would stay'}"
    )
