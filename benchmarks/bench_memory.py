"""Resident memory of a backup: large files and many small ones, by local directory and S3.

Runs `podlift backup` as a child process and takes the kernel's peak of it, so what is measured is
what a memory limit of a container would see. The number to hold is 256 MiB for any volume. The S3
server is moto in a process of its own, which is not counted. Memory over time is in bench_scale.py.
"""

import sys

from samples import MIB, SAMPLES
from sides import Podlift
from storages import storage
from workspace import parser, workspace

LIMIT_MIB = 256


def main() -> int:
    """Measure, print, and end with a verdict."""
    made = parser(__doc__)
    made.add_argument("--large-mib", type=int, default=1024, help="size of the large files")
    made.add_argument("--files", type=int, default=20_000, help="number of small files")
    options = made.parse_args()
    large, files = (128, 2000) if options.quick else (options.large_mib, options.files)
    podlift, peaks = Podlift(), []
    with workspace(4 * (large * MIB + files * 16_384)) as folder:
        volume = folder / "volume"
        SAMPLES["incompressible"].make(volume / "large", large)
        SAMPLES["small"].make(volume / "small", files)
        print(f"volume: {large} MiB in large files (random), {files} small files")
        for kind in ("local", "server"):
            with storage(kind, folder / kind) as store:
                place = store.place("repository")
                podlift.init(place)
                for state in ("full", "unchanged"):
                    cost = podlift.backup(place, volume)
                    seconds, peak = cost.wall_seconds, cost.rss_mib
                    print(f"  {kind:6} {state:9} peak RSS {peak:6.1f} MiB, {seconds:5.1f} s")
                    peaks.append(peak)
    held = max(peaks) <= LIMIT_MIB
    print(f"Verdict: {'held' if held else 'NOT held'}: {max(peaks):.1f} of {LIMIT_MIB} MiB at most")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
