"""Exclude patterns: what they take, what they leave, and which are refused."""

import contextlib
import fnmatch
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cancel import CancelToken
from agent.errors import Canceled, UsageError
from agent.monitor import Monitor
from agent.volume.exclude import Exclude
from agent.volume.reader import Volume


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("*.log", ["a.log", "x/y/b.log", ".log", "a.log/inside"], ["a.logs", "log", "a.log2/b"]),
        ("node_modules", ["node_modules", "a/node_modules/b"], ["node_modules2", "xnode_modules"]),
        ("cache/tmp", ["cache/tmp", "a/cache/tmp/b"], ["cache", "cache/x/tmp", "xcache/tmp"]),
        ("/cache", ["cache", "cache/b"], ["a/cache"]),
        ("/a/*/c", ["a/b/c", "a/b/c/d"], ["a/c", "a/b/b/c"]),
        ("**/x", ["x", "a/x", "a/b/x"], ["xx", "a/bx"]),
        ("/a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["z", "a/bz"]),
        ("/a/**/**/z", ["a/z", "a/b/c/z"], ["az"]),
        ("/a/**", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("a?c", ["abc", "a\u00e9c"], ["ac", "a/c", "abbc"]),
        ("[ab]*", ["a", "bcd"], ["cab"]),
        ("[!ab]", ["c"], ["a", "cc"]),
        ("[^ab]", ["c"], ["b"]),
        ("[a-c]x", ["bx"], ["dx", "-x"]),
        ("[+--&&[~]x", ["+x", ",x", "-x", "&x", "[x", "~x"], ["ax"]),
        ("[a-]x", ["ax", "-x"], ["bx"]),
        ("[]x]", ["]", "x"], ["y"]),
        ("[!a]b", ["cb"], ["ab", "/b"]),
        ("a***b", ["ab", "axxb"], ["a/b"]),
        (r"\*", ["*"], ["a"]),
        (r"\!x", ["!x"], ["x"]),
        (r"[\]", ["\\"], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("new\nline", ["new\nline", "x/new\nline"], ["newline"]),
    ],
)
def test_a_pattern_takes_what_it_says(pattern: str, taken: list[str], left: list[str]) -> None:
    exclude = Exclude([pattern])
    assert [path for path in taken if not exclude.matches(path.encode(), False)] == []
    assert [path for path in left if exclude.matches(path.encode(), False)] == []


def test_a_trailing_slash_takes_directories_only_and_all_below_them() -> None:
    exclude = Exclude(["tmp/"])
    assert exclude.matches(b"tmp", True)
    assert exclude.matches(b"a/tmp", True)
    assert exclude.matches(b"tmp/file", False)
    assert not exclude.matches(b"tmp", False)


def test_names_need_not_be_utf_8() -> None:
    assert Exclude(["\udcff*"]).matches(b"\xffabc", False)
    assert Exclude(["a?b"]).matches(b"a\xfeb", False)
    assert Exclude(["*"]).matches(b"\xc3\x28", False)


def test_any_of_several_patterns_is_enough_and_none_excludes_nothing() -> None:
    exclude = Exclude(["a", "/b/c"])
    assert exclude
    assert [exclude.matches(path, False) for path in (b"a", b"b/c", b"c")] == [True, True, False]
    assert not Exclude()
    assert not Exclude([]).matches(b"a", True)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "is empty"),
        ("/", "is empty"),
        ("//", "is empty"),
        ("[ab", "not closed"),
        ("a/[b/c]", "not closed"),
        ("[z-a]", "not a valid glob"),
        ("a\\", "backslash"),
        ("!a", "negated"),
        ("./a", r"\. or \.\."),
        ("a/../b", r"\. or \.\."),
        ("a\0b", "NUL"),
    ],
)
def test_a_bad_pattern_is_refused_by_name(pattern: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Exclude(["fine", pattern])


def plain_names(pattern: list[str], path: list[str]) -> bool:
    """Tell whether names match a pattern's from the first on; what is below a match matches."""
    if not pattern:
        return True
    if pattern == ["**"]:
        return bool(path)
    if pattern[0] == "**":
        return plain_names(pattern[1:], path) or (bool(path) and plain_names(pattern, path[1:]))
    if not path or not fnmatch.fnmatchcase(path[0], pattern[0]):
        return False
    return plain_names(pattern[1:], path[1:])


def plainly(pattern: str, path: str, is_directory: bool) -> bool:
    """The same without a regular expression for the whole, for patterns without brackets."""
    names, parts = path.split("/"), pattern.strip("/").split("/")
    starts = range(1 if pattern.startswith("/") else len(names))
    ends = range(len(names), 0, -1)
    if pattern.endswith("/"):  # a directory: the path itself, or something above it
        ends = range(len(names) - (not is_directory), 0, -1)
    return any(plain_names(parts, names[start:end]) for start in starts for end in ends)


_part = st.text("ab*?", min_size=1, max_size=6) | st.just("**")
_pattern = st.builds(
    lambda first, parts, last: first + "/".join(parts) + last,
    st.sampled_from(["", "/"]), st.lists(_part, min_size=1, max_size=5), st.sampled_from(["", "/"]),
)  # fmt: skip
_path = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6).map("/".join)


