"""What is found under a name, compared with the entry that should be there."""

import os
import stat as mode_bits

from agent.entry import Entry, Kind

SPECIAL = {
    Kind.FIFO: mode_bits.S_IFIFO,
    Kind.BLOCK_DEVICE: mode_bits.S_IFBLK,
    Kind.CHARACTER_DEVICE: mode_bits.S_IFCHR,
}
"""File types of what is made by mknod(2)."""


def is_as_wanted(found: int, entry: Entry) -> bool:
    """Tell whether what is pinned is the symlink, fifo or device of an entry."""
    stat = os.fstat(found)
    if entry.kind is Kind.SYMLINK:
        return mode_bits.S_ISLNK(stat.st_mode) and (
            os.readlink(b"", dir_fd=found) == entry.link_target
        )
    same_device = entry.kind is Kind.FIFO or stat.st_rdev == entry.rdev
    return mode_bits.S_IFMT(stat.st_mode) == SPECIAL.get(entry.kind) and same_device


_LOOKS = 3
"""How often it is looked whether an inode has one name; each time its owner would have to make and
remove another one between two calls of ours."""


def has_only_this_name(found: int, name: bytes, directory: int) -> bool:
    """Tell whether what is pinned or open has this name in an open directory, and no other.

    One look at the number of links is not enough: the name may be gone by then, and what is left is
    the name of something outside. So the number is asked before and after the name. ``OSError``.
    """
    for _ in range(_LOOKS):
        stat = os.fstat(found)
        if stat.st_nlink != 1 or not is_link_to(stat, name, directory):
            return False
    return os.fstat(found).st_nlink == 1


def is_link_to(stat: os.stat_result, name: bytes, directory: int) -> bool:
    """Tell whether a name in an open directory is a link to this inode already."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino)
