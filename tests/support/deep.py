"""Directories one in the other, deeper than paths and recursion go."""

import os
from pathlib import Path


def nest(root: Path, levels: int, leaf: str = "leaf") -> None:
    """Make directories called d below each other, and an empty file in the last one."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open(leaf, os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
