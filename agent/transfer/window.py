"""The window: the files whose content is fetched together.

A restore that fetched file by file would ask for each pack many times, in an order that has nothing
to do with how it was stored. So files are collected first, and what they want is turned round: for
each chunk, who needs it. Then each chunk is fetched once, in ranges of whole packs, and written
wherever it belongs. A window has bounds, so that the memory for it has: chunks that two windows
share are fetched twice.
"""

from collections.abc import Iterable

from agent.entry import Entry
from agent.transfer.target_folders import TargetFolder
from agent.transfer.target_writing import LargeFile, Wanted
from agent.volume.creation import is_small

FIRST_WINDOW_FILES = 2_048
"""How many files make the first window worth fetching, so that the first is fetched soon. For each
next one it takes twice as many, up to ``WINDOW_FILES``."""

WINDOW_FILES = 32_768
WINDOW_CHUNKS = 131_072
"""How much one window holds, two of which exist at a time: 0.8 KB a file, 0.2 KB a chunk more."""


class Window:
    """Files of one window, by the chunks that they want."""

    def __init__(self, worth_files: int) -> None:
        self._worth_files = worth_files
        self.wanted: Wanted = {}
        self.empty: dict[TargetFolder, list[Entry]] = {}
        self._files = 0
        self._chunks = 0

    @classmethod
    def first(cls) -> "Window":
        """Return the empty window that a restore begins with."""
        return cls(min(FIRST_WINDOW_FILES, WINDOW_FILES))

    def next(self) -> "Window":
        """Return the empty window that comes after this one."""
        return Window(min(2 * self._worth_files, WINDOW_FILES))

    @property
    def worth_fetching(self) -> bool:
        """Tell whether it may be fetched; if something else is fetched anyway, it may grow as well."""
        return self._files >= self._worth_files or self.full

    @property
    def full(self) -> bool:
        """Tell whether it has to be fetched before more is added."""
        return self._files >= WINDOW_FILES or self._chunks >= WINDOW_CHUNKS

    def add_small(self, folder: TargetFolder, entries: Iterable[Entry]) -> list[Entry]:
        """Add those entries that are small files of one chunk or of none; return the others."""
        wanted = self.wanted
        others, empty = [], []
        for entry in entries:
            content = entry.content
            if content is None or len(content) > 1 or not is_small(entry):
                others.append(entry)
                continue
            self._files += 1
            if not content:
                empty.append(entry)
            elif (takers := wanted.get(content[0])) is None:
                wanted[content[0]] = [(folder, entry)]
            else:
                takers.append((folder, entry))
        if empty:
            self.empty.setdefault(folder, []).extend(empty)
        return others

    def add_large(self, file: LargeFile, chunks: list[tuple[int, bytes]]) -> None:
        """Add a file with the chunks that it wants, each with its offset."""
        for offset, id in chunks:
            self.wanted.setdefault(id, []).append((file, offset))
        self._files += 1
        self._chunks += len(chunks)
