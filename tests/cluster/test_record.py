"""What Velero's files in the bucket mean, by values: a record is understood, or it is an error."""

import gzip
import json
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster import record
from agent.cluster.record import Standing, VolumeBackup, folders, read_object, read_record
from agent.errors import ClusterError
from agent.storage.contract import Listed

ID = "0123abcd" * 8


def item(snapshot_id: Any = ID, phase: Any = "Completed", **spec: Any) -> dict[str, Any]:
    """A PodVolumeBackup as Velero writes it; ``spec`` fields by keyword."""
    return {
        "kind": "PodVolumeBackup",
        "apiVersion": "velero.io/v1",
        "metadata": {
            "name": "nightly-x7k2p",
            "namespace": "velero",
            "labels": {"velero.io/backup-name": "nightly", "velero.io/backup-uid": "u1"},
        },
        "spec": {
            "node": "node-1",
            "pod": {"kind": "Pod", "namespace": "app", "name": "db-0", "uid": "p1"},
            "volume": "data",
            "backupStorageLocation": "default",
            "repoIdentifier": "s3:https://s3.example.org/bucket/velero/restic/app",
            "uploaderType": "restic",
            "tags": {"backup": "nightly", "backup-uid": "u1", "ns": "app"},
            **spec,
        },
        "status": {"phase": phase, "snapshotID": snapshot_id, "progress": {"totalBytes": 7}},
    }


def zipped(plain: bytes) -> bytes:
    return gzip.compress(plain, mtime=0)  # without the time, ids of cases are equal in all workers


def packed(content: Any) -> bytes:
    return zipped(json.dumps(content).encode())


def one(**changes: Any) -> VolumeBackup:
    (found,) = read_record(packed([item(**changes)]), "the record")
    return found


class TestFolders:
    def listing(self, *files: str) -> list[tuple[str, Standing]]:
        entries = [Listed(f"backups/{file}", 9) for file in files]
        return [(folder.name, folder.standing) for folder in folders(entries)]

    @pytest.mark.parametrize(
        ("files", "standing"),
        [
            (("velero-backup.json", "n.tar.gz", "n-podvolumebackups.json.gz"), Standing.RECORDED),
            (("n-podvolumebackups.json.gz",), Standing.RECORDED),
            (("m-podvolumebackups.json.gz", "velero-backup.json"), Standing.RECORDED),
            (("n-logs.gz",), Standing.UNFINISHED),
            (("n-logs.gz", "n-volumeinfo.json.gz"), Standing.UNFINISHED),
            (("n-logs.gz", "velero-backup.json"), Standing.DOUBTFUL),
            (("n.tar.gz",), Standing.DOUBTFUL),
            (("velero-backup.json", "n.tar.gz", "n-resource-list.json.gz"), Standing.DOUBTFUL),
        ],
    )
    def test_a_folder_is_what_its_files_make_it(
        self, files: tuple[str, ...], standing: Standing
    ) -> None:
        assert self.listing(*(f"n/{file}" for file in files)) == [("n", standing)]

    def test_folders_are_told_apart_and_markers_are_none(self) -> None:
        found = self.listing("b/velero-backup.json", "", "c/", "a/a-podvolumebackups.json.gz")
        assert found == [("a", Standing.RECORDED), ("b", Standing.DOUBTFUL)]


