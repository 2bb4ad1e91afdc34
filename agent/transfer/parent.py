"""The parent: the earlier snapshot of the same volume, from which unchanged files are taken.

It is looked up in the repository itself, so it is found after the cluster was rebuilt, and it
follows a claim (``pvc-uid``), not a pod: a pod that was made anew keeps its parent
(velero.md section 5.5). Choosing wrongly costs time only; content is compared file by file. The
checkpoint of a run that was interrupted is a parent like any other.
"""

from collections.abc import Callable, Mapping, Sequence

from agent.repository.snapshot import Snapshot

ChooseParent = Callable[[Sequence[Snapshot], int], Snapshot | None]
"""Given all snapshots, oldest first, and the time now in ns: the parent, or None."""

ParentWish = Callable[[Sequence[Snapshot], int, ChooseParent], Snapshot | None]
"""The same for somebody who has a wish; what is chosen without one is given too."""


def tagged(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return tags as a snapshot stores them, sorted by key."""
    return tuple(f"{key}={value}" for key, value in sorted(tags.items()))


def by_paths(
    snapshots: Sequence[Snapshot], host: str, paths: Sequence[str], now_ns: int
) -> Snapshot | None:
    """Return the newest snapshot of this host that holds all of these paths."""
    return _newest(
        [s for s in snapshots if s.hostname == host and set(paths) <= set(s.paths)], now_ns
    )


def by_tags(snapshots: Sequence[Snapshot], tags: Mapping[str, str], now_ns: int) -> Snapshot | None:
    """Return the newest snapshot of the same claim, or else of the same volume of the same pod."""
    for keys in (("pvc-uid", "volume"), ("pvc-uid",), ("ns", "pod", "volume")):
        wanted = {f"{key}={tags[key]}" for key in keys if tags.get(key)}
        if len(wanted) == len(keys):
            found = _newest([s for s in snapshots if wanted <= set(s.tags)], now_ns)
            if found is not None:
                return found
    return None


def by_wish(wish: str, tags: Mapping[str, str]) -> ParentWish:
    """Return what chooses the parent of a backup with these tags, where somebody may have a wish.

    ``none`` means that everything is to be read, and an id or the beginning of one that it is to be
    that snapshot, if it is there (velero.md section 1.2, ``spec.parentSnapshot``). What an interrupted
    run of the same backup left comes before either. ``auto`` and "" mean the usual choice, and so does
    an id that is not there.
    """
    own = set(tagged(tags))

    def choose(snapshots: Sequence[Snapshot], now_ns: int, usual: ChooseParent) -> Snapshot | None:
        if wish in ("", "auto"):
            return usual(snapshots, now_ns)
        left = [s for s in snapshots if s.is_checkpoint and own <= set(s.tags)]
        if left or wish == "none":
            return _newest(left, now_ns)
        named = [s for s in snapshots if s.id.startswith(wish)]
        return named[0] if len(named) == 1 else usual(snapshots, now_ns)

    return choose


def _newest(snapshots: Sequence[Snapshot], now_ns: int) -> Snapshot | None:
    past = [s for s in snapshots if s.made_ns <= now_ns]
    return max(past, key=lambda s: s.made_ns, default=None)
