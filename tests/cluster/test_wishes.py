"""What annotations and uploaderSettings wish of a backup: values in, values out."""

import json
from typing import Any

import pytest

from agent.cluster import wishes
from agent.cluster.order import OrderKind, parse
from agent.cluster.wishes import Annotated, read_wishes
from agent.errors import ClusterError
from tests.cluster.scene import pvb_object

Annotations = dict[str, str]


def read(
    backup: Annotations | None = None, claim: Annotations | None = None,
    pod: Annotations | None = None, **spec: Any,
) -> wishes.Wishes:  # fmt: skip
    """Read the wishes of a backup that was observed, short names for ours."""
    body = pvb_object("b-1", **spec)
    body["metadata"]["annotations"] = _long(backup)
    order = parse(OrderKind.BACKUP, json.dumps(body).encode())
    bearers = [Annotated("claim app/c", _long(claim)), Annotated("pod app/p", _long(pod))]
    return read_wishes(order, bearers)


def _long(annotations: Annotations | None) -> Annotations:
    return {
        key if "/" in key else f"podlift.io/{key}": value
        for key, value in (annotations or {}).items()
    }


def globs(text: str) -> list[str]:
    return [pattern.glob for pattern in read(pod={"exclude": text}).excludes]


class TestExcludes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("*.log", ["*.log"]),
            ("*.log,/cache", ["*.log", "/cache"]),
            (" *.log ,  tmp/ , ", ["*.log", "tmp/"]),
            ("*.log\n/cache\n\ntmp/\n", ["*.log", "/cache", "tmp/"]),
            ("*.log\r\n/cache\r\n", ["*.log", "/cache"]),
            ("a\\,b,c", ["a\\,b", "c"]),
            ("a\\\\,b", ["a\\\\", "b"]),
            ("a\\\nb", ["a\\", "b"]),
            ("a b,c d", ["a b", "c d"]),
            ("a\\", ["a\\"]),
            ("", []),
            (" \n,", []),
        ],
    )
    def test_are_lines_or_stand_between_commas(self, text: str, expected: list[str]) -> None:
        assert globs(text) == expected

    def test_of_all_objects_are_added_together_each_once(self) -> None:
        found = read({"exclude": "a,b"}, {"exclude": "b,c"}, {"exclude": "d,a"}).excludes
        assert [pattern.glob for pattern in found] == ["a", "b", "c", "d"]
        assert found[2].origin == "annotation podlift.io/exclude of claim app/c"

    def test_have_a_limit_in_number_and_length(self) -> None:
        most = ",".join(f"p{number}" for number in range(wishes.MOST_PATTERNS))
        assert len(globs(most)) == wishes.MOST_PATTERNS
        with pytest.raises(ClusterError, match=r"exclude of claim app/c.*more than 100 patterns"):
            read(claim={"exclude": most + ",one-more"})
        with pytest.raises(ClusterError, match=r"exclude of pod app/p.*more than 2048 characters"):
            read({"exclude": "x" * 2000}, pod={"exclude": "y" * 97})


class TestSingleValues:
    def test_of_a_backup_count_before_those_of_a_claim_and_these_before_a_pods(self) -> None:
        key = "compression"
        backup, claim, pod = {key: "better"}, {key: "fastest"}, {key: "default"}
        assert read(backup, claim, pod).compression == "better"
        assert read(None, claim, pod).compression == "fastest"
        assert read(None, None, pod).compression == "default"
        assert read().compression is None
        assert read(pod={"on-read-error": "fail"}).on_read_error == "fail"
        assert (
            read({"on-read-error": "warn"}, pod={"on-read-error": "fail"}).on_read_error == "warn"
        )

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("compression", "best", "must be fastest, default or better, not 'best'"),
            ("on-read-error", "ignore", "must be warn or fail, not 'ignore'"),
            ("on-read-error", "Fail", "must be warn or fail, not 'Fail'"),
            ("on-read-error", "", "must be warn or fail, not ''"),
            ("compression", "x" * 999, "not '" + "x" * 120 + "…'"),
        ],
    )
    def test_that_cannot_be_are_refused_by_object_and_name(
        self, key: str, value: str, message: str
    ) -> None:
        with pytest.raises(ClusterError) as refused:
            read({key: "fastest" if key == "compression" else "warn"}, pod={key: value})
        assert str(refused.value).startswith(f"annotation podlift.io/{key} of pod app/p ")
        assert str(refused.value).endswith(message)


class TestUnknownOnes:
    def test_are_named_with_what_may_be_meant(self) -> None:
        found = read(claim={"excludes": "*"}, pod={"on-read-errors": "fail", "x.io/exclude": "y"})
        ignored = "is not known and was ignored"
        assert found.warnings == (
            f"annotation podlift.io/excludes of claim app/c {ignored}; podlift.io/exclude may be meant",
            f"annotation podlift.io/on-read-errors of pod app/p {ignored}; podlift.io/on-read-error may be meant",
        )
        assert found.excludes == ()

    def test_that_resemble_nothing_are_told_what_there_is(self) -> None:
        (warning,) = read(pod={"zzzzzz": ""}).warnings
        assert warning.endswith("known are " + ", ".join(wishes.KNOWN))

    def test_are_only_so_many_and_our_own_mark_is_none(self) -> None:
        many = {f"key-{number}" + "x" * 300: "" for number in range(50)}
        warnings = read({"owner": "{}"}, pod=many).warnings
        assert warnings[-1] == "47 more annotations are not known"
        assert sum(map(len, warnings)) < 2000
        assert read({"owner": "{}"}).warnings == ()


class TestUploaderSettings:
    def test_say_how_many_files_are_read_at_a_time(self) -> None:
        assert read(uploaderSettings={"ParallelFilesUpload": "10"}).files_at_once == 10
        assert read(uploaderSettings={"ParallelFilesUpload": "0"}).files_at_once == 0
        assert read(uploaderSettings={"Other": "?"}).files_at_once == 0
        assert read(uploaderSettings=None).files_at_once == 0

    @pytest.mark.parametrize("text", ["", "-1", "many", "1.5", "9" * 30, "٣"])
    def test_that_are_no_number_are_refused(self, text: str) -> None:
        with pytest.raises(ClusterError, match="ParallelFilesUpload of PodVolumeBackup b-1 must"):
            read(uploaderSettings={"ParallelFilesUpload": text})
