"""The kernel that runs: the native scan, or no chunker at all.

A scan finds every position of a buffer where a chunk might end. The native one does two
gigabytes a second and lets other threads run; the Python twin (``chunker.reference``) does
three megabytes and does not. So there is no fallback: a backup that silently ran a thousand times
slower would be a failure that nobody sees.
"""

from typing import Protocol

try:
    from chunker._scan import LANES, scan
except ImportError as error:
    raise ImportError(
        "chunker._scan, the native kernel, is not built for this Python; "
        "build it with a C compiler and `pip install -e .`, or install a podlift wheel"
    ) from error

__all__ = ["KERNEL_NAME", "Buffer", "Scan", "scan"]

Buffer = bytes | bytearray | memoryview

KERNEL_NAME = f"native, {LANES} lanes"
"""What logs and ``/metrics`` call the kernel in use."""


class Scan(Protocol):
    """Find cut candidates; ``chunker.reference.scan`` says what exactly."""

    def __call__(
        self, data: Buffer, history: Buffer, out: bytes, mod: bytes, mask: int, /
    ) -> bytes:
        """Return every cut candidate of ``data`` as runs of positions."""
