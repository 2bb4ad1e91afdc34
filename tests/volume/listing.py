"""A directory's entries by name, for tests."""

from agent.cancel import NEVER
from agent.entry import Entry
from agent.monitor import Monitor
from agent.volume.directory import Directory
from agent.volume.exclude import Exclude


def listing(
    directory: Directory, monitor: Monitor | None = None, *patterns: str
) -> dict[bytes, Entry]:
    entries = directory.entries(Exclude(patterns), monitor or Monitor(), NEVER)
    assert [e.name for e in entries] == sorted(e.name for e in entries)
    return {entry.name: entry for entry in entries}
