"""One directory in the making: its entries, as they finish, and how many are still to come."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.entry import Entry

if TYPE_CHECKING:
    from agent.transfer.stretches import Stretches


class Folder:
    """One directory whose entries are being backed up."""

    __slots__ = (
        "children", "digest", "earlier", "earlier_tree", "entry", "lock", "parent", "place", "slots",
        "stretches", "waiting",
    )  # fmt: skip

    def __init__(
        self, parent: "Folder | None", place: int, entry: Entry | None, earlier: Entry | None
    ) -> None:
        """Place the directory ``entry`` in slot ``place`` of ``parent``; see ``root`` for the root.

        ``earlier`` is the same directory in the parent snapshot, if there was one.
        """
        self.parent = parent
        self.place = place
        self.entry = entry
        self.earlier = earlier
        self.earlier_tree = earlier.subtree if earlier is not None else None
        self.lock = threading.Lock()
        self.children: dict[int, Folder] = {}
        """Directories of it that are not finished, by their places."""
        if parent is not None:
            with parent.lock:
                parent.children[place] = self
        self.slots: list[Entry | None] = []
        self.waiting = 0
        self.stretches: Stretches | None = None
        """What holds its entries, if they are too many to be held here."""
        self.digest = b""
        """That of the listing, if the directory is to be remembered."""

    @classmethod
    def root(cls, earlier_tree: bytes | None) -> "Folder":
        """Return the root; ``earlier_tree`` is that of the parent snapshot, if there is one."""
        folder = cls(None, 0, None, None)
        folder.earlier_tree = earlier_tree
        return folder

    @property
    def path(self) -> bytes:
        """Return the path from the volume's root."""
        names: list[bytes] = []
        folder: Folder | None = self
        while folder is not None:
            if folder.entry is not None:  # the root has none, nor has a stretch
                names.append(folder.entry.name)
            folder = folder.parent
        return b"/".join(reversed(names))

    def expect(self, count: int) -> None:
        """Say how many entries will come."""
        self.slots = [None] * count
        self.waiting = count

    def so_far(self) -> tuple[list[Entry], list["Folder"]]:
        """Return the entries that are finished, and the directories that are not."""
        with self.lock:
            finished = [entry for entry in self.slots if entry is not None]
            return finished, list(self.children.values())

    def put(self, finished: Sequence[tuple[int, Entry | None]]) -> bool:
        """Fill slots (None: left out); return whether the last one is among them."""
        with self.lock:
            for place, entry in finished:
                self.slots[place] = entry
                if self.children:
                    self.children.pop(place, None)
            self.waiting -= len(finished)
            return self.waiting == 0 and bool(finished)
