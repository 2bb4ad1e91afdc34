"""Are two directories the same, in every byte and every attribute?

Written for the demo and the tests as a judge of restores, so it shares no code with the walker
and the writer that it judges. Sockets are left out, since a backup leaves them out.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20

_Links = tuple[dict[tuple[int, int], bytes], dict[tuple[int, int], bytes]]
"""For each file with several names: the copy of its first name; and the same from the copy."""


def differences(left: Path, right: Path, *, times_of_root: bool = False) -> Iterator[str]:
    """Yield a sentence for each difference between two trees; nothing means identical."""
    links: _Links = ({}, {})
    pairs = [(b"", os.fsencode(left), os.fsencode(right))]
    while pairs:
        path, one, two = pairs.pop()
        if path or times_of_root:
            yield from _attributes(path, one, two)
        names, others = _names(one), _names(two)
        for name in sorted(names ^ others):
            side = "source" if name in names else "copy"
            yield f"{_shown(path, name)} is in the {side} only"
        for name in sorted(names & others):
            below = path + b"/" + name
            child_one, child_two = one + b"/" + name, two + b"/" + name
            kind = stat.S_IFMT(os.lstat(child_one).st_mode)
            if kind != stat.S_IFMT(os.lstat(child_two).st_mode):
                yield f"{_shown(below)} is another kind of entry"
            elif kind == stat.S_IFDIR:
                pairs.append((below, child_one, child_two))
            else:
                yield from _attributes(below, child_one, child_two)
                yield from _content(below, child_one, child_two)
                yield from _links(below, child_one, child_two, links)


def count(root: Path) -> tuple[int, int]:
    """Return (entries, bytes of content) below a directory; sockets are left out."""
    entries = size = 0
    folders = [os.fsencode(root)]
    while folders:
        folder = folders.pop()
        for name in _names(folder):
            path = folder + b"/" + name
            found = os.lstat(path)
            entries += 1
            if stat.S_ISDIR(found.st_mode):
                folders.append(path)
            elif stat.S_ISREG(found.st_mode):
                size += found.st_size
    return entries, size


def _names(folder: bytes) -> set[bytes]:
    with os.scandir(folder) as entries:
        return {e.name for e in entries if not stat.S_ISSOCK(e.stat(follow_symlinks=False).st_mode)}


def _attributes(path: bytes, one: bytes, two: bytes) -> Iterator[str]:
    left, right = os.lstat(one), os.lstat(two)
    facts = ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev")
    for fact in facts:
        a, b = getattr(left, fact), getattr(right, fact)
        if a != b:
            yield f"{_shown(path)}: {fact} is {b}, not {a}"
    if not stat.S_ISDIR(left.st_mode) and left.st_size != right.st_size:
        yield f"{_shown(path)}: size is {right.st_size}, not {left.st_size}"
    if _xattrs(one) != _xattrs(two):
        yield f"{_shown(path)}: extended attributes differ"


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _content(path: bytes, one: bytes, two: bytes) -> Iterator[str]:
    found = os.lstat(one)
    if stat.S_ISLNK(found.st_mode):
        if os.readlink(one) != os.readlink(two):
            yield f"{_shown(path)}: the symlink leads elsewhere"
    elif stat.S_ISREG(found.st_mode):
        with open(one, "rb") as left, open(two, "rb") as right:
            while True:
                a, b = left.read(_BLOCK), right.read(_BLOCK)
                if a != b:
                    yield f"{_shown(path)}: content differs"
                    return
                if not a:
                    return


def _links(path: bytes, one: bytes, two: bytes, links: _Links) -> Iterator[str]:
    """Files that are one file on one side must be one file on the other."""
    left, right = os.lstat(one), os.lstat(two)
    copies, sources = links
    if left.st_nlink > 1:
        first = copies.setdefault((left.st_dev, left.st_ino), two)
        if not os.path.samestat(os.lstat(first), right):
            yield f"{_shown(path)}: is no longer a hard link"
    if right.st_nlink > 1:
        first = sources.setdefault((right.st_dev, right.st_ino), one)
        if not os.path.samestat(os.lstat(first), left):
            yield f"{_shown(path)}: has become a hard link"


def _shown(path: bytes, name: bytes = b"") -> str:
    whole = path + (b"/" + name if name else b"")
    return whole.decode("utf-8", "backslashreplace") or "/"
