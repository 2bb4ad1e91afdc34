import itertools

import msgspec
import pytest

from agent.cluster import claim
from agent.cluster.claim import (
    MOST_ATTEMPTS,
    Abandon,
    AskOwner,
    AskPod,
    Cancel,
    Claim,
    CompleteOrphan,
    FailAtOnce,
    FailOrphan,
    Hold,
    Ignore,
    Policy,
    Release,
    Standing,
    View,
    Wait,
    decide,
)
from agent.cluster.order import FINALIZER, Order, OrderKind, Owner
from agent.cluster.site import HERE, Site, Where

US = Owner(node="n1", pod="agent-b", pod_uid="pod-2", attempt="second")
EARLIER = Owner(node="n1", pod="agent-b", pod_uid="pod-2", attempt="first")
OTHER = Owner(node="n1", pod="agent-a", pod_uid="pod-1", attempt="other")
WORN = msgspec.structs.replace(
    EARLIER, since="2026-01-05T00:00:00Z", earlier=tuple(f"pod agent-{n} from x" for n in range(4))
)
"""The last of as many processes as may work on one object."""

HEIR = OTHER.succeeding(US, "later")
"""One that has taken over from us."""

POLICY = Policy()

NEW = Order(
    name="b-1",
    namespace="velero",
    uid="u",
    resource_version="7",
    node="n1",
    pod_name="db-0",
    pod_namespace="app",
    pod_uid="p",
    volume="data",
    location="default",
)


def but(**changes: object) -> Order:
    return msgspec.structs.replace(NEW, **changes)


IDLE = View()
HELD = View(held=True)
ALIVE = View(owner_alive=True)
DEAD = View(owner_alive=False)


@pytest.mark.parametrize(
    ("order", "view", "expected"),
    [
        (NEW, IDLE, Claim),
        (but(phase="New"), IDLE, Claim),
        (but(uploader_type="restic"), IDLE, Claim),
        (but(node="n2"), IDLE, Ignore),
        (but(node=""), IDLE, Ignore),
        (but(uploader_type="kopia"), IDLE, FailAtOnce),
        (but(defect="spec.volume missing"), IDLE, FailAtOnce),
        (but(cancel=True), IDLE, FailAtOnce),
        (but(deleting=True), IDLE, FailAtOnce),
        (but(phase="Completed"), IDLE, Ignore),
        (but(phase="Failed", owner=OTHER), IDLE, Ignore),
        (but(phase="Canceled"), IDLE, Ignore),
        (but(phase="Completed", deleting=True), IDLE, Ignore),
        (but(phase="Completed", deleting=True, finalizers=("x", FINALIZER)), IDLE, Release),
        (but(phase="Failed", deleting=True, finalizers=(FINALIZER,), node="n2"), IDLE, Release),
        (but(phase="Failed", finalizers=(FINALIZER,)), IDLE, Ignore),
        (but(phase="InProgress", deleting=True, finalizers=(FINALIZER,), owner=US), HELD, Cancel),
        (but(phase="Prepared"), IDLE, Ignore),
        (but(phase="Canceling", cancel=True), IDLE, Ignore),
        # New with a mark: somebody was between the two halves of a claim.
        (but(owner=US), IDLE, Claim),
        (but(owner=EARLIER), IDLE, Claim),
        (but(owner=OTHER), IDLE, AskOwner),
        (but(owner=OTHER), ALIVE, Ignore),
        (but(owner=OTHER), DEAD, Claim),
        (but(owner=Owner()), IDLE, Claim),
        # In progress, and not by this process.
        (but(phase="InProgress"), IDLE, FailOrphan),
        (but(phase="InProgress", owner=EARLIER), IDLE, Claim),
        (but(phase="InProgress", owner=EARLIER, cancel=True), IDLE, FailOrphan),
        (but(phase="InProgress", owner=WORN), IDLE, FailOrphan),
        (but(phase="InProgress", owner=OTHER), IDLE, AskOwner),
        (but(phase="InProgress", owner=OTHER), ALIVE, Ignore),
        (but(phase="InProgress", owner=OTHER), DEAD, Claim),
        (but(phase="InProgress", owner=EARLIER, node="n2"), IDLE, Ignore),
        # In progress by this process.
        (but(phase="InProgress", owner=US), HELD, Ignore),
        (but(phase="InProgress"), HELD, Ignore),
        (NEW, HELD, Ignore),
        (but(phase="InProgress", owner=US, cancel=True), HELD, Cancel),
        (but(phase="InProgress", owner=US, deleting=True), HELD, Cancel),
        (but(phase="InProgress", owner=HEIR), HELD, Abandon),
        (but(owner=HEIR), HELD, Abandon),
        # As it was before our claim: events may be late.
        (but(phase="InProgress", owner=OTHER), HELD, Ignore),
        (but(phase="InProgress", owner=EARLIER), HELD, Ignore),
        (but(owner=EARLIER), HELD, Ignore),
        (but(phase="Failed", owner=US), HELD, Abandon),
        (but(phase="Prepared"), HELD, Abandon),
    ],
)
def test_each_observation_leads_to_one_decision(order: Order, view: View, expected: type) -> None:
    assert type(decide(order, US, POLICY, view)) is expected


