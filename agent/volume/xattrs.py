"""Extended attributes of whatever a descriptor pins: files, directories, symlinks, devices.

ACLs, capabilities and labels are attributes like any other here. A name that vanishes between
list and get was removed by the volume's owner; it is left out. A file system without
attributes has none.
"""

import errno
import os

from agent.volume.descriptors import proc_path

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
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(path, name)))
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
