"""Long trees: the JSON of one directory, made and read piece by piece.

A tree is one text, and that of a million files has 450 MB. So whoever makes it gives entries in order of
raw names and takes the text in pieces, the same bytes that ``tree`` makes in one; and whoever reads
it counts brackets to find where nodes end, and has ``tree`` decode some of them at a time. The rule
guarded here: what is read is as strict as ``tree`` is, wherever a piece ends. Only that an error
comes when its place is reached, after the entries before it.

Pure functions of values; where the pieces come from and go to is the business of ``longblob``.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from agent.entry import Entry
from agent.errors import MalformedData
from agent.repository.node import read_raw_nodes
from agent.repository.times import Zone
from agent.repository.tree import decode_nodes, encode_node, unfit

PIECE_BYTES = 1 << 20
"""A piece is no longer, unless it is one node: a file with a large hole has a long one."""

READ_BYTES = 256 << 10
"""So much text is decoded in one go, or one node if that is longer."""

MOST_FRAME_BYTES = 1 << 20
"""What may stand around the list of nodes: keys that we do not know."""

_RUN = re.compile(rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+', re.DOTALL)
"""Whole strings and all that is no bracket."""

_NODES = re.compile(rb'"nodes"[ \t\r\n]*:[ \t\r\n]*\[\Z')
_HEAD, _END = b'{"nodes":[', b"]}"
_BETWEEN = b'},{"name":"'
_SPACE = b" \t\r\n"
_OPENING = frozenset(b"{[")
_QUOTE, _CLOSING_LIST = b'"]'


class TreeText:
    """The text of one tree in the making."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._before = _HEAD
        self._last = b""

    def pieces(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """Yield what comes next in the text; the entries come after all earlier ones by name.

        Raises ``RepositoryError`` as ``encode_tree`` does.
        """
        parts: list[bytes] = []
        size = 0
        for entry in entries:
            if entry.name <= self._last:
                raise unfit(entry, "its name occurs twice in the directory, or out of order")
            self._last = entry.name
            node = encode_node(entry, self._zone)
            parts += (self._before, node)
            self._before = b","
            size += len(node)
            if size >= PIECE_BYTES:
                yield from parts if len(node) >= PIECE_BYTES else [b"".join(parts)]
                parts, size = [], 0
        yield b"".join(parts)

    def finish(self) -> bytes:
        """Return the end of the text."""
        return (_HEAD if self._before == _HEAD else b"") + _END + b"\n"


def decode_pieces(
    pieces: Iterable[bytes], refused: list[MalformedData] | None = None
) -> Iterator[Entry]:
    """Yield the entries of a tree in stored order; raises and refuses what ``decode_tree`` does.

    A second list of nodes, and more than a megabyte around the list, are refused as well.
    """
    text = _Text(pieces)
    head = _head(text)
    first, more = True, True
    while more:
        entries = _usual(text, first, refused)
        if entries is None:
            nodes, more = _nodes(text)
            nodes = nodes if first else _after_comma(nodes, more)
            entries = decode_nodes(b"[%b]" % nodes, refused)
        yield from entries
        first = False
    if read_raw_nodes(b"".join((head, b"0]", text.rest()))) != [b"0"]:  # the last list counts
        raise MalformedData("tree", "it has more than one list of nodes")


def in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries; raise ``MalformedData`` where names do not rise, so that they can be merged."""
    before = b""
    for entry in entries:
        if entry.name <= before:
            raise MalformedData("tree", f"the name {entry.name!r} is out of order")
        before = entry.name
        yield entry


def _head(text: "_Text") -> bytes:
    """Take the text up to the list of nodes and return it; it is what may stand there."""
    depth = 0
    while True:
        bracket = text.bracket()
        if depth == 1 and _NODES.search(text.data, max(0, text.at - 64), text.at):
            head = text.take(text.at)
            read_raw_nodes(head + _END)
            return head
        depth += 1 if bracket in _OPENING else -1
        if depth < 1 or text.at > MOST_FRAME_BYTES:
            raise MalformedData("tree", "it has no list of nodes")


def _usual(text: "_Text", first: bool, refused: list[MalformedData] | None) -> list[Entry] | None:
    """Take and decode some nodes as restic writes them, where a likely end of a node is one.

    It is, if what stands before it decodes: anything else leaves a bracket or a string open. None,
    with nothing taken, has brackets counted, which takes twice as long.
    """
    while len(text.data) <= READ_BYTES:
        if not text.grow():
            return None
    end = text.data.find(_BETWEEN, READ_BYTES) + 1
    if not end or not (first or text.data.startswith(b",")):
        return None
    nodes = text.data[0 if first else 1 : end]
    try:
        entries = decode_nodes(b"[%b]" % nodes, refused)
    except MalformedData:
        return None
    text.take(end)
    return entries


def _nodes(text: "_Text") -> tuple[bytes, bool]:
    """Take some whole nodes with what stands between them; tell whether more come."""
    depth = 0
    while True:
        bracket = text.bracket()
        if bracket in _OPENING:
            depth += 1
        elif depth:
            depth -= 1
            if not depth and text.at >= READ_BYTES:
                return text.take(text.at), True
        elif bracket == _CLOSING_LIST:
            return text.take(text.at)[:-1], False
        else:
            raise MalformedData("tree", "its list of nodes ends in another bracket")


def _after_comma(nodes: bytes, more: bool) -> bytes:
    """Return nodes without the comma that divides them from those before."""
    rest = nodes.lstrip(_SPACE)
    if not rest and not more:
        return b""
    if rest[:1] != b"," or not rest[1:].strip(_SPACE):
        raise MalformedData("tree", "there is no single comma between two of its nodes")
    return rest[1:]


class _Text:
    """What was not taken yet of a text, as far as it is needed; ``at`` is where it is read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.data = b""
        self.at = 0

    def bracket(self) -> int:
        """Go to behind the next bracket that is in no string, and return it."""
        while True:
            run = _RUN.match(self.data, self.at)
            assert run is not None
            self.at = run.end()
            if self.at < len(self.data) and self.data[self.at] != _QUOTE:
                self.at += 1
                return self.data[self.at - 1]
            if not self.grow():
                raise MalformedData("tree", "it ends too early")

    def take(self, end: int) -> bytes:
        """Return the text up to a place, and drop it."""
        taken, self.data = self.data[:end], self.data[end:]
        self.at = 0
        return taken

    def rest(self) -> bytes:
        """Return what is left, which has to be short."""
        while len(self.data) <= MOST_FRAME_BYTES:
            if not self.grow():
                return self.data
        raise MalformedData("tree", "too much stands behind its list of nodes")

    def grow(self) -> bool:
        """Get twice as much text: a node of any length is looked through a few times at most."""
        parts, size = [self.data], 0
        for piece in self._pieces:
            parts.append(piece)
            size += len(piece)
            if size > len(self.data):
                break
        self.data = b"".join(parts)
        return size > 0
