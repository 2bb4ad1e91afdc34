"""One backup for a test, with everything that a test may want to look at afterwards."""

import dataclasses
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.cancel import CancelToken
from agent.entry import Entry
from agent.monitor import Counters, Monitor
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.storage.contract import Storage
from agent.storage.memory import MemoryStorage
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import by_paths
from tests.repository.making import PASSWORD, all_entries, fill

SECONDS_TO_END = 30
"""A run that takes longer than this hangs."""


class Watch(Monitor):
    """Remembers whether anything that must only grow ever shrank."""

    SHRINKING = ("bytes_total",)  # an estimate until the walk is over

    def __init__(self) -> None:
        super().__init__()
        self.shrank: list[str] = []

    def add(self, **deltas: int) -> None:
        super().add(**deltas)
        if any(delta < 0 for name, delta in deltas.items() if name not in self.SHRINKING):
            self.shrank.append(str(deltas))


@dataclasses.dataclass
class Bench:
    """A volume, a storage with an empty repository, and runs of one against the other."""

    volume: Path
    storage: MemoryStorage
    monitor: Watch = dataclasses.field(default_factory=Watch)
    cancel: CancelToken = dataclasses.field(default_factory=CancelToken)

    @classmethod
    def new(cls, volume: Path) -> "Bench":
        storage = MemoryStorage()
        fill(storage)
        volume.mkdir(exist_ok=True)
        return cls(volume, storage)

    def run(
        self, *, storage: Storage | None = None, excludes: Sequence[str] = (), parent: bool = True
    ) -> Result:
        """Back up in a thread of its own, and raise what it raises; fail if it hangs."""
        self.monitor, self.cancel = Watch(), CancelToken()
        return self.go(storage or self.storage, excludes, parent=parent)

    def go(self, storage: Storage, excludes: Sequence[str] = (), *, parent: bool = True) -> Result:
        path = str(self.volume)
        request = Request(
            path,
            (path,),
            "host",
            {"k": "v"},
            lambda every, now: by_paths(every, "host", [path], now) if parent else None,
            tuple(excludes),
        )
        outcome: list[Result | BaseException] = []

        def work() -> None:
            try:
                repository = open_repository(storage, PASSWORD)
                outcome.append(run_backup(repository, request, self.monitor, self.cancel))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(SECONDS_TO_END)
        assert not thread.is_alive(), "the backup hangs"
        (result,) = outcome
        assert self.monitor.shrank == []
        if isinstance(result, BaseException):
            raise result
        return result

    @property
    def counters(self) -> Counters:
        return self.monitor.counters

    def repository(self) -> Repository:
        return open_repository(self.storage, PASSWORD)

    def entries(self, snapshot_id: str) -> dict[bytes, Entry]:
        """Return every entry of a snapshot by path."""
        return all_entries(self.repository(), snapshot_id)

    def content(self, snapshot_id: str) -> dict[bytes, bytes]:
        """Return the content of every file of a snapshot by path."""
        reading = self.repository().reading()
        return {
            path: b"".join(map(reading.load_chunk, entry.content))
            for path, entry in self.entries(snapshot_id).items()
            if entry.content is not None
        }


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def all_content(root: Path) -> dict[bytes, bytes]:
    return {
        os.fsencode(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
