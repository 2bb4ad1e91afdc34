"""Snapshots: a root tree with its circumstances, as one JSON object.

The rule guarded here: a snapshot that restic cannot read is never written and never believed.
One without a tree makes ``restic check`` crash, one with a bad time or number is ignored by it
(restic-format.md sections 14 and 21). Unknown fields are skipped, as restic does.
"""

from typing import Annotated

import msgspec

from agent.errors import MalformedData, RepositoryError
from agent.repository.gojson import json_string, number_field, text_field
from agent.repository.node import parse_id, read_json
from agent.repository.times import ZERO_TIME_NS, Zone, format_time, parse_offset, parse_time

_COUNTS = (
    "files_new",
    "files_changed",
    "files_unmodified",
    "dirs_new",
    "dirs_changed",
    "dirs_unmodified",
    "data_blobs",
    "tree_blobs",
    "data_added",
    "data_added_packed",
    "total_files_processed",
    "total_bytes_processed",
)
"""The summary's numbers in stored order; ``Summary`` and ``_Summary`` name the same."""


CHECKPOINT_TAG = "podlift=checkpoint"
"""Marks a snapshot of what an unfinished backup had stored: a parent, and nothing to restore."""

CHECKPOINT_TIME_NS = 86_400 * 10**9
"""What a checkpoint gives as its time, the second day of 1970: no tool takes it for the latest."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup did, under restic's names.

    Times are nanoseconds since the epoch. ``data_blobs`` and ``tree_blobs`` count new blobs,
    ``data_added`` is their plaintext and ``data_added_packed`` their stored size in bytes.
    """

    backup_start_ns: int
    backup_end_ns: int
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs_new: int = 0
    dirs_changed: int = 0
    dirs_unmodified: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    data_added: int = 0
    data_added_packed: int = 0
    total_files_processed: int = 0
    total_bytes_processed: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A root tree with its circumstances.

    ``id`` is the hex name of the stored file, "" before it is stored. ``time_ns`` is the start
    of the backup in nanoseconds since the epoch; ``offset_seconds`` is how far east of UTC the
    writer's wall clock was, which ``forget`` needs to tell hours and days; it is read, never
    written (the zone given to ``encode_snapshot`` decides). ``tree`` is the raw blob id;
    ``parent`` and ``original`` are snapshot ids in hex, "" for none. ``paths`` are absolute.
    """

    id: str = ""
    time_ns: int
    offset_seconds: int = 0
    tree: bytes
    paths: tuple[str, ...] = ()
    parent: str = ""
    hostname: str = ""
    username: str = ""
    uid: int = 0
    gid: int = 0
    excludes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    original: str = ""
    program_version: str = ""
    summary: Summary | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Tell whether it is a part of a backup that did not come to its end yet."""
        return CHECKPOINT_TAG in self.tags

    @property
    def made_ns(self) -> int:
        """Return when it was made: for a checkpoint its end, whatever it gives as its time."""
        if self.is_checkpoint and self.summary is not None:
            return self.summary.backup_end_ns
        return self.time_ns


_Count = Annotated[int, msgspec.Meta(ge=0)] | None


class _Summary(msgspec.Struct):
    backup_start: str | None = None
    backup_end: str | None = None
    files_new: _Count = None
    files_changed: _Count = None
    files_unmodified: _Count = None
    dirs_new: _Count = None
    dirs_changed: _Count = None
    dirs_unmodified: _Count = None
    data_blobs: _Count = None
    tree_blobs: _Count = None
    data_added: _Count = None
    data_added_packed: _Count = None
    total_files_processed: _Count = None
    total_bytes_processed: _Count = None


class _Snapshot(msgspec.Struct):
    time: str | None = None
    parent: str | None = None
    tree: str | None = None
    paths: list[str | None] | None = None
    hostname: str | None = None
    username: str | None = None
    uid: _Count = None
    gid: _Count = None
    excludes: list[str | None] | None = None
    tags: list[str | None] | None = None
    original: str | None = None
    program_version: str | None = None
    summary: _Summary | None = None


_decoder = msgspec.json.Decoder(_Snapshot)


