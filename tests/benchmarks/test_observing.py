"""What bench_agent sees of a process is what happened: a read is a read, and nothing else is one."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from bench_agent import Reads, cpu_seconds, memory_mib

MIB = 1 << 20


async def settled(reads: Reads) -> float | None:
    for _ in range(3):
        await asyncio.sleep(0)
    return reads.first


async def test_the_first_byte_read_is_seen_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with Reads(tmp_path) as reads:
        began = time.monotonic()
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        assert await settled(reads) is None
        assert os.pread(descriptor, 1, 3) == b"t"
        first = await settled(reads)
        assert first is not None
        assert began <= first <= time.monotonic()
        os.read(descriptor, 7)
        assert await settled(reads) == first
        os.close(descriptor)


async def test_to_list_look_and_write_is_not_to_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with Reads(tmp_path) as reads:
        assert os.listdir(tmp_path) == ["file"]
        os.stat(tmp_path / "file")
        (tmp_path / "file").write_bytes(b"other")
        assert await settled(reads) is None


async def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="inotify"):
        Reads(tmp_path / "nothing")


def test_cpu_of_a_process_is_that_of_its_own_clock() -> None:
    before = time.process_time()
    seen = cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()


def test_memory_is_seen_to_grow() -> None:
    before = memory_mib(os.getpid())
    held = b"x" * (32 * MIB)
    after = memory_mib(os.getpid())
    assert after["VmRSS"] - before["VmRSS"] > len(held) / MIB - 4
    assert after["Private_Dirty"] - before["Private_Dirty"] > len(held) / MIB - 4
    assert after["VmHWM"] >= after["VmRSS"]
