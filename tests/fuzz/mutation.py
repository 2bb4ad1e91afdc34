"""What somebody else could have written: anything at all, and almost the right thing.

A mutation is data (a place, a deed, a value) that a pure function carries out, so hypothesis can
make a failing one smaller. JSON is changed as text in a tree of tokens: duplicate keys, numbers of
a thousand digits and lone surrogates have no other form.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

DEEP = 3000
"""Beyond every limit on nesting, and short enough to be tried often."""

_TEXTS = (
    "", ".", "..", "/", "a/b", "\x00", "é", "\U0001f600", "\\xff", '"', "\\", "\n", "%", "*", "-1",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999-24:60", "2026-02-30T00:00:00Z",
    "٣٣٣٣-٣٣-٣٣T٣٣:٣٣:٣٣Z", "2026-01-01T00:00:00." + "9" * 5000 + "Z", "²", "5" * 5000, "f" * 64,
    "é" * 32, "ff " * 21 + "f", "s3:https://[::1]:99999999999/b", "x" * 100_000,
)  # fmt: skip
_TOKENS = (
    *map(json.dumps, _TEXTS),
    "null", "true", "false", "0", "-0", "-1", "1", "2", "255", "4294967295", "4294967296",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
    "1.0", "1.5", "1e3", "1e999", "-1e-999", "NaN", "Infinity", "9" * 5000, "0" * 10, "0x10", "",
    "[]", "{}", "[[]]", '[{"": ""}]', "[null]", '["", "", ""]', '{"a": {"b": [1]}}',
    r'"\ud800"', r'"\ude00\ud83d"', r'"\u0000"', r'"\x"', '"', '"\t"', "'a'", "//", "\ufeff",
    '"\udcff"', "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * DEEP,
)  # fmt: skip
"""A lone surrogate outside of an escape is a byte that is not UTF-8."""

_MOST = 200_000
"""What a document may grow to by one change, in bytes."""

_WORST = (
    "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, '"\udcff"', r'"\ud800"', "null", "-1",
    "9" * 5000, "18446744073709551616", '"%s"' % ("x" * 9000), '""', "[]", "{}", "true", "1.5",
)  # fmt: skip


class Edit(NamedTuple):
    """One change: at which of all places, what, and with what."""

    place: int
    deed: int
    value: int
    more: int


numbers = st.integers(0, 1 << 16)
edits = st.lists(st.builds(Edit, numbers, numbers, numbers, numbers), min_size=1, max_size=4)


# JSON: a document is a token (bytes), a list, or a list of pairs in a ``Pairs``.
class Pairs(list[list[Any]]):
    """An object: [key, value] in order; a key may occur twice."""


def _tree(value: Any) -> Any:
    if isinstance(value, Pairs):
        return Pairs([[json.dumps(key).encode(), _tree(inner)] for key, inner in value])
    if isinstance(value, list):
        return [_tree(inner) for inner in value]
    return json.dumps(value).encode()


@functools.cache
def _parsed(document: bytes) -> Any:
    return json.loads(document, object_pairs_hook=lambda pairs: Pairs([list(p) for p in pairs]))


def _rendered(tree: Any) -> bytes:
    if isinstance(tree, Pairs):
        return b"{" + b",".join([key + b":" + _rendered(value) for key, value in tree]) + b"}"
    if isinstance(tree, list):
        return b"[" + b",".join(map(_rendered, tree)) + b"]"
    return bytes(tree)


def _slots(tree: Any, found: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Return every (parent, index) below a tree."""
    if isinstance(tree, list):
        for index, inner in enumerate(tree):
            found.append((tree, index))
            _slots(inner[1] if isinstance(tree, Pairs) else inner, found)
    return found


def _get(slot: tuple[Any, int]) -> Any:
    parent, index = slot
    return parent[index][1] if isinstance(parent, Pairs) else parent[index]


def _set(slot: tuple[Any, int], value: Any) -> None:
    parent, index = slot
    if isinstance(parent, Pairs):
        parent[index][1] = value
    else:
        parent[index] = value


