"""Exclude patterns: what they take, what they leave, and which are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.volume.exclude import Exclude


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
