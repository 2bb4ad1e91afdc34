"""Dumps: what a snapshot holds at a path, as one stream of bytes.

A file comes out byte for byte, everything else as a tar archive. The rule guarded here: no stream
that is not whole looks whole. A chunk is verified before it is written, content that does not add
up to the size that was announced ends the stream, and an archive gets its end only when
everything before it was written; the caller's exit code says the rest.
"""

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from agent.cancel import CancelToken
from agent.entry import Entry, Kind
from agent.errors import RepositoryError, UsageError
from agent.repository.contract import RestoreSource
from agent.repository.paths import Place, shown, walk
from agent.transfer.ahead import fetched
from agent.transfer.tar import END, Member, padding

Write = Callable[[bytes], object]
"""Takes the next bytes of the stream, all of them."""


class Dumped(msgspec.Struct):
    """What went into an archive; ``sockets`` were left out, since no archive holds them."""

    entries: int = 0
    bytes: int = 0
    sockets: int = 0


def dump_file(source: RestoreSource, place: Place, write: Write, cancel: CancelToken) -> int:
    """Write the content of a file, and return its size.

    Raises ``UsageError`` for what is no file, ``RepositoryError`` and ``StorageError`` where the
    stream ends too early, ``Canceled``, and what ``write`` raises.
    """
    entry = place.entry
    if entry is None or entry.kind is not Kind.FILE:
        raise UsageError(f"{place.shown} is {_no_file(entry)}")
    content = _Content(place.path, entry.size)
    chunks = fetched(((None, id) for id in entry.content or ()), source.load_chunk, cancel)
    with contextlib.closing(chunks), _named(lambda: place.path):
        for _, chunk in chunks:
            write(content.take(chunk))
        content.finish(b"")
    return entry.size


def dump_tar(source: RestoreSource, place: Place, write: Write, cancel: CancelToken) -> Dumped:
    """Write an archive of a directory with all below it, or of whatever else the path names.

    Paths in the archive begin at the snapshot's root. Raises as ``dump_file`` does, but takes
    every kind of entry.
    """
    archive = _Archive(source, cancel)
    steps = fetched(archive.steps(place), source.load_chunk, cancel)
    with contextlib.closing(steps), _named(lambda: archive.path):
        for step, chunk in steps:
            data = step(chunk)
            archive.dumped.bytes += len(data)
            write(data)
    write(END)
    archive.dumped.bytes += len(END)
    return archive.dumped


_Step = Callable[[bytes], bytes]
"""Turns a chunk (b"" for none) into the next bytes of the stream."""


class _Content:
    """The content of one file, which must be as long as was announced."""

    def __init__(self, path: bytes, size: int) -> None:
        self._path = path
        self._size = size
        self._done = 0

    def take(self, chunk: bytes) -> bytes:
        """Let a chunk through unless it is too much."""
        self._done += len(chunk)
        if self._done > self._size:
            raise self._refused()
        return chunk

    def finish(self, _: bytes) -> bytes:
        """Return the padding, unless something is missing."""
        if self._done != self._size:
            raise self._refused()
        return padding(self._size)

    def _refused(self) -> RepositoryError:
        return RepositoryError(
            f"its snapshot says {self._size} bytes, its content has"
            f" {'more' if self._done > self._size else self._done}; `podlift check` looks further"
        )


class _Archive:
    """The steps that make an archive, and the hard links that were met."""

    def __init__(self, source: RestoreSource, cancel: CancelToken) -> None:
        self._load_tree = source.load_tree
        self._cancel = cancel
        self._linked: dict[tuple[int, int], tuple[Member, int]] = {}
        self.dumped = Dumped()
        self.path = b""
        """Of the entry that is being written."""

    def steps(self, place: Place) -> Iterator[tuple[_Step, bytes | None]]:
        """Yield each step with the id of the chunk that it needs."""
        if place.tree is not None and place.entry is not None:
            yield from self._entry(place.path, place.entry)
        for path, entry in walk(self._load_tree, place, cancel=self._cancel):
            if entry.kind is Kind.SOCKET:
                self.dumped.sockets += 1
            else:
                yield from self._entry(path, entry)

    def _entry(self, path: bytes, entry: Entry) -> Iterator[tuple[_Step, bytes | None]]:
        self.dumped.entries += 1
        member = self._member(path.lstrip(b"/"), entry)
        yield self._header(path, member), None
        if member.content_bytes or (entry.content and not member.link):
            content = _Content(path, entry.size)
            for id in entry.content or ():
                yield content.take, id
            yield content.finish, None

    def _header(self, path: bytes, member: Member) -> _Step:
        def header(_: bytes) -> bytes:
            self.path = path
            return member.header()

        return header

    def _member(self, path: bytes, entry: Entry) -> Member:
        """Make a link of a file that was written before under another name."""
        member = Member(path, entry)
        if entry.kind is not Kind.FILE or entry.links < 2:
            return member
        identity = (entry.device, entry.inode)
        first, missing = self._linked.get(identity, (None, 0))
        if first is None:
            self._linked[identity] = member, entry.links - 1
        elif first.entry.content == entry.content:
            if missing > 1:
                self._linked[identity] = first, missing - 1
            else:
                del self._linked[identity]  # the last of its names
            return Member(path, entry, first.path)
        return member


@contextlib.contextmanager
def _named(path: Callable[[], bytes]) -> Iterator[None]:
    """Say at which entry the repository failed."""
    try:
        yield
    except RepositoryError as error:
        raise RepositoryError(
            f"{shown(path())}: {error}. The output ends here and is not complete"
        ) from error


def _no_file(entry: Entry | None) -> str:
    if entry is None or entry.kind is Kind.DIRECTORY:
        return "a directory; --archive tar dumps it"
    if entry.kind is Kind.SYMLINK:
        return f"a symlink to {shown(entry.link_target)}; dump that path, or use --archive tar"
    kind = entry.kind.name.lower().replace("_", " ")
    return f"a {kind}, which has no content; --archive tar dumps what it is"
