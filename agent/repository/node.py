"""Nodes on the way back: the JSON of one entry, read as strictly as safety needs.

msgspec checks the types; this module checks what types cannot say. A node is refused if
restic could not decode it, if a restore could not create it, or if creating it would be
unsafe. Field names and meanings are those of restic-format.md section 11.
"""

import binascii
import re
from collections.abc import Iterable, Iterator
from sys import intern
from typing import Annotated, TypeVar

import msgspec

from agent.entry import Entry, Kind
from agent.errors import MalformedData
from agent.repository.gojson import replace_invalid, unquote_name
from agent.repository.times import ZERO_TIME_NS, parse_time

_Count = Annotated[int, msgspec.Meta(ge=0)] | None
"""Go takes ``null`` for "leave the zero", in every field."""


class _Xattr(msgspec.Struct, gc=False):
    name: str | None = None
    value: bytes | None = None


class Node(msgspec.Struct, gc=False):
    """The fields of a node as they stand in the JSON; a long list of content stays text."""

    name: str | None = None
    type: str | None = None
    mode: _Count = None
    mtime: str | None = None
    atime: str | None = None
    ctime: str | None = None
    uid: _Count = None
    gid: _Count = None
    user: str | None = None
    group: str | None = None
    inode: _Count = None
    device_id: _Count = None
    size: _Count = None
    links: _Count = None
    linktarget: str | None = None
    linktarget_raw: bytes | None = None
    extended_attributes: list[_Xattr] | None = None
    device: _Count = None
    content: msgspec.Raw = msgspec.Raw()
    subtree: str | None = None


class _Tree(msgspec.Struct):
    nodes: list[Node]


class _RawTree(msgspec.Struct):
    nodes: list[msgspec.Raw]


_T = TypeVar("_T")
_tree = msgspec.json.Decoder(_Tree)
_raw_tree = msgspec.json.Decoder(_RawTree)
_list = msgspec.json.Decoder(list[Node])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_node = msgspec.json.Decoder(Node)
_texts = msgspec.json.Decoder(list[str])

_KINDS = {
    "file": Kind.FILE,
    "dir": Kind.DIRECTORY,
    "symlink": Kind.SYMLINK,
    "fifo": Kind.FIFO,
    "dev": Kind.BLOCK_DEVICE,
    "chardev": Kind.CHARACTER_DEVICE,
    "socket": Kind.SOCKET,
}
_FILE, _DIRECTORY, _SYMLINK = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK
"""Held here, because looking a member up costs as much as parsing a number."""

_WITHOUT_LINKS = (Kind.DIRECTORY, Kind.FIFO, Kind.SOCKET)
_SLASH = ord("/")
_FORBIDDEN_NAMES = (b"", b".", b"..")
_HEX_DIGITS = 64
_ID_STEP = _HEX_DIGITS + len('"",')
_LEAST_OBJECT_BYTES = 20
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def read_json(decoder: msgspec.json.Decoder[_T], data: bytes, what: str) -> _T:
    """Return what ``decoder`` makes of ``data``, in which Go's leniency about UTF-8 holds.

    Raises ``MalformedData`` that names ``what``.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        repaired = replace_invalid(data)
        if repaired == data:
            raise MalformedData(what, str(error)) from error
    try:
        return decoder.decode(repaired)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedData(what, str(error)) from error


def read_nodes(data: bytes) -> list[Node]:
    """Return all nodes of a tree; raises ``MalformedData`` if one of them has a wrong type."""
    _refuse_crowd(data)
    return read_json(_tree, data, "tree").nodes


def read_raw_nodes(data: bytes) -> list[bytes]:
    """Return the JSON of each node of a tree; raises ``MalformedData`` if it is no tree."""
    _refuse_crowd(data)
    return [bytes(raw) for raw in read_json(_raw_tree, data, "tree").nodes]


def read_node_list(data: bytes) -> list[Node]:
    """Return the nodes of a bare list of them; raises as ``read_nodes`` does."""
    _refuse_crowd(data)
    return read_json(_list, data, "tree")


def read_raw_list(data: bytes) -> list[bytes]:
    """Return the JSON of each node of a bare list; raises as ``read_raw_nodes`` does."""
    _refuse_crowd(data)
    return [bytes(raw) for raw in read_json(_raw_list, data, "tree")]


_FEW_OBJECTS = 1_000
"""What never is a crowd, however small the tree."""


def _refuse_crowd(data: bytes) -> None:
    """Raise ``MalformedData`` for a tree of so many objects that they cannot be nodes.

    An empty object would take 70 times its size in memory; a node with what it must have, and an
    attribute, have 20 bytes and more. Braces in names look like objects at first.
    """
    most = len(data) // _LEAST_OBJECT_BYTES + _FEW_OBJECTS
    if data.count(b"{") > most and _STRING.sub(b"", data).count(b"{") > most:
        raise MalformedData("tree", "it has more entries than its size has room for")


def read_node(data: bytes) -> Node:
    """Return one node; raises ``MalformedData``."""
    return read_json(_node, data, "tree entry")


def entry_of(node: Node) -> Entry:
    """Return the entry that a node describes; raises ``MalformedData`` that names it."""
    try:
        return _entry_of(node)
    except MalformedData as error:
        raise MalformedData(f"tree entry {(node.name or '')[:200]!r}", error.reason) from error


def _entry_of(node: Node) -> Entry:
    """Make the entry in one step, with its fields in order: this runs for every file there is."""
    kind = _KINDS.get(node.type or "")
    if kind is None:
        raise _refused(f"the type {node.type!r} is unknown")
    mode, uid, gid = node.mode or 0, node.uid or 0, node.gid or 0
    inode, device, links = node.inode or 0, node.device_id or 0, node.links or 0
    size, rdev, mtime = node.size or 0, node.device or 0, node.mtime
    if (mode | uid | gid) >> 32 or (inode | device | links | size | rdev) >> 64:
        raise _refused("a number of it does not fit into 64 bits, or its mode or owner into 32")
    mtime_ns = _instant(mtime)
    ctime = node.ctime
    if node.atime != mtime:
        _instant(node.atime)
    return Entry(
        _name(node.name),
        kind,
        mode & 0o777 if mode < 0o1000 else _permissions(mode),
        uid,
        gid,
        mtime_ns,
        mtime_ns if ctime == mtime else _instant(ctime),
        inode,
        device,
        links if kind is _FILE or kind not in _WITHOUT_LINKS else 1,
        size if kind is _FILE else 0,
        intern(node.user or ""),  # names recur, and a text of its own costs each 60 bytes
        intern(node.group or ""),
        _link_target(node) if kind is _SYMLINK else b"",
        rdev,
        _xattrs(node) if node.extended_attributes else (),
        _content(node, kind),
        None if kind is _FILE and node.subtree is None else _subtree(node, kind),
    )


def parse_id(text: str | bytes) -> bytes:
    """Return the 32 bytes of an id of 64 hex digits of either case; raises ``MalformedData``."""
    if len(text) == _HEX_DIGITS:
        try:
            return binascii.unhexlify(text)
        except ValueError:
            pass
    raise MalformedData("id", f"{text[:80]!r} is not an id of 64 hex digits")


def _refused(reason: str) -> MalformedData:
    """Return the error without the entry's name, which ``entry_of`` adds."""
    return MalformedData("tree entry", reason)


