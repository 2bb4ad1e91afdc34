"""Extended attributes of whatever a descriptor pins: files, directories, symlinks, devices.

ACLs, capabilities and labels are attributes like any other here. A name that vanishes between
list and get was removed by the volume's owner; it is left out. A file system without
attributes has none.
"""

import errno
import os

from agent.volume.descriptors import proc_path

MOST_BYTES = 4 << 20
"""What the attributes of one file may have together. A value has 64 KiB at most (xattr(7)), but
some file systems take thousands of them."""

Attributes = tuple[tuple[bytes, bytes], ...]

_NONE_HERE = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_GONE = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP})


def read_xattrs(descriptor: int) -> Attributes:
    """Return the attributes in the kernel's order; raises ``OSError``.

    The descriptor may be a pin (``O_PATH``), of a symlink too: the magic link leads to the
    pinned inode and no further, so a symlink's target is never looked at.
    """
    path = proc_path(descriptor)
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno in _NONE_HERE:
            return ()
        raise
    if not names:
        return ()
    found = []
    size = 0
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(path, name)))
            size += len(found[-1][1])
            if size > MOST_BYTES:
                raise OSError(errno.E2BIG, f"they have more than {MOST_BYTES >> 20} MiB")
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return tuple(found)


def keepable(found: Attributes) -> Attributes:
    """Return those attributes whose names are text.

    A repository keeps a name as text: other bytes would come back as another name
    (restic-format.md section 11).
    """
    return tuple([pair for pair in found if is_text(pair[0])])


def is_text(name: bytes) -> bool:
    """Tell whether a name is UTF-8."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
