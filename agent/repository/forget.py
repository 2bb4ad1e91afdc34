"""forget: snapshots are removed; what only they needed is left for prune.

The rule guarded here: a snapshot is removed under an exclusive lock that was proven just before,
and only by its full id. Forgetting does not read what it removes, so that a damaged snapshot can
be forgotten too.
"""

from collections.abc import Iterable

from agent.cancel import NEVER, CancelToken
from agent.errors import RepositoryError, UsageError
from agent.repository.locking import HeldLock
from agent.repository.objects import Folder, names
from agent.repository.repository import Repository
from agent.repository.retention import Group, Verdict
from agent.repository.snapshot import Snapshot


def remove_snapshots(
    repository: Repository, lock: HeldLock, snapshots: Iterable[Snapshot], cancel: CancelToken
) -> None:
    """Remove snapshots, one after the other; see ``remove_named``."""
    remove_named(repository, lock, [snapshot.id for snapshot in snapshots], cancel)


def remove_named(
    repository: Repository, lock: HeldLock, ids: Iterable[str], cancel: CancelToken
) -> None:
    """Remove snapshots by their full ids.

    Needs an exclusive lock, which is proven before each removal. What is gone already is not an
    error. Raises ``LockLost``, ``Canceled`` and the storage's errors; what was removed until
    then stays removed.
    """
    require_exclusive(lock, "removing snapshots")
    for id in ids:
        cancel.check()
        lock.prove()
        repository.objects.remove(Folder.SNAPSHOTS, id, cancel=cancel)


def require_exclusive(lock: HeldLock, work: str) -> None:
    """Raise ``RepositoryError`` unless the lock keeps everybody else out."""
    if not lock.exclusive:
        raise RepositoryError(f"{work} needs an exclusive lock (a bug: report it)")


def find_named(
    repository: Repository, wanted: Iterable[str], cancel: CancelToken = NEVER
) -> list[str]:
    """Return the full ids that ids, unique beginnings of ids, or ``latest`` stand for.

    Raises ``UsageError`` for what stands for no snapshot or for several.
    """
    listed = list(names(repository.objects.storage, Folder.SNAPSHOTS, cancel))
    found: dict[str, None] = {}
    for text in wanted:
        if text == "latest":
            found[repository.snapshot(text, cancel).id] = None
            continue
        matching = [name for name in listed if text and name.startswith(text)]
        if len(matching) != 1:
            raise UsageError(
                f"{text!r} names {len(matching) or 'no'} snapshots of {repository.place}; nothing"
                " was removed. `podlift snapshots` lists them"
            )
        found[matching[0]] = None
    return list(found)


def refuse_to_empty(groups: dict[Group, list[Verdict]]) -> None:
    """Raise ``UsageError`` if a policy would remove every snapshot of a group."""
    for group, verdicts in groups.items():
        if not any(verdict.keep for verdict in verdicts):
            raise UsageError(
                f"the policy keeps none of the {len(verdicts)} snapshots of {group.describe()};"
                " nothing was removed. Give a rule that keeps some, or"
                " --unsafe-allow-remove-all if all of them are to go"
            )