def _name(text: str | None) -> bytes:
    name = unquote_name(text or "")
    if _SLASH in name or 0 in name or name in _FORBIDDEN_NAMES:
        raise _refused("no file can have this name")
    return name


def _instant(text: str | None) -> int:
    return ZERO_TIME_NS if text is None else parse_time(text)


def _permissions(mode: int) -> int:
    """Return the twelve Unix bits of a Go ``os.FileMode``; the type bits are not looked at."""
    return mode & 0o777 | mode >> 12 & 0o6000 | mode >> 11 & 0o1000


def _link_target(node: Node) -> bytes:
    target = node.linktarget_raw
    if target is None:
        target = (node.linktarget or "").encode()
    if b"\0" in target:
        raise _refused("its link target contains a NUL byte")
    return target


def _xattrs(node: Node) -> tuple[tuple[bytes, bytes], ...]:
    pairs = tuple(
        ((xattr.name or "").encode(), xattr.value or b"")
        for xattr in node.extended_attributes or ()
    )
    for name, _ in pairs:
        if not name or b"\0" in name:
            raise _refused(f"no extended attribute can have the name {name!r}")
    return pairs


def _content(node: Node, kind: Kind) -> tuple[bytes, ...] | None:
    raw = memoryview(node.content)
    size = len(raw)
    if size == _ID_STEP + 1 and kind is _FILE:
        only = raw.tobytes()
        if only[:2] == b'["' and only[-2:] == b'"]':
            return (parse_id(only[2:-2]),)
    if size <= len("null") and raw.tobytes() in (b"", b"null"):
        if kind is _FILE:
            raise _refused("a file without a list of content")
        return None
    ids = _ids(_slices(raw) or read_json(_texts, raw.tobytes(), "list of content"))
    return ids if kind is _FILE else None


def _slices(raw: memoryview) -> Iterator[bytes] | None:
    """Yield what should be ids of a list written without white space; None for any other list."""
    count, rest = divmod(len(raw) - 1, _ID_STEP)
    if rest or raw[::_ID_STEP] != b"[" + b"," * (count - 1) + b"]":
        return None
    if {*raw[1::_ID_STEP], *raw[_ID_STEP - 1 :: _ID_STEP]} != {ord('"')}:
        return None
    return (raw[at : at + _HEX_DIGITS].tobytes() for at in range(2, len(raw) - 1, _ID_STEP))


def _ids(texts: Iterable[str | bytes]) -> tuple[bytes, ...]:
    """Parse ids; those of a hole, of which there may be millions, are one object."""
    ids = []
    last: str | bytes | None = None
    id = b""
    for text in texts:
        if text != last:
            last, id = text, parse_id(text)
        ids.append(id)
    return tuple(ids)


def _subtree(node: Node, kind: Kind) -> bytes | None:
    if node.subtree is None:
        if kind is _DIRECTORY:
            raise _refused("a directory without a subtree")
        return None
    tree_id = parse_id(node.subtree)
    return tree_id if kind is _DIRECTORY else None
