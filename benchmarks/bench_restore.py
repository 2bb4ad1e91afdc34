"""A restore beside restic's: the same snapshots, from the same repository, in turns.

Three snapshots: large incompressible files, many small ones, and both together, which is what the
number to hold is about. Each round restores each of them with restic and with podlift into new
folders of the same file system; wall time is the median over the rounds, and what counts is the
ratio. Peak memory is the child's own (ru_maxrss). Then one restore
of each is run inside this process to count what it reads from packs, and that is compared with the
stored size of exactly the blobs that the snapshot needs.

Nothing is deleted before the end: some file systems (ext4) make the creation of files slow for
minutes after many were deleted. TMPDIR=/dev/shm takes the disk out of the comparison altogether;
give --delete with it, since memory that a virtual machine touches for the first time is slow.
"""

import shutil
import statistics
import sys
from pathlib import Path

from samples import MIB, SAMPLES
from sides import PASSWORD, Cost, Place, Podlift, Restic
from workspace import parser, workspace

from agent.cancel import CancelToken
from agent.entry import Kind
from agent.monitor import Monitor
from agent.repository.identity import BlobId, BlobType
from agent.repository.opening import open_repository
from agent.repository.repository import Reader
from agent.storage.contract import Room
from agent.storage.local import LocalStorage
from agent.transfer.restore import RestoreRequest, restore

WALL, RSS_MIB, FETCHED = 0.5, 256, 1.05
"""To hold: wall time as a part of restic's, peak memory, bytes fetched by bytes needed."""


class Counting(LocalStorage):
    """Counts the bytes that are read from packs."""

    fetched = 0

    def get(self, key: str, **how: object) -> bytes:
        """Return an object, counted."""
        body = super().get(key, **how)  # type: ignore[arg-type]
        self._count(key, len(body))
        return body

    def get_range(self, key: str, offset: int, out: Room, **how: object) -> None:
        """Fetch a range, counted."""
        super().get_range(key, offset, out, **how)  # type: ignore[arg-type]
        self._count(key, len(out))

    def _count(self, key: str, size: int) -> None:
        if key.startswith("data/"):
            self.fetched += size


def fetched_and_needed(repository: Path, snapshot: str, target: Path) -> tuple[int, int]:
    """Restore in this process; return the bytes read from packs, and those that were needed."""
    storage = Counting(repository)
    opened = open_repository(storage, PASSWORD)
    source = opened.reading()
    tree = opened.snapshot(snapshot).tree
    restore(source, RestoreRequest(tree, target), Monitor(), CancelToken())
    fetched = storage.fetched
    return fetched, sum(source.view.find(*id)[0].blob.length for id in wanted(source, tree))


def wanted(source: Reader, root: bytes) -> set[tuple[BlobType, BlobId]]:
    """Return every blob of a snapshot once; chunks of zeros need not be read."""
    found: set[tuple[BlobType, BlobId]] = set()
    pending = [root]
    while pending:
        tree = BlobId(pending.pop())
        if (BlobType.TREE, tree) in found:
            continue
        found.add((BlobType.TREE, tree))
        for entry in source.load_tree(tree):
            if entry.kind is Kind.DIRECTORY and entry.subtree is not None:
                pending.append(entry.subtree)
            for id in entry.content or ():
                if not source.is_zeros(id):
                    found.add((BlobType.DATA, BlobId(id)))
    return found


class Stage:
    """A repository with the snapshots to restore, and where to."""

    def __init__(self, folder: Path, restic: str | None, *, delete: bool) -> None:
        self.folder = folder
        self._delete = delete
        self.repository = folder / "repo"
        self.place = Place(str(self.repository), {}, folder)
        self.podlift = Podlift()
        self.restic = None if restic is None else Restic(restic)
        self._targets = 0

    def target(self) -> Path:
        """Return a new place to restore to."""
        self._targets += 1
        return self.folder / f"target-{self._targets}"

    def done_with(self, target: Path) -> None:
        """Remove what was restored, if that is wanted."""
        if self._delete:
            shutil.rmtree(target)

    def restore(self, side: Podlift | Restic, snapshot: str) -> Cost:
        """Restore with one side."""
        target = self.target()
        cost = side.restore(self.place, snapshot, target)
        self.done_with(target)
        return cost


def measure(stage: Stage, name: str, snapshot: str, rounds: int) -> tuple[bool, bool]:
    """Restore one snapshot in turns, print the figures; tell (speed holds, the others do)."""
    ours: list[Cost] = []
    theirs: list[Cost] = []
    for _ in range(rounds):
        if stage.restic is not None:
            theirs.append(stage.restore(stage.restic, snapshot))
        ours.append(stage.restore(stage.podlift, snapshot))
    seconds = statistics.median(cost.wall_seconds for cost in ours)
    peak = max(cost.rss_mib for cost in ours)
    print(f"{name}\n  podlift {seconds:6.2f} s, peak RSS {peak:5.0f} MiB")
    fast = True
    if theirs:
        beside = statistics.median(cost.wall_seconds for cost in theirs)
        most = max(cost.rss_mib for cost in theirs)
        ratio = seconds / beside
        print(f"  restic  {beside:6.2f} s, peak RSS {most:5.0f} MiB; wall ratio {ratio:.2f}")
        fast = ratio <= WALL
    target = stage.target()
    fetched, needed = fetched_and_needed(stage.repository, snapshot, target)
    stage.done_with(target)
    print(f"  fetched {fetched} bytes of packs for {needed} needed: {fetched / needed:.3f}")
    return fast, peak <= RSS_MIB and fetched <= FETCHED * needed


def main() -> int:
    """Measure, print, and end with a verdict."""
    made = parser(__doc__)
    made.add_argument("--large-mib", type=int, default=1024, help="MiB in large files")
    made.add_argument("--files", type=int, default=100_000, help="number of small files")
    made.add_argument("--delete", action="store_true", help="remove what each round restored")
    options = made.parse_args()
    large, files, rounds = options.large_mib, options.files, options.rounds
    if options.quick:
        large, files, rounds = 64, 3000, 1
    if options.restic is None:
        print("restic is not here (apt-get install restic): our side is measured alone")
    copies = 3 + (0 if options.delete else 4 * rounds)
    with workspace(copies * (large * MIB + files * 16_384)) as folder:
        stage = Stage(folder, options.restic, delete=options.delete)
        volume = folder / "volume"
        SAMPLES["incompressible"].make(volume / "large", large)
        SAMPLES["small"].make(volume / "small", files)
        stage.podlift.init(stage.place)
        for each in (volume / "large", volume / "small", volume):
            stage.podlift.backup(stage.place, each)
        opened = open_repository(LocalStorage(stage.repository), PASSWORD)
        alone, small, both = (snapshot.id for snapshot in opened.snapshots())
        measure(stage, f"{large} MiB in large files", alone, rounds)
        measure(stage, f"{files} small files", small, rounds)
        fast, held = measure(stage, "both together", both, rounds)
    held = held and (fast or options.quick)
    speed = "(--quick: speed is not judged)" if options.quick else ""
    numbers = (
        f"{speed} wall ≤ {WALL} of restic's, RSS ≤ {RSS_MIB} MiB, fetched ≤ {FETCHED} of needed"
    )
    print(f"Verdict: {'held' if held else 'NOT held'}: {numbers}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