def encode_snapshot(snapshot: Snapshot, zone: Zone) -> bytes:
    """Return the JSON of a snapshot, with its times in ``zone``; no newline at the end.

    Raises ``RepositoryError`` for what no reader could take: an id of a wrong length, a number
    out of range.
    """
    _check(snapshot)
    text = f'{{"time":"{format_time(snapshot.time_ns, zone)}"'
    text += text_field("parent", snapshot.parent)
    text += f',"tree":"{snapshot.tree.hex()}","paths":{_list(snapshot.paths)}'
    text += text_field("hostname", snapshot.hostname)
    text += text_field("username", snapshot.username)
    text += number_field("uid", snapshot.uid)
    text += number_field("gid", snapshot.gid)
    if snapshot.excludes:
        text += f',"excludes":{_list(snapshot.excludes)}'
    if snapshot.tags:
        text += f',"tags":{_list(snapshot.tags)}'
    text += text_field("original", snapshot.original)
    text += text_field("program_version", snapshot.program_version)
    if snapshot.summary is not None:
        text += f',"summary":{_encode_summary(snapshot.summary, zone)}'
    return f"{text}}}".encode()


def decode_snapshot(data: bytes, snapshot_id: str) -> Snapshot:
    """Return the snapshot stored under ``snapshot_id`` (hex); raises ``MalformedData``.

    A missing time is the year 1, as in restic; a missing tree is an error.
    """
    what = f"snapshot {snapshot_id}"
    stored = read_json(_decoder, data, what)
    try:
        return _snapshot(stored, snapshot_id)
    except MalformedData as error:
        raise MalformedData(what, error.reason) from error


def _snapshot(stored: _Snapshot, snapshot_id: str) -> Snapshot:
    uid, gid = stored.uid or 0, stored.gid or 0
    if (uid | gid) >> 32:
        raise MalformedData("snapshot", "its uid or gid does not fit into 32 bits")
    if stored.tree is None:
        raise MalformedData("snapshot", "it names no tree; remove it with forget")
    time = stored.time
    return Snapshot(
        id=snapshot_id,
        time_ns=ZERO_TIME_NS if time is None else parse_time(time),
        offset_seconds=0 if time is None else parse_offset(time),
        tree=parse_id(stored.tree),
        paths=_texts(stored.paths),
        parent="" if stored.parent is None else parse_id(stored.parent).hex(),
        hostname=stored.hostname or "",
        username=stored.username or "",
        uid=uid,
        gid=gid,
        excludes=_texts(stored.excludes),
        tags=_texts(stored.tags),
        original="" if stored.original is None else parse_id(stored.original).hex(),
        program_version=stored.program_version or "",
        summary=None if stored.summary is None else _summary(stored.summary),
    )


def _summary(stored: _Summary) -> Summary:
    counts = {key: getattr(stored, key) or 0 for key in _COUNTS}
    for key, value in counts.items():
        if value >> _bits(key):
            raise MalformedData("summary", f"{key} does not fit into {_bits(key)} bits")
    start, end = stored.backup_start, stored.backup_end
    return Summary(
        backup_start_ns=ZERO_TIME_NS if start is None else parse_time(start),
        backup_end_ns=ZERO_TIME_NS if end is None else parse_time(end),
        **counts,
    )


def _bits(key: str) -> int:
    """Return how wide a count may be: two of them are signed in restic."""
    return 63 if key in ("data_blobs", "tree_blobs") else 64


def _texts(texts: list[str | None] | None) -> tuple[str, ...]:
    return tuple([text or "" for text in texts or ()])


def _list(texts: tuple[str, ...]) -> str:
    return f"[{','.join(map(json_string, texts))}]"


def _encode_summary(summary: Summary, zone: Zone) -> str:
    start = format_time(summary.backup_start_ns, zone)
    end = format_time(summary.backup_end_ns, zone)
    counts = ",".join([f'"{key}":{getattr(summary, key)}' for key in _COUNTS])
    return f'{{"backup_start":"{start}","backup_end":"{end}",{counts}}}'


def _check(snapshot: Snapshot) -> None:
    ids = [snapshot.tree.hex(), snapshot.parent, snapshot.original]
    for text in ids[:1] + [text for text in ids[1:] if text]:
        try:
            parse_id(text)
        except MalformedData as error:
            raise _unfit(error.reason) from error
    if (snapshot.uid | snapshot.gid) >> 32:
        raise _unfit("its uid or gid does not fit into 32 bits")
    if snapshot.summary is not None:
        for key in _COUNTS:
            if getattr(snapshot.summary, key) >> _bits(key):
                raise _unfit(f"{key} is negative or above {_bits(key)} bits")


def _unfit(reason: str) -> RepositoryError:
    return RepositoryError(f"cannot store the snapshot: {reason} (a bug: report it)")
