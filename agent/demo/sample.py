"""A sample volume: every kind of file that a pod can leave behind, made from a seed.

Two thirds are text and database-like pages, which compress and dedup; the rest is random, which
does neither. What needs root (devices, owners) is made only by root.
"""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
PAGE = 8192
_TEXT = (
    "claim volume snapshot restore chunk index pack blob tree seal node agent bucket prefix"
    " request response timeout retry cache commit rollback session token user order payment"
)
_WORDS = _TEXT.split()
_OWNER = 1000
_PAGE_PER_MEGABYTES = 170


def make(root: Path, megabytes: int, seed: int = 1) -> None:
    """Fill ``root`` with at least ``megabytes`` MiB of content, and every kind of entry."""
    chance = random.Random(seed)
    _write(root / "media" / "random.bin", _random(chance, megabytes // 3))
    _write(root / "logs" / "app.log", _log_lines(chance, megabytes // 3))
    _write(root / "db" / "table.pages", _pages(chance, megabytes - 2 * (megabytes // 3)))
    _source_tree(root / "src", chance)
    _oddities(root / "odd", hole_bytes=2 * megabytes * MIB)
    if os.geteuid() == 0:
        _root_only(root / "owned")


def change(root: Path, megabytes: int, seed: int = 2) -> str:
    """Change a volume of ``megabytes`` a little, as a day does; return what was done, in words.

    A page overwritten or a line appended costs a whole chunk, of up to 8 MiB. So a volume of
    much less than the demo's gets new files only.
    """
    chance = random.Random(seed)
    words = f"{_add_log(root / 'logs', megabytes, chance)}, files added and removed"
    pages = megabytes // _PAGE_PER_MEGABYTES
    if pages:
        _overwrite(root / "db" / "table.pages", pages, chance)
        words = f"{pages} database pages overwritten, {words}"
    _write(root / "src" / "new.py", [b"print('new')\n"])
    (root / "src" / "mod00" / "file000.py").unlink()
    (root / "odd" / "renamed").hardlink_to(root / "odd" / "first-name")
    os.chmod(root / "odd" / "empty", 0o600)
    return words


def _add_log(folder: Path, megabytes: int, chance: random.Random) -> str:
    lines = b"".join(_log_lines(chance, 1))[: megabytes * MIB // 500]
    large = megabytes >= _PAGE_PER_MEGABYTES
    with (folder / ("app.log" if large else "app.log.1")).open("ab") as log:
        log.write(lines)
    where = "appended to a log" if large else "in a new log"
    return f"{len(lines) >> 10} KiB {where}"


def _overwrite(table: Path, pages: int, chance: random.Random) -> None:
    count = table.stat().st_size // PAGE
    with table.open("r+b") as file:
        for _ in range(pages):
            file.seek(chance.randrange(count) * PAGE)
            file.write(chance.randbytes(PAGE))


def _write(path: Path, blocks: Iterator[bytes] | list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)


def _random(chance: random.Random, megabytes: int) -> Iterator[bytes]:
    for _ in range(megabytes):
        yield chance.randbytes(MIB)


def _log_lines(chance: random.Random, megabytes: int) -> Iterator[bytes]:
    words = [word.encode() for word in _WORDS]
    for number in range(megabytes):
        lines: list[bytes] = []
        size = 0
        while size < MIB:
            line = b"2026-01-01T00:%02d:%02d level=info id=%016x %s\n" % (
                number % 60,
                len(lines) % 60,
                chance.getrandbits(64),
                b" ".join(chance.choices(words, k=12)),
            )
            lines.append(line)
            size += len(line)
        yield b"".join(lines)


def _pages(chance: random.Random, megabytes: int) -> Iterator[bytes]:
    """Yield pages that are a third random and otherwise empty, as a database leaves them."""
    for _ in range(megabytes * MIB // PAGE):
        yield chance.randbytes(PAGE // 3).ljust(PAGE, b"\0")


def _source_tree(root: Path, chance: random.Random) -> None:
    for module in range(20):
        folder = root / f"mod{module:02d}"
        folder.mkdir(parents=True)
        for number in range(100):
            text = " ".join(chance.choices(_WORDS, k=chance.randrange(20, 400)))
            (folder / f"file{number:03d}.py").write_text(f'"""{text}"""\n')


def _oddities(root: Path, hole_bytes: int) -> None:
    (root / "empty-directory").mkdir(parents=True)
    (root / "empty").touch()
    (root / "symlink").symlink_to("../src/mod00")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "first-name").write_text("one file, two names\n")
    (root / "second-name").hardlink_to(root / "first-name")
    (root / 'sp ace, "quotes", back\\slash & <tags>').write_text("a name to escape\n")
    (root / "größe-日本-🐙").write_text("a name beyond ASCII\n")
    Path(os.fsdecode(bytes(root) + b"/not-utf8-\xff\xfe")).write_text("a name of any bytes\n")
    os.mkfifo(root / "fifo", 0o640)
    with (root / "sparse.img").open("wb") as sparse:
        sparse.truncate(hole_bytes)
        sparse.seek(hole_bytes // 3)
        sparse.write(b"one island in a sea of holes")
    (root / "attributed").write_text("with an extended attribute\n")
    try:
        os.setxattr(root / "attributed", "user.origin", b"podlift demo")
    except OSError:
        (root / "attributed").unlink()  # this file system has none; the rest is the point
    os.utime(root / "empty", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "empty-directory", ns=(0, -86_400_000_000_001))
    with socket.socket(socket.AF_UNIX) as listener, _inside(root):
        listener.bind("socket")


class _inside:
    """A scope whose working directory is elsewhere: a socket's path must be short."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._before = Path.cwd()
        os.chdir(self._path)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


def _root_only(root: Path) -> None:
    root.mkdir()
    (root / "theirs").write_text("of another user\n")
    os.chown(root / "theirs", _OWNER, _OWNER)
    os.chmod(root / "theirs", 0o4750)  # noqa: S103 - set-user-id must survive a restore
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "loop", 0o60660, os.makedev(7, 0))