@settings(max_examples=600)
@given(_pattern, _path, st.booleans())
def test_a_pattern_takes_what_a_plain_comparison_does(
    pattern: str, path: str, is_directory: bool
) -> None:
    names = [re.sub(r"\*+", "*", part) if part != "**" else part for part in pattern.split("/")]
    wanted = plainly("/".join(names), path, is_directory)
    assert Exclude([pattern]).matches(path.encode(), is_directory) == wanted


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 100 + "*b", "a" * 255),
        ("*?" * 100 + "b", "a" * 255),
        ("*[ab]" * 100 + "c", "a" * 255),
        ("**/a/" * 100 + "b", "a/" * 5000 + "a"),
        ("**/a*/*a/" * 50 + "**/b/", "aa/" * 3000 + "a"),
        ("/**/*a*a*a/**/*a*a*b", ("a" * 255 + "/") * 60 + "a"),
        ("a/" * 100 + "b", "a/" * 5000 + "a"),
    ],
)
def test_no_pattern_takes_for_ever(pattern: str, path: str) -> None:
    """Each of these would take longer than the world is old if it were tried in every way."""
    assert not Exclude([pattern] * 10).matches(path.encode(), False)


def test_what_lies_in_a_directory_is_not_the_directory() -> None:
    exclude = Exclude(["/a/*", "b/**"])
    assert not exclude.matches(b"a", True)
    assert not exclude.matches(b"b", True)
    assert exclude.matches(b"a/x", True)


@given(st.text(max_size=20), st.binary(max_size=30))
def test_any_text_is_a_pattern_or_refused(pattern: str, path: bytes) -> None:
    try:
        exclude = Exclude([pattern])
    except UsageError:
        return
    assert exclude.matches(path, False) in (True, False)


@given(st.binary(min_size=1, max_size=30).filter(lambda n: b"/" not in n and b"\0" not in n))
def test_an_escaped_name_takes_exactly_itself(name: bytes) -> None:
    if name in (b".", b".."):
        return
    text = name.decode("utf-8", "surrogateescape")
    exclude = Exclude(["".join(f"\\{char}" for char in text)])
    assert exclude.matches(name, False)
    assert exclude.matches(b"x/" + name, False)
    assert not exclude.matches(name + b"x", False)


def test_many_patterns_are_matched_some_at_a_time_and_each_counts() -> None:
    patterns = [f"a-name-of-some-length-{number}" for number in range(100)]
    exclude = Exclude(patterns)
    assert len(exclude._regexes) > 5
    assert all(exclude.matches(f"d/{pattern}".encode(), False) for pattern in patterns)
    assert not exclude.matches(b"d/a-name-of-some-length-100", False)


def test_a_long_pattern_is_quoted_in_part_and_its_fault_in_full() -> None:
    with pytest.raises(UsageError) as refused:
        Exclude(["x" * 5000 + "["])
    assert len(str(refused.value)) < 300
    assert "opens a class that is not closed" in str(refused.value)


def test_a_stop_is_heard_between_two_names(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    token = CancelToken()
    with contextlib.closing(Volume.open(tmp_path)) as volume:
        listing = volume.root.listing(token)
        found = volume.root.iterate(listing, Exclude(["x"]), Monitor(), token)
        assert next(found).name == b"a"
        token.cancel("enough")
        with pytest.raises(Canceled):
            next(found)
