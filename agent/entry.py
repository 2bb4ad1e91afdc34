"""One entry of a directory, as the volume and the repository both see it.

``Entry`` is the meeting point of the two rooms that must not know each other: the volume
fills in what the kernel says, the repository adds where the content went, and a restore runs
the same way back. It holds no format: ids are opaque bytes, times are nanoseconds since the
epoch, names and targets are the raw bytes of the kernel.
"""

import enum

import msgspec


class Kind(enum.IntEnum):
    """What an entry is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    FIFO = 3
    BLOCK_DEVICE = 4
    CHARACTER_DEVICE = 5
    SOCKET = 6


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One name of a directory with its metadata and, once stored, its content.

    ``permissions`` are the twelve bits ``st_mode & 0o7777``. ``size`` is the number of bytes
    of a file's content and 0 for everything else; after a file was read it is the number of
    bytes that were really read. ``links`` is ``st_nlink``. ``device`` and ``inode`` identify
    the file for hard links and change detection; ``rdev`` is the device number of a device
    node in the kernel's encoding. ``xattrs`` keep the kernel's order.

    Everybody names the fields; only who decodes millions of nodes relies on their order.
    """

    name: bytes
    kind: Kind
    permissions: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    links: int = 1
    size: int = 0
    user: str = ""
    group: str = ""
    link_target: bytes = b""
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    content: tuple[bytes, ...] | None = None
    subtree: bytes | None = None

    def unchanged_since(self, parent: "Entry") -> bool:
        """Tell whether a file's content can be taken from ``parent``.

        Size, mtime, ctime and inode must all be equal (restic's rule, restic-format.md
        section 15); the caller still has to make sure that the blobs exist.
        """
        return (
            self.kind is Kind.FILE
            and parent.kind is Kind.FILE
            and parent.content is not None
            and self.size == parent.size
            and self.mtime_ns == parent.mtime_ns
            and self.ctime_ns == parent.ctime_ns
            and self.inode == parent.inode
        )
