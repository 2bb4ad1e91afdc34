"""Several volumes at a time in one process, as an agent moves them; bench_memory.py runs it.

usage: several.py backup|restore REPOSITORY CACHE VOLUME...
"""

import sys
import threading
from pathlib import Path

from agent.allocator import limit_arenas
from agent.budget import Budgets
from agent.cancel import NEVER
from agent.config import CacheDir, repository_password
from agent.monitor import Monitor
from agent.repository.opening import open_repository
from agent.storage.address import parse_repository
from agent.storage.opening import open_storage
from agent.transfer.job import Request, run_backup
from agent.transfer.parent import by_paths
from agent.transfer.restore import RestoreRequest, restore


class Work:
    """One process's budgets, and what its threads do with one repository."""

    def __init__(self, repository: str, cache: Path) -> None:
        self._repository = repository
        self._cache = CacheDir(cache)
        self._budgets = Budgets()

    def backup(self, volume: str) -> None:
        """Back one volume up."""
        request = Request(
            volume,
            (volume,),
            "bench",
            {},
            lambda snapshots, now: by_paths(snapshots, "bench", [volume], now),
            budgets=self._budgets,
        )
        run_backup(self._open(), request, Monitor(), NEVER)

    def restore(self, volume: str) -> None:
        """Restore the newest snapshot of one volume beside it."""
        repository = self._open()
        of_volume = [one for one in repository.snapshots(NEVER) if one.paths == (volume,)]
        request = RestoreRequest(of_volume[-1].tree, f"{volume}-back", budgets=self._budgets)
        restore(repository.reading(NEVER), request, Monitor(), NEVER)

    def _open(self):  # type: ignore[no-untyped-def]
        storage = open_storage(parse_repository(self._repository), rates=self._budgets.rates)
        return open_repository(storage, repository_password() or "", cache=self._cache)


def main() -> int:
    """Do it with a thread a volume; the first failure is the exit code."""
    what, repository, cache, *volumes = sys.argv[1:]
    limit_arenas()
    work = Work(repository, Path(cache))
    failed: list[str] = []

    def one(volume: str) -> None:
        try:
            getattr(work, what)(volume)
        except BaseException as error:
            failed.append(f"{volume}: {error!r}")

    threads = [threading.Thread(target=one, args=(volume,)) for volume in volumes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
