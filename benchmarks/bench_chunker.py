"""Measure the kernel on one core beside what it replaces and what it must keep up with.

Three contenders read the same bytes in turn, so that a noisy machine disturbs all of them:

  kernel    chunker.scan, the native extension, called from Python as the product calls it
  plain     the same algorithm as a plain one-lane C loop (plain_scan.c, compiled here)
  sha-256   hashing the same bytes, which every backup has to do anyway

and, for orientation, the whole ChunkStream (scan of what can be a cut, and the copies). Before
anything is timed, kernel and plain must find the same candidates. Medians over the rounds are
printed in MB/s (10**6 bytes a second of one core), then the ratio and a verdict: the promise is
kernel >= 3 x plain. The exit code is 1 if it is not held, 2 if it could not be measured.

Read the numbers only on a machine with a core to spare: run it twice, and compare ratios
rather than MB/s between machines.
"""

import argparse
import ctypes
import hashlib
import os
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from chunker import KERNEL_NAME, Chunks, ChunkStream, Parameters, scan  # noqa: E402

POLYNOMIAL = 0x2F7215888E3049
PROMISED_RATIO = 3.0
MIB = 1 << 20


def compiled_plain_scan(folder: Path) -> ctypes.CDLL:
    """Compile the baseline with the compiler and flags that extensions of this Python get."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    flags = [*shlex.split(sysconfig.get_config_var("CFLAGS") or ""), "-O3", "-std=c11"]
    library = folder / "plain_scan.so"
    command = [*compiler, *flags, "-shared", "-fPIC", str(HERE / "plain_scan.c")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def plain_scanner(library: ctypes.CDLL, parameters: Parameters) -> Callable[[bytes], list[int]]:
    """Return the baseline as a function from data to its first 4096 candidates."""
    function = library.plain_scan
    function.restype = ctypes.c_size_t
    room = 4096
    positions = (ctypes.c_uint64 * room)()

    def plain(data: bytes) -> list[int]:
        found = function(
            ctypes.c_char_p(data),
            ctypes.c_size_t(len(data)),
            ctypes.c_char_p(parameters.tables.out),
            ctypes.c_char_p(parameters.tables.mod),
            ctypes.c_uint64(parameters.mask),
            positions,
            ctypes.c_size_t(room),
        )
        return positions[: min(found, room)]

    return plain


def seconds(action: Callable[[], object]) -> float:
    """Return how long ``action`` takes on the wall clock."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def candidates(runs: bytes) -> list[int]:
    """Return each position of the kernel's runs."""
    flat = memoryview(runs).cast("Q").tolist()
    return [
        p for first, last in zip(flat[::2], flat[1::2], strict=True) for p in range(first, last + 1)
    ]


def measure(data: bytes, rounds: int, folder: Path) -> dict[str, float]:
    """Return the median MB/s of each contender; raises ``SystemExit`` if they disagree."""
    parameters = Parameters(POLYNOMIAL)
    plain = plain_scanner(compiled_plain_scan(folder), parameters)
    found = candidates(scan(data, b"", *parameters.tables, parameters.mask))
    if found != plain(data):
        sys.stderr.write("kernel and plain loop disagree about the candidates: nothing measured\n")
        raise SystemExit(2)
    print(f"both find the same {len(found)} candidates")

    def stream() -> None:
        buffers = [bytearray(parameters.max_size) for _ in range(2)]
        chunks = ChunkStream(parameters, buffers.pop)
        at = 0
        while at < len(data):
            with chunks.room() as room:
                count = min(len(room), len(data) - at)
                room[:count] = memoryview(data)[at : at + count]
            buffers += [piece.buffer for piece in chunks.filled(count) if isinstance(piece, Chunks)]
            at += count
        chunks.finish()

    contenders: dict[str, Callable[[], object]] = {
        "kernel": lambda: scan(data, b"", *parameters.tables, parameters.mask),
        "plain": lambda: plain(data),
        "sha-256": lambda: hashlib.sha256(data).digest(),
        "stream": stream,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, action in contenders.items():
            times[name].append(seconds(action))
    return {name: len(data) / 1e6 / statistics.median(taken) for name, taken in times.items()}


def pin(core: int | None) -> int:
    """Keep this process on one core, the last allowed one unless told; return it."""
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


def arguments() -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="16 MiB and 5 rounds, about a second")
    parser.add_argument("--mib", type=int, default=128, help="bytes to read, in MiB (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=9, help="of all in turn, 5 or more (%(default)s)"
    )
    parser.add_argument("--core", type=int, help="the core to run on (default: the last one)")
    options = parser.parse_args()
    if options.quick:
        options.mib, options.rounds = 16, 5
    if options.mib < 1 or options.rounds < 5:
        parser.error("--mib must be at least 1 and --rounds at least 5")
    return options


def main() -> int:
    """Run the comparison and print the verdict."""
    options = arguments()
    core = pin(options.core)
    print(f"kernel: {KERNEL_NAME}; core {core}; {options.mib} MiB random, {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(os.urandom(options.mib * MIB), options.rounds, Path(folder))
    for name, rate in rates.items():
        print(f"{name:8} {rate:8.0f} MB/s   {rate / rates['plain']:5.2f} x plain")
    ratio = rates["kernel"] / rates["plain"]
    held = ratio >= PROMISED_RATIO
    print(
        f"VERDICT: {'held' if held else 'NOT HELD'}: the kernel is {ratio:.2f} x the plain loop "
        f"(promised: {PROMISED_RATIO:g}) at {rates['kernel']:.0f} MB/s on one core"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
