"""Strings as Go writes them: ``strconv.Quote`` for names, ``encoding/json`` around everything.

A node's name passes through both: quoted, so that any byte sequence becomes text, and then
encoded as a JSON string. The rule guarded here is byte identity with Go (restic-format.md
section 12), because these texts are hashed, and safety on the way back: what Go's ``Unquote``
refuses makes ``restic check`` panic, so it is refused here as well.

"Printable" is what Go 1.21 to 1.26 calls so: the letters, marks, numbers, punctuation and
symbols of Unicode 15.0, and the space. Python's own tables are older or newer than that
depending on its version; the two lists below correct them in either direction.
"""

import functools
import re

from agent.errors import MalformedData


def _char_class(ranges: str) -> str:
    bounds = (pair.split("-") for pair in ranges.split())
    return "".join(f"{chr(int(first, 16))}-{chr(int(last, 16))}" for first, last in bounds)


_NEW_IN_15_0 = re.compile(
    "["
    + _char_class(
        "cf3-cf3 ece-ece 10efd-10eff 1123f-11241 11b00-11b09 11f00-11f10 11f12-11f3a "
        "11f3e-11f59 1342f-1342f 13440-13455 1b132-1b132 1b155-1b155 1d2c0-1d2d3 1df25-1df2a "
        "1e030-1e06d 1e08f-1e08f 1e4d0-1e4f9 1f6dc-1f6dc 1f774-1f776 1f77b-1f77f 1f7d9-1f7d9 "
        "1fa75-1fa77 1fa87-1fa88 1faad-1faaf 1fabb-1fabd 1fabf-1fabf 1face-1facf 1fada-1fadb "
        "1fae8-1fae8 1faf7-1faf8 2b739-2b739 31350-323af"
    )
    + "]"
)
"""Printable to Go, but not to a Python with the tables of Unicode 14 (3.11)."""

_NEW_SINCE_15_0 = re.compile(
    "["
    + _char_class(
        "558-558 58b-58c 5c8-5c9 88f-88f 897-897 b53-b54 c5c-c5c cdc-cdc 1acf-1af0 1b4e-1b4f "
        "1b7f-1b7f 1c89-1c8a 208f-208f 209d-209f 20c1-20c4 2427-2429 2b96-2b96 2e60-2e63 "
        "2ffc-2fff 31e4-31e5 31ef-31ef a7cb-a7cf a7d2-a7d2 a7d4-a7d4 a7da-a7dd a7e2-a7e2 "
        "a7f1-a7f1 ab6c-ab6d fbc3-fbd2 fd90-fd91 fdc8-fdce 105c0-105f3 107bb-107bf "
        "10940-10959 10d40-10d65 10d69-10d85 10d8e-10d8f 10ec2-10ec7 10ec9-10eee 10ef0-10efc "
        "11380-11389 1138b-1138b 1138e-1138e 11390-113b5 113b7-113c0 113c2-113c2 113c5-113c5 "
        "113c7-113ca 113cc-113d5 113d7-113d8 113e1-113e2 116d0-116e3 11b0a-11b0a 11b60-11b67 "
        "11bc0-11be1 11bf0-11bf9 11db0-11ddb 11de0-11de9 11df0-11df1 11f5a-11f5a 1246f-1246f "
        "12475-1247f 12550-12686 13460-143fa 16100-16139 16d40-16d79 16ea0-16eb8 16ebb-16ed3 "
        "16ff2-16ff6 187f8-187ff 18cd6-18cda 18cff-18cff 18d09-18d20 18d80-18df2 18e00-19191 "
        "191a0-191d2 1b123-1b128 1b168-1b168 1cc00-1ccfc 1cd00-1ceb3 1ceba-1ced0 1ced2-1ced4 "
        "1cedd-1cefd 1d127-1d128 1d1eb-1d1ff 1d250-1d281 1d6a6-1d6a6 1db00-1db1c 1df1f-1df24 "
        "1df2b-1df81 1df90-1df96 1dfcd-1dfff 1e5d0-1e5fa 1e5ff-1e5ff 1e6c0-1e6de 1e6e0-1e6f5 "
        "1e6fe-1e6ff 1f1ae-1f1ae 1f6d8-1f6d9 1f777-1f77a 1f7da-1f7db 1f7f1-1f7ff 1f8b2-1f8bb "
        "1f8c0-1f8c1 1f8d0-1f8d8 1fa54-1fa57 1fa89-1fa8f 1fabe-1fabe 1fac6-1fac6 1fac8-1fac8 "
        "1facc-1facd 1fadc-1fadd 1fadf-1fadf 1fae9-1faeb 1faef-1faef 1faf9-1fafa 1fbcb-1fbef "
        "1fbfa-1fbfa 2b73a-2b73f 2b81e-2b81e 2cea2-2cead 2ebf0-2ee5d 323b0-33479 3d000-3fc3f"
    )
    + "]"
)
"""Not printable to Go, but to a Python with the tables of Unicode 15.1 up to 18.0."""