class TestRecords:
    def test_a_backup_without_volumes_has_a_record_that_says_so(self) -> None:
        assert read_record(packed(None), "it") == read_record(packed([]), "it") == []

    def test_every_field_that_matters_is_read(self) -> None:
        found = one()
        assert (found.name, found.backup, found.backup_uid) == ("nightly-x7k2p", "nightly", "u1")
        assert found.snapshot_id == ID
        named = found.named("velero/restic/app")
        assert named is not None
        assert (named.id, named.prefix) == (ID, "velero/restic/app")
        assert named.by == "PodVolumeBackup nightly-x7k2p of backup nightly"

    def test_an_object_as_lists_give_it_has_no_kind(self) -> None:
        bare = item()
        del bare["kind"], bare["apiVersion"]
        assert read_object(json.dumps(bare).encode(), "it").snapshot_id == ID

    @pytest.mark.parametrize("missing", ["", None])
    def test_no_snapshot_gives_no_name(self, missing: str | None) -> None:
        assert one(snapshot_id=missing).named("x") is None

    def test_a_failed_one_with_a_snapshot_is_needed_too(self) -> None:
        assert one(phase="Failed").named("x") is not None

    @pytest.mark.parametrize(
        ("uploader_type", "snapshot_id", "prefix"),
        [
            ("restic", "0123abcd", "place"),
            ("", "0123abcd", "place"),
            ("kopia", ID, "place"),
            ("kopia", "0123abcd" * 4, ""),
        ],
        ids=["short", "short-of-old", "podlift-for-kopia", "kopia-s-own"],
    )
    def test_a_name_is_expected_where_it_can_only_be_ours(
        self, uploader_type: str, snapshot_id: str, prefix: str
    ) -> None:
        found = one(uploaderType=uploader_type, snapshot_id=snapshot_id)
        named = found.named("place")
        assert named is not None
        assert (named.id, named.prefix) == (snapshot_id, prefix)

    def test_an_id_of_another_format_names_nothing_of_ours(self) -> None:
        assert one(uploaderType="velero-block", snapshot_id="snap-000!").named("x") is None

    @pytest.mark.parametrize("phase", ["", None, "New", "Accepted", "InProgress", "Odd"])
    def test_one_that_has_not_ended_protects_its_whole_backup(self, phase: str | None) -> None:
        work = one(phase=phase, snapshot_id=None).pending()
        assert work is not None
        assert work.tags == {"backup-uid=u1"}

    @pytest.mark.parametrize("phase", ["Completed", "Failed", "Canceled"])
    def test_one_that_has_ended_protects_by_its_name_alone(self, phase: str) -> None:
        assert one(phase=phase).pending() is None

    def test_without_a_backup_s_uid_all_tags_count_and_without_any_there_is_no_snapshot(
        self,
    ) -> None:
        bare = item(phase="New", tags={"ns": "app", "pod": "db-0"})
        del bare["metadata"]["labels"]
        work = read_object(json.dumps(bare).encode(), "it").pending()
        assert work is not None
        assert work.tags == {"ns=app", "pod=db-0"}
        bare["spec"]["tags"] = None
        assert read_object(json.dumps(bare).encode(), "it").pending() is None


class TestOddRecords:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "cut short"),
            (b"[]", "not gzip"),
            (zlib.compress(b"[]"), "not gzip"),
            (packed([])[:-1], "cut short"),
            (packed([]) + b"more", "something follows"),
            (packed([]) + packed([item()]), "something follows"),
            (zipped(b""), "truncated"),
            (zipped(b"[{]"), "malformed"),
            (zipped(b'"\xff"'), "decode|utf-8|Expected"),
            (zipped(b"[" * 5000 + b"]" * 5000), "recursion|Expected"),
            (zipped(b'[{"a":' + b"[" * 5000), "recursion"),
            (packed({"items": []}), "Expected `array"),
            (packed([None]), "Expected `object"),
            (packed([item(), {}]), "missing required field"),
            (packed([item(snapshot_id=7)]), "snapshotID"),
            (packed([item(snapshot_id="latest")]), "snapshotID 'latest'"),
            (packed([item(snapshot_id="ABCDEF01")]), "snapshotID 'ABCDEF01'"),
            (packed([item(snapshot_id="0123abc")]), "snapshotID '0123abc'"),
            (packed([item() | {"kind": "Backup"}]), "holds a Backup"),
            (packed([item() | {"apiVersion": "v2.example.org"}]), "v2.example.org"),
            (packed([item() | {"metadata": {"name": ""}}]), "without a name"),
            (packed([item() | {"status": "Completed"}]), "Expected `object"),
        ],
    )
    def test_an_odd_record_is_an_error_that_names_it(self, content: bytes, reason: str) -> None:
        with pytest.raises(ClusterError, match=reason) as caught:
            read_record(content, "backups/n/n-podvolumebackups.json.gz")
        assert str(caught.value).startswith("backups/n/n-podvolumebackups.json.gz cannot be read")

    def test_one_that_unpacks_without_end_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record, "_LIMIT_BYTES", 1 << 20)
        with pytest.raises(ClusterError, match="more than 1 MiB"):
            read_record(gzip.compress(b" " * (2 << 20)), "it")

    @given(st.integers(0, 10**6), st.integers(0, 7))
    def test_a_flipped_bit_never_hides_a_snapshot(self, place: int, bit: int) -> None:
        damaged = bytearray(packed([item()]))
        damaged[place % len(damaged)] ^= 1 << bit
        try:
            found = read_record(bytes(damaged), "it")
        except ClusterError:
            return
        assert [one.snapshot_id for one in found] == [ID]  # gzip's header has free bits

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_any_other_json_is_read_as_nothing_or_refused(self, content: Any) -> None:
        try:
            assert read_record(gzip.compress(msgspec.json.encode(content)), "it") == []
        except ClusterError:
            return
        assert content is None or content == []
