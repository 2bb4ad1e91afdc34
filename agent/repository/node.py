"""Nodes on the way back: the JSON of one entry, read as strictly as safety needs.

msgspec checks the types; this module checks what types cannot say. A node is refused if
restic could not decode it, if a restore could not create it, or if creating it would be
unsafe. Field names and meanings are those of restic-format.md section 11.
"""

from collections.abc import Iterable, Iterator
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
_WITHOUT_LINKS = (Kind.DIRECTORY, Kind.FIFO, Kind.SOCKET)
_HEX_DIGITS = 64
_ID_STEP = _HEX_DIGITS + len('"",')


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
    return read_json(_tree, data, "tree").nodes


def read_raw_nodes(data: bytes) -> list[bytes]:
    """Return the JSON of each node of a tree; raises ``MalformedData`` if it is no tree."""
    return [bytes(raw) for raw in read_json(_raw_tree, data, "tree").nodes]


def read_node(data: bytes) -> Node:
    """Return one node; raises ``MalformedData``."""
    return read_json(_node, data, "tree entry")


def entry_of(node: Node) -> Entry:
    """Return the entry that a node describes; raises ``MalformedData`` that names it."""
    kind = _KINDS.get(node.type or "")
    if kind is None:
        raise _refused(node, f"the type {node.type!r} is unknown")
    _check_numbers(node)
    try:
        content, subtree = _content(node, kind), _subtree(node, kind)
        mtime_ns = _instant(node.mtime)
        if node.atime != node.mtime:
            _instant(node.atime)
        return Entry(
            name=_name(node),
            kind=kind,
            permissions=_permissions(node.mode or 0),
            uid=node.uid or 0,
            gid=node.gid or 0,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns if node.ctime == node.mtime else _instant(node.ctime),
            inode=node.inode or 0,
            device=node.device_id or 0,
            links=1 if kind in _WITHOUT_LINKS else node.links or 0,
            size=(node.size or 0) if kind is Kind.FILE else 0,
            user=node.user or "",
            group=node.group or "",
            link_target=_link_target(node) if kind is Kind.SYMLINK else b"",
            rdev=node.device or 0,
            xattrs=_xattrs(node) if node.extended_attributes else (),
            content=content,
            subtree=subtree,
        )
    except MalformedData as error:
        raise _refused(node, error.reason) from error


def parse_id(text: str) -> bytes:
    """Return the 32 bytes of an id of 64 hex digits of either case; raises ``MalformedData``."""
    try:
        value = bytes.fromhex(text) if len(text) == _HEX_DIGITS else b""
    except ValueError:
        value = b""
    if len(value) * 2 != _HEX_DIGITS:
        raise MalformedData("id", f"{text[:80]!r} is not an id of 64 hex digits")
    return value


def _refused(node: Node, reason: str) -> MalformedData:
    return MalformedData(f"tree entry {(node.name or '')[:200]!r}", reason)


def _check_numbers(node: Node) -> None:
    if ((node.mode or 0) | (node.uid or 0) | (node.gid or 0)) >> 32:
        raise _refused(node, "its mode or owner does not fit into 32 bits")
    wide = (node.inode or 0) | (node.device_id or 0) | (node.device or 0)
    if (wide | (node.size or 0) | (node.links or 0)) >> 64:
        raise _refused(node, "a number of it does not fit into 64 bits")


def _name(node: Node) -> bytes:
    name = unquote_name(node.name or "")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise _refused(node, "no file can have this name")
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
        raise _refused(node, "its link target contains a NUL byte")
    return target


def _xattrs(node: Node) -> tuple[tuple[bytes, bytes], ...]:
    pairs = tuple(
        ((xattr.name or "").encode(), xattr.value or b"")
        for xattr in node.extended_attributes or ()
    )
    for name, _ in pairs:
        if not name or b"\0" in name:
            raise _refused(node, f"no extended attribute can have the name {name!r}")
    return pairs


def _content(node: Node, kind: Kind) -> tuple[bytes, ...] | None:
    raw = memoryview(node.content)
    if len(raw) <= len("null") and raw.tobytes() in (b"", b"null"):
        if kind is Kind.FILE:
            raise _refused(node, "a file without a list of content")
        return None
    if len(raw) == _ID_STEP + 1 and kind is Kind.FILE:
        only = raw.tobytes()
        if only.startswith(b'["') and only.endswith(b'"]'):
            return (parse_id(only[2:-2].decode("latin-1")),)
    ids = _ids(_slices(raw) or read_json(_texts, raw.tobytes(), "list of content"))
    return ids if kind is Kind.FILE else None


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
            last, id = text, parse_id(text if isinstance(text, str) else text.decode("latin-1"))
        ids.append(id)
    return tuple(ids)


def _subtree(node: Node, kind: Kind) -> bytes | None:
    if node.subtree is None:
        if kind is Kind.DIRECTORY:
            raise _refused(node, "a directory without a subtree")
        return None
    tree_id = parse_id(node.subtree)
    return tree_id if kind is Kind.DIRECTORY else None
