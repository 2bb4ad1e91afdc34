"""Strings against Go's: frozen answers of ``strconv`` and ``encoding/json``, and every byte."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import MalformedData
from agent.repository.gojson import (
    json_name,
    json_string,
    number_field,
    quote_name,
    replace_invalid,
    text_field,
    unquote_name,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "go-strings.json").read_text())
"""What Go 1.26 gave for raw bytes: ``Quote`` without quotes, that as JSON, the bytes as JSON."""

EVERY_CHARACTER_QUOTED = "8c11395bd2ad837e596fc6a6221d15d65e18daea42febdd373235b13666d44e2"
"""SHA-256 of what Go 1.26 (Unicode 15.0) makes of all characters in order. It must not move:
the printable ones among them decide how names are stored."""


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["raw"])
def test_a_string_is_written_as_go_writes_it(case: dict[str, str]) -> None:
    raw = bytes.fromhex(case["raw"])

    assert quote_name(raw) == case["quoted"]
    assert json_name(raw) == case["name"]
    assert json_string(raw.decode("utf-8", "surrogateescape")) == case["string"]
    assert unquote_name(case["quoted"]) == raw


def test_every_character_is_quoted_as_go_does() -> None:
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF)
    alone = {char: quote_name(char.encode()) for char in every[:0x3000] + every[0x1F000:0x20000]}

    quoted = quote_name(every.encode())

    assert hashlib.sha256(quoted.encode()).hexdigest() == EVERY_CHARACTER_QUOTED
    assert "".join(alone.values()) == quote_name("".join(alone).encode())


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("", b""),
        (r"\a\b\f\n\r\t\v\\\"", b'\a\b\f\n\r\t\v\\"'),
        (r"\x00\xFFff", b"\x00\xffff"),
        (r"\000\377\1011", b"\x00\xffA1"),
        (r"\u00e9\U0001F600", "é😀".encode()),
        ("raw\x01\x7f\r\té", "raw\x01\x7f\r\té".encode()),
    ],
)
def test_an_escape_that_go_reads_is_read(text: str, raw: bytes) -> None:
    assert unquote_name(text) == raw


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        '"',
        "\\",
        "a\\",
        r"\q",
        r"\'",
        r"\x0",
        r"\xgg",
        r"\400",
        r"\08",
        r"\u12",
        r"\ud800",
        r"\U0000dfff",
        r"\U00110000",
        r"\U0010fff",
        "\\x\uff10\uff10",
    ],
)
def test_what_go_refuses_to_unquote_is_refused(text: str) -> None:
    with pytest.raises(MalformedData, match="name of an entry is damaged"):
        unquote_name(text)


@given(st.binary())
def test_any_name_comes_back_from_its_quoted_form(name: bytes) -> None:
    quoted = quote_name(name)

    assert unquote_name(quoted) == name
    assert unquote_name(json.loads(json_name(name))) == name
    assert "\n" not in quoted


@given(st.text(st.sampled_from("ab\\\"\nxuU0189fF'é")) | st.text(st.characters()))
def test_unquoting_any_text_raises_only_our_error(text: str) -> None:
    try:
        name = unquote_name(text)
    except MalformedData:
        return
    assert unquote_name(quote_name(name)) == name


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_valid_json_that_means_the_text(text: str) -> None:
    written = json_string(text)

    assert json.loads(written) == text
    assert not set(written) & set("<>&\u2028\u2029")


@given(st.lists(st.sampled_from([b"a", b"\xff", b"\xc3\xa9", b"\\ud800", b"\\udc00", b"\\\\"])))
def test_repaired_json_is_always_readable(pieces: list[bytes]) -> None:
    data = b'"' + b"".join(pieces) + b'"'

    repaired = replace_invalid(data)

    assert replace_invalid(repaired) == repaired
    assert isinstance(msgspec.json.decode(repaired), str)


def test_valid_json_is_not_changed_by_the_repair() -> None:
    data = r'{"a":"\ud83d\ude00\\ud800 é\u00e9"}'.encode()

    assert replace_invalid(data) == data


def test_each_byte_and_each_half_of_a_pair_becomes_one_replacement() -> None:
    data = b'"\xed\xa0\x80\\ud800\\ud800\\udc00\\udc00"'

    assert msgspec.json.decode(replace_invalid(data)) == "\ufffd" * 4 + "\U00010000" + "\ufffd"


def test_fields_of_zero_value_are_left_out() -> None:
    assert text_field("k", "") == number_field("k", 0) == ""
    assert text_field("k", "<") == ',"k":"\\u003c"'
    assert number_field("k", 7) == ',"k":7'
