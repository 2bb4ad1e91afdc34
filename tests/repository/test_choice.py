"""Which snapshots filters take."""

import pytest

from agent.repository.choice import Choice
from agent.repository.snapshot import Snapshot


def made(id: str, time: int, host: str, paths: str, tags: str) -> Snapshot:
    return Snapshot(
        id=id,
        time_ns=time,
        tree=b"t" * 32,
        hostname=host,
        paths=tuple(paths.split()),
        tags=tuple(tags.split()),
    )


EVERY = [
    made("d", 4, "two", "/a", "x=1"),
    made("a", 1, "one", "/a", "x=1 y=2"),
    made("b", 2, "one", "/a /b", "y=2"),
    made("c", 3, "one", "/b /a", ""),
    made("e", 5, "one", "/a", "x=2"),
]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, "abcde"),
        ({"hosts": ["two"]}, "d"),
        ({"hosts": ["two", "one"]}, "abcde"),
        ({"tags": ["x=1"]}, "ad"),
        ({"tags": ["x=1,y=2"]}, "a"),
        ({"tags": ["x=2", "y=2"]}, "abe"),
        ({"paths": ["/b"]}, "bc"),
        ({"paths": ["/a", "/b"]}, "bc"),
        ({"paths": ["/a"], "hosts": ["one"], "tags": ["y=2"]}, "ab"),
        ({"newest": 1}, "cde"),  # the order of paths does not make another volume
        ({"newest": 2}, "abcde"),
        ({"newest": 1, "tags": ["y=2"]}, "ab"),
        ({"hosts": ["nobody"]}, ""),
    ],
)
def test_filters_take_what_they_say_oldest_first(filters: dict[str, object], ids: str) -> None:
    assert "".join(s.id for s in Choice(**filters).of(EVERY)) == ids  # type: ignore[arg-type]
