"""A tree outside the volume: nobody may read a byte of it, nor change anything about it."""

import dataclasses
import os
import secrets
import stat
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Victim:
    """``secret`` is in every name that no volume has, in every file and in every attribute."""

    root: Path
    secret: bytes

    @classmethod
    def make(cls, root: Path, names: tuple[str, ...] = ("file", "d", "x", "f0", "f1")) -> "Victim":
        """Make files and directories of the names that volumes have, and some of its own."""
        victim = cls(root, secrets.token_hex(24).encode())
        victim._fill(root, names, 3)
        os.chown(root, 1234, 5678)
        root.chmod(0o711)
        os.utime(root, ns=(11, 12))
        return victim

    def _fill(self, directory: Path, names: tuple[str, ...], levels: int) -> None:
        directory.mkdir()
        for name in (*names, f"only-here-{self.secret.decode()}"):
            if name == "d" and levels:
                self._fill(directory / name, names, levels - 1)
                continue
            path = directory / name
            path.write_bytes(b"secret: " + self.secret)
            os.setxattr(path, "user.secret", self.secret)
            os.chown(path, 1234, 5678)
            path.chmod(0o604)
            os.utime(path, ns=(2_000_000_000_000_000_000, 1_000_000_007))
        os.utime(directory, ns=(2_000_000_000_000_000_000, 13))

    def facts(self, *, linked: bool = False) -> dict[str, tuple[object, ...]]:
        """Return all that can be seen of it; with ``linked`` less what a hard link changes itself."""
        found: dict[str, tuple[object, ...]] = {}
        pending = [self.root]
        while pending:
            path = pending.pop()
            info = os.lstat(path)
            listing: tuple[str, ...] = ()
            content = b""
            if stat.S_ISDIR(info.st_mode):
                listing = tuple(sorted(os.listdir(path)))
                pending += [path / name for name in listing]
            elif stat.S_ISREG(info.st_mode):
                content = _read(path)
            attributes = tuple(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in os.listxattr(path, follow_symlinks=False)
            )
            found[str(path.relative_to(self.root))] = (
                info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_rdev, info.st_ino,
                info.st_mtime_ns, () if linked else (info.st_ctime_ns, info.st_nlink),
                0 if listing else info.st_atime_ns, listing, content, attributes,
            )  # fmt: skip
        return found


def _read(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        return os.read(file, 1 << 20)
    finally:
        os.close(file)