_PLAIN_NAME = re.compile(rb"[ !#-%'-;=?-\[\]-~]*")
_JSON_SPECIAL = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_JSON_SHORT = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
_QUOTE_SHORT = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}
_UNQUOTE_SHORT = {text[1]: char.encode() for char, text in _QUOTE_SHORT.items()}
_ESCAPE = r'[abfnrtv\\"]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}'
_QUOTED = re.compile(rf'(?:[^\\"\n]|\\(?:{_ESCAPE}))*')
_QUOTED_PIECE = re.compile(rf"\\({_ESCAPE})|[^\\]+")
_JSON_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def json_string(text: str) -> str:
    """Return ``text`` as a JSON string with its quotes, as Go's ``encoding/json`` does.

    ``<``, ``>``, ``&`` and the two line separators are escaped; a lone surrogate, which is how
    Python holds an undecodable byte, becomes the escape of U+FFFD (section 12.1).
    """
    if _JSON_SPECIAL.search(text) is None:
        return f'"{text}"'
    return f'"{_JSON_SPECIAL.sub(_json_escape, text)}"'


def json_name(name: bytes) -> str:
    """Return a node's name as the JSON string that stands in a tree, with its quotes."""
    if _PLAIN_NAME.fullmatch(name) is not None:
        return f'"{name.decode("ascii")}"'
    return json_string(quote_name(name))


def text_field(key: str, value: str) -> str:
    """Return ``,"key":"value"`` for the inside of an object, or "" for a field left out."""
    return f',"{key}":{json_string(value)}' if value else ""


def number_field(key: str, value: int) -> str:
    """Return ``,"key":value`` for the inside of an object, or "" for a field left out."""
    return f',"{key}":{value}' if value else ""


def quote_name(name: bytes) -> str:
    """Return ``name`` as Go's ``strconv.Quote`` does, without the quotes (section 12.2)."""
    text = name.decode("utf-8", "surrogateescape")
    plain = text.isprintable() and '"' not in text and "\\" not in text
    if plain and (text.isascii() or _NEW_SINCE_15_0.search(text) is None):
        return text
    return "".join(map(_quote_char, text))


def unquote_name(text: str) -> bytes:
    """Return the raw name of a quoted one, as Go's ``strconv.Unquote`` does.

    Raises ``MalformedData`` for what Go refuses: a bare quote or newline, an unknown or
    incomplete escape, and an escape of a surrogate or of more than U+10FFFF.
    """
    if "\\" not in text and '"' not in text and "\n" not in text:
        return text.encode("utf-8", "surrogatepass")
    if _QUOTED.fullmatch(text) is None:
        raise MalformedData("name of an entry", f"{text[:80]!r} is not a quoted string")
    return b"".join(map(_unquote_piece, _QUOTED_PIECE.finditer(text)))


def replace_invalid(data: bytes) -> bytes:
    """Return JSON ``data`` with undecodable bytes and lone surrogates as U+FFFD.

    Go reads such JSON so; Python's readers refuse it. Valid data comes back unchanged.
    """
    text = _ESCAPED_BYTE.sub("\ufffd", data.decode("utf-8", "surrogateescape"))
    return _JSON_ESCAPE.sub(
        lambda match: match.group() if match.group(1) is None else "\\ufffd", text
    ).encode()


def _json_escape(match: re.Match[str]) -> str:
    char = match.group()
    short = _JSON_SHORT.get(char)
    if short is not None:
        return short
    code = ord(char)
    return "\\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


@functools.lru_cache(maxsize=4096)
def _quote_char(char: str) -> str:
    short = _QUOTE_SHORT.get(char)
    if short is not None:
        return short
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if _is_printable(char):
        return char
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_printable(char: str) -> bool:
    if char.isprintable():
        return _NEW_SINCE_15_0.match(char) is None
    return _NEW_IN_15_0.match(char) is not None


def _unquote_piece(match: re.Match[str]) -> bytes:
    escape = match.group(1)
    if escape is None:
        return match.group().encode("utf-8", "surrogatepass")
    short = _UNQUOTE_SHORT.get(escape)
    if short is not None:
        return short
    if escape[0] == "x":
        return bytes((int(escape[1:], 16),))
    if escape[0] not in "uU":
        return bytes((int(escape, 8),))
    code = int(escape[1:], 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise MalformedData("name of an entry", f"\\{escape} is not a character")
    return chr(code).encode()
