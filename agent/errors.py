"""Every error that podlift raises on purpose.

The tree says who is at fault and therefore what happens next::

    PodliftError
    ├── UsageError              the request itself cannot be carried out          (exit 2)
    ├── Canceled                somebody asked us to stop                         (exit 130)
    ├── SourceError             one entry of a volume: counted, named, left out   (exit 3)
    ├── VolumeError             the volume as a whole: the run fails
    │   └── VolumeIncomplete    entries were left out, and all were wanted
    ├── StorageError            the object store: the run fails when retries end
    │   ├── ObjectMissing       the key does not exist
    │   ├── ObjectTooLarge      it has more bytes than such an object may have
    │   ├── BucketMissing       the bucket does not exist
    │   ├── AccessDenied        the credentials are wrong or lack a right
    │   ├── StorageFull         no room, or no quota left
    │   ├── CredentialsExpired  worth three new clients, then fatal
    │   ├── Unreachable         connection, time-out, 5xx: worth retrying
    │   ├── Throttled           slow down, everybody: worth retrying
    │   └── IntegrityRefused    what arrived is not what was sent: worth retrying
    ├── RepositoryError         the repository: the run fails
    │   ├── NoRepository        nothing is there yet                              (exit 10)
    │   │   └── KeysMissing     a config alone: in the making, or never finished
    │   ├── RepositoryExists    one is there already, so none is made
    │   ├── RepositoryLocked    another process holds a conflicting lock          (exit 11)
    │   ├── LockLost            our own lock can no longer be proven
    │   ├── WrongPassword       no key opens with it                              (exit 12)
    │   ├── UnsupportedFormat   a version or polynomial that we cannot serve
    │   ├── TreeTooLarge        a directory that no tree can hold: it is left out
    │   ├── MalformedData       bytes that do not decode
    │   ├── DamagedBlob         a sealed blob that does not open to what it names
    │   └── DamagedPack         a pack that the storage does not keep as it was sent
    └── ClusterError            Kubernetes: an object is missing, wrong or not ours
        └── ApiError            the API server refused, or gave no answer

An error carries its facts as attributes and ends in advice: what the operator can do.
A ``SourceError`` is data as much as it is an exception: the run collects it and goes on.
"""

MESSAGE_CHARACTERS = 2000
"""What a message takes at most: it is logged and stored in objects, and may quote what others wrote."""


class PodliftError(Exception):
    """Base of all errors raised on purpose; ``str()`` is one line for the operator.

    What cannot be printed, which others may have written, is escaped. A text that is too long is cut
    in the middle: it begins with what is wrong and ends in advice.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if not text.isprintable():
            text = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
            )
        half = MESSAGE_CHARACTERS // 2
        return text if len(text) <= MESSAGE_CHARACTERS else f"{text[: half - 1]}…{text[-half:]}"


class UsageError(PodliftError):
    """The request cannot be carried out as it was written."""


class Canceled(PodliftError):
    """Work was stopped on request; ``reason`` says whose."""

    def __init__(self, reason: str = "canceled") -> None:
        super().__init__(reason)
        self.reason = reason


class SourceError(PodliftError):
    """One entry of a volume could not be read (or, in a restore, written).

    ``path`` is relative to the volume's root, raw bytes as the kernel gave them.
    """

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"{path.decode('utf-8', 'backslashreplace') or '.'}: {reason}")
        self.path = path
        self.reason = reason


class VolumeError(PodliftError):
    """The volume as a whole cannot be read or written."""


class VolumeIncomplete(VolumeError):
    """``count`` entries were left out, and that was not to be."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} entries were left out, and no snapshot was to lack any")
        self.count = count


class StorageError(PodliftError):
    """The object store failed; ``key`` is the object concerned ("" for none)."""

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class ObjectMissing(StorageError):
    """The object does not exist."""


class ObjectTooLarge(StorageError):
    """The object has more bytes than it may have; nothing of it was read. ``size`` is what it has."""

    def __init__(self, key: str, place: str, size: int, most_bytes: int) -> None:
        super().__init__(f"{key} in {place} has {size} bytes, and may have {most_bytes}", key=key)
        self.size = size


class BucketMissing(StorageError):
    """The bucket (or the directory of a local repository) does not exist."""


class AccessDenied(StorageError):
    """The credentials are wrong, or lack the right for this call."""


class StorageFull(StorageError):
    """There is no room for the object, or no quota."""


class CredentialsExpired(StorageError):
    """The credentials were good once; a new client may get fresh ones."""


class Unreachable(StorageError):
    """No usable answer: connection refused or reset, time-out, or a 5xx."""


class Throttled(StorageError):
    """The store asks everybody to slow down; ``retry_after_seconds`` is its wish, or None."""

    def __init__(
        self, message: str, *, key: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, key=key)
        self.retry_after_seconds = retry_after_seconds


class IntegrityRefused(StorageError):
    """The store received other bytes than were sent and did not keep them."""


class RepositoryError(PodliftError):
    """The repository cannot be used, or cannot be trusted."""


class NoRepository(RepositoryError):
    """There is no repository at this place."""


class KeysMissing(NoRepository):
    """There is a config without any key: a repository in the making, or one that nobody finished."""


class RepositoryExists(RepositoryError):
    """A repository is there already; none was made and nothing was changed."""


class RepositoryLocked(RepositoryError):
    """Another process holds a lock that conflicts with the one asked for."""


class LockLost(RepositoryError):
    """Our own lock could not be refreshed in time; nothing more may be written."""


class WrongPassword(RepositoryError):
    """None of the repository's keys opens with this password."""


class UnsupportedFormat(RepositoryError):
    """The repository is of a version, or has parameters, that podlift does not serve."""


class TreeTooLarge(RepositoryError):
    """The tree of a directory does not fit into a pack, or there is no room to make it."""


class MalformedData(RepositoryError):
    """Stored bytes do not decode; ``what`` names the thing, ``reason`` the place."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} is damaged: {reason}")
        self.what = what
        self.reason = reason


class DamagedBlob(RepositoryError):
    """A sealed blob does not open, or opens to other bytes than its id promises."""


class DamagedPack(RepositoryError):
    """A pack that was stored does not read as it was sent, ``pack`` in hexadecimal, at ``place``."""

    def __init__(self, pack: str, place: str, damage: str) -> None:
        super().__init__(
            f"pack {pack} in {place} is damaged: {damage}. No index names it, so nothing relies on it."
            " Look for the fault in the storage, in what lies between, and in this machine's memory;"
            " then run again, which sends what is missing. `podlift check --read-data` shows whether"
            " older packs suffered, `podlift prune` removes this one"
        )
        self.pack = pack
        self.place = place
        self.damage = damage


class ClusterError(PodliftError):
    """An object of the cluster is missing, malformed, or forbids the work."""


class ApiError(ClusterError):
    """The API server refused a request, or no whole answer came.

    ``status`` is the HTTP status, or 0 without an answer: a write may have been carried out all
    the same, unless ``sent`` is false. ``retry_after_seconds`` is the server's wish, or None.
    ``unserved`` says of a 404 that the server knows no such kind (yet), and so nothing of the object.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        sent: bool = True,
        retry_after_seconds: float | None = None,
        unserved: bool = False,
    ) -> None:
        super().__init__(message)
        self.unserved = unserved
        self.status = status
        self.sent = sent
        self.retry_after_seconds = retry_after_seconds

    @property
    def passing(self) -> bool:
        """Tell whether it may heal by itself: a server that is away, full or broken, a token to renew."""
        return self.status in (0, 401, 408, 429) or self.status >= 500
