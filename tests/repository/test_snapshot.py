"""Snapshots against restic's: its bytes are ours, and one that it cannot read is never believed."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MalformedData, RepositoryError
from agent.repository.snapshot import Snapshot, Summary, decode_snapshot, encode_snapshot
from agent.repository.times import ZERO_TIME_NS, fixed_zone, utc
from tests.support.restic import Restic

GOLDEN = Path(__file__).parent / "golden"
TREE = bytes(range(32))
ID = "ab" * 32
MINIMAL = Snapshot(time_ns=0, tree=TREE, paths=("/data",))


def compact(indented: str) -> bytes:
    """Undo Go's indentation, which ``restic cat`` adds and which touches no string."""
    lines = (re.sub(r'^\s*("(?:[^"\\]|\\.)*"): ', r"\1:", line) for line in indented.splitlines())
    return "".join(line.strip() for line in lines).encode()


@pytest.mark.parametrize("name", ["snapshot-plain", "snapshot-tagged"])
def test_a_snapshot_once_stored_by_restic_is_still_written_alike(name: str) -> None:
    """Frozen from restic 0.19.1 (New York; Kolkata with parent, tags, excludes, original)."""
    golden = (GOLDEN / f"{name}.json").read_bytes()
    snapshot = decode_snapshot(golden, ID)

    assert encode_snapshot(snapshot, fixed_zone(snapshot.offset_seconds)) == golden


def test_the_fields_of_a_stored_snapshot_are_read() -> None:
    snapshot = decode_snapshot((GOLDEN / "snapshot-tagged.json").read_bytes(), ID)

    assert snapshot.id == ID
    assert snapshot.time_ns == 1795371423757317754
    assert snapshot.offset_seconds == 19800
    assert snapshot.tree.hex().startswith("34fd0c084c2e755a")
    assert snapshot.parent.startswith("5f4221d0f0dc544c")
    assert snapshot.original.startswith("d7509caca5853ba1")
    assert snapshot.hostname == "h<1>"
    assert snapshot.tags == ("pvc-uid=1", "grüße&", "later")
    assert snapshot.excludes == ("*.o", "x\ny")
    assert snapshot.summary is not None
    assert snapshot.summary.data_added_packed == 766
    assert snapshot.summary.backup_end_ns - snapshot.summary.backup_start_ns == 750697607


def test_the_snapshot_is_the_one_that_restic_shows(restic: Restic, tmp_path: Path) -> None:
    volume, repo = tmp_path / "volume", str(tmp_path / "repo")
    volume.mkdir()
    (volume / "file").write_bytes(b"content")
    restic.run(repo, "init")
    options = ["--host", "<velero>", "--tag", "a=b", "--tag", "grüße", "--exclude", "*.tmp"]
    restic.run(repo, "backup", ".", *options, cwd=volume, env={"TZ": "America/New_York"})
    [listed] = json.loads(restic.run(repo, "snapshots", "--json").stdout)

    shown = compact(restic.run(repo, "cat", "snapshot", listed["id"]).stdout)
    snapshot = decode_snapshot(shown, listed["id"])

    assert encode_snapshot(snapshot, fixed_zone(snapshot.offset_seconds)) == shown
    assert snapshot.tree.hex() == listed["tree"]
    assert snapshot.tags == ("a=b", "grüße")


def test_a_snapshot_without_circumstances_is_short() -> None:
    stored = encode_snapshot(MINIMAL, fixed_zone(19800)).decode()

    assert stored == (
        f'{{"time":"1970-01-01T05:30:00+05:30","tree":"{TREE.hex()}","paths":["/data"]}}'
    )


def test_missing_and_unknown_fields_are_tolerated_as_restic_does() -> None:
    data = json.dumps({"tree": TREE.hex().upper(), "paths": None, "new": [1]}).encode()

    snapshot = decode_snapshot(data, ID)

    assert snapshot == Snapshot(id=ID, time_ns=ZERO_TIME_NS, tree=TREE)


def test_null_reads_as_a_missing_field() -> None:
    keys = "time parent hostname username uid gid excludes tags original program_version summary"
    nulls = {"tree": TREE.hex(), "paths": [None], **dict.fromkeys(keys.split())}

    snapshot = decode_snapshot(json.dumps(nulls).encode(), ID)

    assert snapshot == Snapshot(id=ID, time_ns=ZERO_TIME_NS, tree=TREE, paths=("",))


