import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster import patches
from agent.cluster.order import OWNER, Order, OrderKind, Owner, owner_text, parse
from agent.errors import ClusterError
from tests.cluster.scene import pvb_object, pvr_object


def as_bytes(obj: Any) -> bytes:
    return json.dumps(obj).encode()


def test_a_velero_object_is_read_whole() -> None:
    obj = pvb_object("b-1", cancel=True)
    us = Owner(node="n", pod="p", pod_uid="u", attempt="a")
    obj["metadata"] |= {
        "uid": "x",
        "namespace": "velero",
        "resourceVersion": "5",
        "annotations": {OWNER: owner_text(us)},
        "labels": {"velero.io/pvc-uid": "claim-uid"},
    }
    obj["status"] = {"phase": "InProgress", "startTimestamp": "2026-01-01T00:00:00Z"}
    pvb = parse(OrderKind.BACKUP, as_bytes(obj))
    assert (pvb.name, pvb.uid, pvb.resource_version) == ("b-1", "x", "5")
    assert (pvb.node, pvb.pod_name, pvb.volume) == ("node-1", "db-0", "data")
    assert pvb.owner == us
    assert pvb.pvc_uid == "claim-uid"
    assert pvb.tags == {"backup": "nightly", "ns": "app"}
    assert pvb.cancel
    assert pvb.started == "2026-01-01T00:00:00Z"
    assert not pvb.defect


def test_a_restore_is_read_whole() -> None:
    pvr = parse(OrderKind.RESTORE, as_bytes(pvr_object("r-1", cancel=True)))
    assert (pvr.kind, pvr.name, pvr.node) == (OrderKind.RESTORE, "r-1", "")
    assert (pvr.pod_namespace, pvr.pod_name, pvr.pod_uid) == ("app", "db-0", "pod-uid-1")
    assert (pvr.wanted_snapshot, pvr.snapshot_id) == ("5a" * 32, "")
    assert (pvr.source_namespace, pvr.restore_uid) == ("app", "restore-uid")
    assert pvr.cancel
    assert not pvr.defect


@pytest.mark.parametrize(
    ("owners", "uid"),
    [
        ([{"uid": "first"}, {"uid": "controller", "controller": True}], "controller"),
        ([{"uid": "first", "controller": False}, {"uid": "second"}], "first"),
        ([], ""),
        (None, ""),
    ],
)
def test_the_restores_uid_is_the_controllers_or_the_first_owners(owners: Any, uid: str) -> None:
    obj = pvr_object("r-1")
    obj["metadata"]["ownerReferences"] = owners
    pvr = parse(OrderKind.RESTORE, as_bytes(obj))
    assert pvr.restore_uid == uid
    assert ("ownerReferences" in pvr.defect) is (not uid)


def test_a_restore_without_repository_must_say_whose_namespace_it_was() -> None:
    neither = pvr_object("r-1", repoIdentifier="", sourceNamespace=None)
    assert "sourceNamespace" in parse(OrderKind.RESTORE, as_bytes(neither)).defect
    assert not parse(OrderKind.RESTORE, as_bytes(pvr_object("r", sourceNamespace=None))).defect


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"node": "n1"}, "spec.volume"),
        ({"node": "n1", "pod": {"name": "p"}, "volume": "v"}, "spec.pod.uid"),
        ({"node": "n1", "pod": "not an object"}, "object"),
        ({"node": "n1", "tags": {"a": 1}}, "str"),
        ({"node": "n1", "volume": 7}, "str"),
    ],
)
def test_a_malformed_object_keeps_its_node_and_says_what_is_wrong(spec: Any, word: str) -> None:
    pvb = parse(OrderKind.BACKUP, as_bytes({"metadata": {"name": "b", "uid": "x"}, "spec": spec}))
    assert (pvb.name, pvb.node) == ("b", "n1")
    assert word in pvb.defect


def test_a_malformed_object_keeps_its_phase() -> None:
    body = {"metadata": {"name": "b"}, "spec": {"node": 7}, "status": {"phase": "Completed"}}
    pvb = parse(OrderKind.BACKUP, as_bytes(body))
    assert pvb.final
    assert pvb.node == ""


def test_a_status_that_cannot_be_read_counts_as_final() -> None:
    pvb = parse(
        OrderKind.BACKUP, as_bytes({"metadata": {"name": "b"}, "spec": {"node": "n"}, "status": 3})
    )
    assert pvb.final
    assert pvb.defect


