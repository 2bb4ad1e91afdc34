"""Resident memory of a backup: large files and many small ones, by local directory and S3.

Runs `podlift backup` as a child process and takes the kernel's peak of it, so what is measured is
what a memory limit of a container would see. The number to hold is 256 MiB for any volume, and 64
more for each further one that is moved at the same time, backed up or restored (several.py). The S3
server is moto in a process of its own, which is not counted. Memory over time is in bench_scale.py.
"""

import os
import sys
from pathlib import Path

from samples import MIB, SAMPLES
from sides import PASSWORD, ROOT, Podlift, run
from storages import Storage, storage
from workspace import environment, parser, workspace

LIMIT_MIB = 256
FURTHER_MIB = 64
AT_A_TIME = (2, 4)


def main() -> int:
    """Measure, print, and end with a verdict."""
    made = parser(__doc__)
    made.add_argument("--large-mib", type=int, default=1024, help="size of the large files")
    made.add_argument("--files", type=int, default=20_000, help="number of small files")
    options = made.parse_args()
    large, files = (128, 2000) if options.quick else (options.large_mib, options.files)
    held = True
    with workspace(8 * (large * MIB + files * 16_384)) as folder:
        volume = folder / "volume"
        SAMPLES["incompressible"].make(volume / "large", large)
        SAMPLES["small"].make(volume / "small", files)
        others = _several(folder, large // 4, files // 4)
        print(f"volume: {large} MiB in large files (random), {files} small files")
        for kind in ("local", "server"):
            with storage(kind, folder / kind) as store:
                peak = _alone(kind, store, volume)
                held = held and peak <= LIMIT_MIB
                for count in AT_A_TIME[-1:] if options.quick else AT_A_TIME:
                    most = LIMIT_MIB + FURTHER_MIB * (count - 1)
                    peak = _together(kind, store, others[:count])
                    held = held and peak <= most
    most = f"{LIMIT_MIB} MiB, and {FURTHER_MIB} for each further volume at the same time"
    print(f"Verdict: {'held' if held else 'NOT held'}: {most}")
    return 0 if held else 1


def _several(folder: Path, mib: int, files: int) -> list[Path]:
    """Make volumes that have nothing in common: each fills packs of its own."""
    volumes = []
    for number in range(max(AT_A_TIME)):
        volume = folder / f"volume-{number}"
        (volume / "large").mkdir(parents=True)
        for part in range(mib):
            (volume / "large" / str(part)).write_bytes(os.urandom(MIB))
        SAMPLES["small"].make(volume / "small", files)
        volumes.append(volume)
    return volumes


def _alone(kind: str, store: Storage, volume: Path) -> float:
    podlift, peaks = Podlift(), []
    place = store.place("repository")
    podlift.init(place)
    for state in ("full", "unchanged"):
        cost = podlift.backup(place, volume)
        say(f"{kind:6} {state:9}", cost.rss_mib, cost.wall_seconds)
        peaks.append(cost.rss_mib)
    return max(peaks)


def _together(kind: str, store: Storage, volumes: list[Path]) -> float:
    place = store.place(f"repository-{len(volumes)}")
    Podlift().init(place)
    environ = environment(**place.environ, PYTHONPATH=str(ROOT), PODLIFT_PASSWORD=PASSWORD)
    program, peaks = Path(__file__).with_name("several.py"), []
    for what in ("backup", "restore"):
        given = [what, place.repository, str(place.home / "cache"), *map(str, volumes)]
        cost = run([sys.executable, str(program), *given], environ)
        say(f"{kind:6} {what} of {len(volumes)} at a time", cost.rss_mib, cost.wall_seconds)
        peaks.append(cost.rss_mib)
    run(["rm", "-rf", *(f"{volume}-back" for volume in volumes)], environ)
    return max(peaks)


def say(what: str, peak_mib: float, seconds: float) -> None:
    """Print one line."""
    print(f"  {what:32} peak RSS {peak_mib:6.1f} MiB, {seconds:5.1f} s")


if __name__ == "__main__":
    sys.exit(main())