def test_a_summary_may_lack_what_older_programs_did_not_write() -> None:
    data = json.dumps({"tree": TREE.hex(), "summary": {"files_new": 3}}).encode()

    summary = decode_snapshot(data, ID).summary

    assert summary == Summary(backup_start_ns=ZERO_TIME_NS, backup_end_ns=ZERO_TIME_NS, files_new=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"tree": None},
        {"tree": "ab"},
        {"tree": "zz" * 32},
        {"tree": 5},
        {"parent": "latest"},
        {"original": ""},
        {"time": "2023-11-14T22:13:20"},
        {"time": 0},
        {"uid": -1},
        {"gid": 1 << 32},
        {"uid": "0"},
        {"paths": "/data"},
        {"tags": [1]},
        {"hostname": 5},
        {"summary": []},
        {"summary": {"files_new": -1}},
        {"summary": {"data_added": 1 << 64}},
        {"summary": {"data_blobs": 1.0}},
        {"summary": {"tree_blobs": 1 << 63}},
        {"summary": {"backup_start": "soon"}},
    ],
    ids=repr,
)
def test_a_snapshot_that_restic_could_not_use_is_refused(changes: dict[str, object]) -> None:
    data = json.dumps({"time": "2023-11-14T22:13:20Z", "tree": TREE.hex(), **changes}).encode()

    with pytest.raises(MalformedData, match=f"snapshot {ID} is damaged: "):
        decode_snapshot(data, ID)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"{}", b'{"time":"\xff"}', b"\x02"])
def test_bytes_that_are_no_snapshot_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedData, match=f"snapshot {ID} is damaged: "):
        decode_snapshot(data, ID)


@pytest.mark.parametrize(
    "changes",
    [
        {"tree": b"short"},
        {"parent": "latest"},
        {"original": "ab"},
        {"uid": -1},
        {"gid": 1 << 32},
        {"summary": Summary(backup_start_ns=0, backup_end_ns=0, files_new=-1)},
        {"summary": Summary(backup_start_ns=0, backup_end_ns=0, data_added=1 << 64)},
        {"summary": Summary(backup_start_ns=0, backup_end_ns=0, tree_blobs=1 << 63)},
    ],
    ids=repr,
)
def test_a_snapshot_that_no_reader_could_take_is_not_written(changes: dict[str, object]) -> None:
    with pytest.raises(RepositoryError, match="cannot store the snapshot"):
        encode_snapshot(msgspec.structs.replace(MINIMAL, **changes), utc)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
text_tuples = st.lists(texts, max_size=3).map(tuple)
times_ns = st.integers(-(10**18), 10**20)
snapshot_ids = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(0, (1 << 63) - 1)
summaries = st.builds(
    Summary,
    backup_start_ns=times_ns,
    backup_end_ns=times_ns,
    **{key: counts for key in Summary.__struct_fields__ if not key.endswith("_ns")},
)
snapshots = st.builds(
    Snapshot,
    id=st.just(ID),
    time_ns=times_ns,
    offset_seconds=st.integers(-840, 840).map(lambda minutes: minutes * 60),
    tree=st.binary(min_size=32, max_size=32),
    paths=text_tuples,
    parent=st.just("") | snapshot_ids,
    hostname=texts,
    username=texts,
    uid=st.integers(0, (1 << 32) - 1),
    gid=st.integers(0, (1 << 32) - 1),
    excludes=text_tuples,
    tags=text_tuples,
    original=st.just("") | snapshot_ids,
    program_version=texts,
    summary=st.none() | summaries,
)


@settings(deadline=None)
@given(snapshots)
def test_every_snapshot_comes_back(snapshot: Snapshot) -> None:
    stored = encode_snapshot(snapshot, fixed_zone(snapshot.offset_seconds))

    assert decode_snapshot(stored, ID) == snapshot


GOLDEN_SNAPSHOT = (GOLDEN / "snapshot-tagged.json").read_bytes()


@settings(deadline=None)
@given(st.integers(0, len(GOLDEN_SNAPSHOT) - 1), st.binary(max_size=3), st.integers(0, 5))
def test_a_mutated_snapshot_raises_only_our_error(
    place: int, inserted: bytes, removed: int
) -> None:
    mutated = GOLDEN_SNAPSHOT[:place] + inserted + GOLDEN_SNAPSHOT[place + removed :]

    try:
        snapshot = decode_snapshot(mutated, ID)
    except MalformedData:
        return
    assert len(snapshot.tree) == 32
    assert decode_snapshot(encode_snapshot(snapshot, utc), ID).tree == snapshot.tree
