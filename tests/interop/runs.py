"""Our side of the interop tests: back up, restore, look, as the command line would."""

from pathlib import Path

from agent.cancel import NEVER
from agent.errors import NoRepository
from agent.monitor import Counters, Monitor
from agent.repository.opening import create_repository, open_repository
from agent.repository.repository import Repository
from agent.storage.contract import Storage
from agent.storage.local import LocalStorage
from agent.transfer.job import Request, Result, run_backup
from agent.transfer.parent import by_paths
from agent.transfer.restore import RestoreRequest, restore
from tests.repository.making import CHEAP

PASSWORD = "secret"
HOST = "interop"


def open_at(place: Path | Storage) -> Repository:
    """Open a repository, made first if it is not there."""
    storage = LocalStorage.create(place) if isinstance(place, Path) else place
    try:
        return open_repository(storage, PASSWORD)
    except NoRepository:
        create_repository(storage, PASSWORD, cost=CHEAP)
        return open_repository(storage, PASSWORD)


def back_up(place: Path | Storage, volume: Path, *, parent: bool = True) -> Result:
    """Back a volume up as the restic command ``backup .`` in it would."""
    path = str(volume)
    request = Request(
        path,
        (path,),
        HOST,
        {},
        lambda every, now: by_paths(every, HOST, [path], now) if parent else None,
    )
    monitor = Monitor()
    result = run_backup(open_at(place), request, monitor, NEVER)
    assert monitor.problems == []
    return result


def restore_latest(place: Path | Storage, target: Path) -> Counters:
    """Restore the newest snapshot."""
    repository = open_at(place)
    monitor = Monitor()
    tree = repository.snapshot("latest").tree
    restore(repository.reading(), RestoreRequest(tree, target), monitor, NEVER)
    assert monitor.problems == []
    return monitor.counters
