"""Trees: the JSON of one directory, byte for byte as restic writes it.

A tree's id is the hash of its text. So two programs share a tree only if they agree on every
byte: field order, omitted zeros, escapes, the text of times (restic-format.md sections 11 and
12). The other rule guarded here is what may come back: one node that restic cannot decode
makes its ``check`` panic for the whole repository, and a name such as ``..`` would lead a
restore out of its target. Neither is ever written, nor read without an error.

Pure functions of values; bytes come from and go to the sealed blobs elsewhere.
"""

import base64
import functools
import io
import operator
from collections.abc import Callable, Iterable, Iterator

from agent.entry import Entry, Kind
from agent.errors import MalformedData, RepositoryError
from agent.repository.gojson import json_name, json_string, number_field, text_field
from agent.repository.node import (
    Node,
    entry_of,
    read_node,
    read_node_list,
    read_nodes,
    read_raw_list,
    read_raw_nodes,
)
from agent.repository.times import Zone, format_time

_TYPES = {
    Kind.FILE: ("file", 0),
    Kind.DIRECTORY: ("dir", 1 << 31),
    Kind.SYMLINK: ("symlink", 1 << 27),
    Kind.FIFO: ("fifo", 1 << 25),
    Kind.BLOCK_DEVICE: ("dev", 1 << 26),
    Kind.CHARACTER_DEVICE: ("chardev", 1 << 26 | 1 << 21),
    Kind.SOCKET: ("socket", 1 << 24),
}
"""Names and Go's ``os.FileMode`` type bits of the kinds (restic-format.md section 11)."""

_FILE, _DIRECTORY, _SYMLINK = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK
_DEVICES = (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE)
_COUNTS_LINKS = (Kind.FILE, Kind.SYMLINK, *_DEVICES)
_SLASH = ord("/")
_FORBIDDEN_NAMES = (b"", b".", b"..")
_ID_BYTES = 32
_IDS_AT_A_TIME = 4096

_by_name = operator.attrgetter("name")


def encode_tree(entries: Iterable[Entry], zone: Zone) -> bytes:
    """Return the tree of one directory, sorted by raw name, with its closing newline.

    ``zone`` renders the times; the access time is the modification time, as restic's default
    is. Raises ``RepositoryError`` for entries that no tree can hold: duplicate or impossible
    names, numbers out of range, a file without content, a directory without subtree.
    """
    ordered = sorted(entries, key=_by_name)
    for i in range(1, len(ordered)):
        if ordered[i].name == ordered[i - 1].name:
            raise unfit(ordered[i], "its name occurs twice in the directory")
    return join_nodes(encode_node(entry, zone) for entry in ordered)


def encode_node(entry: Entry, zone: Zone) -> bytes:
    """Return the JSON of one entry, for ``join_nodes``; raises as ``encode_tree`` does.

    A directory in the making can be kept in this form: it is immutable, holds nothing else
    alive, and sorts and compresses with its neighbours.
    """
    _check(entry)
    mtime_ns, ctime_ns, inode = entry.mtime_ns, entry.ctime_ns, entry.inode
    mtime = format_time(mtime_ns, zone)
    ctime = mtime if ctime_ns == mtime_ns else format_time(ctime_ns, zone)
    inode_text = f',"inode":{inode}' if inode else ""
    head = (
        f'{{"name":{json_name(entry.name)}{_kind_and_mode(entry.kind, entry.permissions)}'
        f',"mtime":"{mtime}","atime":"{mtime}","ctime":"{ctime}"'
        f"{_owner(entry.uid, entry.gid, entry.user, entry.group)}"
        f"{inode_text}{_device(entry.device)}{_particulars(entry)}"
    )
    content, subtree = entry.content, entry.subtree
    if content is not None and len(content) == 1:
        return f'{head},"content":["{content[0].hex()}"]}}'.encode()
    end = "}" if subtree is None else f',"subtree":"{subtree.hex()}"}}'
    return b"".join((head.encode(), *_content(content), end.encode()))


def join_nodes(nodes: Iterable[bytes]) -> bytes:
    """Return the tree of nodes, given in the order of raw names, none of which occurs twice."""
    text = io.BytesIO()  # grows in place: the tree of a large directory is in memory once
    text.write(b'{"nodes":[')
    before = b""
    for node in nodes:
        text.write(before)
        text.write(node)
        before = b","
    text.write(b"]}\n")
    return text.getvalue()


def decode_tree(data: bytes, refused: list[MalformedData] | None = None) -> list[Entry]:
    """Return the entries of a tree in stored order.

    Everything that restic can use is accepted: unknown keys, any order and white space,
    missing optional fields. What it could not use raises ``MalformedData``; with a list in
    ``refused`` the error of a single node goes there instead, the node is left out and the
    rest of the directory is still returned. The order is not looked at: see ``check_order``.
    """
    return _decoded(data, read_nodes, read_raw_nodes, refused)


def decode_nodes(data: bytes, refused: list[MalformedData] | None = None) -> list[Entry]:
    """Return the entries of a list of nodes, which is what a part of a tree is; as ``decode_tree``."""
    return _decoded(data, read_node_list, read_raw_list, refused)


