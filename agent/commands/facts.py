"""What commands tell scripts: snapshots, entries and differences as JSON objects."""

import base64
import json
import os
from typing import Any

from agent.entry import Entry, Kind
from agent.repository.difference import Difference, Side
from agent.repository.snapshot import Snapshot, encode_snapshot
from agent.repository.times import format_time
from agent.repository.zone import local_zone
from agent.terminal import mode_text


def snapshot_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot for scripts, in the fields of `restic snapshots --json`."""
    stored: dict[str, Any] = json.loads(encode_snapshot(snapshot, local_zone))
    return {**stored, "id": snapshot.id, "short_id": snapshot.id[:8]}


def path_facts(path: bytes) -> dict[str, str]:
    """Return a path for scripts; ``path_base64`` has the bytes if they are not UTF-8."""
    facts = {"path": path.decode("utf-8", "replace")}
    if facts["path"].encode() != path:
        facts["path_base64"] = base64.b64encode(path).decode()
    return facts


def entry_facts(path: bytes, entry: Entry) -> dict[str, Any]:
    """Return an entry for scripts; what does not apply to its kind is not there."""
    facts: dict[str, Any] = {
        **path_facts(path),
        "type": entry.kind.name.lower(),
        "size": entry.size,
        "mode": f"{entry.permissions:04o}",
        "permissions": mode_text(entry),
        "mtime": format_time(entry.mtime_ns, local_zone),
        "ctime": format_time(entry.ctime_ns, local_zone),
        "uid": entry.uid,
        "gid": entry.gid,
        "user": entry.user,
        "group": entry.group,
        "inode": entry.inode,
        "links": entry.links,
    }
    if entry.kind is Kind.SYMLINK:
        facts["target"] = entry.link_target.decode("utf-8", "replace")
    if entry.kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE):
        facts["device"] = f"{os.major(entry.rdev)}:{os.minor(entry.rdev)}"
    if entry.xattrs:
        facts["xattrs"] = [name.decode("utf-8", "replace") for name, _ in entry.xattrs]
    return facts


def difference_facts(found: Difference, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return the sums of a difference for scripts."""
    return {
        "message_type": "statistics",
        "source_snapshot": before.id,
        "target_snapshot": after.id,
        "changed_files": found.changed_files,
        "changed_others": found.changed_others,
        "added": _side_facts(found.added),
        "removed": _side_facts(found.removed),
    }


def _side_facts(side: Side) -> dict[str, int]:
    names = ("files", "directories", "others", "bytes")
    return {name: getattr(side, name) for name in names}