RESTORE = but(
    kind=OrderKind.RESTORE,
    node="",
    wanted_snapshot="ab" * 32,
    source_namespace="shop",
    restore_uid="r",
)


def restore_but(**changes: object) -> Order:
    return msgspec.structs.replace(RESTORE, **changes)


WAITING = Site(Where.WAITING, "it does not run yet")
ELSEWHERE = Site(Where.ELSEWHERE, "it runs on node n2")
LOST = Site(Where.LOST, "the pod was deleted")
DONE = Site(Where.DONE, "the volume is the pod's now")
ASK = Site(Where.ASK)


@pytest.mark.parametrize(
    ("order", "view", "expected"),
    [
        (RESTORE, View(site=HERE), Claim),
        (RESTORE, View(site=WAITING), Wait),
        (RESTORE, View(site=ELSEWHERE), Ignore),
        (RESTORE, View(site=LOST), FailAtOnce),
        (RESTORE, View(site=ASK), AskPod),
        (restore_but(phase="Completed"), View(site=ASK), Ignore),
        (restore_but(phase="Prepared"), View(site=HERE), Ignore),
        # What can never be done is said before the pod is ready, but by its own node.
        (restore_but(uploader_type="kopia"), View(site=WAITING), FailAtOnce),
        (restore_but(uploader_type="kopia"), View(site=ELSEWHERE), Ignore),
        (restore_but(wanted_snapshot=""), View(site=WAITING), FailAtOnce),
        (restore_but(wanted_snapshot="latest"), View(site=HERE), FailAtOnce),
        (restore_but(wanted_snapshot="ab"), View(site=HERE), FailAtOnce),
        (restore_but(wanted_snapshot="5a" * 16), View(site=HERE), FailAtOnce),
        (restore_but(wanted_snapshot="5a" * 4), View(site=HERE), Claim),
        (restore_but(cancel=True), View(site=WAITING), FailAtOnce),
        (restore_but(cancel=True), View(site=ELSEWHERE), Ignore),
        (restore_but(defect="spec.pod.uid missing"), View(site=LOST), FailAtOnce),
        # A restore that a dead agent left is begun anew while its pod waits, and only then.
        (restore_but(phase="InProgress", owner=EARLIER), View(site=HERE), Claim),
        (restore_but(phase="InProgress", owner=US), View(site=HERE), Claim),
        (restore_but(phase="InProgress", owner=WORN), View(site=HERE), FailOrphan),
        (restore_but(phase="InProgress", owner=EARLIER), View(site=WAITING), Wait),
        (restore_but(phase="InProgress", owner=EARLIER), View(site=LOST), FailOrphan),
        (restore_but(phase="InProgress", owner=EARLIER), View(site=ELSEWHERE), Ignore),
        # One whose pod was let go had come to its end, whatever was asked for since.
        (restore_but(phase="InProgress", owner=EARLIER), View(site=DONE), CompleteOrphan),
        (restore_but(phase="InProgress", owner=WORN), View(site=DONE), CompleteOrphan),
        (
            restore_but(phase="InProgress", owner=EARLIER, cancel=True),
            View(site=DONE),
            CompleteOrphan,
        ),
        (restore_but(phase="InProgress"), View(site=DONE), FailOrphan),
        (RESTORE, View(site=DONE), FailAtOnce),
        (restore_but(phase="InProgress", owner=US), View(held=True, site=DONE), Cancel),
        (restore_but(phase="InProgress", owner=EARLIER, cancel=True), View(site=HERE), FailOrphan),
        (restore_but(phase="InProgress", owner=OTHER), View(site=HERE), AskOwner),
        (
            restore_but(phase="InProgress", owner=OTHER),
            View(owner_alive=True, site=LOST),
            Ignore,
        ),
        (
            restore_but(phase="InProgress", owner=OTHER),
            View(owner_alive=False, site=HERE),
            Claim,
        ),
        (restore_but(phase="InProgress"), View(site=HERE), FailOrphan),
        # In progress by this process.
        (restore_but(phase="InProgress", owner=US), View(held=True, site=HERE), Ignore),
        (restore_but(phase="InProgress", owner=US), View(held=True, site=WAITING), Ignore),
        (restore_but(phase="InProgress", owner=US), View(held=True, site=ELSEWHERE), Ignore),
        (restore_but(phase="InProgress", owner=US), View(held=True, site=LOST), Cancel),
        (restore_but(phase="InProgress", owner=HEIR), View(held=True, site=HERE), Abandon),
        (restore_but(phase="InProgress", owner=EARLIER), View(held=True, site=HERE), Ignore),
    ],
)
def test_each_observation_of_a_restore_leads_to_one_decision(
    order: Order, view: View, expected: type
) -> None:
    assert type(decide(order, US, POLICY, view)) is expected


