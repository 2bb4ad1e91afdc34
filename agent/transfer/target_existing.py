"""What is in the target already: compared chunk by chunk, and kept where it is right.

This is what makes a restore resumable, and one onto an older state cheap: only chunks that differ
are fetched. A file is written in place only if it has one name, since another name may be one that
is to stay as it is.
"""

import dataclasses

from agent.entry import Entry
from agent.errors import DamagedBlob, SourceError
from agent.repository.contract import RestoreSource
from agent.volume.existing import ExistingFile
from agent.volume.target_file import TargetFile
from agent.volume.writer import TargetDirectory

_STEP_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Differing:
    """Where an existing file differs: chunks to fetch and ranges to fill with zeros.

    ``chunks`` are (offset, id), ``zeros`` (offset, length), ``size`` what the file has in the end.
    ``whole`` tells that it is right already. ``compared`` is (device, inode) of the file it is about.
    """

    chunks: list[tuple[int, bytes]]
    zeros: list[tuple[int, int]]
    size: int
    whole: bool
    compared: tuple[int, int] | None = None


def placed(source: RestoreSource, content: tuple[bytes, ...]) -> Differing:
    """Return what a new file wants: chunks to fetch; those of zeros become a hole.

    Raises ``DamagedBlob`` if one is lost.
    """
    chunks, zeros, offset = [], [], 0
    for id in content:
        size = source.chunk_size(id)
        if source.is_zeros(id):
            zeros.append((offset, size))
        else:
            chunks.append((offset, id))
        offset += size
    return Differing(chunks, zeros, offset, whole=False)


def compare(source: RestoreSource, directory: TargetDirectory, entry: Entry) -> Differing | None:
    """Compare the file that is there with what it should be; None if nothing of it can be kept."""
    try:
        file = directory.open_existing(entry)
        if file is None:
            return None
        with file:
            if file.links > max(entry.links, 1):
                return None  # one of its names is none of the snapshot's
            found = differences(source, file, entry)
    except (DamagedBlob, SourceError):
        return None
    differing = len(found.chunks) + len(found.zeros)
    if not found.whole and (file.links > 1 or differing == len(entry.content or ())):
        return None
    return found


def differences(source: RestoreSource, file: ExistingFile, entry: Entry) -> Differing:
    """Compare an open file chunk by chunk; raises ``SourceError``, or ``DamagedBlob`` for a lost one."""
    chunks, zeros, offset = [], [], 0
    for id in entry.content or ():
        length = source.chunk_size(id)
        data = file.read_at(offset, length) if offset < file.size else b""
        if len(data) != length or not source.is_chunk(id, data):
            if source.is_zeros(id):
                zeros.append((offset, length))
            else:
                chunks.append((offset, id))
        offset += length
    whole = not chunks and not zeros and file.size == offset
    return Differing(chunks, zeros, offset, whole, file.identity)


def reuse(directory: TargetDirectory, entry: Entry, differing: Differing) -> TargetFile | None:
    """Open a file of which something is kept, zeros filled in and of its final size.

    Returns None if it is not there any more, or must not be touched; raises ``SourceError``.
    """
    file = directory.open_existing(entry)
    if file is None:
        return None
    with file:
        if file.identity != differing.compared:
            return None
        target = file.keep(entry) if differing.whole else file.rewrite()
    if target is not None and not differing.whole:
        target.truncate(differing.size)
        for offset, length in differing.zeros:
            for start in range(offset, offset + length, _STEP_BYTES):
                target.write_at(start, bytes(min(_STEP_BYTES, offset + length - start)))
    return target
