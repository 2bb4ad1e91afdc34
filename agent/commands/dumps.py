"""dump: a file, or a directory as an archive, from a snapshot to a pipe or a file."""

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from agent.access import Access, no_lock_option, repository_options, stoppable
from agent.commands.exits import DONE
from agent.errors import UsageError
from agent.repository.paths import find
from agent.terminal import plain_text
from agent.transfer.dump import Write, dump_file, dump_tar

_HARMFUL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")
"""Control characters but tab and line ends: they could steer a terminal."""


@click.command()
@click.argument("snapshot")
@click.argument("path")
@repository_options
@click.option(
    "--archive",
    type=click.Choice(["tar"]),
    help="Write an archive also of a single file; a directory is always one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write instead of stdout; it appears only when all of it is written.",
)
@no_lock_option
def dump(
    access: Access,
    snapshot: str,
    path: str,
    archive: str | None,
    output: Path | None,
    no_lock: bool,
) -> int:
    """Write PATH of SNAPSHOT (an id, the beginning of one, or `latest`) to stdout.

    A file comes out byte for byte, a directory as a tar archive with owners, times to the
    nanosecond, attributes and hard links; / is the whole snapshot. Every piece is verified before
    it is written. If one cannot be read, the command ends with 1 and the archive without its end,
    so check the exit code of a pipe (`set -o pipefail`).

    \b
    podlift dump latest /etc/app.conf --repo /srv/repository
    podlift dump latest /db --repo /srv/repository | tar --xattrs --xattrs-include='*' -xpf - -C /
    """
    with stoppable() as cancel, access.reading(cancel, no_lock=no_lock) as repository:
        wanted = repository.snapshot(snapshot, cancel)
        reader = repository.reading(cancel)
        place = find(reader.load_tree, wanted.tree, os.fsencode(path))
        as_archive = archive is not None or place.tree is not None
        with _stream(output, binary=as_archive) as write:
            if not as_archive:
                dump_file(reader, place, write, cancel)
                return DONE
            sockets = dump_tar(reader, place, write, cancel).sockets
        if sockets:
            click.echo(f"{sockets} sockets were left out: an archive holds none", err=True)
    return DONE


@contextlib.contextmanager
def _stream(output: Path | None, *, binary: bool) -> Iterator[Write]:
    """Open where the bytes go for a scope; a new file gets its name when the scope ends well."""
    if output is None:
        if sys.stdout is None:
            raise UsageError("there is no stdout to write to; use --output FILE")
        stdout = sys.stdout.buffer
        yield _guarded(stdout.write, binary=binary) if sys.stdout.isatty() else stdout.write
        stdout.flush()
        return
    try:
        with _file(Path(os.path.realpath(output))) as write:
            yield write
    except OSError as error:
        if error.filename is None:
            raise
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _file(path: Path) -> Iterator[Write]:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb", buffering=0) as special:  # /dev/null, a fifo, a tape
            yield lambda data: _all(special.write, data)
        return
    temporary = path.with_name(f".podlift-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _all(write: Callable[[bytes], int | None], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[write(rest) or 0 :]  # type: ignore[arg-type]


def _guarded(write: Write, *, binary: bool) -> Write:
    """Refuse to write to a terminal what is not text."""
    advice = "use --output FILE, or a pipe"
    if binary:
        raise UsageError(f"an archive is not written to a terminal: {advice}")
    before = b""

    def guarded(data: bytes) -> None:
        nonlocal before
        if _HARMFUL.search(before + data[:1]) or _HARMFUL.search(data):
            raise UsageError(plain_text(f"this file is not text for a terminal: {advice}"))
        before = data[-1:]
        write(data)

    return guarded