def _decoded(
    data: bytes,
    read: Callable[[bytes], list[Node]],
    read_raw: Callable[[bytes], list[bytes]],
    refused: list[MalformedData] | None,
) -> list[Entry]:
    try:
        return _entries_of(read(data))
    except MalformedData:
        if refused is None:
            raise
    entries: list[Entry] = []
    for raw in read_raw(data):
        try:
            entries.append(entry_of(read_node(raw)))
        except MalformedData as error:
            refused.append(error)
    return entries


def _entries_of(nodes: list[Node]) -> list[Entry]:
    """Return the entries of nodes, which are given up one by one: both are large."""
    entries = []
    nodes.reverse()
    while nodes:
        entries.append(entry_of(nodes.pop()))
    return entries


def check_order(entries: Iterable[Entry]) -> None:
    """Raise ``MalformedData`` unless names rise strictly; restic's parent lookup relies on it."""
    for fault in disorder(entries):
        raise MalformedData("tree", fault)


def disorder(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield what is wrong with each name that does not rise."""
    before = b""
    for entry in entries:
        if entry.name <= before:
            fault = "occurs twice" if entry.name == before else f"comes after {before!r}"
            yield f"the name {entry.name!r} {fault}"
        before = entry.name


@functools.lru_cache(maxsize=1024)
def _kind_and_mode(kind: Kind, permissions: int) -> str:
    type_name, type_bits = _TYPES[kind]
    mode = type_bits | permissions & 0o777 | (permissions & 0o1000) << 11
    mode |= (permissions & 0o2000) << 12 | (permissions & 0o4000) << 12
    return f',"type":"{type_name}"{number_field("mode", mode)}'


@functools.lru_cache(maxsize=64)
def _device(device: int) -> str:
    return number_field("device_id", device)


@functools.lru_cache(maxsize=1024)
def _owner(uid: int, gid: int, user: str, group: str) -> str:
    names = f"{text_field('user', user)}{text_field('group', group)}"
    return f',"uid":{uid},"gid":{gid}{names}'


def _particulars(entry: Entry) -> str:
    """Return the fields from ``size`` to ``device``: which a node has depends on its kind."""
    kind, links = entry.kind, entry.links
    text = f',"size":{entry.size}' if kind is _FILE and entry.size else ""
    if links and (kind is _FILE or kind in _COUNTS_LINKS):
        text += f',"links":{links}'
    if kind is _SYMLINK:
        text += _link_target(entry.link_target)
    if entry.xattrs:
        text += f',"extended_attributes":[{",".join(map(_xattr, entry.xattrs))}]'
    if kind is not _FILE and kind in _DEVICES:
        text += number_field("device", entry.rdev)
    return text


def _content(content: tuple[bytes, ...] | None) -> Iterator[bytes]:
    """Yield the list of ids in pieces: a file with a large hole has millions of them."""
    if not content:
        yield b',"content":null' if content is None else b',"content":[]'
        return
    for start in range(0, len(content), _IDS_AT_A_TIME):
        ids = '","'.join([id.hex() for id in content[start : start + _IDS_AT_A_TIME]])
        yield f'","{ids}'.encode() if start else f',"content":["{ids}'.encode()
    yield b'"]'


def _link_target(target: bytes) -> str:
    text = target.decode("utf-8", "surrogateescape")
    field = text_field("linktarget", text)
    try:
        target.decode("utf-8")
    except UnicodeDecodeError:
        field += f',"linktarget_raw":"{base64.b64encode(target).decode()}"'
    return field


def _xattr(pair: tuple[bytes, bytes]) -> str:
    name, value = pair
    text = json_string(name.decode("utf-8", "surrogateescape"))
    return f'{{"name":{text},"value":"{base64.b64encode(value).decode()}"}}'


def _check(entry: Entry) -> None:
    name = entry.name
    if _SLASH in name or 0 in name or name in _FORBIDDEN_NAMES:
        raise unfit(entry, "no directory can have an entry of this name")
    if (entry.uid | entry.gid) >> 32 or entry.permissions >> 12:
        raise unfit(entry, "its owner or permissions are out of range")
    if (entry.inode | entry.device | entry.size | entry.links | entry.rdev) >> 64:
        raise unfit(entry, "a number of it is negative or above 64 bits")
    kind, content, subtree = entry.kind, entry.content, entry.subtree
    if (content is None) is (kind is _FILE):
        raise unfit(entry, "a file, and nothing else, has a list of content")
    if (subtree is None) is (kind is _DIRECTORY):
        raise unfit(entry, "a directory, and nothing else, has a subtree")
    if subtree is not None and len(subtree) != _ID_BYTES:
        raise unfit(entry, "the id of its subtree is not 32 bytes long")
    if content:
        for blob_id in content:
            if len(blob_id) != _ID_BYTES:
                raise unfit(entry, "an id of its content is not 32 bytes long")


def unfit(entry: Entry, reason: str) -> RepositoryError:
    """Return the error for an entry that no tree can hold."""
    return RepositoryError(f"cannot store the entry {entry.name!r}: {reason} (a bug: report it)")
