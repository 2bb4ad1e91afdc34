"""What differs between Velero's definitions, release by release, and what each difference is to the agent.

Of the definitions alone, without a server; ``test_versions`` lets agents live with each of them.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from agent.cluster import claim, objects, order, patches
from agent.cluster.order import FINAL_PHASES, NEW_PHASES, RUNNING_PHASE, Order, OrderKind, Owner
from agent.demo.apiserver.schema import prune, violations
from tests.cluster.fakemover import SNAPSHOT
from tests.cluster.scene import pvb_object, pvr_object
from tests.cluster.stage import OUR_PHASES
from tests.support.velerocrds import NEWEST, VERSIONS, kind

NOW = "2026-01-01T00:00:00Z"
BACKUPS, RESTORES = (each.plural for each in OrderKind)
LOCATIONS = "backupstoragelocations"
PAGE = Path(__file__).parents[2] / "docs/deploy.md"

LEFT = {
    BACKUPS: {},
    RESTORES: {
        "spec.snapshotSize": "the snapshot itself says how large it is",
        "status.node": "by it a node agent of Velero's that starts on the node finds what runs there, "
        "does not find it at work, and cancels it",
    },
    LOCATIONS: {"spec.objectStorage.caCertRef.optional": "a Secret that is named must be there"},
}
"""The fields that not every release has and the agent leaves alone, with the reason."""


def read_by_us(struct: type[msgspec.Struct], above: str = "") -> Iterator[str]:
    """Yield the fields that the agent reads, as dotted paths."""
    for field in msgspec.structs.fields(struct):
        path = f"{above}.{field.encode_name}" if above else field.encode_name
        yield path
        for part in (field.type, *get_args(field.type)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from read_by_us(part, path)


def sent(kind_of: OrderKind) -> list[patches.Patch]:
    """Return every patch that the agent sends, in which every field is set."""
    seen, us = Order(kind=kind_of, name="x", uid="u", resource_version="1"), Owner(node="n")
    done = patches.completed(SNAPSHOT, "/host_pods/x", 2, 1, "1 entry was left out: a")
    end = done if kind_of is OrderKind.BACKUP else patches.restored(2, "odd")
    return [
        patches.owner(seen, us, NOW),
        patches.start(seen, NOW),
        patches.claim(seen, us, NOW),
        patches.progress(seen, 2, 1),
        patches.final(seen, end, NOW),
        patches.final(seen, patches.failed("no"), NOW),
        patches.release(seen),
    ]


def written_by_us(kind_of: OrderKind) -> frozenset[str]:
    return frozenset(f"status.{name}" for each in sent(kind_of) for name in each.get("status", {}))


def since(plural: str) -> dict[str, str]:
    """Return the fields that not every release has, with the release that has brought each."""
    of_each = [kind(version, plural).fields for version in VERSIONS]
    assert all(old <= new for old, new in itertools.pairwise(of_each))  # none was ever taken away
    return {
        field: next(version for version in VERSIONS if field in kind(version, plural).fields)
        for field in of_each[-1] - of_each[0]
    }


class TestTheTable:
    """What differs, release by release, and what it is to us."""

    @pytest.mark.parametrize("plural", [BACKUPS, RESTORES, LOCATIONS])
    def test_a_field_that_not_all_have_is_read_or_written_or_left_for_a_reason(
        self, plural: str
    ) -> None:
        differing = since(plural).keys()
        assert differing
        known: set[str] = set()
        for each in (kind_of for kind_of in OrderKind if kind_of.plural == plural):
            known |= {*read_by_us(order._Whole), *written_by_us(each)}
        if plural == LOCATIONS:
            known = set(read_by_us(objects.BackupStorageLocation))
        assert differing - known == LEFT[plural].keys()

    @pytest.mark.parametrize("kind_of", OrderKind)
    def test_what_we_read_and_write_the_newest_has(self, kind_of: OrderKind) -> None:
        newest = kind(NEWEST, kind_of.plural).fields
        both = newest | kind(NEWEST, RESTORES).fields | kind(NEWEST, BACKUPS).fields
        read = {path for path in read_by_us(order._Whole) if path.startswith(("spec", "status"))}
        assert read <= both
        assert written_by_us(kind_of) <= newest

    @pytest.mark.parametrize("plural", [BACKUPS, RESTORES])
    def test_every_phase_has_a_standing_and_ours_are_known_to_all(self, plural: str) -> None:
        foreign = {"Accepted", "Prepared", "Canceling"}
        assert {
            phase: claim.standing(Order(phase=phase)) for phase in kind(NEWEST, plural).phases
        } == {
            "New": claim.Standing.NEW,
            RUNNING_PHASE: claim.Standing.RUNNING,
            **dict.fromkeys(FINAL_PHASES, claim.Standing.FINAL),
            **dict.fromkeys(foreign, claim.Standing.FOREIGN),
        }
        for version in VERSIONS:
            assert OUR_PHASES | (NEW_PHASES - {""}) <= set(kind(version, plural).phases)

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("kind_of", OrderKind)
    def test_no_patch_is_refused_and_only_what_is_unknown_is_dropped(
        self, version: str, kind_of: OrderKind
    ) -> None:
        theirs = kind(version, kind_of.plural)
        make = pvb_object if kind_of is OrderKind.BACKUP else pvr_object
        for each in sent(kind_of):
            body = make("x") | {"status": each.get("status", {})}
            kept, dropped = prune(body, theirs.schema)
            assert violations(kept, theirs.schema) == []
            assert {path.removeprefix("status.") for path in dropped} == (
                body["status"].keys() - theirs.kept("status", body["status"]).keys()
            )

    def test_the_page_names_every_field_with_the_release_that_has_brought_it(self) -> None:
        rows = re.findall(
            r"^\| `([a-zA-Z.]+)`.*? \| (main|1\.\d\d) \|", PAGE.read_text(), re.MULTILINE
        )
        found = {
            field: version.removeprefix("v").rpartition(".")[0] or version
            for plural in (BACKUPS, RESTORES, LOCATIONS)
            for field, version in since(plural).items()
            if ".caCertRef." not in field
        }
        assert dict(rows) == found

    def test_the_page_names_the_phases_that_are_left_alone(self) -> None:
        came_later = set(kind(NEWEST, BACKUPS).phases) - set(kind(VERSIONS[0], BACKUPS).phases)
        (words,) = re.findall(r"four more phases since 1\.17: ([\w, ]+)\.", PAGE.read_text())
        assert set(re.findall(r"[A-Z]\w+", words)) == came_later
        assert not came_later & OUR_PHASES