def _edit_json(root: list[Any], edit: Edit, words: Sequence[str]) -> None:
    slots = _slots(root, [])
    slot = slots[edit.place % len(slots)]
    parent, index = slot
    tokens = (*_TOKENS, *words)
    token = tokens[edit.value % len(tokens)].encode("utf-8", "surrogateescape")
    match edit.deed % 8:
        case 0 | 1 | 2:
            _set(slot, token)
        case 3 if parent is not root:
            del parent[index]
        case 4:  # twice, or many times
            size = len(_rendered([parent]))
            parent.extend([parent[index]] * (1 if edit.more % 4 else min(500, _MOST // size)))
        case 5 if isinstance(parent, Pairs):
            parent[index][0] = token
        case 6:  # in an array, in an object, or as a text of its own
            inner = _rendered(_get(slot))
            wrapped = json.dumps(inner.decode("utf-8", "replace")).encode()
            _set(slot, (b"[%s]" % inner, b'{"a":%s}' % inner, wrapped)[edit.more % 3])
        case _:
            other = slots[edit.more % len(slots)]
            _set(slot, _rendered(_get(other)))


def edited_json(document: bytes, changes: Sequence[Edit], words: Sequence[str] = ()) -> bytes:
    """Return a document after some changes, which is JSON no longer more often than not."""
    root = [_tree(_parsed(document))]
    for edit in changes:
        _edit_json(root, edit, words)
    return b"".join(map(_rendered, root))


def worst_json(document: bytes) -> Iterator[bytes]:
    """Yield a document with each of its values replaced by each of the worst, one at a time."""
    root = [_tree(_parsed(document))]
    for slot in _slots(root, []):
        before = _get(slot)
        for token in _WORST:
            _set(slot, token.encode("utf-8", "surrogateescape"))
            yield b"".join(map(_rendered, root))
        _set(slot, before)


_INTEGERS = (0, 1, 31, 32, 33, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63)


def edited_bytes(content: bytes, changes: Sequence[Edit], other: bytes = b"") -> bytes:
    """Return bytes after some changes: bits, numbers, lengths, order."""
    made = bytearray(content)
    for place, deed, value, more in changes:
        at = place % (len(made) + 1)
        end = at + more % (len(made) - at + 1)
        match deed % 10:
            case 0 | 1 if at < len(made):
                made[at] ^= 1 << value % 8
            case 2:
                number = _INTEGERS[value % len(_INTEGERS)] + more % 3 - 1
                size = (4, 8)[value % 2]
                number %= 1 << 8 * size
                made[at : at + size] = number.to_bytes(size, ("little", "big")[more % 2])
            case 3:
                del made[at:]
            case 4:
                made += bytes([value % 256]) * (more % 4096)
            case 5:
                del made[at:end]
            case 6:
                made[at:at] = made[at:end] * (1 + value % 3)
            case 7:
                made[at:end] = reversed(made[at:end])
            case 8:
                made[at:] = other[more % (len(other) + 1) :]
            case _:
                made[at:at] = value.to_bytes(4, "little")
    return bytes(made)


_CHARACTERS = (
    "\0", "\n", " ", "\t", "/", "//", "\\", "..", "[", "]", "[!", "**", "*", "?", "%", "%ff", "@",
    ":", "=", ",", "+", "-", ".", "0", "9" * 20, "9" * 5000, "٣", "²", "é", "\ud800", "\udcff",
    "\U0001f600", "\u202e", "K", "i", "inf", "nan", "1e999", "0x", "_", "d", "y", "h", "T", "Z",
    "(", ")", "{", "|", "^", "$", "z-a", "a" * 9000,
)  # fmt: skip


def edited_text(content: str, changes: Sequence[Edit], other: str = "") -> str:
    """Return a text after some changes."""
    for place, deed, value, more in changes:
        at = place % (len(content) + 1)
        end = at + more % (len(content) - at + 1)
        word = _CHARACTERS[value % len(_CHARACTERS)]
        match deed % 6:
            case 0 | 1:
                content = content[:at] + word + content[at:]
            case 2:
                content = content[:at] + word + content[end:]
            case 3:
                content = content[:at] + content[end:]
            case 4:
                content = content[:at] + content[at:end] * 2 + content[end:]
            case _:
                content = content[:at] + other[more % (len(other) + 1) :]
    return content


def worst_text(content: str) -> Iterator[str]:
    """Yield a text with each of the odd words before, behind, within, and in its place."""
    middle = len(content) // 2
    for word in _CHARACTERS:
        yield from (word, word + content, content + word)
        yield content[:middle] + word + content[middle:]
        yield content[:middle] + word + content[middle + 1 :]


def worst_bytes(content: bytes) -> Iterator[bytes]:
    """Yield what is left of bytes that end early, and bytes with one number that is extreme."""
    step = max(1, len(content) // 64)
    for at in range(0, len(content), step):
        yield content[:at]
        for number in (0, (1 << 32) - 1):
            yield content[:at] + number.to_bytes(4, "little") + content[at + 4 :]


_bytes = st.binary(max_size=400)
_texts = st.text(st.characters(exclude_categories=()), max_size=60)


def json_like(examples: Sequence[bytes], words: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Return documents, changed ones for the most part; then changed as bytes; or anything."""
    whole = st.sampled_from(examples)
    changed = st.builds(lambda d, e: edited_json(d, e, words), whole, edits)
    return st.one_of(changed, changed, changed, st.builds(edited_bytes, changed, edits), _bytes)


def bytes_like(examples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return examples, changed ones for the most part, or any bytes."""
    whole = st.sampled_from(examples)
    return st.one_of(st.builds(edited_bytes, whole, edits, whole), whole, _bytes)


def text_like(examples: Sequence[str]) -> st.SearchStrategy[str]:
    """Return examples, changed ones for the most part, or any text."""
    whole = st.sampled_from(examples)
    return st.one_of(st.builds(edited_text, whole, edits, whole), whole, _texts)