@pytest.mark.parametrize("mark", ["", "no json", "[]", '{"node": 5}', "[" * 5000, '{"a":' * 5000])
def test_a_damaged_owner_mark_is_an_unknown_owner(mark: str) -> None:
    body = {"metadata": {"name": "b", "annotations": {OWNER: mark}}, "spec": {}}
    assert parse(OrderKind.BACKUP, as_bytes(body)).owner == Owner()


def test_an_object_without_metadata_is_refused() -> None:
    with pytest.raises(ClusterError, match="without metadata"):
        parse(OrderKind.BACKUP, b'{"metadata": 5}')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(spec=json_values, status=json_values)
def test_whatever_spec_and_status_hold_the_name_can_be_read(spec: Any, status: Any) -> None:
    pvb = parse(
        OrderKind.BACKUP, as_bytes({"metadata": {"name": "b"}, "spec": spec, "status": status})
    )
    assert pvb.name == "b"


@given(body=st.binary(max_size=60))
def test_bytes_that_are_no_object_raise_only_our_error(body: bytes) -> None:
    with contextlib.suppress(ClusterError):
        assert isinstance(parse(OrderKind.BACKUP, body), Order)


@pytest.mark.parametrize(
    "body",
    [
        b'{"metadata": {"name": "b"}, "spec": {"tags": %s}}' % (b"[" * 5000 + b"]" * 5000),
        b'{"metadata": {"name": "b"}, "spec": {"node": "\xff", "tags": 1}}',
        b'{"metadata": {"name": "b"}, "spec": {"tags": 1}, "status": {"phase": "\xff"}}',
    ],
    ids=["deep", "spec", "status"],
)
def test_nesting_without_end_and_text_that_is_none_raise_only_our_error(body: bytes) -> None:
    with contextlib.suppress(ClusterError):
        assert parse(OrderKind.BACKUP, body).name == "b"


SEEN = Order(name="b", uid="x", resource_version="5")
NOW = "2026-01-02T03:04:05Z"


def test_every_patch_is_bound_to_the_version_it_was_decided_on() -> None:
    us = Owner(node="n", attempt="a")
    for patch in (
        patches.owner(SEEN, us, NOW),
        patches.start(SEEN, NOW),
        patches.claim(SEEN, us, NOW),
        patches.progress(SEEN, 2, 1),
        patches.final(SEEN, patches.failed("no"), NOW),
    ):
        assert patch["metadata"]["uid"] == "x"
        assert patch["metadata"]["resourceVersion"] == "5"


def test_a_claim_names_those_who_had_begun_to_work_and_nobody_else() -> None:
    us, before = Owner(attempt="b"), Owner(pod="p", attempt="a", since="then")
    for phase, earlier in (("", ()), ("New", ()), ("InProgress", ("pod p (a) from then",))):
        seen = msgspec.structs.replace(SEEN, phase=phase, owner=before)
        text = patches.claim(seen, us, NOW)["metadata"]["annotations"]["podlift.io/owner"]
        mark = msgspec.json.decode(text, type=Owner)
        assert (mark.attempt, mark.since, mark.earlier) == ("b", NOW, earlier)


def test_a_completed_state_has_every_field_and_exact_progress() -> None:
    end = patches.completed("ab" * 32, "/host_pods/p/volumes/x/y", 1234, 34)
    assert patches.final(SEEN, end, NOW)["status"] == {
        "phase": "Completed",
        "startTimestamp": NOW,
        "completionTimestamp": NOW,
        "snapshotID": "ab" * 32,
        "path": "/host_pods/p/volumes/x/y",
        "progress": {"totalBytes": 1234, "bytesDone": 1234},
        "incrementalBytes": 34,
    }


def test_a_failed_state_names_no_snapshot_because_velero_would_restore_it() -> None:
    started = Order(name="b", uid="x", resource_version="5", started="earlier")
    assert patches.final(started, patches.failed("why"), NOW)["status"] == {
        "phase": "Failed",
        "completionTimestamp": NOW,
        "message": "why",
    }


def test_a_long_message_is_cut() -> None:
    status = patches.final(SEEN, patches.failed("x" * 9000), NOW)["status"]
    assert len(status["message"]) == patches.MESSAGE_LIMIT


def test_partial_problems_are_counted_and_ten_are_named() -> None:
    names = tuple(f"file-{n}: permission denied" for n in range(14))
    text = patches.problems_message(25, names, "done")
    assert text.startswith("done; 25 entries were left out: file-0")
    assert "file-9" in text
    assert "file-10" not in text
    assert text.endswith("and 15 more")
    assert patches.problems_message(1, ("a: gone",), "") == "1 entry was left out: a: gone"
    assert patches.problems_message(0, (), "empty") == "empty"