@pytest.mark.parametrize(
    "order",
    [restore_but(uploader_type="kopia"), restore_but(wanted_snapshot="5a" * 16)],
    ids=["type", "id"],
)
def test_a_restore_of_another_format_is_told_where_its_data_would_be(order: Order) -> None:
    decision = decide(order, US, POLICY, View(site=HERE))
    assert isinstance(decision, FailAtOnce)
    assert "kopia/shop in BackupStorageLocation default" in decision.message
    assert "Velero's own node-agent restores it" in decision.message


def test_a_restore_that_cannot_be_begun_anew_tells_both_stories() -> None:
    orphan = restore_but(phase="InProgress", owner=EARLIER)
    decision = decide(orphan, US, POLICY, View(site=LOST))
    assert isinstance(decision, FailOrphan)
    assert "the pod was deleted" in decision.message
    assert "look at the volume" in decision.message


def test_both_tables_answer_every_pair_of_standing_and_hold() -> None:
    pairs = set(itertools.product(Standing, Hold))
    assert set(claim._IDLE) == pairs
    assert set(claim._WORKING) == pairs


def test_a_type_that_is_not_taken_fails_with_the_settings_name() -> None:
    decision = decide(but(uploader_type="kopia"), US, POLICY, IDLE)
    assert isinstance(decision, FailAtOnce)
    assert "--uploader-types" in decision.message
    assert "kopia" in decision.message


def test_a_type_that_is_not_taken_can_be_left_alone_even_when_it_is_canceled() -> None:
    policy = Policy(other_types="ignore")
    for order in (but(uploader_type="kopia"), but(uploader_type="kopia", cancel=True)):
        assert isinstance(decide(order, US, policy, IDLE), Ignore)


def test_kopia_is_claimed_once_it_is_taken() -> None:
    policy = Policy(uploader_types=frozenset({"restic", "kopia"}))
    assert isinstance(decide(but(uploader_type="kopia"), US, policy, IDLE), Claim)


def test_an_empty_type_counts_as_restic() -> None:
    policy = Policy(uploader_types=frozenset({"kopia"}))
    assert isinstance(decide(but(uploader_type=""), US, policy, IDLE), FailAtOnce)


def test_what_ended_its_agent_too_often_is_given_up_with_the_whole_story() -> None:
    decision = decide(but(phase="InProgress", owner=WORN), US, POLICY, IDLE)
    assert isinstance(decision, FailOrphan)
    assert f"given up after {MOST_ATTEMPTS} attempts" in decision.message
    for who in ("agent-0", "agent-3", "pod agent-b (first) from 2026-01-05"):
        assert who in decision.message
    assert "memory limit" in decision.message
    less = msgspec.structs.replace(WORN, earlier=WORN.earlier[1:])
    assert isinstance(decide(but(phase="InProgress", owner=less), US, POLICY, IDLE), Claim)


def test_a_claim_that_is_taken_over_remembers_who_had_it() -> None:
    first = US.succeeding(None, "t1")
    assert (first.since, first.earlier) == ("t1", ())
    third = EARLIER.succeeding(OTHER.succeeding(first, "t2"), "t3")
    assert third.earlier == ("pod agent-b (second) from t1", "pod agent-a (other) from t2")
    assert third.succeeds(US)
    assert third.succeeds(OTHER)
    assert not third.succeeds(third)
    assert third.since == "t3"
    assert EARLIER.same(third)
    assert not US.same(third)
    assert not US.same(None)


def test_an_orphan_that_was_canceled_ends_as_canceled() -> None:
    decision = decide(but(phase="InProgress", owner=EARLIER, cancel=True), US, POLICY, IDLE)
    assert isinstance(decision, FailOrphan)
    assert decision.message.startswith("canceled: ")


def test_an_agent_outside_of_a_pod_takes_over_from_one_without_a_pod() -> None:
    local = Owner(node="n1", attempt="later")
    before = Owner(node="n1", attempt="before")
    assert isinstance(decide(but(phase="InProgress", owner=before), local, POLICY, IDLE), Claim)


def test_a_canceled_object_that_was_not_begun_ends_as_canceled() -> None:
    decision = decide(but(cancel=True), US, POLICY, IDLE)
    assert isinstance(decision, FailAtOnce)
    assert decision.message.startswith("canceled: spec.cancel was set")
