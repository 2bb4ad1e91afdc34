"""Buffers are lent again, and take memory only as far as they are filled."""

import contextlib
import ctypes
import mmap
import os
import resource
from collections.abc import Iterator
from typing import cast

import pytest

from agent.repository.buffers import BUFFER_BYTES, Buffers
from agent.repository.identity import BlobId, BlobType
from agent.repository.pack import PackBuilder

MIB = 1 << 20
PRESENT = 1 << 63  # of a page, in /proc/PID/pagemap (proc_pid_pagemap(5))


def resident_bytes(buffer: memoryview) -> int:
    """Return how much of a buffer is in memory, by the kernel's account of its pages."""
    first = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) // mmap.PAGESIZE
    pages = -(-buffer.nbytes // mmap.PAGESIZE)
    with open("/proc/self/pagemap", "rb") as pagemap:
        there = memoryview(os.pread(pagemap.fileno(), 8 * pages, 8 * first)).cast("Q")
    return sum(bool(page & PRESENT) for page in there) * mmap.PAGESIZE


def fill(buffer: memoryview, size: int) -> None:
    with contextlib.suppress(OSError):  # a kernel without huge pages
        cast(mmap.mmap, buffer.obj).madvise(mmap.MADV_NOHUGEPAGE)
    buffer[:size] = bytes([7]) * size


def test_a_buffer_takes_memory_as_far_as_it_was_filled() -> None:
    buffer = Buffers().take(8 * MIB)
    assert len(buffer) == BUFFER_BYTES
    assert resident_bytes(buffer) == 0
    fill(buffer, 2 * MIB)
    assert resident_bytes(buffer) == 2 * MIB


def test_what_was_filled_beyond_the_usual_is_given_back() -> None:
    buffers = Buffers(usual_bytes=4 * MIB)
    buffer = buffers.take(8 * MIB)
    fill(buffer, 7 * MIB)
    buffers.give(buffer, 7 * MIB)
    assert resident_bytes(buffer) == 4 * MIB
    assert buffers.take(MIB) is buffer
    fill(buffer, 8 * MIB)


def test_what_is_larger_than_a_buffer_gets_one_of_its_own_that_is_not_kept() -> None:
    buffers = Buffers(size=MIB)
    usual = buffers.take(MIB)
    buffers.give(usual, MIB)
    with buffers.lend(3 * MIB) as large:
        assert len(large) == 3 * MIB
    with buffers.lend(5) as small:
        assert len(small) == 5
    assert buffers.take(2) is usual
    assert buffers.take(2) is not large


def test_a_scope_that_fails_drops_its_buffer() -> None:
    buffers = Buffers()
    with pytest.raises(ValueError, match="x"), buffers.lend(1) as lost:
        raise ValueError("x")
    assert buffers.take(1) is not lost


@pytest.fixture
def no_memory() -> Iterator[None]:
    """Let the process map nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("no_memory")
def test_where_memory_ends_that_is_no_error_of_a_file() -> None:
    with pytest.raises(MemoryError, match="9437184 bytes"):
        Buffers().take(1)


def test_no_more_are_kept_than_wanted() -> None:
    buffers = Buffers(size=MIB)
    lent = [buffers.take(1) for _ in range(3)]
    for each in lent:
        buffers.give(each, 1)
    buffers.keep(1)
    assert buffers.take(1) is lent[0]
    assert buffers.take(1) is not lent[1]


@pytest.mark.parametrize("room", [0, 100, 250, 1000])
def test_a_pack_that_does_not_fit_into_its_memory_is_the_same(room: int) -> None:
    blobs = [(BlobId(bytes([n]) * 32), os.urandom(100)) for n in range(4)]
    lent = Buffers(size=room or 1).take(1)
    small, grown = PackBuilder(BlobType.DATA, lent), PackBuilder(BlobType.DATA)
    for id, sealed in blobs:
        for pack in (small, grown):
            pack.append(id, sealed, 0)
    assert [bytes(small.sealed(blob)) for blob in small.blobs] == [sealed for _, sealed in blobs]
    assert bytes(small.body[: small.size]) == bytes(grown.body[: grown.size])
    assert (small.body is lent) == (room >= 400)
