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

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agent.cancel import CancelToken
from agent.entry import Kind
from agent.monitor import Monitor
from agent.repository.identity import BlobId, BlobType
from agent.repository.opening import open_repository
from agent.repository.repository import Reader
from agent.storage.local import LocalStorage
from agent.transfer.restore import RestoreRequest, restore

MIB = 1 << 20
PASSWORD = "bench"
WALL, RSS_MIB, FETCHED = 0.5, 256, 1.05
"""To hold: wall time as a part of restic's, peak memory, bytes fetched by bytes needed."""


class Counting(LocalStorage):
    """Counts the bytes that are read from packs."""

    fetched = 0

    def get(self, key: str, **how: object) -> bytes:
        """Return an object, counted."""
        return self._counted(key, super().get(key, **how))  # type: ignore[arg-type]

    def get_range(self, key: str, offset: int, length: int, **how: object) -> bytes:
        """Return a range, counted."""
        return self._counted(key, super().get_range(key, offset, length, **how))  # type: ignore[arg-type]

    def _counted(self, key: str, body: bytes) -> bytes:
        if key.startswith("data/"):
            self.fetched += len(body)
        return body


def make_large(root: Path, mib: int) -> None:
    """Write incompressible files of a quarter of ``mib`` each."""
    chance = random.Random(30)
    root.mkdir()
    for number in range(4):
        with (root / f"large-{number}.bin").open("wb") as large:
            for _ in range(mib // 4):
                large.write(chance.randbytes(MIB))


def make_small(root: Path, files: int) -> None:
    """Write text files of 0.2 to 12 KB, 200 in a folder."""
    chance = random.Random(31)
    words = [chance.randbytes(12).hex() for _ in range(4000)]
    for number in range(files):
        if number % 200 == 0:
            folder = root / f"{number // 10_000:03d}" / f"{number // 200:05d}"
            folder.mkdir(parents=True)
        size = chance.randrange(200, 12_000)
        (folder / f"{number}.txt").write_text(" ".join(chance.choices(words, k=size // 25 + 1)))


def run(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Run a program to its end; return (wall seconds, peak resident MiB)."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


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
        self.restic = restic
        self.environ = {**os.environ, "PODLIFT_PASSWORD": PASSWORD, "RESTIC_PASSWORD": PASSWORD}
        self._targets = 0

    def podlift(self, *arguments: str) -> tuple[float, float]:
        """Run podlift on the repository."""
        common = ["--repo", str(self.repository), "--cache-dir", str(self.folder / "cache")]
        return run([sys.executable, "-m", "agent", *arguments, *common], self.environ)

    def target(self) -> str:
        """Return a new place to restore to."""
        self._targets += 1
        return str(self.folder / f"target-{self._targets}")

    def done_with(self, target: str) -> None:
        """Remove what was restored, if that is wanted."""
        if self._delete:
            shutil.rmtree(target)

    def restore_ours(self, snapshot: str) -> tuple[float, float]:
        """Restore with podlift."""
        target = self.target()
        measured = self.podlift("restore", snapshot, "--target", target)
        self.done_with(target)
        return measured

    def restore_theirs(self, snapshot: str) -> tuple[float, float]:
        """Restore with restic."""
        assert self.restic is not None
        cache = ["--cache-dir", str(self.folder / "restic-cache"), "--quiet"]
        target = self.target()
        where = ["-r", str(self.repository), "restore", snapshot, "--target", target]
        measured = run([self.restic, *cache, *where], self.environ)
        self.done_with(target)
        return measured


def measure(stage: Stage, name: str, snapshot: str, rounds: int) -> bool:
    """Restore one snapshot in turns, print the figures, and tell whether all of them hold."""
    ours, theirs = [], []
    for _ in range(rounds):
        if stage.restic is not None:
            theirs.append(stage.restore_theirs(snapshot))
        ours.append(stage.restore_ours(snapshot))
    seconds, peak = statistics.median(s for s, _ in ours), max(p for _, p in ours)
    print(f"{name}\n  podlift {seconds:6.2f} s, peak RSS {peak:5.0f} MiB")
    held = peak <= RSS_MIB
    if theirs:
        beside = statistics.median(s for s, _ in theirs)
        most = max(p for _, p in theirs)
        ratio = seconds / beside
        print(f"  restic  {beside:6.2f} s, peak RSS {most:5.0f} MiB; wall ratio {ratio:.2f}")
        held = held and ratio <= WALL
    target = stage.target()
    fetched, needed = fetched_and_needed(stage.repository, snapshot, Path(target))
    stage.done_with(target)
    print(f"  fetched {fetched} bytes of packs for {needed} needed: {fetched / needed:.3f}")
    return held and fetched <= FETCHED * needed


def main() -> int:
    """Measure, print, and end with a verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--large-mib", type=int, default=1024, help="MiB in large files")
    parser.add_argument("--files", type=int, default=100_000, help="number of small files")
    parser.add_argument("--rounds", type=int, default=3, help="restores of each kind")
    parser.add_argument("--restic", default=shutil.which("restic"), help="which restic")
    parser.add_argument("--delete", action="store_true", help="remove what each round restored")
    parser.add_argument("--quick", action="store_true", help="128 MiB, 10,000 files, one round")
    options = parser.parse_args()
    large, files, rounds = options.large_mib, options.files, options.rounds
    if options.quick:
        large, files, rounds = 128, 10_000, 1
    if options.restic is None:
        print("restic is not here (apt-get install restic): our side is measured alone")
    with tempfile.TemporaryDirectory(prefix="podlift-bench-") as name:
        stage = Stage(Path(name), options.restic, delete=options.delete)
        volume = stage.folder / "volume"
        volume.mkdir()
        make_large(volume / "large", large)
        make_small(volume / "small", files)
        stage.podlift("init")
        for folder in (volume / "large", volume / "small", volume):
            stage.podlift("backup", str(folder))
        opened = open_repository(LocalStorage(stage.repository), PASSWORD)
        alone, small, both = (snapshot.id for snapshot in opened.snapshots())
        measure(stage, f"{large} MiB in large files", alone, rounds)
        measure(stage, f"{files} small files", small, rounds)
        held = measure(stage, "both together", both, rounds)
    numbers = f"wall ≤ {WALL} of restic's, RSS ≤ {RSS_MIB} MiB, fetched ≤ {FETCHED} of needed"
    print(f"Verdict: {'held' if held else 'NOT held'}: {numbers}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
