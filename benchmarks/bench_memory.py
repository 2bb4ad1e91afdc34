"""Resident memory of a backup: one large file and many small ones, by local directory and S3.

Runs `podlift backup` as a child process and reads the child's peak from the kernel (VmHWM), so
what is measured is what a memory limit of a container would see. The number to hold is 256 MiB
for any volume. The S3 server is moto in a process of its own, which is not counted.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3

from agent.demo.processes import free_port, listening, running, wait_until

MIB = 1 << 20
LIMIT_MIB = 256


def make_volume(root: Path, large_mib: int, files: int) -> None:
    """Write one incompressible file, and small files of half-compressible text."""
    chance = random.Random(20)
    root.mkdir()
    with (root / "large.bin").open("wb") as large:
        for _ in range(large_mib):
            large.write(chance.randbytes(MIB))
    for number in range(files):
        folder = root / f"small/{number // 200:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        size = chance.randrange(100, 6000)
        (folder / f"{number}.txt").write_text(chance.randbytes(size).hex())


@contextlib.contextmanager
def s3_repository(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Run moto, and yield a repository's name and the environment to reach it."""
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    environ = {**os.environ, **keys, "AWS_DEFAULT_REGION": "us-east-1"}
    arguments = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running("s3", arguments, folder, environ) as process:
        wait_until(lambda: listening(port), "moto", process, folder / "s3.log")
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )
        client.create_bucket(Bucket="bench")
        yield f"s3:http://127.0.0.1:{port}/bench/repo", environ


def peak_mib(arguments: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Run podlift to its end; return (peak resident MiB, seconds)."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "agent", *arguments], env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"podlift {arguments[0]} ended with {process.returncode}")
    return usage.ru_maxrss / 1024, time.monotonic() - started


def measure(volume: Path, repository: str, environ: dict[str, str], cache: Path) -> list[float]:
    """Make a repository, back up twice, and print each peak."""
    common = ["--repo", repository, "--cache-dir", str(cache)]
    peak_mib(["init", *common], environ)
    peaks = []
    for run in ("first", "unchanged"):
        peak, seconds = peak_mib(["backup", str(volume), *common, "--json"], environ)
        print(f"  {run:<10} peak RSS {peak:6.1f} MiB, {seconds:5.1f} s", flush=True)
        peaks.append(peak)
    return peaks


def main() -> int:
    """Measure, print, and end with a verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--files", type=int, default=20_000, help="number of small files")
    parser.add_argument("--quick", action="store_true", help="256 MiB and 5,000 files")
    options = parser.parse_args()
    large, files = (256, 5_000) if options.quick else (options.large_mib, options.files)
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(prefix="podlift-bench-") as name:
        folder = Path(name)
        make_volume(folder / "volume", large, files)
        print(f"volume: one file of {large} MiB (random), {files} small files")
        environ = {**os.environ, "PODLIFT_PASSWORD": "bench"}
        print("local directory:")
        peaks += measure(folder / "volume", str(folder / "repo"), environ, folder / "cache1")
        print("S3 (moto):")
        with s3_repository(folder) as (repository, s3_environ):
            s3_environ["PODLIFT_PASSWORD"] = "bench"
            peaks += measure(folder / "volume", repository, s3_environ, folder / "cache2")
    held = max(peaks) <= LIMIT_MIB
    print(f"Verdict: {'held' if held else 'NOT held'}: {max(peaks):.1f} of {LIMIT_MIB} MiB at most")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
