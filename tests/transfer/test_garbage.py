"""What is garbage, decided by values alone: tables, and properties over every mixture."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import RepositoryError
from agent.needs import Named, Needs, Pending
from agent.repository.snapshot import Snapshot, Summary
from agent.transfer.garbage import Judgement, Verdict, judge, refuse_doubtful

HOUR = 3600 * 10**9
NOW = 1_800_000_000 * 10**9
GRACE = 72 * HOUR
PLACE = "velero/restic/app"
TAGS = ("backup=nightly", "backup-uid=u1", "ns=app", "pod=db-0", "pod-uid=p1", "volume=data")


def snapshot(id: str = "a1" * 32, age_hours: int = 100, **changes: Any) -> Snapshot:
    made = Snapshot(
        id=id, time_ns=NOW - age_hours * HOUR, tree=b"t" * 32, hostname="velero", tags=TAGS
    )
    return msgspec.structs.replace(made, **changes)


def verdict(one: Snapshot, needs: Needs | None = None) -> tuple[Verdict, str]:
    (judged,) = judge([one], needs or Needs(backups=["other"]), NOW, GRACE).judged
    assert judged.snapshot is one
    return judged.verdict, judged.reason


class TestOneSnapshot:
    def test_that_nobody_names_and_that_is_old_is_garbage(self) -> None:
        assert verdict(snapshot()) == (
            Verdict.GARBAGE,
            "backup nightly is not in the location any more",
        )

    def test_of_a_backup_that_does_not_name_it_is_garbage_for_another_reason(self) -> None:
        found, reason = verdict(snapshot(), Needs(backups=["nightly"]))
        assert found is Verdict.GARBAGE
        assert reason == ("backup nightly does not name it: left by a failed or repeated attempt")

    @pytest.mark.parametrize("length", [8, 9, 32, 63, 64])
    def test_that_is_named_by_its_id_or_a_beginning_of_it_lives(self, length: int) -> None:
        needs = Needs([Named(("a1" * 32)[:length], "PodVolumeBackup n-1")])
        assert verdict(snapshot(), needs) == (Verdict.LIVING, "PodVolumeBackup n-1")

    def test_whose_beginning_names_another_one_does_not_live_by_it(self) -> None:
        needs = Needs([Named("a1" * 4 + "ff", "another")])
        assert verdict(snapshot(), needs)[0] is Verdict.GARBAGE

    @pytest.mark.parametrize(
        ("age_hours", "expected"),
        [
            (-5, Verdict.GRACE),
            (0, Verdict.GRACE),
            (71, Verdict.GRACE),
            (72, Verdict.GRACE),
            (73, Verdict.GARBAGE),
        ],
    )
    def test_is_protected_as_long_as_it_is_young(self, age_hours: int, expected: Verdict) -> None:
        assert verdict(snapshot(age_hours=age_hours))[0] is expected

    def test_is_as_old_as_the_end_of_its_backup_not_its_beginning(self) -> None:
        long = Summary(backup_start_ns=NOW - 100 * HOUR, backup_end_ns=NOW - 10 * HOUR)
        found, reason = verdict(snapshot(summary=long))
        assert found is Verdict.GRACE
        assert reason.endswith("it is 10 h old")

    def test_without_a_time_cannot_be_called_old(self) -> None:
        found, reason = verdict(snapshot(time_ns=0))
        assert found is Verdict.GRACE
        assert "no time" in reason

    @pytest.mark.parametrize("missing", range(len(TAGS)))
    def test_that_lacks_a_tag_of_velero_s_was_made_by_hand(self, missing: int) -> None:
        left = TAGS[:missing] + TAGS[missing + 1 :]
        found, reason = verdict(snapshot(tags=left))
        assert found is Verdict.FOREIGN
        assert TAGS[missing].partition("=")[0] in reason

    def test_of_another_host_was_made_by_hand(self) -> None:
        assert verdict(snapshot(hostname="laptop"))[0] is Verdict.FOREIGN

    def test_that_was_made_by_hand_and_is_named_all_the_same_lives(self) -> None:
        needs = Needs([Named("a1a1a1a1", "PodVolumeBackup n-1")])
        assert verdict(snapshot(tags=()), needs)[0] is Verdict.LIVING

    def test_of_a_backup_that_has_not_ended_lives(self) -> None:
        running = Needs(pending=[Pending(frozenset({"backup-uid=u1"}), "PodVolumeBackup n-2")])
        assert verdict(snapshot(), running) == (Verdict.LIVING, "PodVolumeBackup n-2")
        other = Needs(pending=[Pending(frozenset({"backup-uid=u2"}), "PodVolumeBackup n-2")])
        assert verdict(snapshot(), other)[0] is Verdict.GARBAGE


class TestNeeds:
    def test_a_name_that_could_mean_anything_is_none(self) -> None:
        for text in ("", "a1a1a1a", "A1A1A1A1", "latest", "a1" * 33):
            with pytest.raises(ValueError, match="cannot name"):
                Needs([Named(text, "somebody")])

    def test_work_without_tags_would_need_everything(self) -> None:
        with pytest.raises(ValueError, match="no tags"):
            Needs(pending=[Pending(frozenset(), "somebody")])

    def test_what_was_needed_once_stays_needed(self) -> None:
        needs = Needs([Named("a1" * 32, "first")], backups=["one"])
        needs.learn(Needs(backups=["two"]))
        assert needs.who("a1" * 32, ()) == "first"
        assert needs.backups == {"one", "two"}


ids = st.text("ab", min_size=64, max_size=64)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Snapshot], Needs]:
    """Draw snapshots of every kind, and needs of which some mean them."""
    found = [
        snapshot(
            id,
            draw(st.integers(-10, 200)),
            hostname=draw(st.sampled_from(["velero", "laptop"])),
            tags=tuple(tag for tag in TAGS if draw(st.integers(0, 9))),
        )
        for id in draw(st.lists(ids, unique=True, max_size=8))
    ]
    known = [one.id for one in found] + draw(st.lists(ids, max_size=3))
    named = draw(st.lists(st.sampled_from(known), max_size=5)) if known else []
    names = [
        Named(id[: draw(st.sampled_from([8, 20, 64]))], f"n{i}", PLACE)
        for i, id in enumerate(named)
    ]
    pending = draw(st.sampled_from([(), (Pending(frozenset({"backup-uid=u1", "ns=app"}), "p"),)]))
    return found, Needs(names, pending, draw(st.lists(st.just("nightly"), max_size=1)))


@given(worlds(), st.integers(0, 200))
def test_garbage_is_unneeded_and_old_and_velero_s_in_every_world(
    world: tuple[list[Snapshot], Needs], grace_hours: int
) -> None:
    found, needs = world
    judgement = judge(found, needs, NOW, grace_hours * HOUR, PLACE)
    assert [one.snapshot for one in judgement.judged] == found
    assert sum(len(judgement.of(verdict)) for verdict in Verdict) == len(found)
    for one in found:
        needed = any(one.id.startswith(name.id) for name in needs.named) or any(
            work.tags <= set(one.tags) for work in needs.pending
        )
        theirs = one.hostname == "velero" and set(TAGS) <= set(one.tags)
        old = NOW - one.time_ns > grace_hours * HOUR
        assert (one in judgement.garbage) == (theirs and old and not needed)
    missing = {name.id for name in judgement.missing}
    every = {name.id for name in needs.named}
    assert every - missing == {id for id in every if any(one.id.startswith(id) for one in found)}


@given(worlds(), worlds())
def test_knowing_more_never_makes_garbage(
    world: tuple[list[Snapshot], Needs], more: tuple[list[Snapshot], Needs]
) -> None:
    found, needs = world
    before = {one.id for one in judge(found, needs, NOW, GRACE).garbage}
    needs.learn(more[1])
    assert {one.id for one in judge(found, needs, NOW, GRACE).garbage} <= before


class TestDoubt:
    def doubt(self, needs: Needs, *, empty_location: bool = False) -> Judgement:
        judgement = judge([snapshot()], needs, NOW, GRACE, PLACE)
        refuse_doubtful(judgement, needs, PLACE, empty_location=empty_location)
        return judgement

    def test_a_location_without_backups_is_refused_unless_it_is_said_to_be_empty(self) -> None:
        with pytest.raises(RepositoryError, match="no backup at all"):
            self.doubt(Needs())
        assert self.doubt(Needs(), empty_location=True).garbage

    def test_a_repository_that_has_nothing_of_what_is_named_is_refused(self) -> None:
        needs = Needs([Named("b2" * 32, "PodVolumeBackup n-1", PLACE)], backups=["other"])
        with pytest.raises(RepositoryError, match="has none of them"):
            self.doubt(needs, empty_location=True)

    def test_names_in_other_repositories_raise_no_doubt(self) -> None:
        needs = Needs([Named("b2" * 32, "PodVolumeBackup n-1", "elsewhere")], backups=["other"])
        assert self.doubt(needs).missing == ()

    def test_nothing_is_in_doubt_while_nothing_is_garbage(self) -> None:
        refuse_doubtful(judge([], Needs(), NOW, GRACE), Needs(), PLACE, empty_location=False)
