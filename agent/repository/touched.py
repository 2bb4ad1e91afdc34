"""What damage touches: the places of each snapshot that are not as they were backed up.

One walk over the trees of all snapshots counts what is wrong below each directory; then only the
directories with something wrong are entered again, to name it. The rule guarded here: counts are
exact and lists are bounded, however much is damaged.
"""

from collections.abc import Callable, Iterator, Sequence

from agent.cancel import CancelToken
from agent.entry import Entry
from agent.errors import DamagedBlob, MalformedData, StorageError
from agent.monitor import Monitor
from agent.repository.directory import Child, DirectoryCheck, Fault
from agent.repository.finding import Advice, Finding, Touched
from agent.repository.health import Health
from agent.repository.identity import BlobType
from agent.repository.linkidentity import LinkCensus, LinkJudge, Mistaken
from agent.repository.objects import of_one_object
from agent.repository.paths import shown
from agent.repository.reader import BlobReader
from agent.repository.snapshot import Snapshot
from agent.repository.treesums import TreeSums

NAMED_OF_SNAPSHOT = 20
"""How many places of one snapshot are named."""

NAMED_IN_ALL = 200
"""How many places are named in all; of the snapshots after that only the counts are told."""

Place = tuple[bytes, Fault]
"""A path, b"" for the root, and what is wrong there, or with a name in it."""


class TouchedPlaces:
    """Finds what is touched in snapshots."""

    def __init__(
        self, blobs: BlobReader, health: Health, monitor: Monitor, cancel: CancelToken
    ) -> None:
        self._blobs = blobs
        self._health = health
        self._monitor = monitor
        self._cancel = cancel
        self._check = DirectoryCheck(blobs, health)
        self._census = LinkCensus()
        self._wrong = TreeSums(health, self._count_faults, cancel)
        self._left = NAMED_IN_ALL

    def findings(self, snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
        """Yield a finding for each touched place, in the order of the snapshots."""
        for snapshot in snapshots:
            self._wrong.sum(snapshot.tree)
        doubtful = self._census.doubtful()
        links = TreeSums(self._health, self._counter_of(LinkJudge(doubtful)), self._cancel)
        for snapshot in snapshots:
            wrong = self._wrong.sum(snapshot.tree)
            if self._health.position(BlobType.TREE, snapshot.tree) is None:
                yield from self._told(snapshot, iter([_no_root(snapshot)]), 1)
            elif wrong:
                yield from self._told(snapshot, self._faults(snapshot), wrong)
            if doubtful and links.sum(snapshot.tree):
                yield from self._links(snapshot, LinkJudge(doubtful), links)

    def _count_faults(self, tree: bytes) -> tuple[int, list[bytes]]:
        children: list[Child] = []
        count = sum(1 for _ in self._check.faults(tree, children, self._census.meet))
        self._monitor.add(trees=1)
        return count, [child.tree for child in children]

    def _faults(self, snapshot: Snapshot) -> Iterator[Place]:
        stack = [(b"", snapshot.tree)]
        while stack:
            self._cancel.check()
            path, tree = stack.pop()
            children: list[Child] = []
            for fault in self._check.faults(tree, children):
                yield path, fault
            below = [(path + b"/" + c.name, c.tree) for c in children if self._wrong.sum(c.tree)]
            stack += reversed(below)

    def _told(
        self, snapshot: Snapshot, places: Iterator[Place], count: int | None
    ) -> Iterator[Finding]:
        """Name the first places, and count the others; ``count`` is of all, None if unknown."""
        named = 0
        most = min(NAMED_OF_SNAPSHOT, self._left)
        while named < most:
            place = next(places, None)
            if place is None:
                break
            named += 1
            self._left -= 1
            yield _place(snapshot, *place)
        more = sum(1 for _ in places) if count is None else count - named
        if more:
            word = "more places are" if named else "places are"
            yield Finding(
                f"snapshot {snapshot.id[:8]}: {more} {word} touched; not named, for there are many",
                touched=Touched(snapshot.id, None, more),
            )

    def _links(self, snapshot: Snapshot, judge: LinkJudge, links: TreeSums) -> Iterator[Finding]:
        def concerned() -> Iterator[Place]:
            for path, entry in self._walk(snapshot.tree, links):
                if judge.concerns(entry):
                    for found in judge.judge(path + b"/" + entry.name, entry):
                        yield found.path, _mistaken(found)

        yield from self._told(snapshot, concerned(), None)

    def _walk(self, root: bytes, sums: TreeSums) -> Iterator[tuple[bytes, Entry]]:
        """Yield every entry of the directories below which something is, with their paths."""
        stack = [(b"", self._entries(root))]
        while stack:
            self._cancel.check()
            path, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            yield path, entry
            if entry.subtree is not None and sums.sum(entry.subtree):
                stack.append((path + b"/" + entry.name, self._entries(entry.subtree)))

    def _entries(self, tree: bytes) -> Iterator[Entry]:
        """Yield what can be read of a directory; what cannot is reported elsewhere."""
        try:
            yield from self._blobs.load_tree(tree, [])
        except (DamagedBlob, MalformedData):
            return
        except StorageError as error:
            if not of_one_object(error):
                raise

    def _counter_of(self, judge: LinkJudge) -> Callable[[bytes], tuple[int, list[bytes]]]:
        def count(tree: bytes) -> tuple[int, list[bytes]]:
            found, below = 0, []
            for entry in self._entries(tree):
                found += judge.concerns(entry)
                if entry.subtree is not None:
                    below.append(entry.subtree)
            return found, below

        return count


def _place(snapshot: Snapshot, directory: bytes, fault: Fault) -> Finding:
    path = directory if fault.name is None else directory + b"/" + fault.name
    return Finding(
        f"snapshot {snapshot.id[:8]}, {shown(path)}: {fault.message}",
        advice=fault.advice,
        touched=Touched(snapshot.id, path),
    )


def _no_root(snapshot: Snapshot) -> Place:
    told = f"this directory cannot be read: tree blob {snapshot.tree.hex()} is in no index"
    return b"", Fault(None, told, (Advice.INDEX, Advice.BACKUP, Advice.SNAPSHOT))


def _mistaken(found: Mistaken) -> Fault:
    told = (
        f"has the inode of {shown(found.linked_to)} and other content: restic restores it as a"
        " hard link to that"
    )
    return Fault(None, told, (Advice.IDENTITY,))
