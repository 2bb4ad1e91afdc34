"""The same snapshots and the same policy: restic keeps what we keep.

Since 0.16 a rule whose number is not used up keeps the oldest snapshot of all as well; the restic
of before does not, and that one difference is taken out for it.
"""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from agent.repository.objects import Folder
from agent.repository.repository import Repository
from agent.repository.retention import (
    PERIODS,
    Duration,
    Filter,
    Policy,
    decide,
    group,
    parse_duration,
)
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.times import NANOSECONDS, fixed_zone
from tests.interop.runs import open_at
from tests.support.restic import Restic

OFFSETS = (0, 0, 19800, -28800, 45900)
SPANS = ("1d", "12h", "1m", "2y", "1y2m3d4h", "40d", "3m")
SNAPSHOTS = 70
POLICIES = 12


def random_snapshot(chance: random.Random) -> Snapshot:
    """Return a snapshot of the last years; many share an hour, a day or a week with others."""
    age = chance.choice([86_400, 30 * 86_400, 400 * 86_400, 1500 * 86_400]) * chance.random()
    newest = int(time.time()) + chance.choice([0] * 9 + [7200])
    return Snapshot(
        time_ns=(newest - int(age)) * NANOSECONDS + chance.randrange(NANOSECONDS),
        tree=bytes(32),
        paths=tuple(chance.choice([["/a"], ["/b", "/a"], ["/a", "/b"]])),
        hostname=chance.choice(["one", "two"]),
        tags=tuple(chance.choice([[], ["x"], ["x", "y"], ["y", "x"]])),
    )


def fill(repository: Repository, chance: random.Random) -> None:
    for _ in range(SNAPSHOTS):
        zone = fixed_zone(chance.choice(OFFSETS))
        json_text = encode_snapshot(random_snapshot(chance), zone)
        repository.objects.save(Folder.SNAPSHOTS, json_text)


def random_policy(chance: random.Random) -> Policy:
    """Return a policy that keeps one snapshot of each group at least: restic 0.19 insists."""
    counts = {period: chance.randrange(1, 9) for period in chance.sample(PERIODS, 2)}
    within: Duration | None = None
    periods: dict[str, Duration] = {}
    if chance.random() < 0.4:
        within = parse_duration(chance.choice(SPANS))
    if chance.random() < 0.5:
        periods = {chance.choice(PERIODS[1:]): parse_duration(chance.choice(SPANS))}
    tags = ((("x", "y"),), (("",),), ())[chance.randrange(3)]
    return Policy(counts, within, periods, tags)


def arguments(policy: Policy) -> list[str]:
    spans = [("", policy.within)] if policy.within else []
    spans += [(f"-{period}", span) for period, span in policy.within_period.items()]
    return [
        *(f"--keep-{period}={count}" for period, count in policy.counts.items()),
        *(f"--keep-within{period}={span.text}" for period, span in spans if span),
        *(f"--keep-tag={','.join(tags)}" for tags in policy.tags),
    ]


def keeps_oldest(restic: Restic) -> bool:
    """Tell whether this restic keeps the oldest snapshot while a rule's number is not used up."""
    return tuple(map(int, restic.version.split(".")[:2])) >= (0, 16)


def restics_decision(restic: Restic, repo: Path, *args: str) -> tuple[set[str], set[str]]:
    done = restic.run(str(repo), "forget", "--dry-run", "--json", "--no-lock", *args)
    groups: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[0])
    keep = {s["id"] for g in groups for s in g["keep"] or ()}
    return keep, {s["id"] for g in groups for s in g["remove"] or ()}


def our_decision(
    snapshots: list[Snapshot], policy: Policy, by: list[str], *, oldest: bool = True
) -> tuple[set[str], set[str]]:
    verdicts = [
        verdict
        for members in group(snapshots, by).values()
        for verdict in decide(members, policy, time.time_ns())
    ]
    keep = {
        v.snapshot.id
        for v in verdicts
        if any(oldest or not reason.startswith("oldest ") for reason in v.reasons)
    }
    return keep, {v.snapshot.id for v in verdicts} - keep


@pytest.mark.parametrize("seed", range(4))
def test_restic_decides_as_we_do(restic: Restic, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    repository = open_at(tmp_path / "repo")
    fill(repository, chance)
    snapshots = repository.snapshots()
    for _ in range(POLICIES):
        policy, by = random_policy(chance), chance.choice(["host,paths", "", "tags", "host,tags"])
        args = [*arguments(policy), f"--group-by={by}"]
        names = [name for name in by.split(",") if name]
        ours = our_decision(snapshots, policy, names, oldest=keeps_oldest(restic))
        assert ours[0], args
        assert restics_decision(restic, tmp_path / "repo", *args) == ours, args


def test_restic_filters_as_we_do(restic: Restic, tmp_path: Path) -> None:
    repository = open_at(tmp_path / "repo")
    fill(repository, random.Random(7))
    snapshots = repository.snapshots()
    for wanted, args in [
        (Filter(hosts=("one",)), ["--host=one"]),
        (Filter(tags=(("x", "y"),)), ["--tag=x,y"]),
        (Filter(tags=(("",), ("y",))), ["--tag=", "--tag=y"]),
        (Filter(paths=("/b",)), ["--path=/b"]),
        (Filter(hosts=("two",), paths=("/a", "/b")), ["--host=two", "--path=/a", "--path=/b"]),
    ]:
        admitted = [s for s in snapshots if wanted.admits(s)]
        assert 0 < len(admitted) < len(snapshots)
        ours = our_decision(admitted, Policy({"last": 1}), ["host", "paths"])
        found = restics_decision(restic, tmp_path / "repo", "--keep-last=1", *args)
        assert found == ours, args
