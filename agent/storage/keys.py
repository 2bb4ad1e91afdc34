"""What a key may look like: the same rule in front of every storage.

A key is a relative path of plain components. Nothing that a file system or an HTTP client
would resolve ("..", ".", an empty component) may reach a storage, so no key ever leaves its
prefix. A last component that looks like a temporary file's is refused as well: a listing
leaves such names out, and an object that cannot be listed would be lost.
"""

from agent.errors import StorageError

TEMPORARY = "-tmp-"
"""Marks unfinished files of a local repository; restic's own mark (restic-format.md section 1)."""


def check_key(key: str) -> str:
    """Return ``key``, or raise ``StorageError`` if it could name something outside the prefix."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or not key.isprintable():
        raise StorageError(
            f"{key!r} is not a key of this storage: it must be a plain relative path", key=key
        )
    if is_temporary(parts[-1]):
        raise StorageError(
            f"{key!r} is not a key of this storage: {TEMPORARY!r} marks temporary files", key=key
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix``, the beginning of keys; "" and a trailing slash are allowed."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_folder(prefix: str) -> str:
    """Return ``prefix`` if it is "" or the whole name of a folder, with its slash."""
    if prefix and not prefix.endswith("/"):
        raise StorageError(f"{prefix!r} names no folder of this storage: it must end in a slash")
    return check_prefix(prefix)


def check_offset(key: str, offset: int) -> None:
    """Raise ``StorageError`` for a place that no object can have."""
    if offset < 0:
        raise StorageError(f"{key}: no byte {offset} exists", key=key)


def is_temporary(name: str) -> bool:
    """Tell whether a file of this name was left by a writer that did not finish."""
    return TEMPORARY in name
