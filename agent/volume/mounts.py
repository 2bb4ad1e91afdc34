"""Mounts inside a volume: seen, counted, and not crossed.

A different device number tells most of them. A bind mount of the same file system is told by
the kernel's mount id alone, which ``/proc/self/fdinfo/N`` gives for any descriptor (proc(5)).
The other way round, a file of another device number on the same mount is no mount: overlayfs
shows files of its layers like that, and they belong to the volume.
"""

import os


def mount_id(descriptor: int) -> int | None:
    """Return the id of the mount a descriptor was opened through, or None if it is not told.

    Raises ``OSError``, as when no more files can be opened: that an id was not read does not say
    that it is another one.
    """
    try:
        info = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    for line in text.splitlines():
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    return None


def holds_mounts(outer: int | None) -> bool:
    """Tell whether any mount of this process lies on the mount ``outer`` (proc(5), mountinfo).

    True when it cannot be told: the caller then looks at each entry.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            parents = [line.split(b" ", 2)[1] for line in table]
    except OSError:
        return True
    return outer is None or str(outer).encode() in parents
